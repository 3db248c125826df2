"""Worker processes that may crash, be killed, or lose the process that started them."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')

# Spawned, not forked: a fork copies the locks of running threads, and hidden state.
SPAWN = multiprocessing.get_context('spawn')


def leave_with_parent() -> None:
  """Ends this process as soon as its parent process has ended, for whatever reason.

  A killed process cannot stop its children, which would wait for ever.
  """
  parent = multiprocessing.parent_process()
  assert parent is not None, 'this is a main process'
  parent_id = parent.pid

  def watch():
    while os.getppid() == parent_id:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def unordered(
  job: Callable[[Item], Result], items: Sequence[Item], processes: int, crashed: Result,
  chunk: int = 8,
) -> Iterator[tuple[Item, Result]]:
  """Runs a job on every item in worker processes, and singles out items that kill their process.

  Args:
    job: function of an item; it, the items and the results can be pickled.
    items: the items.
    processes: number of processes; 1: this process, where a crash is not caught. With more, call
      it under a `__main__` guard.
    crashed: result of an item that killed its process.
    chunk: number of items that a process gets at once.

  Yields:
    (item, result) in any order.
  """
  if processes == 1 or len(items) < 2:
    yield from ((item, job(item)) for item in items)
    return
  chunks = [tuple(items[i:i + chunk]) for i in range(0, len(items), chunk)]
  while chunks:
    try:
      with _pool(min(processes, len(chunks))) as pool:
        try:
          running = {pool.submit(_run, job, chunk): chunk for chunk in chunks}
          for done in concurrent.futures.as_completed(running):
            results = done.result()
            chunks.remove(running[done])
            yield from results
        finally:
          # Waits for what has begun, also after Ctrl-C: a pool that is left to itself prints a
          # traceback when the interpreter ends first.
          pool.shutdown(cancel_futures=True)
    except concurrent.futures.process.BrokenProcessPool:
      # An item of a begun chunk was the cause, and begun chunks are at the front.
      begun, chunks = chunks[:2 * processes + 1], chunks[2 * processes + 1:]
      yield from _one_by_one(job, [item for chunk in begun for item in chunk], crashed)


def _one_by_one(
  job: Callable[[Item], Result], items: list[Item], crashed: Result
) -> Iterator[tuple[Item, Result]]:
  while items:
    with _pool(1) as pool:
      try:
        while items:
          (result,) = pool.submit(_run, job, items[:1]).result()
          del items[0]
          yield result
      except concurrent.futures.process.BrokenProcessPool:
        yield items.pop(0), crashed


def _pool(processes: int) -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(processes, SPAWN, _begin)


def _begin() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C is for the main process to handle
  leave_with_parent()


def _run(job: Callable[[Any], Any], items: Sequence[Any]) -> list[tuple[Any, Any]]:
  return [(item, job(item)) for item in items]
