"""Damaged inputs for a reader, each read in a process that may crash, and the counts of outcomes.

An outcome is fine if the input was read, or refused with an error that is shown in one line and
names the file. Anything else counts: another exception, a crash, over 5 seconds, over 1 GiB beyond
the size of the file, a call or an import that the input asked for.
"""

import collections
import dataclasses
import faulthandler
import json
import mmap
import os
import pathlib
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable

from av.error import FFmpegError

from xclip_jax import errors

SECONDS, MEMORY = 5, 1 << 30
STUCK = 60                                # seconds without a new input until a process is killed
FINE = ('read', 'refused')
_RISKY = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess', 'socket.connect',
          'socket.getaddrinfo', 'exec', 'compile', 'ctypes.dlopen', 'shutil', 'os.remove',
          'os.rename', 'os.rmdir')


class TooSlow(BaseException):
  """Not an Exception, so that nothing takes it for a damaged file."""


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of input.

  Fields:
    name: as in the table of results.
    prepare: called once with a folder and a canary, a path that only code in an input would write.
      Returns a function that writes the next damaged input, given its random numbers, and returns
      the path that the reader is given.
    read: reads that path as the product does.
    strict: whether no code may be compiled or imported while reading.
  """

  name: str
  prepare: Callable[[pathlib.Path, pathlib.Path], Callable[[random.Random], pathlib.Path]]
  read: Callable[[pathlib.Path], object]
  strict: bool = False


def damage(data: bytes, rng: random.Random, words: tuple[bytes, ...] = ()) -> bytes:
  """Returns bytes after one to four random changes, as transport errors and attackers make them."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    size = max(len(data), 1)
    at, run = rng.randrange(size), min(rng.choice((1, 2, 4, 8, 64, 512)), size)
    match rng.randrange(9 if words else 8):
      case 0:
        for _ in range(rng.choice((1, 1, 2, 8))):
          if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
      case 1:
        data[at:at + run] = rng.randbytes(run)
      case 2:
        data[at:at + run] = bytes([rng.choice((0, 255, 127, 128))]) * run
      case 3:
        del data[at:]
      case 4:
        del data[at:at + run]
      case 5:
        data[at:at] = data[at:at + run] * rng.choice((1, 2, 20))
      case 6:
        other = rng.randrange(size)
        data[at:at + run] = data[other:other + run]
      case 7:
        value = rng.choice((0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, len(data), rng.getrandbits(33)))
        code = rng.choice(('<H', '<I', '<Q', '>H', '>I', '>Q'))
        width = struct.calcsize(code)
        data[at:at + width] = struct.pack(code, value % (1 << 8 * width))
      case 8:
        data[at:at] = rng.choice(words)
  return bytes(data)


def _peak() -> int:
  """Returns the most memory that this process has held since `_forget_peak`, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition('VmHWM:')[2].split()[0]) << 10


def _forget_peak() -> None:
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def _size(path: pathlib.Path) -> int:
  return sum(x.stat().st_size for x in path.rglob('*')) if path.is_dir() else (
    path.stat().st_size if path.exists() else 0)


class _Watch:
  """Notes what Python is asked to run while an input is read (an audit hook)."""

  def __init__(self, strict: bool):
    self.events: list[str] = []
    self.reading = False
    self._risky = (*_RISKY, 'import') if strict else tuple(
      x for x in _RISKY if x not in ('exec', 'compile'))
    sys.addaudithook(self._hear)

  def _hear(self, event: str, args: tuple) -> None:
    if self.reading and event.startswith(self._risky):
      # Python loads the code of a text encoding when it is first used.
      if 'encodings' not in str(args[0] if event == 'import' else args):
        self.events.append(f'{event}{args!r:.200}')


def _outcome(kind: Kind, path: pathlib.Path) -> str:
  """Reads one input and returns its outcome; the caller has armed the timer."""
  try:
    kind.read(path)
    return 'read'
  except TooSlow:
    return 'hang'
  except Exception as error:
    if not errors.is_shown_in_one_line(error):
      return type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
      # FFmpeg's own error of this name refuses a size that a file asks for.
      if isinstance(cause, MemoryError) and not isinstance(cause, FFmpegError):
        return 'memory'
      cause = cause.__cause__
    message = errors.explain(error)       # as a person sees it
    if any(x != '\n' and (ord(x) < 32 or 127 <= ord(x) < 160) for x in message):
      return 'control characters'
    return 'refused' if path.name in message or str(path.parent) in message else 'unnamed'


def _fuzz(kind: Kind, numbers: range, seed: int, folder: pathlib.Path, progress: mmap.mmap) -> dict:
  """Reads the inputs of these numbers; returns counts by outcome."""
  canary = folder / 'canary'
  work = folder / 'files'
  work.mkdir(exist_ok=True)
  write_next = kind.prepare(work, canary)
  watch = _Watch(kind.strict)
  counts, details = collections.Counter(), []
  slowest, grown = 0.0, 0
  for number in numbers:
    progress[:8] = struct.pack('<q', number)
    path = write_next(random.Random(f'{seed} {kind.name} {number}'))
    _forget_peak()
    began, before = time.monotonic(), _peak()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.reading = True
    try:
      outcome = _outcome(kind, path)
    except TooSlow:                       # between reading and the next line
      outcome = 'hang'
    watch.reading = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    slowest = max(slowest, time.monotonic() - began)
    grown = max(grown, _peak() - before)
    if _peak() - before > MEMORY + _size(path):
      outcome = 'memory'
    if watch.events or canary.exists():
      outcome = f'ran {sorted(set(watch.events))}'
      watch.events.clear()
      canary.unlink(missing_ok=True)
    counts[outcome] += 1
    if outcome not in FINE:
      details.append(f'{outcome} at {number}')
  return dict(counts=dict(counts), slowest=slowest, grown=grown, details=details[:20])


def _child(
  kind: Kind, numbers: range, seed: int, folder: pathlib.Path, progress: mmap.mmap
) -> None:
  faulthandler.enable()
  used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * mmap.PAGESIZE
  resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEMORY,) * 2)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

  def ring(*_):
    raise TooSlow
  signal.signal(signal.SIGALRM, ring)
  os.fsync = lambda file: None            # nothing here outlives the process
  result = _fuzz(kind, numbers, seed, folder, progress)
  (folder / 'result.json').write_text(json.dumps(result))


def _wait(child: int, progress: mmap.mmap) -> str:
  """Waits for a child; returns '', or how it ended before its time."""
  last, since = b'', time.monotonic()
  while True:
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
      return '' if not status else f'crash, status {status}'
    if progress[:8] != last:
      last, since = progress[:8], time.monotonic()
    elif time.monotonic() - since > STUCK:
      os.kill(child, signal.SIGKILL)
      os.waitpid(child, 0)
      return 'hang'
    time.sleep(0.02)


def fuzz(kind: Kind, count: int, seed: int) -> dict:
  """Reads `count` damaged inputs of a kind; a process that crashes is followed by another.

  Returns:
    the row of the table: kind, files, read, refused, other, seconds, slowest_ms, grown_mb, details.
  """
  start = time.monotonic()
  counts, details = collections.Counter(), []
  slowest, grown, first = 0.0, 0, 0
  while first < count:
    progress = mmap.mmap(-1, 16)
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      sys.stdout.flush()
      child = os.fork()
      if not child:
        code = 1
        try:
          _child(kind, range(first, count), seed, folder, progress)
          code = 0
        except BaseException:
          import traceback
          traceback.print_exc()
        finally:
          os._exit(code)
      ended = _wait(child, progress)
      if ended:
        number = struct.unpack('<q', progress[:8])[0]
        details.append(f'{ended} at {number}')
        counts[ended] += 1
        counts['before a crash'] += number - first
        first = number + 1
      else:
        part = json.loads((folder / 'result.json').read_text())
        counts.update(part['counts'])
        details += part['details']
        slowest, grown, first = max(slowest, part['slowest']), max(grown, part['grown']), count
  other = count - sum(counts[x] for x in (*FINE, 'before a crash'))
  return dict(
    kind=kind.name, files=count, read=counts['read'], refused=counts['refused'], other=other,
    seconds=round(time.monotonic() - start, 1), slowest_ms=round(slowest * 1000, 1),
    grown_mb=grown >> 20, details=details[:20])
