"""The end of a run's processes: all together, with the first cause in every message.

A process that only raised would leave the others waiting in a collective, and would itself wait for
them in JAX's shutdown barrier. So a process that fails writes its cause to the key-value store of
JAX's coordination service, which process 0 hosts, and exits at once. A thread of every process
reads the store once a second and ends its process, too, whatever its main thread is waiting for.
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

from xclip_jax.errors import UserError
from xclip_jax.text_format import printable

GONE = ('another process of this run is gone, so this one stops, too. Start the same command on '
        'all hosts again; training goes on from its last checkpoint.')
_STORE = 'xclip_jax/run/'
_POLL = 1.0            # seconds between two reads of the store
_NOTICE = 5.0          # seconds for which process 0 keeps the store open before it exits
_ROLL_CALL = 8.0       # seconds within which a living process answers

_exiting = threading.RLock()                    # held by the thread that ends this process
_releases: list[Callable[[], None]] = []        # called before this process exits
_abort_handlers: list[Any] = []
_peers: 'Peers | None' = None                   # None: this run has one process


class Peers:
  """The processes of a run, by the key-value store of JAX's coordination service."""

  def __init__(self, client: Any, process: int, count: int):
    """Connects to the store.

    Args:
      client: JAX's DistributedRuntimeClient.
      process: number of this process, from 0.
      count: number of processes.
    """
    self._client, self.process, self.count = client, process, count

  def write(self, name: str, value: str) -> None:
    """Writes a value unless the name has one: the first value wins."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):    # a value exists, or no store does
      self._client.key_value_set(_STORE + name, value)

  def wait_for(self, name: str) -> str:
    """Returns the value that another process writes, without a time limit."""
    while True:
      values = self.folder(name.rpartition('/')[0])
      if name in values:
        return values[name]
      time.sleep(_POLL / 5)

  def folder(self, name: str) -> dict[str, str]:
    """Returns all values under `name/`; raises JaxRuntimeError if the store is gone."""
    items = self._client.key_value_dir_get(f'{_STORE}{name}/')
    return {key.removeprefix(_STORE): value for key, value in items}

  def increment(self, name: str) -> None:
    """Adds one to a counter."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_increment(_STORE + name, 1)

  def read_counter(self, name: str) -> int:
    """Returns the value of a counter, whose name holds a slash."""
    return int(self.folder(name.rpartition('/')[0]).get(name, '0'))

  def cause(self) -> dict[str, Any] | None:
    """Returns why the run ends: `process` (the first that failed), `cause` and exit `code`."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if text := self.folder('end').get('end/cause'):
        return json.loads(text)
    return None

  def all_answer(self) -> bool:
    """Calls the roll: False if some process does not answer in time, or the store is gone."""
    self.write(f'end/roll_{self.process}', '')
    end = time.monotonic() + _ROLL_CALL
    try:
      while time.monotonic() < end and not self.cause():
        if self.read_counter(f'here_{self.process}/count') >= self.count - 1:
          return True
        time.sleep(_POLL / 5)
    except jax.errors.JaxRuntimeError:
      pass
    return False

  def watch(self) -> None:
    """Answers roll calls, and ends this process when another one has published a cause."""
    answered = {f'end/roll_{self.process}'}
    while True:
      time.sleep(_POLL)
      try:
        values = self.folder('end')
      except jax.errors.JaxRuntimeError:         # the end of the run, or JAX ends this process
        continue
      cause = json.loads(values.pop('end/cause', 'null'))
      for name in values.keys() - answered:
        self.increment(f'here_{name.removeprefix("end/roll_")}/count')
      answered |= values.keys()
      if cause and cause['process'] != self.process:
        _exit(_cause_message(cause), cause['code'])

  def finish(self) -> None:
    """Waits until every process is done, without a time limit; the store stays open."""
    self.increment('done/count')
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      while self.read_counter('done/count') < self.count:
        time.sleep(_POLL / 5)


def watch(client: Any, process: int, count: int) -> None:
  """Ties the end of this process to the end of the others; called once, after they have joined.

  From now on an uncaught exception in any thread ends all processes, and a process that is done
  waits for the others: a scheduler may take the end of one process for the end of the job, and
  process 0 still writes the report when the others are done. No hook is called for SystemExit, so
  programs wrap their work in `end_all_on_failure`.

  Args:
    client: JAX's DistributedRuntimeClient.
    process: number of this process, from 0.
    count: number of processes.
  """
  global _peers
  _peers = Peers(client, process, count)
  threading.Thread(target=_peers.watch, name='end of the run', daemon=True).start()
  atexit.register(_peers.finish)                # registered after JAX's own, so it runs before it
  sys.excepthook = lambda kind, error, trace: fail(error)

  def fail_in_thread(arguments):
    if arguments.exc_type is not SystemExit:
      fail(arguments.exc_value)

  threading.excepthook = fail_in_thread
  _explain_aborts_of_jax()


def peers() -> Peers | None:
  """Returns the processes of this run, None if there is only one."""
  return _peers


def on_exit(release: Callable[[], None]) -> Callable[[], None]:
  """Registers `release` to be called before this process exits at once.

  Returns:
    a function that takes the registration back.
  """
  _releases.append(release)
  return lambda: _releases.remove(release)


def is_peer_failure(error: BaseException) -> bool:
  """Tells whether an error was caused by processes that are gone, by its type and a roll call.

  If a process is gone, collectives of the others raise JaxRuntimeError, or ValueError when the
  result is fetched (jax 0.10.2). A full device and a wrong config raise the same types, but then
  all processes answer the roll call.
  """
  return _peers is not None and _may_be_peer_failure(error) and not _peers.all_answer()


def exit_now(message: str, noticed_by: BaseException | None = None) -> NoReturn:
  """Ends this process at once with exit code 1, without JAX's wait for processes that are gone.

  Args:
    message: why, unless another process has published why the run ends.
    noticed_by: the error by which this process noticed.
  """
  cause = _peers.cause() if _peers else None
  notice = f'\nSeen here as: {type(noticed_by).__name__}: {noticed_by}' if noticed_by else ''
  if _peers and cause and cause['process'] != _peers.process:
    _exit(_cause_message(cause) + notice, cause['code'])
  _publish(message, 1)
  _exit(f'error: {message}{notice}', 1)


def stop_all(message: str, code: int) -> NoReturn:
  """Ends all processes at once with one message and exit code."""
  _publish(message, code)
  _exit(message, code)


def fail(
  error: BaseException, show: Callable[[BaseException], int] | None = None
) -> NoReturn:
  """Ends this process at once, and the others with its cause.

  Args:
    error: the cause.
    show: prints the error and returns the exit code; by default a traceback and 1.
  """
  if is_peer_failure(error):
    exit_now(GONE, error)
  _publish(_cause_of(error), exit_code(error))
  code = (_print_error if show is None or isinstance(error, SystemExit) else show)(error)
  _exit(None, code)


def exit_code(error: BaseException) -> int:
  """Returns the exit code of a run that an error ends.

  It is 2 for a UserError, which the same command would meet again, 130 for Ctrl-C, and 1 for what
  fails in the course of a run: a full disk, a loss that is not finite, a bug.
  """
  if isinstance(error, KeyboardInterrupt):
    return 130
  return 2 if isinstance(error, UserError) and not isinstance(error, RuntimeError) else 1


def print_message(error: BaseException) -> int:
  """Prints an error without its traceback; returns the exit code, for `fail`."""
  print('error: ' + printable(str(error), keep='\n'), file=sys.stderr, flush=True)
  return 1


@contextlib.contextmanager
def end_all_on_failure(show: Callable[[BaseException], int] | None = None) -> Iterator[None]:
  """Ends all processes when the block raises; threads of Orbax would keep this one alive.

  SystemExit with code 0 passes through. `show` is as for `fail`.
  """
  try:
    yield
  except SystemExit as error:
    if error.code in (None, 0):
      raise
    fail(error, show)
  except BaseException as error:
    fail(error, show)


@contextlib.contextmanager
def publish_failure() -> Iterator[None]:
  """Tells the other processes when the block raises, before files and workers are closed."""
  try:
    yield
  except BaseException as error:
    if not _may_be_peer_failure(error):
      _publish(_cause_of(error), exit_code(error))
    raise


def _may_be_peer_failure(error: BaseException | None) -> bool:
  """Tells whether an error, or its cause, has a type that a broken collective raises."""
  types = (ValueError, RuntimeError, jax.errors.JaxRuntimeError)
  return error is not None and (
    type(error) in types or _may_be_peer_failure(error.__cause__ or error.__context__))


def _publish(cause: str, code: int) -> None:
  if _peers:
    _peers.write('end/cause', json.dumps(
      {'process': _peers.process, 'cause': cause[:2000], 'code': code}))


def _cause_message(cause: dict[str, Any]) -> str:
  """Returns the message of this process when another one has ended the run."""
  first = cause['cause'] if cause['code'] and cause['cause'].startswith('process ') else (
    f'process {cause["process"]}: {cause["cause"]}')
  if not cause['code']:
    return first
  return (f'error: {first}\nThis process stops, too. Mend the cause and start the same command on '
          'all hosts again; training goes on from its last checkpoint.')


def _cause_of(error: BaseException) -> str:
  """Returns an error in one line, with its type unless its message is made for people."""
  text = ' '.join(str(error).split())
  is_ours = type(error).__module__.startswith('xclip_jax')
  is_plain = is_ours or type(error) in (ValueError, SystemExit)
  return text if is_plain and text else f'{type(error).__name__}: {text}'.removesuffix(': ')


def _print_error(error: BaseException) -> int:
  """Prints an error with its traceback, or the message of SystemExit; returns the exit code."""
  if isinstance(error, SystemExit):
    if not isinstance(error.code, int):
      print(error.code, file=sys.stderr)
    return error.code if isinstance(error.code, int) else 1
  traceback.print_exception(error)
  return 130 if isinstance(error, KeyboardInterrupt) else 1


def _exit(message: str | None, code: int) -> NoReturn:
  """Prints a message, releases locks, lets the other processes notice, and ends this process."""
  if not _exiting.acquire(blocking=False):
    threading.Event().wait()                    # another thread ends this process already
  if message:
    with contextlib.suppress(OSError, ValueError):       # a closed stream
      print(f'\n{message}', file=sys.stderr, flush=True)
  closing = threading.Thread(target=_release, daemon=True)
  closing.start()
  if _peers and _peers.process:
    _peers.increment('noticed/count')
  elif _peers:
    _wait_for_notice(_peers)
  closing.join(_NOTICE)                         # a file system that hangs must not block the exit
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def _explain_aborts_of_jax() -> None:
  """Prints our message after the C++ stack with which JAX aborts when process 0 is gone.

  The store goes with process 0. JAX (0.10.2) notices within milliseconds and aborts, in a thread of
  its own. Its Python callback for this case cannot be used: it fails on the type of its argument.
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
  _abort_handlers.append(handler)               # must live as long as the process


def _release() -> None:
  for release in reversed(_releases):
    with contextlib.suppress(Exception):
      release()


def _wait_for_notice(store: Peers) -> None:
  """Keeps process 0, which hosts the store, alive until the others have read the cause."""
  end = time.monotonic() + _NOTICE
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    while time.monotonic() < end and store.read_counter('noticed/count') < store.count - 1:
      time.sleep(_POLL / 10)
