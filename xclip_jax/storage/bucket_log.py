"""Copies of metrics.jsonl and TensorBoard events in a bucket, whose objects cannot be appended to.

A short metrics.jsonl is uploaded anew at each log row. Once it is longer than `PART`, further rows
are uploaded to a second object, metrics.tail.jsonl; when the tail is longer than `PART` too,
metrics.jsonl is uploaded anew with all rows. So a log row costs an upload of at most `PART` bytes,
and the whole file is uploaded once per `PART` bytes: 100,000 rows of 300 bytes are 30 uploads of
15 MB on average. When a run ends, metrics.jsonl has all rows. Events continue in a new file after
`PART` bytes.
"""

import concurrent.futures
import sys
import tempfile
from pathlib import Path

from etils import epath

from xclip_jax import files

PART = 1 << 20       # largest number of bytes that a log row uploads again


class BucketLog:
  """Copies a local folder with metrics.jsonl and tensorboard/ into a workdir in a bucket.

  A thread makes the copies while training goes on, so a killed process loses the rows of one log
  interval at most. A failed copy is reported and repeated at the next row.

  Fields:
    folder: local folder to write the logs to.
  """

  def __init__(self, workdir: epath.Path):
    self._workdir = workdir
    self._temporary = tempfile.TemporaryDirectory(prefix='xclip-log-')
    self.folder = Path(self._temporary.name)
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._copy: concurrent.futures.Future | None = None
    self._bytes_in_main = 0                    # size of metrics.jsonl in the bucket, if over PART
    self._bytes_sent: dict[str, int] = {}      # size of each event file in the bucket
    self._num_event_files = 0

  def replace_metrics(self) -> None:
    """Uploads the local metrics.jsonl and waits until it is in the bucket."""
    self._send_metrics(self._size('metrics.jsonl'), whole=True)

  def start_copy(self) -> bool:
    """Starts copying new rows and events; returns whether to continue in a new event file."""
    if self._copy and not self._copy.done():   # a slow network: the next copy includes these rows
      return False
    if self._copy and (error := self._copy.exception()):
      self._report(error, 'the next log row makes up for it')
    events = self._changed_events()
    self._copy = self._thread.submit(self._send, self._size('metrics.jsonl'), events)
    newest = max((self.folder / 'tensorboard').glob('*'))
    return newest.stat().st_size > PART

  def events_suffix(self) -> str:
    """Returns the end of the next event file's name: TensorBoard reads files in name order."""
    self._num_event_files += 1
    return f'.{self._num_event_files:06}'

  def close(self) -> None:
    """Copies the remaining rows and events, so that metrics.jsonl in the bucket has all rows.

    Raises the error of a failed copy, unless another exception ends the run: then the failed copy
    is only reported.
    """
    fails_already = sys.exception() is not None
    if self._copy:
      concurrent.futures.wait([self._copy])
    self._thread.shutdown()
    try:
      self._send(self._size('metrics.jsonl'), self._changed_events(), whole=True)
    except Exception as error:
      if not fails_already:
        raise
      self._report(error, 'the next start of the run repeats them')
    finally:
      self._temporary.cleanup()

  def _report(self, error: BaseException, remedy: str) -> None:
    print(f'metrics were not copied to {self._workdir}; {remedy}: {error}', file=sys.stderr,
          flush=True)

  def _size(self, name: str) -> int:
    return (self.folder / name).stat().st_size

  def _changed_events(self) -> dict[str, int]:
    """Returns name and size of the event files that are not completely in the bucket."""
    sizes = {x.name: x.stat().st_size for x in sorted((self.folder / 'tensorboard').glob('*'))}
    return {name: size for name, size in sizes.items() if self._bytes_sent.get(name) != size}

  def _send(self, size: int, events: dict[str, int], whole: bool = False) -> None:
    """Uploads the first `size` bytes of metrics.jsonl, and of each event file as many as given."""
    self._send_metrics(size, whole)
    for name, length in events.items():
      with open(self.folder / 'tensorboard' / name, 'rb') as file:
        files.write_bytes(self._workdir / 'tensorboard' / name, file.read(length))
      self._bytes_sent[name] = length

  def _send_metrics(self, size: int, whole: bool) -> None:
    with open(self.folder / 'metrics.jsonl', 'rb') as file:
      content = file.read(size)
    path = self._workdir / 'metrics.jsonl'
    if whole or size <= PART or size - self._bytes_in_main > PART:
      files.write_bytes(path, content)
      if whole or self._bytes_in_main:         # only now: no row is missing in between
        files.remove(_tail_path(path))
      self._bytes_in_main = size if size > PART else 0
    else:
      files.write_bytes(_tail_path(path), content[self._bytes_in_main:])


def read_lines(path: epath.Path) -> list[str]:
  """Returns the lines of metrics.jsonl and of metrics.tail.jsonl, which continues it.

  Rows that both objects hold, because a run was killed between two uploads, are returned once.
  """
  lines, tail = _lines(path), _lines(_tail_path(path))
  if tail and tail[0] in lines:
    common = lines[len(lines) - 1 - lines[::-1].index(tail[0]):]
    n = min(len(common), len(tail))
    if common[:n] == tail[:n]:
      tail = tail[n:]
  return lines + tail


def _lines(path: epath.Path) -> list[str]:
  try:
    with files.explain_errors(path):
      content = path.read_bytes()
  except FileNotFoundError:
    return []
  return content.decode().splitlines(True)


def _tail_path(path: epath.Path) -> epath.Path:
  return path.with_name('metrics.tail.jsonl')
