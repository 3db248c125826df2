"""The lock of a workdir: one run at a time, and one folder for all of its processes."""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from xclip_jax.errors import UserError
from xclip_jax.parallel import process_exit

NAME = 'run.lock'
RENEWAL = 30.0       # seconds between two renewals by the holder
STALE = 150.0        # seconds without one after which the holder on another host counts as dead
SHARED = 30.0        # seconds within which a file of process 0 is seen by all (NFS caches folders)
_calls = itertools.count()


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
  """Holds the workdir for this run, on all of its processes, until the block ends.

  Process 0 writes the lock file and renews it; the other processes look for that file, so a workdir
  that is not shared, or not writable, is found before anything is computed. Each process of a run
  must come here equally often.

  Raises:
    ValueError: another run holds the workdir, or a process cannot see or write it.
  """
  workdir, peers = epath.Path(workdir), process_exit.peers()
  name = f'workdir_{next(_calls)}/token'
  who = f'process {peers.process} on {socket.gethostname()}' if peers else 'this process'
  if jax.process_index():
    if peers:                       # else somebody has joined the processes without `distributed`
      _check_shared(workdir, peers.wait_for(name), who)
    yield
    return
  lock = _Lock(workdir, who)
  lock.acquire()
  forget = process_exit.on_exit(lock.release)
  try:
    if peers:
      peers.write(name, lock.token)
    yield
  finally:
    forget()
    lock.release()


class _Lock:
  """A file that says which process runs here; renewed by a thread while that process lives."""

  def __init__(self, workdir: epath.Path, who: str):
    self._path, self._who = workdir / NAME, who
    self.token = uuid.uuid4().hex
    self._about = _identity() | {'token': self.token}
    self._renewals, self._released = itertools.count(), threading.Event()
    self._made_folder = False

  def acquire(self) -> None:
    with _saying_who_cannot_write(self._path.parent, self._who):
      self._made_folder = not self._path.parent.exists()
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if not self._create():
        self._take_over()
    threading.Thread(target=self._renew, name='lock of the workdir', daemon=True).start()

  def release(self) -> None:
    """Removes the lock, if it is still this run's; calling it again does nothing."""
    self._released.set()
    with contextlib.suppress(OSError):
      if (_read(self._path) or {}).get('token') == self.token:
        self._path.unlink()
        if self._made_folder and not _is_object(self._path):
          os.rmdir(self._path.parent)                    # OSError if the run left something in it

  def _create(self) -> bool:
    """Writes the lock unless there is one; exclusive where the file system knows that."""
    if _is_object(self._path):
      if self._path.exists():
        return False
      self._write()
      return True
    try:
      os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
      return False
    self._write()
    return True

  def _write(self) -> None:
    text = json.dumps(self._about | {'renewals': next(self._renewals)}) + '\n'
    if _is_object(self._path):
      self._path.write_text(text)
    else:                                                # whole or not at all
      partial = self._path.with_name(f'.{NAME}.{self.token}')
      partial.write_text(text)
      os.replace(partial, self._path)

  def _take_over(self) -> None:
    """Replaces the lock of a process that is dead; ValueError if it lives."""
    holder = self._wait_until_dead()
    self._path.unlink(missing_ok=True)
    if not self._create():
      raise UserError(_refusal(self._path, _read(self._path) or {}))
    print(f'{self._path.parent}: the run of {_name(holder)} is dead; going on in its place',
          file=sys.stderr, flush=True)
    time.sleep(1)                   # another run may have found the same lock dead at this moment
    found = _read(self._path) or {}
    if found.get('token') != self.token:
      raise UserError(_refusal(self._path, found))

  def _wait_until_dead(self) -> dict[str, Any]:
    first, said = _read(self._path), False
    while True:
      holder = _read(self._path)
      if holder is None:                                 # released, or just being written
        if not self._path.exists() or self._age() > STALE:
          return {}
      elif _is_here(holder):
        if not _lives(holder):
          return holder
        raise UserError(_refusal(self._path, holder))
      elif first and holder['renewals'] != first.get('renewals'):
        raise UserError(_refusal(self._path, holder))
      elif self._age() > STALE:
        return holder
      first = first or holder
      if not said:
        said = True
        print(f'{self._path} is held by {_name(holder or {})}; waiting up to {STALE:.0f} s to see '
              'whether that run lives', file=sys.stderr, flush=True)
      time.sleep(1)

  def _age(self) -> float:
    """Seconds since the lock was written, both times by the clock of the file system."""
    probe = self._path.with_name(f'.{NAME}.{self.token}.probe')
    try:
      probe.write_text('')
      return probe.stat().mtime - self._path.stat().mtime
    except FileNotFoundError:
      return float('inf')
    finally:
      with contextlib.suppress(OSError):
        probe.unlink()

  def _renew(self) -> None:
    while not self._released.wait(RENEWAL):
      with contextlib.suppress(Exception):               # a store raises its own; tried again
        found = _read(self._path)
        if found and found['token'] != self.token:
          process_exit.fail(ValueError(
            f'{_name(found)} took over the workdir {self._path.parent}, which this run had not '
            f'renewed its lock in for {STALE:.0f} s; this run stops'), process_exit.print_message)
        if not self._released.is_set():
          self._write()


def _check_shared(workdir: epath.Path, token: str, who: str) -> None:
  """Looks for the lock that process 0 wrote, and writes a file of its own."""
  end = time.monotonic() + SHARED
  while (_read(workdir / NAME) or {}).get('token') != token:
    if time.monotonic() > end:
      raise UserError(
        f'{who} does not see the file {workdir / NAME} that process 0 has written, after '
        f'{SHARED:.0f} s. Each process writes its part of every checkpoint, so the workdir must be '
        'one folder for all: mount a shared file system at the same path on every host, or give a '
        'folder in gs://.')
    with contextlib.suppress(OSError):
      list(workdir.iterdir())                            # has NFS look anew
    time.sleep(0.5)
  with _saying_who_cannot_write(workdir, who):
    probe = workdir / f'.{NAME}.{uuid.uuid4().hex}'
    probe.write_text('')
    probe.unlink()


@contextlib.contextmanager
def _saying_who_cannot_write(workdir: epath.Path, who: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{who} cannot write to the workdir {workdir}: {type(error).__name__}: {error}. Give another '
      '--workdir, or make room or rights there.') from error


def _refusal(path: epath.Path, holder: dict[str, Any]) -> str:
  return (
    f'the workdir {path.parent} is in use by {_name(holder)}. Two runs would write over each '
    'other: wait for that run, stop it, or give another --workdir. Checkpoints of a run that is '
    'still training can be evaluated with `xclip eval ... --weights WORKDIR -o FOLDER`. If that '
    f'run is certainly dead, remove {path}.')


def _name(holder: dict[str, Any]) -> str:
  if not holder:
    return f'a run that has not said its name in {NAME}'
  return f'process {holder["pid"]} on {holder["host"]}, started {holder["started"]}'


def _identity() -> dict[str, Any]:
  return {
    'host': socket.gethostname(), 'pid': os.getpid(), 'process_start': _start_of('self'),
    'started': time.strftime('%Y-%m-%d %H:%M:%S %z'), 'machine': _machine(),
  }


def _machine() -> str:
  """Identifies what process ids count in: a boot of a kernel, and a container's own numbers."""
  found = [socket.gethostname()]
  with contextlib.suppress(OSError):
    found.append(Path('/proc/sys/kernel/random/boot_id').read_text().strip())
    found.append(os.readlink('/proc/self/ns/pid'))
  return ' '.join(found)


def _is_here(holder: dict[str, Any]) -> bool:
  return holder.get('machine') == _machine()


def _lives(holder: dict[str, Any]) -> bool:
  """Returns whether the process of this machine is still the one that wrote the lock."""
  try:
    os.kill(holder['pid'], 0)
  except ProcessLookupError:
    return False
  except PermissionError:                                # another user's
    pass
  return _start_of(holder['pid']) in (holder.get('process_start'), '')


def _start_of(pid: int | str) -> str:
  """Returns when a process started, in ticks since boot; '' where /proc does not say."""
  try:
    stat = Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  fields = stat.rpartition(')')[2].split()               # after the name, which may hold anything
  return 'ended' if fields[0] in 'ZX' else fields[19]    # a zombie is dead


def _read(path: epath.Path) -> dict[str, Any] | None:
  """Returns what a lock says, None if there is none or it is being written."""
  try:
    found = json.loads(path.read_text())
    whole = isinstance(found, dict) and {'pid', 'token', 'renewals'} <= found.keys()
    return found if whole else None
  except (OSError, ValueError):
    return None


def _is_object(path: epath.Path) -> bool:
  """Returns whether a path is of an object store, where a write is whole and none is exclusive."""
  return '://' in os.fspath(path)
