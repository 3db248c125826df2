"""What a model got right, and the files where the numbers of a run are kept."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from xclip_jax import files
from xclip_jax.storage import bucket_log


class MetricsWriter:
  """Keeps the numbers of a run: `metrics.jsonl`, and TensorBoard events beside it.

  metrics.jsonl holds only what the run computes, never a time: a run that was killed and resumed
  ends with the same file as one that was not. What was written after `start_step`, by a process
  that died before its next checkpoint, is cut off. One of several processes writes; `rows` is what
  was there. For a workdir in a bucket both are in a temporary folder, and copied at each row.
  """

  def __init__(self, workdir: Path, start_step: int = 0, writes: bool = True):
    self.path = workdir / 'metrics.jsonl'
    self._writes = writes
    rows = [row for row in read_metrics(self.path) if row['step'] <= start_step]
    self.rows = rows
    if not writes:
      return
    self._copy = bucket_log.BucketLog(workdir) if files.is_remote(workdir) else None
    self._folder = self._copy.folder if self._copy else workdir
    path = self._folder / 'metrics.jsonl'
    files.write_text(path, ''.join(json.dumps(row) + '\n' for row in rows))
    self._file = path.open('a')
    self._events = self._open_events(purge_step=start_step + 1)
    if self._copy:
      self._copy.replace_metrics()

  def write(self, step: int, scalars: Mapping[str, Any], timing: Mapping[str, float] = {}) -> None:
    """Appends one row; `timing` goes to TensorBoard only."""
    if not self._writes:
      return
    row = {'step': step} | {k: _plain(v) for k, v in scalars.items()}
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()
    for name, value in (row | timing).items():
      if name != 'step' and isinstance(value, int | float):
        self._events.add_scalar(name, value, step)
    if self._copy:
      self._events.flush()
      if self._copy.start_copy():
        self._events.close()
        self._events = self._open_events()

  def close(self) -> None:
    if not self._writes:
      return
    self._file.close()
    self._events.close()
    if self._copy:
      self._copy.close()

  def _open_events(self, purge_step: int | None = None) -> SummaryWriter:
    suffix = self._copy.events_suffix() if self._copy else ''
    return SummaryWriter(
      str(self._folder / 'tensorboard'), purge_step=purge_step, filename_suffix=suffix)


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; a last line cut short by a crash is left out.

  In a bucket the rows of a run that has not ended, or was killed, may go on in a second object.
  """
  if files.is_remote(path):
    lines = bucket_log.read_lines(path)
  elif path.exists():
    lines = path.read_text().splitlines(True)
  else:
    return []
  return [json.loads(line) for line in lines if line.endswith('\n')]


def _plain(value: Any) -> int | float:
  value = np.asarray(value).item()
  return value if isinstance(value, int) else float(np.float32(value))


def write_results(workdir: Path, step: int, results: Mapping[str, float]) -> None:
  """Writes results.json; numbers that are none are null there."""
  plain = {k: v if math.isfinite(v) else None for k, v in results.items()}
  files.write_text(workdir / 'results.json', json.dumps({'step': step} | plain, indent=1) + '\n')
