"""SIGTERM in every phase of a run: a checkpoint and an orderly end, or an end at once.

Python runs signal handlers between two steps of the main thread, which may spend minutes inside a
compiler or a collective. So the signal only wakes a thread, which knows the phase of the run.
"""

import ctypes
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable

from xclip_jax.parallel import process_exit

_REPEAT = 2.0    # seconds within which a second SIGTERM counts as the first: `timeout` sends two
STARTING = ('stopped by SIGTERM before the first update; the same command starts again, from the '
            'last checkpoint if there is one')
TRAINED = ('stopped by SIGTERM in the last evaluation; training is finished and saved, and the '
           'same command goes on with the evaluation')
EVALUATING = 'evaluation stopped by SIGTERM; the same command repeats it'


@dataclasses.dataclass
class _Phase:
  """Response to a SIGTERM in the current phase of this process.

  Fields:
    is_served: `serve` was called.
    received_at: time.monotonic() of the first SIGTERM.
    is_postponed: the training loop polls `is_stop_requested` and saves.
    message: printed on an end at once.
    code: exit code of an end at once.
    notify_jax: JAX's own handler, with which processes agree on the step to stop at.
  """

  is_served: bool = False
  received_at: float | None = None
  is_postponed: bool = False
  message: str = 'stopped by SIGTERM'
  code: int = 128 + signal.SIGTERM
  notify_jax: Callable[[int], object] | None = None


_phase = _Phase()


def serve() -> None:
  """Serves SIGTERM in a thread from now on; until `postpone` it ends this process at once.

  Does nothing outside of the main thread, where Python installs no handlers.
  """
  if threading.current_thread() is not threading.main_thread():
    return
  signal.signal(signal.SIGTERM, lambda *_: None)
  if _phase.is_served:
    return
  _phase.is_served = True
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_serve, args=(read,), name='SIGTERM', daemon=True).start()


def serve_instead_of_jax() -> None:
  """Takes SIGTERM back from JAX, whose handler only notes it; `_receive` still notifies JAX.

  `jax.distributed.initialize` (jax 0.10.2) installs a handler in C, which Python cannot see.
  """
  if threading.current_thread() is not threading.main_thread():
    return
  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
  handler = libc.signal(signal.SIGTERM, None)
  serve()
  if handler not in (None, 1):                 # SIG_DFL, SIG_IGN
    _phase.notify_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)


def is_served() -> bool:
  """Tells whether `serve` was called."""
  return _phase.is_served


def is_stop_requested() -> bool:
  """Tells whether this process has received SIGTERM."""
  return _phase.received_at is not None


def postpone() -> None:
  """Leaves the first SIGTERM to the training loop from now on, which has updates to save."""
  _phase.is_postponed = True


def exit_at_once(message: str, code: int = 0) -> None:
  """Lets SIGTERM end all processes at once from now on: there is nothing to save."""
  _phase.message, _phase.code, _phase.is_postponed = message, code, False
  if _phase.is_served and is_stop_requested():   # the training loop has not polled since
    process_exit.stop_all(message, code)


def _serve(read: int) -> None:
  while True:
    for number in os.read(read, 64):
      if number == signal.SIGTERM:
        _receive()


def _receive() -> None:
  """Responds to one SIGTERM as the current phase demands."""
  now, first = time.monotonic(), _phase.received_at
  if first is not None and now - first < _REPEAT:
    return
  _phase.received_at = now if first is None else first
  if not _phase.is_postponed:
    process_exit.stop_all(_phase.message, _phase.code)
  elif first is not None:
    process_exit.stop_all(
      'stopped by a second SIGTERM; what came after the last checkpoint is lost', 143)
  elif _phase.notify_jax:
    _phase.notify_jax(signal.SIGTERM)
