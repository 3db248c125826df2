// The timeline: a bar for each window, coloured by its best label, as high as its probability.
import type { Span } from '../media/sampling';
import type { Score } from '../model/protocol';
import { ranking } from './bars';
import { element, moment, percent } from './page';

const COLOURS = 5;               // further labels share a last one

interface Segment {
  span: Span;
  button: HTMLButtonElement;
  label: string;
}

export class Timeline {
  private readonly root = element('timeline');
  private readonly playhead = document.createElement('span');
  private segments: Segment[] = [];
  private duration = 0;

  /** seek: called with the begin of the window that was chosen. */
  constructor(private readonly seek: (time: number) => void) {
    this.playhead.className = 'playhead';
    this.root.addEventListener('keydown', (event) => this.move(event));
  }

  /** Shows empty windows of a video; no windows hide the timeline. */
  reset(spans: Span[], duration: number): void {
    this.duration = duration;
    this.segments = spans.map((span) => this.makeSegment(span));
    this.root.replaceChildren(...this.segments.map(({ button }) => button), this.playhead);
    this.focusable(0);
    this.place();
    this.drawLegend();
    element('timeline-section').hidden = !spans.length;
  }

  /** Adds a window of a live picture; the oldest beyond `most` are dropped. */
  append(span: Span, score: Score, most: number): void {
    const focused = this.segments.findIndex(({ button }) => button === document.activeElement);
    const kept = this.segments.slice(-(most - 1));
    this.segments = [...kept, this.makeSegment(span)];
    this.root.replaceChildren(...this.segments.map(({ button }) => button));
    this.duration = 0;
    this.place();
    this.set(this.segments.length - 1, score);
    this.focusable(Math.max(focused, 0));
    element('timeline-section').hidden = false;
  }

  /** Shows the answer for a window. */
  set(place: number, score: Score): void {
    const segment = this.segments[place];
    if (!segment) {
      return;
    }
    const best = ranking(score)[0]!;
    const { button, span } = segment;
    segment.label = score.labels[best]!;
    const probability = score.probabilities[best]!;
    button.style.setProperty('--height', percent(probability));
    const text = `${moment(span.begin)} to ${moment(span.end)}: ${segment.label}, ${
      percent(probability)}`;
    button.setAttribute('aria-label', text);
    button.title = text;
    this.drawLegend();
  }

  /** Moves the line that shows the time of the player. */
  setTime(time: number): void {
    this.playhead.style.left = `${(100 * time) / (this.duration || 1)}%`;
    this.playhead.hidden = !this.duration;
  }

  private makeSegment(span: Span): Segment {
    const button = document.createElement('button');
    button.type = 'button';
    button.tabIndex = -1;
    button.setAttribute('aria-label', `${moment(span.begin)} to ${moment(span.end)}: not yet known`);
    button.addEventListener('click', () => this.seek(span.begin));
    return { span, button, label: '' };
  }

  private place(): void {
    const begin = this.duration ? 0 : this.segments[0]?.span.begin ?? 0;
    const end = this.duration || (this.segments.at(-1)?.span.end ?? 1);
    for (const { button, span } of this.segments) {
      button.style.left = `${(100 * (span.begin - begin)) / (end - begin)}%`;
      button.style.width = `${(100 * (span.end - span.begin)) / (end - begin)}%`;
    }
    this.setTime(0);
  }

  /** Colours labels in the order of their share of the time, and lists them. */
  private drawLegend(): void {
    const seconds = new Map<string, number>();
    let known = 0;
    for (const { label, span } of this.segments.filter((segment) => segment.label)) {
      seconds.set(label, (seconds.get(label) ?? 0) + span.end - span.begin);
      known += span.end - span.begin;
    }
    const labels = [...seconds.keys()].sort((a, b) => seconds.get(b)! - seconds.get(a)!);
    const colour = (label: string) => String(Math.min(labels.indexOf(label), COLOURS));
    for (const { button, label } of this.segments) {
      button.dataset['colour'] = label ? colour(label) : '';
    }
    element('legend').replaceChildren(...labels.map((label) => {
      const item = document.createElement('li');
      item.dataset['colour'] = colour(label);
      item.textContent = `${label} `;
      const share = item.appendChild(document.createElement('span'));
      share.className = 'muted';
      share.textContent = `${Math.round((100 * seconds.get(label)!) / known)}% of the time`;
      return item;
    }));
  }

  /** Lets one window take part in the order of the Tab key; arrow keys reach the others. */
  private focusable(place: number): void {
    this.segments.forEach(({ button }, i) => { button.tabIndex = i === place ? 0 : -1; });
  }

  private move(event: KeyboardEvent): void {
    const now = this.segments.findIndex(({ button }) => button === document.activeElement);
    const last = this.segments.length - 1;
    const places: Record<string, number> = {
      ArrowLeft: Math.max(now - 1, 0), ArrowRight: Math.min(now + 1, last), Home: 0, End: last,
    };
    const place = places[event.key];
    if (now < 0 || place === undefined) {
      return;
    }
    event.preventDefault();
    this.focusable(place);
    this.segments[place]!.button.focus();
  }
}
