"""The lock file of a workdir: one run at a time, and the same folder on all processes."""

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

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.parallel import process_exit

NAME = 'run.lock'
RENEWAL = 30.0       # seconds between two renewals by the holder
STALE = 150.0        # seconds without renewal after which a holder on another host counts as dead
SHARED = 30.0        # seconds for process 0's file to appear on all hosts (NFS caches folders)
_calls = itertools.count()


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
  """Holds the workdir for this run, on all of its processes, until the block ends.

  Process 0 writes the lock file and renews it; the other processes check that they see the file, so
  a workdir that is not shared or not writable is reported before any computation. Every process of
  a run must call this equally often.

  Raises:
    UserError: another run holds the workdir, or a process cannot see or write it.
  """
  workdir, peers = epath.Path(workdir), process_exit.peers()
  name = f'workdir_{next(_calls)}/token'
  process_name = f'process {peers.process} on {socket.gethostname()}' if peers else 'this process'
  if jax.process_index():
    if peers:                       # None if the caller has joined the processes without `join`
      _check_shared(workdir, peers.wait_for(name), process_name)
    yield
    return
  lock = _Lock(workdir, process_name)
  lock.acquire()
  unregister = process_exit.on_exit(lock.release)
  try:
    if peers:
      peers.write(name, lock.token)
    yield
  finally:
    unregister()
    lock.release()


class _Lock:
  """A file that names the process of a run; a thread renews it while that process lives."""

  def __init__(self, workdir: epath.Path, process_name: str):
    self._path, self._process_name = workdir / NAME, process_name
    self.token = uuid.uuid4().hex
    self._identity = _identity() | {'token': self.token}
    self._renewals, self._released = itertools.count(), threading.Event()
    self._made_folder = False

  def acquire(self) -> None:
    """Writes the lock file, or raises UserError if another run holds the workdir."""
    with _explain_write_errors(self._path.parent, self._process_name):
      self._made_folder = not self._path.parent.exists()
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if not self._create():
        self._take_over()
    threading.Thread(target=self._renew, name='lock of the workdir', daemon=True).start()

  def release(self) -> None:
    """Removes the lock file if it is still this run's; calling it again does nothing."""
    self._released.set()
    with contextlib.suppress(OSError):
      if (_read(self._path) or {}).get('token') == self.token:
        self._path.unlink()
        if self._made_folder and not files.is_remote(self._path):
          os.rmdir(self._path.parent)                    # OSError if the folder holds files

  def _create(self) -> bool:
    """Writes the lock file unless one exists; exclusively, if the file system can do that."""
    if files.is_remote(self._path):                      # a write is atomic, none is exclusive
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
    content = json.dumps(self._identity | {'renewals': next(self._renewals)}) + '\n'
    with files.atomic_file(self._path, durable=False) as file:
      file.write(content.encode())

  def _take_over(self) -> None:
    """Replaces the lock file of a dead process; raises UserError if the process lives."""
    holder = self._wait_until_dead()
    self._path.unlink(missing_ok=True)
    if not self._create():
      raise UserError(_refusal(self._path, _read(self._path) or {}))
    print(f'{self._path.parent}: the run of {_name(holder)} is dead; going on in its place',
          file=sys.stderr, flush=True)
    time.sleep(1)                   # another run may have taken over the same lock at this moment
    holder = _read(self._path) or {}
    if holder.get('token') != self.token:
      raise UserError(_refusal(self._path, holder))

  def _wait_until_dead(self) -> dict[str, Any]:
    """Returns the content of a dead process's lock; raises UserError once the process shows life.

    A process of this machine is looked up; a process elsewhere counts as dead after STALE seconds
    without renewal.
    """
    first, has_reported = _read(self._path), False
    while True:
      holder = _read(self._path)
      if holder is None:                                 # released, or just being written
        if not self._path.exists() or self._age() > STALE:
          return {}
      elif holder.get('machine') == _machine():
        if not _is_alive(holder):
          return holder
        raise UserError(_refusal(self._path, holder))
      elif first and holder['renewals'] != first.get('renewals'):
        raise UserError(_refusal(self._path, holder))
      elif self._age() > STALE:
        return holder
      first = first or holder
      if not has_reported:
        has_reported = True
        print(f'{self._path} is held by {_name(holder or {})}; waiting up to {STALE:.0f} s to see '
              'whether that run lives', file=sys.stderr, flush=True)
      time.sleep(1)

  def _age(self) -> float:
    """Returns the seconds since the lock file was written, by the clock of the file system."""
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
      holder = None
      with contextlib.suppress(Exception):               # any error of a bucket; tried again later
        holder = _read(self._path)
      if holder and holder['token'] != self.token:
        process_exit.fail(UserError(
          f'{_name(holder)} took over the workdir {self._path.parent}, which this run had not '
          f'renewed its lock in for {STALE:.0f} s; this run stops'), process_exit.print_message)
      with contextlib.suppress(Exception):
        if not self._released.is_set():
          self._write()


def _check_shared(workdir: epath.Path, token: str, process_name: str) -> None:
  """Raises UserError unless this process sees process 0's lock file and can write beside it."""
  end = time.monotonic() + SHARED
  while (_read(workdir / NAME) or {}).get('token') != token:
    if time.monotonic() > end:
      raise UserError(
        f'{process_name} does not see the file {workdir / NAME} that process 0 has written, after '
        f'{SHARED:.0f} s. Each process writes its part of every checkpoint, so the workdir must be '
        'one folder for all: mount a shared file system at the same path on every host, or give a '
        'folder in gs://.')
    with contextlib.suppress(OSError):
      list(workdir.iterdir())                            # makes NFS refresh its cache
    time.sleep(0.5)
  with _explain_write_errors(workdir, process_name):
    probe = workdir / f'.{NAME}.{uuid.uuid4().hex}'
    probe.write_text('')
    probe.unlink()


@contextlib.contextmanager
def _explain_write_errors(workdir: epath.Path, process_name: str) -> Iterator[None]:
  """Turns an OSError into a UserError that names the process and the workdir."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{process_name} cannot write to the workdir {workdir}: {type(error).__name__}: {error}. '
      'Give another --workdir, or make room or rights there.') from error


def _refusal(path: epath.Path, holder: dict[str, Any]) -> str:
  """Returns the message for a workdir that another run holds."""
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
  """Describes this process, as a lock file names it."""
  return {
    'host': socket.gethostname(), 'pid': os.getpid(), 'process_start': _start_of('self'),
    'started': time.strftime('%Y-%m-%d %H:%M:%S %z'), 'machine': _machine(),
  }


def _machine() -> str:
  """Identifies the scope of process ids: a boot of this host, and the namespace of a container."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(Path('/proc/sys/kernel/random/boot_id').read_text().strip())
    parts.append(os.readlink('/proc/self/ns/pid'))
  return ' '.join(parts)


def _is_alive(holder: dict[str, Any]) -> bool:
  """Tells whether the process on this machine that wrote a lock file still runs."""
  try:
    os.kill(holder['pid'], 0)
  except ProcessLookupError:
    return False
  except PermissionError:                                # a living process of another user
    pass
  return _start_of(holder['pid']) in (holder.get('process_start'), '')


def _start_of(pid: int | str) -> str:
  """Returns the start time of a process in ticks since boot, '' if /proc does not tell."""
  try:
    stat = Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  fields = stat.rpartition(')')[2].split()               # skips the name, which may hold spaces
  return 'ended' if fields[0] in 'ZX' else fields[19]    # Z: a zombie, X: dead


def _read(path: epath.Path) -> dict[str, Any] | None:
  """Returns the content of a lock file, None if it does not exist or is being written."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  is_complete = isinstance(content, dict) and {'pid', 'token', 'renewals'} <= content.keys()
  return content if is_complete else None
