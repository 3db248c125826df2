"""Sampling of clips: the frames of a video that make a clip of T frames."""

import dataclasses
from collections.abc import Callable

import numpy as np

from xclip_jax.errors import UserError

Randint = Callable[..., np.ndarray]  # `Generator.integers` or `RandomState.randint`


@dataclasses.dataclass(frozen=True)
class ClipSampler:
  """Chooses the frames of one clip, or of several clips, of a video.

  Fields:
    num_frames: T.
    sampling: 'sparse' (T frames that span the whole video, the reference) or 'dense' (T frames
      `stride` apart, in a window of the video).
    stride: distance between the frames of a dense clip, in frames.
    views: how evaluation chooses more than one clip: 'centred' (spread evenly, always the same) or
      'reference' (each drawn as in training).
  """

  num_frames: int
  sampling: str = 'sparse'
  stride: int = 1
  views: str = 'centred'

  def __post_init__(self):
    if self.sampling not in ('sparse', 'dense'):
      raise UserError(f"sampling must be 'sparse' or 'dense', found {self.sampling!r}")
    if self.stride < 1:
      raise UserError(f'stride must be at least 1 frame, found {self.stride}')
    if self.views not in ('centred', 'reference'):
      raise UserError(f"views must be 'centred' or 'reference', found {self.views!r}")

  def train(self, num_video_frames: int, randint: Randint) -> np.ndarray:
    """Draws the frames of one training clip: int [T]."""
    if self.sampling == 'dense':
      return dense_train_indices(num_video_frames, self.num_frames, self.stride, randint)
    return train_indices(num_video_frames, self.num_frames, randint)

  def test(self, num_video_frames: int, clips: int, randint: Randint) -> np.ndarray:
    """Chooses the frames of evaluation clips: int [clips, T].

    Only several clips of 'reference' views call randint.
    """
    if clips > 1 and self.views == 'reference':
      return np.stack([self.train(num_video_frames, randint) for _ in range(clips)])
    if self.sampling == 'dense':
      return dense_test_indices(num_video_frames, self.num_frames, self.stride, clips)
    return view_indices(num_video_frames, self.num_frames, clips)


def train_indices(
  num_video_frames: int, num_frames: int, randint: Randint
) -> np.ndarray:
  """Draws one frame from each of T equal segments, as the reference does in training.

  The last `num_video_frames % num_frames` frames are never drawn. A video with fewer than T frames
  is spread over the clip with repeats, without randomness; the last slot may wrap around to frame
  0, as in the training of the published models.

  Args:
    num_video_frames: number of decodable frames, at least 1.
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
  """Returns the middle frame of each of T equal segments: int [T]."""
  segment = num_video_frames / num_frames
  return (np.arange(num_frames) * segment + segment / 2).astype(int)


def view_indices(num_video_frames: int, num_frames: int, clips: int) -> np.ndarray:
  """Returns the frames of `clips` clips that are spread evenly over the video.

  Each of T equal segments is cut into `clips` parts; clip v takes the middle of part v of every
  segment. One clip is `test_indices`.

  Returns:
    int [clips, T].
  """
  return test_indices(num_video_frames, num_frames * clips).reshape(num_frames, clips).T


def dense_train_indices(
  num_video_frames: int, num_frames: int, stride: int, randint: Randint
) -> np.ndarray:
  """Draws a window of T frames that are `stride` apart; all windows that fit are equally likely.

  If none fits, the window starts at frame 0, and the last frame of the video is repeated.

  Returns:
    int [T], each in 0..num_video_frames-1.
  """
  spare = max(num_video_frames - (num_frames - 1) * stride - 1, 0)
  return _window(randint(spare + 1, size=1), num_frames, stride, num_video_frames)[0]


def dense_test_indices(
  num_video_frames: int, num_frames: int, stride: int, clips: int = 1
) -> np.ndarray:
  """Spreads `clips` windows of T frames, `stride` apart, evenly; a single window is centred.

  Returns:
    int [clips, T]; a short video as in `dense_train_indices`.
  """
  spare = max(num_video_frames - (num_frames - 1) * stride - 1, 0)
  starts = ((np.arange(clips) + 0.5) * spare / clips).astype(int)
  return _window(starts, num_frames, stride, num_video_frames)


def _window(starts: np.ndarray, num_frames: int, stride: int, num_video_frames: int) -> np.ndarray:
  frames = np.asarray(starts)[:, None] + stride * np.arange(num_frames)          # [clips, T]
  return np.minimum(frames, num_video_frames - 1)
