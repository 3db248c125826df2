"""Videos to batches, in threads or worker processes, the same on any number of them.

A batch is a dict of numpy arrays, B rows on this host:

  video   uint8 [B, T, S, S, 3]
  label   int32 [B]   class id
  index   int32 [B]   row of the source that is shown; -1: padding
  mask    bool  [B]   False: padding, or nothing could be read; the row must not count
  failed  int32 [B]   row of a file that could not be read, else -1
  error   S200  [B]   the path of that file and the reason, else empty
  colors  float32 [B, T, 9]   what the device is to do to colours, if the transform leaves it that

With several views of a video (clips, crops) in evaluation, video is uint8 [B, V, T, S, S, 3].

Row i of the training stream depends on the seed and i alone, so a step number is all the state
there is: resuming is slicing, and workers, threads and hosts change nothing but speed.
"""

import copy
import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from xclip_jax.data import shared_memory, workers
from xclip_jax.data.bad_files import BadFiles as BadFiles
from xclip_jax.data.clips import augment
from xclip_jax.data.clips import sampling as sampling_lib
from xclip_jax.data.video import decode
from xclip_jax.errors import UserError

# [row] -> dict(path, label, index), and video, bytes, where a source has read the file itself, or
# error, the reason why it could not.
Source = grain.sources.RandomAccessDataSource[dict]

_SUBSTITUTES = 8  # other rows tried in place of an unreadable one
_RESTARTS = 3     # times that killed workers are replaced


class Batches:
  """Iterate over batches once; a context manager that stops its workers.

  `len` is the number of batches from the start, and a TypeError for an endless stream. A worker
  process that is killed (out of memory, a crash in a codec) is replaced without a trace in the
  stream, three times; the fourth is a RuntimeError.
  """

  def __init__(
    self, dataset: grain.MapDataset, *, step: int, workers: int, threads: int, endless: bool,
    rows: int | None = None,
  ):
    """Args: rows, if given, are the elements of the dataset that make a batch; else one does."""
    self._dataset = dataset
    self._step = step               # the next element
    self._rows = rows
    self._workers = workers
    # This buffers one element a thread: a batch, or a row.
    self._read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    self._endless = endless
    self._restarts = 0
    self._open_iterator = []  # one, or none when closed
    self._stop = weakref.finalize(self, _close_all, self._open_iterator)  # runs at exit, too
    self._open()

  def _open(self) -> None:
    batches = self._dataset[self._step:].to_iter_dataset(self._read_options)
    if self._workers:
      if not flags.FLAGS.is_parsed():  # outside absl.app.run; grain's workers read its flags
        flags.FLAGS.mark_as_parsed()
      options = grain.MultiprocessingOptions(num_workers=self._workers)
      batches = batches.mp_prefetch(options, worker_init_fn=_leave_with_parent)
    self._open_iterator.append(iter(batches))

  def __len__(self) -> int:
    if self._endless:
      raise TypeError('a training stream has no end, so no len()')
    return len(self._dataset) // (self._rows or 1)

  def __iter__(self) -> 'Batches':
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    element = self._next()
    if not self._rows:
      # Workers hand over views of shared memory that must not outlive them; a copy is an array.
      return {k: np.array(x) for k, x in element.items()} if self._workers else element
    # Filled row by row: no more is in memory than this batch and what threads are reading.
    batch = {k: np.empty((self._rows, *np.shape(x)), np.asarray(x).dtype)
             for k, x in element.items()}
    for row in range(self._rows):
      element = element if row == 0 else self._next()
      for name, array in batch.items():
        array[row] = element[name]
    return batch

  def _next(self) -> dict[str, np.ndarray]:
    if not self._open_iterator:
      raise UserError('these batches are closed; make new ones')
    while True:
      try:
        element = next(self._open_iterator[0])
        break
      except StopIteration:
        raise
      except Exception as error:
        _close_all(self._open_iterator)  # left open, it would go on without the failed worker
        if not self._workers or not isinstance(error, RuntimeError):  # grain's for a dead worker
          raise
        if self._restarts == _RESTARTS:
          raise RuntimeError(
            f'reading batch {self._step // (self._rows or 1)} failed after {self._restarts} '
            f'restarts of the workers: {error} If they run out of memory, lower data.workers or '
            'data.threads.'
          ) from error
        self._restarts += 1
        self._open()
    self._step += 1
    return element

  def __enter__(self) -> 'Batches':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    """Stop threads and workers; calling it again does nothing."""
    self._stop()


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
  # Let go as well as close: grain's destructors fail noisily in an interpreter half shut down.
  while iterators:
    iterators.pop().close()


def train_batches(
  source: Source,
  transform: augment.TrainTransform,
  *,
  num_frames: int,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  workers: int = 0,
  threads: int = 4,
  rows: Sequence[int] | None = None,
  sampling: str = 'sparse',
  stride: int = 1,
  repeats: int = 1,
  clip_seconds: float = 0.0,
) -> Batches:
  """Shuffle, decode and augment without end, from batch `start_step` on.

  A video that cannot be read is replaced by another one drawn from the same random numbers, and
  reported in `failed` and `error`.

  Args:
    source: what to learn from, a `VideoList` for one; every epoch is another permutation of it.
    transform: applied to each clip with random numbers of its own.
    num_frames: T.
    batch_size: rows over all hosts, of the same global batch whoever reads it.
    seed: of order, frames and augmentation.
    start_step: batches to skip, at no cost.
    workers: decoding processes; 0: threads of this process only.
    threads: decoding threads, in each worker if there are any; each holds a batch in memory.
    rows: rows of every global batch that this host reads, ascending; default: all of them.
    sampling: 'sparse' or 'dense', with `stride`; see `sampling.Sampler`.
    stride: frames between those of a dense clip.
    repeats: R, rows that each drawn video gets, next to each other, with frames and augmentation of
      their own; it is read once for them. An epoch of the stream is then R times as long.
    clip_seconds: time limit for reading a video, which counts as unreadable after it; 0: none.
  """
  rows = _check_rows(source, batch_size, rows, repeats)
  shared_memory.check(workers, len(rows) * num_frames * transform.image_size**2 * 3)
  sampler = sampling_lib.Sampler(num_frames, sampling, stride)
  # Sharding after repeat and random_map keeps global batches and random numbers the same for any
  # number of hosts; batching before the workers keeps the order the same for any number of those.
  clips = (
    grain.MapDataset.source(source)
    .seed(seed % 2**32)
    .shuffle()
    .repeat()
    .random_map(_TrainClip(source, transform, sampler, repeats, clip_seconds))
  )
  videos = np.unique(rows // repeats)
  dataset = _HostRows(clips, batch_size // repeats, videos).batch(len(videos), drop_remainder=True)
  if repeats > 1:
    read = (videos[:, None] * repeats + np.arange(repeats)).ravel()
    everything = slice(None)                            # a view, not a copy of the videos
    dataset = dataset.map(_FlattenRepeats(
      everything if len(read) == len(rows) else np.searchsorted(read, rows)))
  return Batches(dataset, step=start_step, workers=workers, threads=threads, endless=True)


def eval_batches(
  source: Source,
  transform: augment.EvalTransform,
  *,
  num_frames: int,
  batch_size: int,
  workers: int = 0,
  threads: int = 4,
  rows: Sequence[int] | None = None,
  sampling: str = 'sparse',
  stride: int = 1,
  clips: int = 1,
  views: str = 'centred',
  clip_seconds: float = 0.0,
) -> Batches:
  """Read every video once, in order, over all hosts together.

  All batches are full and every host gets as many: what is missing at the end is padding. A video
  that cannot be read is black with mask False. Threads read rows, not batches: in memory are a
  batch and the rows that are being read, or wait in workers. Arguments as in `train_batches`, and

  Args:
    clips: of each video. With `transform.crops` there are V = crops x clips views of it, all clips
      of the first crop coming first.
    views: how several clips are chosen, see `sampling.Sampler`; 'reference' draws depend on the row
      alone.
  """
  if clips < 1:
    raise UserError(f'clips must be at least 1, found {clips}')
  rows = _check_rows(source, batch_size, rows)
  sampler = sampling_lib.Sampler(num_frames, sampling, stride, views)
  padded = -(-len(source) // batch_size) * batch_size
  videos = grain.MapDataset.range(padded).map(
    _EvalClip(source, transform, sampler, clips, clip_seconds)
  )
  share = _HostRows(videos, batch_size, rows)
  return Batches(share, step=0, workers=workers, threads=threads, endless=False, rows=len(rows))


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Some rows of a source, as a source; their elements keep the `index` that they have there."""

  source: Source
  rows: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, row: int) -> dict:
    return self.source[self.rows[row]]


class _HostRows(grain.MapDataset):
  """Keeps, of every global batch, the rows of one host."""

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
  """Element of a source and random numbers -> one row of a training batch, or R stacked ones."""

  source: Source
  transform: augment.TrainTransform
  sampler: sampling_lib.Sampler
  repeats: int
  clip_seconds: float

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
    # A copy: what is drawn after a failure does not depend on how far the reading got, and a read
    # that was left behind has no hand in it.
    rng = copy.deepcopy(rng)
    choose = lambda count: np.concatenate([
      self.sampler.train(count, rng.integers) for _ in range(self.repeats)
    ])
    transform = lambda frames: [
      self.transform.row(clip, rng) for clip in np.split(frames, self.repeats)
    ]
    return _read(element, choose, transform, self.clip_seconds)

  def _rows(self, clips: list[dict[str, np.ndarray]], element: dict, **about: Any) -> dict:
    rows = [_row(clip, element, **about) for clip in clips]
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
  """Row of the padded source -> one row of an evaluation batch."""

  source: Source
  transform: augment.EvalTransform
  sampler: sampling_lib.Sampler
  clips: int
  clip_seconds: float

  def __call__(self, row: int) -> dict:
    if row >= len(self.source):
      return _row(self._black(), dict(label=0, index=-1), mask=False)
    element = self.source[row]
    randint = np.random.default_rng(element['index']).integers
    choose = lambda count: self.sampler.test(count, self.clips, randint).ravel()
    video, error = _read(element, choose, self.transform, self.clip_seconds)
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
  seconds: float,
) -> tuple[Any, str]:
  """Return (transformed, '') or (None, reason); raises for nothing that a file can cause."""
  path = element['path']
  if 'error' in element:
    return None, f'{path}: {element["error"]}'
  try:
    return transform(decode.read_video(element.get('video', path), choose, seconds, path)), ''
  except decode.VideoError as error:
    return None, str(error)
  except (cv2.error, MemoryError) as error:  # absurd picture sizes
    return None, f'{path}: {error}'


def _row(
  clip: dict[str, np.ndarray], element: dict, mask: bool = True, failed: int = -1, error: str = ''
) -> dict[str, Any]:
  return dict(
    **clip,
    label=np.int32(element['label']),
    index=np.int32(element['index']),
    mask=np.bool_(mask),
    failed=np.int32(failed),
    error=np.array(error.encode()[-200:], 'S200'),  # the end: file name and reason
  )


def _check_rows(
  source: Source, batch_size: int, rows: Sequence[int] | None, repeats: int = 1
) -> np.ndarray:
  if not len(source):
    raise UserError('there are no videos to read; the annotation file lists none')
  if repeats < 1:
    raise UserError(f'repeats must be at least 1, found {repeats}')
  if batch_size < 1 or batch_size % repeats:
    raise UserError(f'batch_size={batch_size} must be a positive multiple of repeats={repeats}')
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)
  if not len(rows) or rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) < 1).any():
    raise UserError(
      f'rows must be some of 0..{batch_size - 1}, ascending, found {rows.tolist()[:8]}')
  return rows


def _leave_with_parent(worker_index: int, worker_count: int) -> None:
  del worker_index, worker_count
  workers.leave_with_parent()
