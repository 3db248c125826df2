"""The start of a command: the garbage collector, the cache of compiled programs, SIGTERM.

Modules that need JAX are imported inside functions, so that --help and a mistyped option are
answered at once.
"""

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Iterator

from xclip_jax import compilation_cache
from xclip_jax.cli import output


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
  """Pauses the garbage collector while a command imports modules and opens weights.

  Both allocate many objects that stay, and scanning them for garbage is a seventh of the time to
  the first answer. Work on videos runs with the collector as it was.
  """
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


def prepare_compilation(quiet: bool) -> None:
  """Opens the cache of compiled programs; unless quiet, a long compilation will be announced."""
  compilation_cache.enable()
  if not quiet:
    compilation_cache.announce(lambda: output.say(
      'compiling (this can take a minute; the next start finds the program compiled)'))


@contextlib.contextmanager
def saying_warnings() -> Iterator[None]:
  """Prints warnings of this package, as of damaged videos, as lines of the command."""
  import logging

  class Say(logging.Handler):
    """Prints the message of a record."""

    def emit(self, record: logging.LogRecord) -> None:
      """Prints a record, past a progress bar."""
      output.say(output.printable(record.getMessage()))

  logger, handler = logging.getLogger('xclip_jax'), Say()
  logger.addHandler(handler)
  propagated, logger.propagate = logger.propagate, False
  level = logger.level
  logger.setLevel(logging.WARNING)       # the root logger's may be higher: absl's of training is
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.propagate = propagated
    logger.setLevel(level)


@contextlib.contextmanager
def exiting_on_sigterm() -> Iterator[None]:
  """Turns SIGTERM into SystemExit, so that half-written files and processes are cleared away."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  handler = lambda *_: sys.exit(128 + signal.SIGTERM)
  before = signal.signal(signal.SIGTERM, handler)
  try:
    yield
  finally:
    if signal.getsignal(signal.SIGTERM) is handler:      # a run serves SIGTERM to its very end
      signal.signal(signal.SIGTERM, before)
