"""How the processes of a run end: all together, and with the first cause in every message.

A process that only raised would leave the others waiting in a collective, and would itself wait for
them in JAX's shutdown barrier. So a process that fails writes its cause to the key-value store of
JAX's coordination service, which process 0 hosts, and leaves at once. A thread of every process
looks there once a second and ends its process, too, whatever its main thread is waiting for.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

GONE = ('another process of this run is gone, so this one stops, too. Start the same command on '
        'all hosts again; training goes on from its last checkpoint.')
_STORE = 'xclip_jax/run/'
_POLL = 1.0            # seconds between two looks into the store
_NOTICE = 5.0          # seconds for which process 0 keeps the store open before it leaves
_ROLL_CALL = 8.0       # seconds within which a living process answers

_leaving = threading.RLock()                    # held by the one thread that ends this process
_on_leave: list[Callable[[], None]] = []
_on_abort: list[Any] = []
_peers: 'Peers | None' = None                   # None: a process alone


class Peers:
  """The processes of a run, by the key-value store of JAX's coordination service."""

  def __init__(self, client: Any, process: int, count: int):
    """Args: client is JAX's DistributedRuntimeClient; process is this one's number, of count."""
    self._client, self.process, self.count = client, process, count

  def write(self, name: str, value: str) -> None:
    """Writes a value unless there is one: the first wins."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):    # one is there, or the store is gone
      self._client.key_value_set(_STORE + name, value)

  def wait_for(self, name: str) -> str:
    """Blocks until another process has written the value, however long that takes."""
    while True:
      found = self.folder(name.rpartition('/')[0])
      if name in found:
        return found[name]
      time.sleep(_POLL / 5)

  def folder(self, name: str) -> dict[str, str]:
    """Returns what is written under name/; raises JaxRuntimeError if the store is gone."""
    found = self._client.key_value_dir_get(f'{_STORE}{name}/')
    return {key.removeprefix(_STORE): value for key, value in found}

  def count_in(self, name: str) -> None:
    """Adds one to a counter."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_increment(_STORE + name, 1)

  def counted(self, name: str) -> int:
    """Returns what a counter, whose name holds a slash, has come to."""
    return int(self.folder(name.rpartition('/')[0]).get(name, '0'))

  def cause(self) -> dict[str, Any] | None:
    """Returns why the run ends: the process that knew first, its cause and the exit code."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if found := self.folder('end').get('end/cause'):
        return json.loads(found)
    return None

  def all_answer(self) -> bool:
    """Calls the roll: False if some process does not answer in time, or the store is gone."""
    self.write(f'end/roll_{self.process}', '')
    end = time.monotonic() + _ROLL_CALL
    try:
      while time.monotonic() < end and not self.cause():
        if self.counted(f'here_{self.process}/count') >= self.count - 1:
          return True
        time.sleep(_POLL / 5)
    except jax.errors.JaxRuntimeError:
      pass
    return False

  def watch(self) -> None:
    """Answers roll calls, and ends this process when another one has given a cause."""
    answered = {f'end/roll_{self.process}'}
    while True:
      time.sleep(_POLL)
      try:
        found = self.folder('end')
      except jax.errors.JaxRuntimeError:         # the end of the run, or JAX ends this process
        continue
      cause = json.loads(found.pop('end/cause', 'null'))
      for name in found.keys() - answered:
        self.count_in(f'here_{name.removeprefix("end/roll_")}/count')
      answered |= found.keys()
      if cause and cause['process'] != self.process:
        _leave(_words(cause), cause['code'])

  def finish(self) -> None:
    """Waits, without a limit, until every process has come to its end; the store stays open."""
    self.count_in('done/count')
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      while self.counted('done/count') < self.count:
        time.sleep(_POLL / 5)


def watch(client: Any, process: int, count: int) -> None:
  """Ties the end of this process to those of the others; called once, when they have joined.

  From now on an uncaught exception in any thread ends all processes, and a process that has come to
  its end waits for the others: a scheduler may take the end of one for the end of all, and process
  0 still writes the report when the others have nothing left to do. SystemExit is such an end, too:
  no hook hears of it. So programs wrap what they do in `failing_at_once`.
  """
  global _peers
  _peers = Peers(client, process, count)
  threading.Thread(target=_peers.watch, name='end of the run', daemon=True).start()
  atexit.register(_peers.finish)                # after JAX's own, so it runs before it
  sys.excepthook = lambda kind, error, trace: fail(error)

  def failed_thread(arguments):
    if arguments.exc_type is not SystemExit:
      fail(arguments.exc_value)

  threading.excepthook = failed_thread
  _say_when_jax_aborts()


def peers() -> Peers | None:
  """Returns the processes of this run, None if there is one only."""
  return _peers


def on_exit(release: Callable[[], None]) -> Callable[[], None]:
  """Has `release` called before this process leaves at once; returns what takes that back."""
  _on_leave.append(release)
  return lambda: _on_leave.remove(release)


def is_peer_failure(error: BaseException) -> bool:
  """Returns whether an error came of other processes that are gone, by its type and a roll call.

  Where a partner is gone, a collective raises JaxRuntimeError, or ValueError when its result is
  fetched (jax 0.10.2). So do a full device and a wrong config, but then the others answer.
  """
  return _peers is not None and _may_come_of_others(error) and not _peers.all_answer()


def exit_now(message: str, met: BaseException | None = None) -> NoReturn:
  """Ends this process at once with exit code 1: at the end JAX would wait for those that are gone.

  Args:
    message: why, unless another process has said why the run ends.
    met: the error by which this process noticed.
  """
  cause = _peers and _peers.cause()
  seen = f'\nSeen here as: {type(met).__name__}: {met}' if met else ''
  if cause and cause['process'] != _peers.process:
    _leave(_words(cause) + seen, cause['code'])
  _publish(message, 1)
  _leave(f'error: {message}{seen}', 1)


def stop_all(message: str, code: int) -> NoReturn:
  """Ends all processes at once, as they were told to."""
  _publish(message, code)
  _leave(message, code)


def fail(
  error: BaseException, say: Callable[[BaseException], int] | None = None
) -> NoReturn:
  """Ends this process at once, and the others with its cause.

  Args:
    error: why.
    say: prints the error and returns the exit code; without it, a trace and 1.
  """
  if is_peer_failure(error):
    exit_now(GONE, error)
  _publish(_one_line(error), 130 if isinstance(error, KeyboardInterrupt) else 1)
  code = (_say_all if say is None or isinstance(error, SystemExit) else say)(error)
  _leave(None, code)


def say_message(error: BaseException) -> int:
  """Prints an error whose message says all; returns the exit code, for `fail`."""
  print(f'error: {error}', file=sys.stderr, flush=True)
  return 1


@contextlib.contextmanager
def failing_at_once(say: Callable[[BaseException], int] | None = None) -> Iterator[None]:
  """Ends this process, and all others, when the block raises; Orbax's threads would keep it alive.

  `say` is as for `fail`. SystemExit without an error goes through.
  """
  try:
    yield
  except SystemExit as error:
    if error.code in (None, 0):
      raise
    fail(error, say)
  except BaseException as error:
    fail(error, say)


@contextlib.contextmanager
def telling_at_once() -> Iterator[None]:
  """Tells the others when the block raises, before files and workers around it are closed."""
  try:
    yield
  except BaseException as error:
    if not _may_come_of_others(error):
      _publish(_one_line(error), 1)
    raise


def _may_come_of_others(error: BaseException | None) -> bool:
  """Returns whether an error, or what caused it, has a type that a broken collective raises."""
  types = (ValueError, RuntimeError, jax.errors.JaxRuntimeError)
  return error is not None and (
    type(error) in types or _may_come_of_others(error.__cause__ or error.__context__))


def _publish(cause: str, code: int) -> None:
  if _peers:
    _peers.write('end/cause', json.dumps(
      {'process': _peers.process, 'cause': cause[:2000], 'code': code}))


def _words(cause: dict[str, Any]) -> str:
  """Says why another process ended the run."""
  if not cause['code']:
    return f'process {cause["process"]}: {cause["cause"]}'
  first = cause['cause'] if cause['cause'].startswith('process ') else (
    f'process {cause["process"]}: {cause["cause"]}')
  return (f'error: {first}\nThis process stops, too. Mend the cause and start the same command on '
          'all hosts again; training goes on from its last checkpoint.')


def _one_line(error: BaseException) -> str:
  """Names the type of an error, unless it is one of ours, whose message says all."""
  text = ' '.join(str(error).split())
  ours = type(error).__module__.startswith('xclip_jax')
  plain = ours or type(error) in (ValueError, SystemExit)
  return text if plain and text else f'{type(error).__name__}: {text}'.removesuffix(': ')


def _say_all(error: BaseException) -> int:
  if isinstance(error, SystemExit):
    if not isinstance(error.code, int):
      print(error.code, file=sys.stderr)
    return error.code if isinstance(error.code, int) else 1
  traceback.print_exception(error)
  return 130 if isinstance(error, KeyboardInterrupt) else 1


def _leave(message: str | None, code: int) -> NoReturn:
  if not _leaving.acquire(blocking=False):
    threading.Event().wait()                    # another thread ends this process already
  if message:
    with contextlib.suppress(OSError, ValueError):       # a stream that is closed
      print(f'\n{message}', file=sys.stderr, flush=True)
  closing = threading.Thread(target=_release, daemon=True)
  closing.start()
  if _peers and _peers.process:
    _peers.count_in('noticed/count')
  elif _peers:
    _wait_for_notice()
  closing.join(_NOTICE)                         # a file system that hangs must not keep it
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def _say_when_jax_aborts() -> None:
  """Adds our words to JAX's stack of C++, with which it ends a process that process 0 has left.

  The store goes with process 0. JAX (0.10.2) notices within milliseconds and aborts, in a thread of
  its own; a callback of Python in place of that fails on the type of its argument.
  """

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(_):
    text = ('\nerror: JAX ended this process, as it says above. If that names no cause of its own, '
            f'{GONE}\n')
    os.write(2, text.encode())
    _release()
    os._exit(1)

  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
  libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
  _on_abort.append(handler)                     # must live as long as the process


def _release() -> None:
  for release in reversed(_on_leave):
    with contextlib.suppress(Exception):
      release()


def _wait_for_notice() -> None:
  """Keeps the store open until the others have looked: with process 0 goes what it hosts."""
  end = time.monotonic() + _NOTICE
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    while time.monotonic() < end and _peers.counted('noticed/count') < _peers.count - 1:
      time.sleep(_POLL / 10)
