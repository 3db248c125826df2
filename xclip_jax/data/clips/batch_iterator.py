"""Iteration over batches that are read in threads or in worker processes."""

import dataclasses
import weakref
from typing import Any

import grain
import numpy as np
from absl import flags

from xclip_jax.data import workers

_RESTARTS = 3     # times that killed workers are replaced


@dataclasses.dataclass(frozen=True)
class Reading:
  """Holds the number of decoding processes and threads, and how one video is read.

  The numbers change no batch, except that a video over the time limit counts as unreadable.

  Fields:
    workers: number of decoding processes; 0: threads of this process only.
    threads: number of decoding threads, in each worker if there are any. In training each holds a
      batch in memory, in evaluation a row.
    clip_seconds: time limit for reading one video; 0: none.
    square_pixels: scale the width of frames whose pixels are not square.
  """

  workers: int = 0
  threads: int = 4
  clip_seconds: float = 0.0
  square_pixels: bool = False


class Batches:
  """Iterates over batches once; a context manager that stops its workers.

  `len` is the number of batches from the start, and a TypeError for an endless stream. A worker
  process that is killed (out of memory, a crash in a codec) is replaced without a trace in the
  stream, three times; the fourth is a RuntimeError.
  """

  def __init__(
    self, dataset: grain.MapDataset, reading: Reading, *, step: int = 0, endless: bool,
    rows: int | None = None,
  ):
    """Starts to read.

    Args:
      dataset: batches, or rows.
      reading: workers and threads.
      step: first element to read.
      endless: the dataset has no end, and iteration no length.
      rows: number of elements that make a batch; None: each element is a batch.
    """
    self._dataset = dataset
    self._step = step               # the next element
    self._rows = rows
    self._workers = reading.workers
    # One element, a batch or a row, is buffered for each thread.
    self._read_options = grain.ReadOptions(
      num_threads=reading.threads, prefetch_buffer_size=reading.threads)
    self._endless = endless
    self._restarts = 0
    self._open_iterator: list[Any] = []  # one iterator, or none when closed
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
      # Copies: the arrays of workers are views of shared memory, which must not outlive them.
      return {k: np.array(x) for k, x in element.items()} if self._workers else element
    # Filled row by row: in memory are this batch and the rows that threads are reading, no more.
    batch = {k: np.empty((self._rows, *np.shape(x)), np.asarray(x).dtype)
             for k, x in element.items()}
    for row in range(self._rows):
      element = element if row == 0 else self._next()
      for name, array in batch.items():
        array[row] = element[name]
    return batch

  def _next(self) -> dict[str, np.ndarray]:
    if not self._open_iterator:
      raise ValueError('these batches are closed; make new ones')
    while True:
      try:
        element = next(self._open_iterator[0])
        break
      except StopIteration:
        raise
      except Exception as error:
        _close_all(self._open_iterator)  # an open iterator would go on without the failed worker
        if not self._workers or not isinstance(error, RuntimeError):  # grain's: a worker has died
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
    """Stops threads and workers; calling it again does nothing."""
    self._stop()


def _close_all(iterators: list[Any]) -> None:
  # Also removed from the list: grain's destructors fail noisily when the interpreter shuts down.
  while iterators:
    iterators.pop().close()


def _leave_with_parent(worker_index: int, worker_count: int) -> None:
  del worker_index, worker_count
  workers.leave_with_parent()
