"""Which frames of a video a clip is made of."""

from collections.abc import Callable

import numpy as np


def train_indices(
  num_video_frames: int, num_frames: int, randint: Callable[..., np.ndarray]
) -> np.ndarray:
  """Draw one frame from each of T equal segments, as the reference does in training.

  The last `num_video_frames % num_frames` frames are never drawn. A video with fewer than T frames
  is spread over the clip with repeats, and then nothing is random; the last slot may wrap around to
  frame 0, which is how the published models were trained.

  Args:
    num_video_frames: frames the video really has, at least 1.
    num_frames: T.
    randint: `Generator.integers` or `RandomState.randint`; called as `randint(high, size=T)`.

  Returns:
    int [T], each in 0..num_video_frames-1.
  """
  slots = np.arange(num_frames)
  segment = num_video_frames // num_frames
  if segment:
    return slots * segment + randint(segment, size=num_frames)
  return np.around(slots * (num_video_frames / num_frames)).astype(int) % num_video_frames


def test_indices(num_video_frames: int, num_frames: int) -> np.ndarray:
  """Take the middle frame of each of T equal segments: int [T]."""
  segment = num_video_frames / num_frames
  return (np.arange(num_frames) * segment + segment / 2).astype(int)
