// The elements of index.html, and what is said in them.

export function element<Kind extends HTMLElement>(id: string): Kind {
  const found = document.getElementById(id);
  if (!found) {
    throw new Error(`index.html has no element #${id}`);
  }
  return found as Kind;
}

/** Shows a sentence in an element, or hides the element if there is none. */
export function say(id: string, text: string): void {
  const target = element(id);
  if (target.textContent !== text) {          // a screen reader says again what is written again
    target.textContent = text;
  }
  target.hidden = !text;
}

/** Tells how far loading is; null ends it. */
export function showProgress(progress: { share: number; text: string } | null): void {
  element('loading').hidden = progress === null;
  if (progress) {
    element<HTMLProgressElement>('progress').value = progress.share;
    element('progress-text').textContent = progress.text;
  }
}

/** Shows a file (a URL) or a camera in the player; null shows none. */
export function showInPlayer(source: string | MediaStream | null): HTMLVideoElement {
  const player = element<HTMLVideoElement>('player');
  const isLive = typeof source !== 'string';
  player.srcObject = isLive ? source : null;
  if (!isLive) {
    player.src = source;
  } else {
    player.removeAttribute('src');
  }
  player.hidden = source === null;
  player.controls = !isLive;
  element('stage').classList.toggle('empty', source === null);
  return player;
}

/** Returns a probability as people read it: '97.3%'. */
export function percent(probability: number): string {
  return `${(probability * 100).toFixed(1)}%`;
}

/** Returns a moment of a video: '4.25 s', '48 s', '1:07'. */
export function moment(seconds: number): string {
  if (seconds < 60) {
    return `${Number(seconds.toFixed(seconds < 10 ? 2 : 0))} s`;
  }
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`;
}
