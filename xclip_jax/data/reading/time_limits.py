"""Time limits for work that may hang in a system call or inside a codec.

Such a thread can be neither stopped nor killed (FFmpeg's own time-outs do not reach a blocking
read). It is left to wait, as a daemon thread that does not keep the process from ending.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from xclip_jax.errors import UserError

Result = TypeVar('Result')

_MAX_STUCK = 16  # number of threads of one process that may hang in a read
_THREAD = 'read_video'

_stuck: list[threading.Thread] = []
_stuck_lock = threading.Lock()


class StorageError(UserError, RuntimeError):
  """Says that so many reads hang in this process that the storage must be gone."""


def run(work: Callable[[], Result], seconds: float, late: Exception) -> Result:
  """Runs work in a thread of its own, and gives the thread up when time is up.

  Args:
    work: is called once; slow work should look at the clock and stop by itself.
    seconds: time limit.
    late: raised when time is up.

  Raises:
    StorageError: too many threads hang already.
  """
  _count_stuck(late)
  result: list[tuple[Any, BaseException | None]] = []

  def run_work() -> None:
    try:
      result.append((work(), None))
    except BaseException as error:  # of any kind: raised again in the waiting thread
      result.append((None, error))

  thread = threading.Thread(target=run_work, daemon=True, name=_THREAD)
  thread.start()
  thread.join(seconds)
  if thread.is_alive() and not result:
    _give_up(thread)
    raise late
  value, error = result[0]
  if error is not None:
    raise error
  return value


def iterate(items: Iterator[Result], seconds: float, late: Exception) -> Generator[Result]:
  """Yields the items of an iterator that runs in a thread of its own, one at a time.

  The time that the caller takes between two items does not count.

  Args:
    items: a generator.
    seconds: time limit for each item.
    late: raised when time is up.

  Raises:
    StorageError: too many threads hang already.
  """
  _count_stuck(late)
  wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
  made: queue.SimpleQueue[tuple[list[Result], BaseException | None]] = queue.SimpleQueue()

  def make_items() -> None:
    try:
      while wanted.get():
        made.put(([next(items)], None))
    except StopIteration:
      made.put(([], None))
    except BaseException as error:  # of any kind: raised again in the waiting thread
      made.put(([], error))
    finally:
      if isinstance(items, Generator):
        items.close()               # its files, in the thread that opened them

  thread = threading.Thread(target=make_items, daemon=True, name=_THREAD)
  thread.start()
  try:
    while True:
      wanted.put(True)
      try:
        item, error = made.get(timeout=seconds)
      except queue.Empty:
        _give_up(thread)
        raise late from None
      if error is not None:
        raise error
      if not item:
        return
      yield item[0]
  finally:
    wanted.put(False)


def _count_stuck(late: Exception) -> None:
  with _stuck_lock:
    _stuck[:] = [thread for thread in _stuck if thread.is_alive()]
    if len(_stuck) >= _MAX_STUCK:
      raise StorageError(f'{_MAX_STUCK} reads hang in this process; is the storage gone? {late}')


def _give_up(thread: threading.Thread) -> None:
  with _stuck_lock:
    _stuck.append(thread)
