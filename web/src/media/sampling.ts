// Which moments of a video make a clip, and which windows a timeline has.

const MOST_WINDOWS = 60;

export interface Span {
  begin: number;      // seconds
  end: number;
}

/**
 * Returns the middle of each of T equal parts of a span, in seconds.
 *
 * For a video with a constant frame rate these are the frames of
 * xclip_jax.data.clips.sampling.test_indices. The middle often is the very moment at which a frame
 * begins; a millisecond more keeps the frame before it from being shown instead.
 */
export function middles({ begin, end }: Span, numFrames: number): number[] {
  const part = (end - begin) / numFrames;
  const late = Math.min(0.001, part / 4);
  return Array.from({ length: numFrames }, (_, i) => begin + part * (i + 0.5) + late);
}

/** Returns a window length that suits a video: 2 s; down to 1 s for short ones, more for long ones. */
export function windowLength(duration: number): number {
  const length = Math.max(Math.min(2, duration / 4), 1, duration / MOST_WINDOWS);
  return Number(length.toPrecision(2));
}

/** Cuts a video into windows of nearly a length, all equal. */
export function windows(duration: number, length: number): Span[] {
  const count = Math.max(1, Math.round(duration / length));
  return Array.from({ length: count }, (_, i) => ({
    begin: (duration * i) / count, end: (duration * (i + 1)) / count,
  }));
}
