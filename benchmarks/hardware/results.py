"""The file of measured rows: JSON lines, of which the last of each row and device counts."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.hardware.rows import Row

DONE = ('ok', 'failed', 'out of memory')         # are not measured again
BROKEN = ('error', 'failed')


class Results:
  """Rows of a file, which is read once and added to, a line at a time."""

  def __init__(self, path: Path):
    self.path = path
    self.latest: dict[tuple[str, str], dict[str, Any]] = {
      (x['device'], x['row']): x for x in read(path)}
    self.memory_limit: int | None = None

  def missing(self, groups: list[list[Row]], device: str) -> list[list[Row]]:
    """Returns groups without the rows that are done; rows that went wrong before come last."""
    status = lambda row: self.latest.get((device, row.name), {}).get('status')
    kept = [[row for row in group if status(row) not in DONE and (status(row) == 'error') == again]
            for again in (False, True) for group in groups]
    return [rows for rows in kept if rows]

  def add(self, row: Row, answer: dict[str, Any]) -> dict[str, Any]:
    """Writes a row at once and returns what was written."""
    self.memory_limit = answer.get('memory_limit')
    record = {'row': row.name, 'date': time.strftime('%Y-%m-%d'), **answer,
              'settings': row.settings}
    record = {k: float(f'{x:.5g}') if isinstance(x, float) else x for k, x in record.items()}
    if record['status'] == 'not run' and (record['device'], row.name) in self.latest:
      return record                              # says no more than the file does
    self.latest[record['device'], row.name] = record
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self.path.open('ab+') as file:
      file.seek(0, os.SEEK_END)
      if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b'\n':                # a line that was cut off
          file.write(b'\n')
      file.write(json.dumps(record).encode() + b'\n')
      file.flush()
      os.fsync(file.fileno())
    return record

  def summary(self, rows: list[Row], device: str) -> int:
    """Prints how many rows have which status; returns 1 if a check or program failed, else 0."""
    statuses = [self.latest[device, row.name]['status'] for row in rows]
    print(', '.join(f'{statuses.count(s)} {s}' for s in dict.fromkeys(statuses)) +
          f'; {self.path}', flush=True)
    return int(any(status in BROKEN for status in statuses))


def read(path: Path) -> list[dict[str, Any]]:
  """Returns the rows of a file, [] if there is none; a line that was cut off is left out."""
  return list(parse(path.read_text().splitlines())) if path.exists() else []


def parse(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
  for line in lines:
    try:
      record = json.loads(line)
    except ValueError:
      continue
    if isinstance(record, dict) and {'row', 'device', 'status'} <= record.keys():
      yield record


def describe(record: dict[str, Any]) -> str:
  """Returns one line that says what was measured."""
  said = [f'{record["status"]:<4} {record["row"]}:']
  if 'reason' in record:
    said.append(record['reason'])
  if 'errors' in record:
    said.append(', '.join(f'{name} {"nan" if e is None else f"{e:.1e}"} (bound '
                          f'{record["bounds"][name]:.0e})' for name, e in record['errors'].items()))
  if 'videos_per_second' in record:
    said.append(f'{record["videos_per_second"]:.4g} videos/s, {record["batch"]} videos in '
                f'{record["ms"]:.4g} ms')
    if record.get('mfu'):
      said.append(f'({record["mfu"]:.0%} of the peak)')
    memory = record.get('peak_bytes') or record.get('compiled_bytes')
    said += [f'{memory / 2**30:.2f} GiB'] if memory else []
    compiled = record.get('compile_seconds')
    said += [f'compiled in {compiled:.0f} s'] if compiled else []
  if 'updates' in record:
    said.append(f'{record["updates"]} updates, {record["bytes"] / 1e6:.1f} MB, '
                f'{record["file"] or "too large to keep"}')
  return ' '.join(said)
