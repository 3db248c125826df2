// The camera: the last T frames, again and again.
import { PageError, type Clip } from '../model/protocol';
import { PixelReader, stack } from './pixels';

export class Camera {
  private constructor(readonly stream: MediaStream) {}

  /** Asks for the camera; throws a PageError if there is none or it is not allowed. */
  static async open(): Promise<Camera> {
    if (!navigator.mediaDevices) {
      throw new PageError('The camera works only on https:// pages and on localhost.');
    }
    try {
      return new Camera(await navigator.mediaDevices.getUserMedia(
        { audio: false, video: { width: { ideal: 640 } } }));
    } catch (error) {
      const reason = error instanceof DOMException ? error.name : '';
      const messages: Record<string, string> = {
        NotAllowedError: 'The camera was not allowed; allow it beside the address of this page.',
        NotFoundError: 'This device has no camera that the browser can use.',
        NotReadableError: 'Another program is using the camera; close it and try again.',
      };
      throw new PageError(messages[reason] ?? `The camera cannot be used: ${reason || error}.`);
    }
  }

  /**
   * Yields clips of the last T frames, taken evenly over a window. The first comes after one
   * window; later ones as fast as the caller takes them, each with at least one new frame.
   */
  async *clips(
    video: HTMLVideoElement, numFrames: number, windowSeconds: number,
  ): AsyncGenerator<Clip & { end: number }> {
    const pixels = new PixelReader(video);
    const started = performance.now();
    const step = (windowSeconds / numFrames) * 1000;
    const frames: Uint8Array[] = [];
    for (let due = started + step / 2; this.stream.active; due += step) {
      const wait = due - performance.now();
      if (wait > 0) {
        await new Promise((resolve) => { setTimeout(resolve, wait); });
      } else if (wait < -step) {
        due = performance.now();       // the model is slower than the camera: drop what was missed
        frames.length = 0;
      }
      frames.push(pixels.read());
      if (frames.length > numFrames) {
        frames.shift();
      }
      if (frames.length === numFrames) {
        const end = (performance.now() - started) / 1000;
        yield { frames: stack(frames), width: pixels.width, height: pixels.height, end };
      }
    }
  }

  close(): void {
    this.stream.getTracks().forEach((track) => track.stop());
  }
}
