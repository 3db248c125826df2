// What the page does: a video or the camera goes in, answers come out.
import { Camera } from './media/camera';
import { windowLength, windows, type Span } from './media/sampling';
import { VideoReader } from './media/video';
import type { ModelClient } from './model/client';
import { PageError, type ModelFacts, type Score } from './model/protocol';
import { splitLabels } from './model/texts';
import { ranking, showBars } from './view/bars';
import { element, percent, say, showInPlayer } from './view/page';
import { Timeline } from './view/timeline';

const LIVE_SECONDS = 2;          // of a window of the camera
const LIVE_WINDOWS = 60;

interface Encoded {
  video: number;                 // number of the features in the worker
  place: number;                 // on the timeline; -1 is the whole video
}

export class App {
  private readonly timeline: Timeline;
  private encoded: Encoded[] = [];
  private reader: VideoReader | null = null;
  private camera: Camera | null = null;
  private url = '';
  private name = '';
  /** Number of the latest video, camera or window length: work for an older one stops. */
  private job = 0;

  constructor(private readonly model: ModelClient, private readonly facts: ModelFacts) {
    this.timeline = new Timeline((time) => {
      const player = element<HTMLVideoElement>('player');
      if (!this.camera) {
        player.currentTime = time;
      }
    });
    const player = element<HTMLVideoElement>('player');
    const follow = () => {
      this.timeline.setTime(player.currentTime);
      requestAnimationFrame(follow);
    };
    follow();
  }

  /**
   * Classifies a file, the whole of it and window by window. A URL is loaded whole first: browsers
   * can only seek in what a server sends in ranges, and the simplest servers do not.
   */
  async open(source: Blob | string, name: string): Promise<void> {
    const job = this.begin(name);
    try {
      say('status', `Opening ${name}…`);
      const blob = typeof source === 'string' ? await load(source) : source;
      if (job !== this.job) {
        return;
      }
      const url = this.url = URL.createObjectURL(blob);
      const reader = await VideoReader.open(url, name);
      if (job !== this.job) {
        reader.close();
        return;
      }
      this.reader = reader;
      void showInPlayer(url).play().catch(() => {});        // a browser may forbid it; then it waits
      element<HTMLInputElement>('window-seconds').value = String(windowLength(reader.duration));
      say('status', `Looking at ${name}…`);
      await this.encode(job, { begin: 0, end: reader.duration }, -1);
      await this.fillTimeline();
    } catch (error) {
      this.fail(job, error);
    }
  }

  /** Classifies window by window again, with the length that the field says. */
  async fillTimeline(): Promise<void> {
    const { reader } = this;
    const length = element<HTMLInputElement>('window-seconds').valueAsNumber;
    if (!reader || !(length > 0)) {
      return;
    }
    const job = ++this.job;
    this.encoded = this.encoded.filter(({ place }) => place < 0);
    void this.model.forget(this.encoded.map(({ video }) => video));
    const spans = windows(reader.duration, length);
    this.timeline.reset(spans, reader.duration);
    try {
      for (const [place, span] of spans.entries()) {
        await this.encode(job, span, place);
        if (job !== this.job) {
          return;
        }
      }
    } catch (error) {
      this.fail(job, error);
    }
  }

  /** Compares everything with other labels. Returns the sentence that says why not, or ''. */
  async setLabels(typed: string): Promise<string> {
    const labels = splitLabels(typed);
    element('label-count').textContent = `${labels.length} ${labels.length === 1 ? 'label' : 'labels'}`;
    if (!labels.length) {
      return 'Write at least one label.';
    }
    try {
      await this.model.setLabels(labels);
    } catch (error) {
      return report(error);
    }
    for (const encoded of this.encoded) {
      await this.score(this.job, encoded);
    }
    return '';
  }

  /** Starts the camera, or stops it. */
  async toggleCamera(): Promise<void> {
    if (this.camera) {
      this.begin('');
      say('status', 'The camera is off. Choose a video to begin.');
      return;
    }
    const job = this.begin('');
    try {
      say('status', 'Asking for the camera…');
      const camera = await Camera.open();
      if (job !== this.job) {
        camera.close();
        return;
      }
      this.camera = camera;
      element('window-length').hidden = true;            // that of the camera is fixed
      element('camera').setAttribute('aria-pressed', 'true');
      element('camera').textContent = 'Stop the camera';
      await this.watch(job, camera);
    } catch (error) {
      this.fail(job, error);
    }
  }

  private async watch(job: number, camera: Camera): Promise<void> {
    const player = showInPlayer(camera.stream);
    await player.play();
    say('status', 'Looking…');
    let end = 0;
    for await (const clip of camera.clips(player, this.facts.numFrames, LIVE_SECONDS)) {
      if (job !== this.job) {
        return;
      }
      const video = await this.model.encode(clip);
      const score = await this.model.score(video);
      await this.model.forget();
      if (job !== this.job) {
        return;
      }
      this.showWhole(score);
      if (clip.end - end >= LIVE_SECONDS) {
        this.timeline.append({ begin: Math.max(end, clip.end - LIVE_SECONDS), end: clip.end },
          score, LIVE_WINDOWS);
        end = clip.end;
      }
    }
  }

  /** Leaves what was open, and returns the number of the new job. */
  private begin(name: string): number {
    this.reader?.close();
    this.camera?.close();
    this.reader = this.camera = null;
    this.encoded = [];
    this.name = name;
    void this.model.forget();
    showInPlayer(null);
    URL.revokeObjectURL(this.url);
    showBars(null);
    say('error', '');
    this.timeline.reset([], 0);
    element('window-length').hidden = false;
    element('camera').setAttribute('aria-pressed', 'false');
    element('camera').textContent = 'Use the camera';
    return ++this.job;
  }

  private async encode(job: number, span: Span, place: number): Promise<void> {
    const clip = await this.reader!.read(span, this.facts.numFrames);
    if (job !== this.job) {
      return;
    }
    const encoded = { video: await this.model.encode(clip), place };
    if (job !== this.job) {
      return;
    }
    this.encoded.push(encoded);
    await this.score(job, encoded);
  }

  private async score(job: number, { video, place }: Encoded): Promise<void> {
    const score = await this.model.score(video);
    if (job !== this.job) {
      return;
    }
    if (place < 0) {
      this.showWhole(score);
    } else {
      this.timeline.set(place, score);
    }
  }

  private showWhole(score: Score): void {
    showBars(score);
    const best = ranking(score)[0]!;
    const label = score.labels[best]!;
    // Of the camera without the percentage, which changes all the time and would be read out.
    say('status', this.camera ? `Now: ${label}.`
      : `${this.name}: ${label}, ${percent(score.probabilities[best]!)}.`);
  }

  private fail(job: number, error: unknown): void {
    const message = report(error);
    if (job === this.job) {
      this.begin('');
      say('status', 'Choose a video to begin.');
      say('error', message);
    }
  }
}

async function load(url: string): Promise<Blob> {
  const response = await fetch(url);
  if (!response.ok) {
    throw new PageError(`${url} is missing (the server says ${response.status}).`);
  }
  return response.blob();
}

/** Returns the sentence for an error; one that is a bug is written to the console, too. */
export function report(error: unknown): string {
  if (error instanceof PageError) {
    return error.message;
  }
  console.error(error);
  return `Something went wrong in this page: ${error instanceof Error ? error.message : error}`;
}
