"""Views of a batch of videos: their frame orders, and how many the devices predict at once.

A clip here is one view of one video. An evaluation's batch size counts clips, so that the memory
of a prediction does not depend on the number of views.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xclip_jax.errors import UserError


def in_order(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Returns the frames as they were filmed."""
  return video


def backwards(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Plays every clip backwards."""
  return video[:, :, ::-1]


def shuffled(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Shuffles the frames by random numbers of the row alone: alike in every evaluation."""
  T = video.shape[2]
  orders = [np.random.default_rng(max(int(i), 0)).permutation(T) for i in index]
  return np.take_along_axis(video, np.array(orders)[:, None, :, None, None, None], axis=2)


def single_frame(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Shows the middle frame T times."""
  T = video.shape[2]
  return np.repeat(video[:, :, T // 2 : T // 2 + 1], T, axis=2)


# Frame orders of the does-it-use-time test, for videos [B, V, T, H, W, 3] and their rows [B].
FRAME_ORDERS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  'in order': in_order,
  'shuffled': shuffled,
  'reversed': backwards,
  'single frame': single_frame,
}


def arrange(video: np.ndarray, index: np.ndarray, orders: Sequence[str]) -> np.ndarray:
  """Puts the views of a batch in some frame orders next to each other.

  Args:
    video: uint8 [B, V, T, H, W, 3], or [B, T, H, W, 3] of one view.
    index: int [B], rows of the annotation list.
    orders: keys of FRAME_ORDERS.

  Returns:
    uint8 [B, orders x V, T, H, W, 3], all views of the first order first.
  """
  video = video if video.ndim == 6 else video[:, None]
  arranged = [FRAME_ORDERS[order](video, index) for order in orders]
  return arranged[0] if len(arranged) == 1 else np.concatenate(arranged, axis=1)


class Sizes(NamedTuple):
  """Sizes of an evaluation's batches.

  Fields:
    videos: of a batch, over all devices; a multiple of the shards.
    views: of each video that are predicted at once.
  """

  videos: int
  views: int


def sizes(batch_size: int, views: int, shards: int) -> Sizes:
  """Divides a number of clips into videos of a batch and views predicted at once.

  As many videos as fit with all of their views. If the views of one video a shard do not fit, its
  views are predicted in parts of equal size.

  Args:
    batch_size: most clips predicted at once, over all devices.
    views: V of each video.
    shards: parts that the devices cut a batch into.

  Raises:
    UserError: batch_size is not a positive multiple of the shards.
  """
  if batch_size < 1 or batch_size % shards:
    raise UserError(
      f'{batch_size} does not divide by {shards} shards; set it to a multiple of {shards}')
  videos = max(batch_size // views // shards, 1) * shards
  parts = -(-views // max(batch_size // videos, 1))
  return Sizes(videos, -(-views // parts))


def split_views(video: np.ndarray, views: int) -> Iterator[np.ndarray]:
  """Yields the views of a batch in parts of one shape, so that one program predicts them.

  Args:
    video: [B, V, T, H, W, 3].
    views: v, size of a part.

  Yields:
    [B * v, T, H, W, 3], the views of each video next to each other. The last part repeats the last
    view as padding.
  """
  for first in range(0, video.shape[1], views):
    part = video[:, first:first + views]
    if part.shape[1] < views:
      part = np.concatenate([part, np.repeat(part[:, -1:], views - part.shape[1], axis=1)], axis=1)
    yield part.reshape(-1, *part.shape[2:])


def join_views(parts: list[np.ndarray], views: int) -> np.ndarray:
  """Joins predictions of the parts of a batch: [B, v, K] each to [B, V, K]."""
  return np.concatenate(parts, axis=1)[:, :views]


def fetch_late(started: Iterable[Any]) -> Iterator[Any]:
  """Yields results of the devices as numpy arrays, in order.

  Each result is fetched after the next one was started: devices always have one more to compute,
  and never hold more than two.

  Args:
    started: pytrees of arrays that are being computed; drawing the next one starts it.
  """
  waiting = []
  for result in started:
    waiting.append(result)
    del result
    if len(waiting) == 2:
      yield jax.device_get(waiting.pop(0))
  if waiting:
    yield jax.device_get(waiting.pop())
