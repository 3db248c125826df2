"""Copies of metrics.jsonl and TensorBoard events in a bucket, whose objects cannot be appended to.

metrics.jsonl is written anew at each log row while it is short. Once it is longer than `PART`,
the rows after it go to a second object, metrics.tail.jsonl, until that is as long; then
metrics.jsonl takes them in. So a log row costs an upload of at most `PART` bytes, and a run's whole
file is uploaded once for each `PART` bytes of it: 100,000 rows of 300 bytes are 30 uploads of 15 MB
on average. At the end of a run there is metrics.jsonl alone. Events go to a new file after `PART`
bytes.
"""

import concurrent.futures
import sys
import tempfile
from pathlib import Path

from etils import epath

from xclip_jax import files

PART = 1 << 20       # bytes that are uploaded again at each log row, at most


class BucketLog:
  """Copies a local folder with metrics.jsonl and tensorboard/ into a workdir in a bucket.

  Copies are made in a thread, so that training goes on; the rows of one log interval are all that a
  killed process loses. A copy that fails is reported and made up for at the next row.

  Fields:
    folder: the local folder, to write to.
  """

  def __init__(self, workdir: epath.Path):
    self._workdir = workdir
    self._temporary = tempfile.TemporaryDirectory(prefix='xclip-log-')
    self.folder = Path(self._temporary.name)
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._copy: concurrent.futures.Future | None = None
    self._base = 0                             # bytes that metrics.jsonl has in the bucket
    self._sent: dict[str, int] = {}            # bytes of each file of events there
    self._files_of_events = 0

  def replace_metrics(self) -> None:
    """Makes metrics.jsonl in the bucket what it is locally; waits for it."""
    self._send_metrics(self._size('metrics.jsonl'), whole=True)

  def start_copy(self) -> bool:
    """Starts copying what was written; returns whether to go on with a new file of events."""
    if self._copy and not self._copy.done():   # a slow network: the next copy takes these rows, too
      return False
    if self._copy and (error := self._copy.exception()):
      self._report(error, 'the next log row makes up for it')
    events = self._events()
    self._copy = self._thread.submit(self._send, self._size('metrics.jsonl'), events)
    newest = max((self.folder / 'tensorboard').glob('*'))
    return newest.stat().st_size > PART

  def events_suffix(self) -> str:
    """Returns how the name of the next file of events ends: TensorBoard reads them in order."""
    self._files_of_events += 1
    return f'.{self._files_of_events:06}'

  def close(self) -> None:
    """Copies the rest, so that the bucket has all in one metrics.jsonl; raises if it cannot.

    Where a run ends by another error, a copy that fails is reported only: that error matters more.
    """
    fails_already = sys.exception() is not None
    if self._copy:
      concurrent.futures.wait([self._copy])
    self._thread.shutdown()
    try:
      self._send(self._size('metrics.jsonl'), self._events(), whole=True)
    except Exception as error:
      if not fails_already:
        raise
      self._report(error, 'the next start of the run repeats them')
    finally:
      self._temporary.cleanup()

  def _report(self, error: BaseException, then: str) -> None:
    print(f'metrics were not copied to {self._workdir}; {then}: {error}', file=sys.stderr,
          flush=True)

  def _size(self, name: str) -> int:
    return (self.folder / name).stat().st_size

  def _events(self) -> dict[str, int]:
    """Returns the sizes of the files of events that are not yet all in the bucket."""
    found = {x.name: x.stat().st_size for x in sorted((self.folder / 'tensorboard').glob('*'))}
    return {name: size for name, size in found.items() if self._sent.get(name) != size}

  def _send(self, size: int, events: dict[str, int], whole: bool = False) -> None:
    self._send_metrics(size, whole)
    for name, length in events.items():
      with open(self.folder / 'tensorboard' / name, 'rb') as file:
        files.write_bytes(self._workdir / 'tensorboard' / name, file.read(length))
      self._sent[name] = length

  def _send_metrics(self, size: int, whole: bool) -> None:
    with open(self.folder / 'metrics.jsonl', 'rb') as file:
      content = file.read(size)
    path = self._workdir / 'metrics.jsonl'
    if whole or size <= PART or size - self._base > PART:
      files.write_bytes(path, content)
      if whole or self._base:                  # in this order: in between, rows are there twice
        files.remove(_tail(path))
      self._base = size if size > PART else 0
    else:
      files.write_bytes(_tail(path), content[self._base:])


def read_lines(path: epath.Path) -> list[str]:
  """Returns the lines of metrics.jsonl and those that follow in metrics.tail.jsonl.

  Rows that both objects hold, which happens where a run was killed between the two, come once.
  """
  lines, tail = _lines(path), _lines(_tail(path))
  if tail and tail[0] in lines:
    common = lines[len(lines) - 1 - lines[::-1].index(tail[0]):]
    n = min(len(common), len(tail))
    if common[:n] == tail[:n]:
      tail = tail[n:]
  return lines + tail


def _lines(path: epath.Path) -> list[str]:
  try:
    with files.explain_errors(path):
      return path.read_bytes().decode().splitlines(True)
  except FileNotFoundError:
    return []


def _tail(path: epath.Path) -> epath.Path:
  return path.with_name('metrics.tail.jsonl')
