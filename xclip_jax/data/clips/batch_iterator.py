"""Iteration over batches that are read in threads or in worker processes."""

import weakref
from typing import Any

import grain
import numpy as np
from absl import flags

from xclip_jax.data import workers
from xclip_jax.errors import UserError

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


def _leave_with_parent(worker_index: int, worker_count: int) -> None:
  del worker_index, worker_count
  workers.leave_with_parent()
