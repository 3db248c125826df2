// The page's side of the worker: each request is a promise.
import {
  PageError, type Clip, type ModelFacts, type Progress, type Reply, type Request, type Score,
} from './protocol';

interface Waiting {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

export class ModelClient {
  private readonly worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' });
  private readonly waiting = new Map<number, Waiting>();
  private nextId = 0;

  constructor(private readonly report: (progress: Progress) => void) {
    this.worker.onmessage = ({ data }: MessageEvent<Reply>) => this.receive(data);
    this.worker.onerror = (event) => this.failAll(
      new PageError(`The model's worker did not start: ${event.message || 'its script is missing'}.`));
  }

  load(base: string): Promise<ModelFacts> {
    return this.ask({ kind: 'load', base });
  }

  setLabels(labels: string[]): Promise<void> {
    return this.ask({ kind: 'labels', labels });
  }

  /** Encodes a clip and returns its number for `score`. The frames move to the worker. */
  encode(clip: Clip): Promise<number> {
    return this.ask({ kind: 'encode', clip }, [clip.frames.buffer]);
  }

  /** Compares an encoded clip with the labels. */
  score(video: number): Promise<Score> {
    return this.ask({ kind: 'score', video });
  }

  /** Frees the features of all clips but those to keep. */
  forget(keep: number[] = []): Promise<void> {
    return this.ask({ kind: 'forget', keep });
  }

  private ask<Result>(request: Request, moved: Transferable[] = []): Promise<Result> {
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve: resolve as (result: unknown) => void, reject });
      this.worker.postMessage({ id, request }, moved);
    });
  }

  private receive(reply: Reply): void {
    if (reply.kind === 'progress') {
      this.report(reply.progress);
      return;
    }
    const waiting = this.waiting.get(reply.id);
    this.waiting.delete(reply.id);
    if (reply.kind === 'done') {
      waiting?.resolve(reply.result);
    } else {
      waiting?.reject(reply.isOurs ? new PageError(reply.message) : new Error(reply.message));
    }
  }

  private failAll(error: Error): void {
    this.waiting.forEach(({ reject }) => reject(error));
    this.waiting.clear();
  }
}
