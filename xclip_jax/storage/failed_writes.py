"""Failed checkpoint writes: reported by one error instead of by Orbax's log records."""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

from xclip_jax.parallel import process_exit

_LOGGERS = ('absl', 'asyncio')
_GRACE = 5.0       # seconds for the main thread to raise a failed write by itself
_LINGER = 5.0      # seconds that TensorStore's threads may report after Orbax's have ended
_lock = threading.Lock()
_monitors: list['FailedWriteMonitor'] = []       # the monitor whose run saved last comes last
_take_back: list[Callable[[], None]] = []        # undoes what the first monitor has installed


class FailedWriteMonitor:
  """Silences Orbax's reports of failed writes while the checkpoints of a run are open.

  Every thread and task of Orbax that takes part in a write logs a stack trace of its own, and
  TensorStore's threads then complain about a closed event loop. `CheckpointError` says the same
  once, with the steps that are safe. The log filter and `sys.unraisablehook` are installed by the
  first monitor that opens and taken back when the last one closes.
  """

  def __init__(self, make_error: Callable[[BaseException], BaseException]):
    """Args: make_error turns an error of an Orbax thread into the one that the run ends with."""
    self.make_error = make_error

  def open(self) -> None:
    """Starts monitoring."""
    with _lock:
      if not _monitors:
        _take_back.append(_install())
      _monitors.append(self)

  def note_save(self) -> None:
    """Notes that a write starts now, so that failures from here on are this run's."""
    with _lock:
      if self in _monitors:
        _monitors.remove(self)
        _monitors.append(self)

  def close(self) -> None:
    """Stops monitoring; calling it again does nothing."""
    with _lock:
      if self in _monitors:
        _monitors.remove(self)
        if not _monitors:
          _take_back.pop()()

  def close_after_failure(self) -> None:
    """Stops monitoring once Orbax's threads have ended, which after a failure may take minutes.

    TensorStore's threads, which Python cannot see, may report for some seconds more.
    """
    threads = [x for x in threading.enumerate() if type(x).__module__.startswith('orbax.')]

    def wait_and_close() -> None:
      for thread in threads:
        thread.join()
      time.sleep(_LINGER)
      self.close()

    threading.Thread(target=wait_and_close, name='failed checkpoint write', daemon=True).start()


def _install() -> Callable[[], None]:
  """Installs the log filter and the hook; returns a function that takes both back."""
  keep_record = lambda record: not _is_failed_write(record)
  for name in _LOGGERS:
    logging.getLogger(name).addFilter(keep_record)
  hook_before, is_active = sys.unraisablehook, threading.Event()
  is_active.set()

  def hook(unraisable) -> None:
    # TensorStore's threads report to an event loop that Orbax has closed after the first failure.
    if not is_active.is_set() or 'Event loop is closed' not in str(unraisable.exc_value):
      hook_before(unraisable)

  sys.unraisablehook = hook

  def take_back() -> None:
    for name in _LOGGERS:
      logging.getLogger(name).removeFilter(keep_record)
    is_active.clear()                    # if another library has put its hook around this one
    if sys.unraisablehook is hook:
      sys.unraisablehook = hook_before

  return take_back


def _is_failed_write(record: logging.LogRecord) -> bool:
  """Tells whether a log record is about a failed write; `CheckpointError` reports those already."""
  by_orbax = 'orbax' in record.pathname
  by_its_tasks = record.name == 'asyncio' and 'orbax' in record.getMessage()
  if record.levelno < logging.ERROR:
    return False
  if record.exc_info and record.exc_info[1] is not None:
    _end_all_if_main_thread_waits(record.exc_info[1])
  return by_orbax or by_its_tasks


def _end_all_if_main_thread_waits(error: BaseException) -> None:
  """Ends all processes if a thread of Orbax failed and the main thread does not hear of it.

  With several processes Orbax (0.12.8) waits for the other threads and processes of the write,
  which wait for the one that failed: for ten minutes and more.
  """
  frames = traceback.walk_tb(error.__traceback__)
  in_write = threading.current_thread() is not threading.main_thread() and any(
    frame.f_globals.get('__name__', '').startswith('orbax.') for frame, _ in frames)
  monitors = tuple(_monitors)
  if process_exit.peers() is None or not in_write or not monitors:
    return

  def end() -> None:
    failure = monitors[-1].make_error(error)
    failure.__cause__ = error
    process_exit.fail(failure, process_exit.print_message)

  timer = threading.Timer(_GRACE, end)
  timer.daemon = True
  timer.start()
