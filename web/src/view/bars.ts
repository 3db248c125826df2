// The labels that fit best, as bars.
import type { Score } from '../model/protocol';
import { element, percent } from './page';

const SHOWN = 5;

/** Returns the places of labels in a score, the best first. */
export function ranking({ probabilities }: Score): number[] {
  return [...probabilities.keys()].sort((a, b) => probabilities[b]! - probabilities[a]!);
}

/** Shows the best labels of a score; null removes them. */
export function showBars(score: Score | null): void {
  const list = element('bars');
  const places = score ? ranking(score).slice(0, SHOWN) : [];
  while (list.children.length > places.length) {
    list.lastElementChild!.remove();
  }
  places.forEach((place, i) => {
    const row = list.children[i] ?? list.appendChild(makeRow());
    const probability = score!.probabilities[place]!;
    const [label, value, track] = row.children as unknown as HTMLElement[];
    label!.textContent = score!.labels[place]!;
    value!.textContent = percent(probability);
    (track!.firstElementChild as HTMLElement).style.width = percent(probability);
  });
}

function makeRow(): HTMLElement {
  const row = document.createElement('li');
  for (const name of ['label', 'value', 'track']) {
    row.appendChild(document.createElement('span')).className = name;
  }
  const track = row.lastElementChild!;
  track.setAttribute('aria-hidden', 'true');          // the value says the same
  track.appendChild(document.createElement('span'));
  return row;
}
