// Messages between the page and the worker that runs the model.

/** What the page needs to know of a model. */
export interface ModelFacts {
  source: string;
  numFrames: number;
  imageSize: number;
  labels: string[];
  template: string[];
  threads: number;
}

/** T frames of one size: uint8 [T, H, W, 3], RGB. */
export interface Clip {
  frames: Uint8Array;
  width: number;
  height: number;
}

/** Shares of the labels that were set when the score was made. */
export interface Score {
  labels: string[];
  probabilities: number[];
}

export type Request =
  | { kind: 'load'; base: string }
  | { kind: 'labels'; labels: string[] }
  | { kind: 'encode'; clip: Clip }
  | { kind: 'score'; video: number }
  | { kind: 'forget'; keep: number[] };

/** Share of the bytes of the model that have come, and a text about it. */
export interface Progress {
  share: number;
  text: string;
}

export type Reply =
  | { kind: 'progress'; progress: Progress }
  | { kind: 'done'; id: number; result: unknown }
  | { kind: 'failed'; id: number; message: string; isOurs: boolean };

/** An error whose message is one sentence for the reader of the page. */
export class PageError extends Error {}
