// Pixels of what a video element shows.

const LARGEST_SHORT_SIDE = 720;

/**
 * Draws frames of one size and returns them as RGB.
 *
 * The browser converts to RGB. Its values are those of xclip_jax but for rounding (3 of 255 at most
 * on the sample clips). A file of 720 lines that does not say which colours it has differed by more:
 * Chromium seems to take BT.709 for it, where xclip_jax takes BT.601.
 */
export class PixelReader {
  readonly width: number;
  readonly height: number;
  private readonly context: OffscreenCanvasRenderingContext2D;

  /** Frames keep their size, unless their short side is over 720: then they are scaled to it. */
  constructor(private readonly video: HTMLVideoElement) {
    const short = Math.min(video.videoWidth, video.videoHeight);
    const scale = Math.min(1, LARGEST_SHORT_SIDE / short);
    this.width = Math.max(1, Math.round(video.videoWidth * scale));
    this.height = Math.max(1, Math.round(video.videoHeight * scale));
    const canvas = new OffscreenCanvas(this.width, this.height);
    this.context = canvas.getContext('2d', { willReadFrequently: true, alpha: false })!;
    this.context.imageSmoothingQuality = 'high';
  }

  /** Returns the frame that is shown now: uint8 [H, W, 3]. */
  read(): Uint8Array {
    const { width, height } = this;
    this.context.drawImage(this.video, 0, 0, width, height);
    const { data } = this.context.getImageData(0, 0, width, height, { colorSpace: 'srgb' });
    const frame = new Uint8Array(width * height * 3);
    for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
      frame[to] = data[from]!;
      frame[to + 1] = data[from + 1]!;
      frame[to + 2] = data[from + 2]!;
    }
    return frame;
  }
}

/** Puts frames of one size behind each other: uint8 [T, H, W, 3]. */
export function stack(frames: Uint8Array[]): Uint8Array {
  const size = frames[0]!.length;
  const all = new Uint8Array(frames.length * size);
  frames.forEach((frame, i) => all.set(frame, i * size));
  return all;
}
