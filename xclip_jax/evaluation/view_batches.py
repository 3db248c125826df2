"""How many videos, and how many views of each, the devices predict at once.

A clip here is one view of one video. An evaluation's batch size counts clips, so that the memory
that a prediction needs does not depend on the number of views.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from xclip_jax.errors import UserError


class Sizes(NamedTuple):
  """The sizes of an evaluation."""

  videos: int     # in a batch, over all devices; a multiple of the shards
  views: int      # of each of them that are predicted at once


def sizes(batch_size: int, views: int, shards: int) -> Sizes:
  """Returns the videos of a batch and the views predicted at once.

  A prediction is of at most `batch_size` clips: as many videos as fit with all of their views, and
  where those of one video a shard do not fit, their views in parts of equal size.

  Args:
    batch_size: clips predicted at once, over all devices.
    views: V of each video.
    shards: parts that the devices cut a batch into.

  Raises:
    ValueError: batch_size is not a positive multiple of the shards.
  """
  if batch_size < 1 or batch_size % shards:
    raise UserError(
      f'{batch_size} does not divide by {shards} shards; set it to a multiple of {shards}')
  videos = max(batch_size // views // shards, 1) * shards
  parts = -(-views // max(batch_size // videos, 1))
  return Sizes(videos, -(-views // parts))


def parts(video: np.ndarray, views: int) -> Iterator[np.ndarray]:
  """Yields the views of a batch, some at a time.

  Args:
    video: [B, V, T, H, W, 3], or [B, T, H, W, 3] where there is one view.
    views: v, how many at a time.

  Yields:
    [B * v, T, H, W, 3], the views of each video next to each other. All parts are of one shape, so
    that one program predicts them: the last one repeats the last view.
  """
  video = video if video.ndim == 6 else video[:, None]
  for first in range(0, video.shape[1], views):
    part = video[:, first:first + views]
    if part.shape[1] < views:
      part = np.concatenate([part, np.repeat(part[:, -1:], views - part.shape[1], axis=1)], axis=1)
    yield part.reshape(-1, *part.shape[2:])


def joined(found: list[np.ndarray], views: int) -> np.ndarray:
  """Joins what was predicted from the parts of a batch: [B, v, K] each to [B, V, K]."""
  return np.concatenate(found, axis=1)[:, :views]


def fetch_late(started: Iterable[Any]) -> Iterator[Any]:
  """Yields what devices compute, as numpy arrays, in the same order.

  Each result is waited for after the next one has been started: devices always have one to go on
  with, and never hold more than two.

  Args:
    started: pytrees whose arrays are being computed; drawing the next one starts it.
  """
  waiting = []
  for result in started:
    waiting.append(result)
    del result
    if len(waiting) == 2:
      yield jax.device_get(waiting.pop(0))
  if waiting:
    yield jax.device_get(waiting.pop())
