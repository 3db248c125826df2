"""Batches of clips, read in threads or worker processes; their number changes no batch.

A batch is a dict of numpy arrays, B rows on this host:

  video   uint8 [B, T, S, S, 3]
  label   int32 [B]   class id
  index   int32 [B]   row of the source whose clip this is; -1: padding
  mask    bool  [B]   False: padding, or no readable video; the row must not count
  failed  int32 [B]   row of the source whose file could not be read, else -1
  error   S200  [B]   path of that file and the reason, UTF-8, else empty
  colors  float32 [B, T, 9]   colour operations left to the device, if the transform leaves any

With several views of a video (clips, crops) in evaluation, video is uint8 [B, V, T, S, S, 3].

Row i of the training stream depends on the seed and i alone, so the step number is the whole state:
resuming is slicing, and workers, threads and hosts change nothing but speed.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import cv2
import grain
import numpy as np

from xclip_jax.data import bad_files, shared_memory
from xclip_jax.data.clips import augment, sampling
from xclip_jax.data.clips.batch_iterator import Batches as Batches
from xclip_jax.data.clips.batch_iterator import Reading as Reading
from xclip_jax.data.video import decode
from xclip_jax.errors import UserError

_SUBSTITUTES = 8  # number of other rows tried in place of an unreadable one
_FOUR_THREADS = Reading()


class Source(Protocol):
  """Videos by row: dicts of path (str), label (int) and index (the row, int).

  A source that reads files itself adds video (bytes), or error (the reason why it could not, str).
  """

  def __len__(self) -> int: ...

  def __getitem__(self, row: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class HostShare:
  """Names the rows of every global batch that this host reads.

  Fields:
    batch_size: rows over all hosts; the global batch is the same whoever reads it.
    rows: numbers of the rows that this host reads, ascending; None: all of them.
  """

  batch_size: int
  rows: Sequence[int] | np.ndarray | None = None

  def check_rows(self, source: Source, repeats: int = 1) -> np.ndarray:
    """Returns the row numbers of this host, int [B]; UserError if they cannot be read."""
    if not len(source):
      raise UserError('there are no videos to read; the annotation file lists none')
    if repeats < 1:
      raise UserError(f'repeats must be at least 1, found {repeats}')
    if self.batch_size < 1 or self.batch_size % repeats:
      raise UserError(
        f'batch_size={self.batch_size} must be a positive multiple of repeats={repeats}')
    rows = np.arange(self.batch_size) if self.rows is None else np.asarray(self.rows)
    if not len(rows) or rows[0] < 0 or rows[-1] >= self.batch_size or (np.diff(rows) < 1).any():
      raise ValueError(
        f'rows must be some of 0..{self.batch_size - 1}, ascending, found {rows.tolist()[:8]}')
    return rows


@dataclasses.dataclass(frozen=True)
class TrainStream:
  """Decides the random order of a training stream, and its first batch.

  Fields:
    seed: decides the order of videos, the frames of clips and their augmentation.
    start_step: number of batches to skip, at no cost.
    repeats: R, rows that each drawn video gets, next to each other, with frames and augmentation of
      their own; the file is read once for them. An epoch of the stream is then R times as long.
  """

  seed: int
  start_step: int = 0
  repeats: int = 1


def train_batches(
  source: Source,
  transform: augment.TrainTransform,
  sampler: sampling.ClipSampler,
  share: HostShare,
  stream: TrainStream,
  reading: Reading = _FOUR_THREADS,
) -> Batches:
  """Shuffles, decodes and augments videos without end.

  A video that cannot be read is replaced by another one, drawn from the same random numbers, and
  reported in `failed` and `error`.

  Args:
    source: the videos, a `VideoList` for one; every epoch is another permutation of them.
    transform: augmentation of each clip, with random numbers of its own.
    sampler: draws the frames of each clip.
    share: rows of every global batch that this host reads.
    stream: seed, first batch and repeats of each video.
    reading: workers, threads and time limit.
  """
  rows, repeats = share.check_rows(source, stream.repeats), stream.repeats
  batch_bytes = len(rows) * sampler.num_frames * transform.image_size**2 * 3
  shared_memory.check(reading.workers, batch_bytes)
  # Sharding after repeat and random_map keeps global batches and random numbers the same for any
  # number of hosts; batching before mp_prefetch keeps the order the same for any number of workers.
  clips = (
    grain.MapDataset.source(cast(grain.sources.RandomAccessDataSource[dict], source))
    .seed(stream.seed % 2**32)
    .shuffle()
    .repeat()
    .random_map(_TrainClip(source, transform, sampler, repeats, reading))
  )
  videos = np.unique(rows // repeats)
  dataset = _HostRows(clips, share.batch_size // repeats, videos)
  dataset = dataset.batch(len(videos), drop_remainder=True)
  if repeats > 1:
    read = (videos[:, None] * repeats + np.arange(repeats)).ravel()
    all_rows = slice(None)                              # a view of the videos, not a copy
    dataset = dataset.map(_FlattenRepeats(
      all_rows if len(read) == len(rows) else np.searchsorted(read, rows)))
  return Batches(
    dataset, reading, step=stream.start_step, endless=True)


def eval_batches(
  source: Source,
  transform: augment.EvalTransform,
  sampler: sampling.ClipSampler,
  share: HostShare,
  reading: Reading = _FOUR_THREADS,
  clips: int = 1,
) -> Batches:
  """Reads every video once, in order, over all hosts together.

  All batches are full and every host gets equally many; rows after the last video are padding. A
  video that cannot be read is black with mask False. Threads read rows, not batches: in memory are
  one batch and the rows that threads are reading, or that wait in workers.

  Args:
    source: the videos, a `VideoList` for one.
    transform: resizes and crops each clip.
    sampler: chooses the frames of each clip. Random draws of 'reference' views depend on the row
      alone.
    share: rows of every global batch that this host reads.
    reading: workers, threads and time limit.
    clips: number of clips per video. With `transform.crops` there are V = crops x clips views of
      a video, all clips of the first crop coming first.
  """
  if clips < 1:
    raise UserError(f'clips must be at least 1, found {clips}')
  rows = share.check_rows(source)
  padded = -(-len(source) // share.batch_size) * share.batch_size
  videos = grain.MapDataset.range(padded).map(
    _EvalClip(source, transform, sampler, clips, reading))
  return Batches(
    _HostRows(videos, share.batch_size, rows), reading, endless=False, rows=len(rows))


@dataclasses.dataclass(frozen=True)
class RowSubset:
  """Selects rows of a source; the elements keep their `index` in that source."""

  source: Source
  rows: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, row: int) -> dict:
    return self.source[self.rows[row]]


class _HostRows(grain.MapDataset):
  """Selects the rows of one host from every global batch."""

  def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
    super().__init__(parent)
    self._batch_size, self._rows = batch_size, rows.tolist()

  def __len__(self) -> int:
    return len(self._parent) // self._batch_size * len(self._rows)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, len(self._rows))
    return self._parent[batch * self._batch_size + self._rows[row]]


@dataclasses.dataclass(frozen=True)
class _TrainClip:
  """Turns an element of the source into one row of a training batch, or R stacked rows."""

  source: Source
  transform: augment.TrainTransform
  sampler: sampling.ClipSampler
  repeats: int
  reading: Reading

  def __call__(self, element: dict, rng: np.random.Generator) -> dict:
    clips, error = self._read(element, rng)
    if clips is not None:
      return self._rows(clips, element)
    for row in rng.integers(len(self.source), size=_SUBSTITUTES):
      other = self.source[int(row)]
      clips, _ = self._read(other, rng)
      if clips is not None:
        return self._rows(clips, other, failed=element['index'], error=error)
    T, size = self.sampler.num_frames, self.transform.image_size
    black = [self.transform.row(np.zeros((T, size, size, 3), np.uint8), rng)] * self.repeats
    return self._rows(black, element, mask=False, failed=element['index'], error=error)

  def _read(self, element, rng) -> tuple[list[dict[str, np.ndarray]] | None, str]:
    # A copy of the generator: the draws after a failure do not depend on how far reading got, and
    # a read that was given up cannot change them.
    rng = copy.deepcopy(rng)
    choose = lambda count: np.concatenate([
      self.sampler.train(count, rng.integers) for _ in range(self.repeats)
    ])
    transform = lambda frames: [
      self.transform.row(clip, rng) for clip in np.split(frames, self.repeats)
    ]
    return _read(element, choose, transform, self.reading)

  def _rows(self, clips: list[dict[str, np.ndarray]], element: dict, **failure: Any) -> dict:
    rows = [_row(clip, element, **failure) for clip in clips]
    if self.repeats == 1:
      return rows[0]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@dataclasses.dataclass(frozen=True)
class _FlattenRepeats:
  """Flattens arrays [videos, R, ...] to [videos * R, ...] and keeps the rows of this host."""

  kept: np.ndarray | slice

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.reshape(-1, *array.shape[2:])[self.kept] for name, array in batch.items()}


@dataclasses.dataclass(frozen=True)
class _EvalClip:
  """Turns a row number of the padded source into one row of an evaluation batch."""

  source: Source
  transform: augment.EvalTransform
  sampler: sampling.ClipSampler
  clips: int
  reading: Reading

  def __call__(self, row: int) -> dict:
    if row >= len(self.source):
      return _row(self._black(), dict(label=0, index=-1), mask=False)
    element = self.source[row]
    randint = np.random.default_rng(element['index']).integers
    choose = lambda count: self.sampler.test(count, self.clips, randint).ravel()
    video, error = _read(element, choose, self.transform, self.reading)
    if video is None:
      return _row(self._black(), element, mask=False, failed=row, error=error)
    # [(crops,) clips * T, S, S, 3] -> [V, T, S, S, 3], without V if it is 1.
    views = video.reshape(-1, self.sampler.num_frames, *video.shape[-3:])
    return _row({'video': views if len(views) > 1 else views[0]}, element)

  def _black(self) -> dict[str, np.ndarray]:
    views, size = self.clips * self.transform.crops, self.transform.image_size
    shape = (views,) * (views > 1) + (self.sampler.num_frames, size, size, 3)
    return {'video': np.zeros(shape, np.uint8)}


def _read(
  element: dict, choose: Callable[[int], np.ndarray], transform: Callable[[np.ndarray], Any],
  reading: Reading,
) -> tuple[Any, str]:
  """Returns (transformed frames, '') or (None, reason) if the file cannot be read as a video."""
  path = element['path']
  if 'error' in element:
    return None, f'{path}: {element["error"]}'
  try:
    return transform(decode.read_video(
      element.get('video', path), choose, reading.clip_seconds, path,
      square_pixels=reading.square_pixels)), ''
  except decode.VideoError as error:
    return None, str(error)
  except (cv2.error, MemoryError) as error:  # from absurd picture sizes
    return None, f'{path}: {error}'


def _row(
  clip: dict[str, np.ndarray], element: dict, mask: bool = True, failed: int = -1, error: str = ''
) -> dict[str, Any]:
  """Returns one row of a batch."""
  return dict(
    **clip,
    label=np.int32(element['label']),
    index=np.int32(element['index']),
    mask=np.bool_(mask),
    failed=np.int32(failed),
    error=bad_files.encode_reason(error),
  )
