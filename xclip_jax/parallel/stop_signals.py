"""SIGTERM in every phase of a run: a checkpoint and an orderly end, or an end at once.

Python runs a signal's handler between two steps of its main thread, which may be inside a compiler
or a collective for minutes. So the signal only wakes a thread, which knows the phase of the run.
"""

import ctypes
import os
import signal
import threading
import time

from xclip_jax.parallel import process_exit

_SAME = 2.0      # seconds within which a second SIGTERM is the first one's: `timeout` sends two
STARTING = ('stopped by SIGTERM before the first update; the same command starts again, from the '
            'last checkpoint if there is one')
TRAINED = ('stopped by SIGTERM in the last evaluation; training is finished and saved, and the '
           'same command goes on with the evaluation')
EVALUATING = 'evaluation stopped by SIGTERM; the same command repeats it'


class _Phase:
  """What a SIGTERM means now; there is one of it, as signals are one process's."""

  def __init__(self):
    self.served = False
    self.asked_at: float | None = None
    self.postponed = False                     # the loop asks, and saves
    self.words, self.code = 'stopped by SIGTERM', 128 + signal.SIGTERM
    self.tell_jax = None                       # JAX's own handler, where several processes agree


_phase = _Phase()


def serve() -> None:
  """Serves SIGTERM from now on, in a thread; until `postpone` it ends this process at once.

  Only the main thread may ask for it; in others this does nothing.
  """
  if threading.current_thread() is not threading.main_thread():
    return
  signal.signal(signal.SIGTERM, lambda *_: None)
  if _phase.served:
    return
  _phase.served = True
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_serve, args=(read,), name='SIGTERM', daemon=True).start()


def serve_instead_of_jax() -> None:
  """Takes SIGTERM back from JAX, which only notes it for those who ask; JAX is still told.

  `jax.distributed.initialize` (jax 0.10.2) puts a handler of C in place, which Python cannot see.
  """
  if threading.current_thread() is not threading.main_thread():
    return
  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
  handler = libc.signal(signal.SIGTERM, None)
  serve()
  if handler not in (None, 1):                 # SIG_DFL, SIG_IGN
    _phase.tell_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)


def is_served() -> bool:
  """Returns whether `serve` was called."""
  return _phase.served


def is_asked() -> bool:
  """Returns whether SIGTERM has come."""
  return _phase.asked_at is not None


def postpone() -> None:
  """Says that there are updates to save: the first SIGTERM waits for the loop from now on."""
  _phase.postponed = True


def leave_at_once(words: str, code: int = 0) -> None:
  """Says that there is nothing to save: SIGTERM ends all processes with these words from now on."""
  _phase.words, _phase.code, _phase.postponed = words, code, False
  if _phase.served and is_asked():             # and nobody has asked since
    process_exit.stop_all(words, code)


def _serve(read: int) -> None:
  while True:
    for number in os.read(read, 64):
      if number == signal.SIGTERM:
        _receive()


def _receive() -> None:
  now = time.monotonic()
  again = _phase.asked_at is not None
  if again and now - _phase.asked_at < _SAME:
    return
  _phase.asked_at = _phase.asked_at or now
  if _phase.postponed and not again:
    if _phase.tell_jax:
      _phase.tell_jax(signal.SIGTERM)
  elif again and _phase.postponed:
    process_exit.stop_all('stopped by a second SIGTERM; what came after the last checkpoint is lost', 143)
  else:
    process_exit.stop_all(_phase.words, _phase.code)
