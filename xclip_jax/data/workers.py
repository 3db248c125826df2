"""Work in other processes, which may crash, be killed, or lose the process that started them."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item, Result = TypeVar('Item'), TypeVar('Result')

# Threads and fork do not go together, and what a process was given should be all it knows.
SPAWN = multiprocessing.get_context('spawn')


def leave_with_parent() -> None:
  """End this process when the one that started it is gone, however it went.

  A process that is killed cannot tell those it has started, and they would wait for ever.
  """
  parent = multiprocessing.parent_process().pid

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def unordered(
  job: Callable[[Item], Result], items: Sequence[Item], processes: int, crashed: Result,
  chunk: int = 8,
) -> Iterator[tuple[Item, Result]]:
  """Yield (item, result) in any order; an item that kills its process is told from the others.

  Args:
    job: what to do with an item; can be pickled, as can items and results.
    items: to work on.
    processes: 1: this one, where nothing is caught. With more, call it under a `__main__` guard.
    crashed: result for an item that killed the process it was in.
    chunk: items a process is given at once.
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
          pool.shutdown(wait=False, cancel_futures=True)  # who is interrupted waits for no more
    except concurrent.futures.process.BrokenProcessPool:
      # One of those that had begun, which are at the front, was the cause.
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
  signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C goes to all; the main process decides
  leave_with_parent()


def _run(job: Callable[[Any], Any], items: Sequence[Any]) -> list[tuple[Any, Any]]:
  return [(item, job(item)) for item in items]
