"""Clips as the model takes them, cut out of video files and frames in threads."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from xclip_jax.data.clips import augment, sampling
from xclip_jax.data.video import decode
from xclip_jax.data.video.decode import VideoError
from xclip_jax.weights.native import Preprocess

_SECONDS = 600.0                           # time limit for reading one video

Video = str | os.PathLike | np.ndarray     # a file, or uint8 frames [F, H, W, 3] of any F, H and W


@dataclasses.dataclass(frozen=True)
class ClipReader:
  """Cuts clips as in evaluation: the middle frame of each of T equal parts, the centre square.

  Fields:
    num_frames: T.
    image_size: height and width of a clip, pixels.
    preprocess: the resize before the crop.
  """

  num_frames: int
  image_size: int
  preprocess: Preprocess

  def read(self, video: Video) -> np.ndarray:
    """Cuts the clip of a video, uint8 [T, H, W, 3].

    Raises:
      VideoError: the file cannot be read, or the frames are not uint8 [F, H, W, 3].
    """
    name, frames = self.read_frames(video)
    transform = augment.EvalTransform.of(self.preprocess, self.image_size)
    try:
      return transform(frames)
    except (cv2.error, MemoryError) as error:        # absurd picture sizes
      height, width = frames.shape[1:3]
      raise VideoError(f'{name}: cannot resize frames of {width} x {height} pixels') from error

  def read_frames(self, video: Video) -> tuple[str, np.ndarray]:
    """Reads the frames of the clip at their own size: the video's name, and uint8 [T, H, W, 3].

    Raises:
      VideoError: the file cannot be read, or the frames are not uint8 [F, H, W, 3].
    """
    choose_frames = lambda count: sampling.test_indices(count, self.num_frames)
    if isinstance(video, str | os.PathLike):
      return os.fspath(video), decode.read_video(
        video, choose_frames, _SECONDS, square_pixels=self.preprocess.square_pixels)
    name, frames = 'a video given as frames', np.asarray(video)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
      raise VideoError(
        f'{name} must be uint8 [F, H, W, 3] with values 0..255 (a list holds several videos), '
        f'got {frames.dtype} {list(frames.shape)}')
    return name, frames[choose_frames(len(frames))]

  @contextlib.contextmanager
  def read_each(
    self, videos: Iterable[Video], ahead: int
  ) -> Iterator[Iterator[np.ndarray | VideoError]]:
    """Yields an iterator over the clips, or errors, of videos in their order.

    Threads start to decode at once and keep at most `ahead` clips ready.
    """
    pool = concurrent.futures.ThreadPoolExecutor(min(ahead, os.cpu_count() or 1), 'decode')
    remaining = iter(videos)
    submit = lambda count: [
      pool.submit(self._try_read, video) for video in itertools.islice(remaining, count)]
    try:
      pending = collections.deque(submit(ahead))

      def clips() -> Iterator[np.ndarray | VideoError]:
        while pending:
          clip = pending.popleft().result()
          pending.extend(submit(1))
          yield clip

      yield clips()
    finally:
      pool.shutdown(cancel_futures=True)

  def _try_read(self, video: Video) -> np.ndarray | VideoError:
    try:
      return self.read(video)
    except VideoError as error:
      return error


class FrameReader(ClipReader):
  """Reads the frames of clips at their own size, for graphs that resize them."""

  def read(self, video: Video) -> np.ndarray:
    """Returns the frames of the clip of a video, uint8 [T, H, W, 3]; VideoError as above."""
    return self.read_frames(video)[1]
