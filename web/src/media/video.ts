// Reads frames of a video file, which the browser decodes.
import { PageError, type Clip } from '../model/protocol';
import { PixelReader, stack } from './pixels';
import { middles, type Span } from './sampling';

const OPEN_SECONDS = 30;
const SEEK_SECONDS = 10;
const SHOWN_SECONDS = 0.25;      // after `seeked`, until a frame must have been presented

/** A video of its own, apart from the one that is watched: it seeks from frame to frame. */
export class VideoReader {
  private readonly pixels: PixelReader;
  private last: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly name: string, private readonly video: HTMLVideoElement,
    readonly duration: number,
  ) {
    this.pixels = new PixelReader(video);
  }

  /** Opens the video at a URL; throws a PageError if the browser cannot play it. */
  static async open(url: string, name: string): Promise<VideoReader> {
    const video = document.createElement('video');
    Object.assign(video, { muted: true, playsInline: true, preload: 'auto', src: url });
    const problem = () => {
      const unsupported = video.error?.code === MediaError.MEDIA_ERR_SRC_NOT_SUPPORTED;
      return new PageError(unsupported
        ? `${name} cannot be played: it is no video, or of a kind that this browser cannot decode.`
        : `${name} is damaged: the browser stopped decoding it.`);
    };
    await event(video, 'loadeddata', OPEN_SECONDS, name, problem);
    if (!video.videoWidth) {
      throw new PageError(`${name} has no pictures, only sound.`);
    }
    return new VideoReader(name, video, await findDuration(video, name, problem));
  }

  /** Reads the clip of a span: the middle frame of each of T equal parts. */
  read(span: Span, numFrames: number): Promise<Clip> {
    // One after the other: two readers that seek in one video would get each other's frames.
    const clip = this.last.then(() => this.readNow(span, numFrames));
    this.last = clip.catch(() => {});
    return clip;
  }

  private async readNow(span: Span, numFrames: number): Promise<Clip> {
    const frames: Uint8Array[] = [];
    for (const time of middles(span, numFrames)) {
      await this.seek(Math.min(time, this.duration));
      frames.push(this.pixels.read());
    }
    return { frames: stack(frames), width: this.pixels.width, height: this.pixels.height };
  }

  close(): void {
    this.video.removeAttribute('src');
    this.video.load();
  }

  private async seek(time: number): Promise<void> {
    const { video } = this;
    if (video.currentTime === time) {
      return;
    }
    // `seeked` may come before the frame can be drawn; browsers that can, tell when it is shown.
    const shown = new Promise<void>((resolve) => {
      if (video.requestVideoFrameCallback) {
        video.requestVideoFrameCallback(() => resolve());
      } else {
        resolve();
      }
    });
    video.currentTime = time;
    await event(video, 'seeked', SEEK_SECONDS, this.name, () => new PageError(
      `${this.name} is damaged: the browser stopped decoding it at ${time.toFixed(1)} s.`));
    await Promise.race([shown, sleep(SHOWN_SECONDS)]);
  }
}

/** Recordings of browsers do not say how long they are until their end has been looked for. */
async function findDuration(
  video: HTMLVideoElement, name: string, problem: () => PageError,
): Promise<number> {
  if (video.duration === Infinity) {
    video.currentTime = Number.MAX_SAFE_INTEGER;
    await event(video, 'seeked', OPEN_SECONDS, name, problem);
  }
  const duration = video.duration === Infinity ? video.currentTime : video.duration;
  if (!(duration > 0)) {
    throw new PageError(`${name} has no length; it may be a single picture.`);
  }
  return duration;
}

function event(
  video: HTMLVideoElement, kind: string, seconds: number, name: string, problem: () => PageError,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const finish = (action: () => void) => () => {
      clearTimeout(timer);
      video.removeEventListener(kind, succeed);
      video.removeEventListener('error', fail);
      action();
    };
    const succeed = finish(resolve);
    const fail = finish(() => reject(problem()));
    const timer = setTimeout(finish(() => reject(new PageError(
      `${name}: the browser gave no frame within ${seconds} s.`))), seconds * 1000);
    video.addEventListener(kind, succeed);
    video.addEventListener('error', fail);
  });
}

function sleep(seconds: number): Promise<void> {
  return new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });
}
