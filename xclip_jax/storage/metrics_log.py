"""Metrics of a run: metrics.jsonl, TensorBoard events and results.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from xclip_jax import files
from xclip_jax.files import AnyPath
from xclip_jax.storage import bucket_log

_NO_TIMING: Mapping[str, float] = MappingProxyType({})


class MetricsWriter:
  """Writes the numbers of a run to `metrics.jsonl` and to TensorBoard events beside it.

  metrics.jsonl holds computed numbers only, never a time: a run that was killed and resumed ends
  with the same file as an uninterrupted one. Rows after `start_step`, which a process wrote that
  died before its next checkpoint, are cut off. For a workdir in a bucket both are written to a
  temporary folder and copied at each row.

  Fields:
    path: metrics.jsonl in the workdir.
    rows: the rows up to `start_step`.
  """

  def __init__(self, workdir: AnyPath, start_step: int = 0, writes: bool = True):
    """Reads the existing rows and opens both files.

    Args:
      workdir: folder of the run.
      start_step: step of the checkpoint that the run continues from.
      writes: False on all processes but one, which only read.
    """
    self.path = workdir / 'metrics.jsonl'
    self._writes = writes
    self.rows = [row for row in read_metrics(self.path) if row['step'] <= start_step]
    if not writes:
      return
    self._copy = None if isinstance(workdir, Path) else bucket_log.BucketLog(workdir)
    self._folder = self._copy.folder if self._copy else workdir
    path = self._folder / 'metrics.jsonl'
    files.write_text(path, ''.join(json.dumps(row) + '\n' for row in self.rows))
    self._file = path.open('a')
    self._events = self._open_events(purge_step=start_step + 1)
    if self._copy:
      self._copy.replace_metrics()

  def write(
    self, step: int, scalars: Mapping[str, Any], timing: Mapping[str, float] = _NO_TIMING
  ) -> None:
    """Appends one row; `timing` is written to TensorBoard only."""
    if not self._writes:
      return
    row = {'step': step} | {k: _plain(v) for k, v in scalars.items()}
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()
    for name, value in (row | dict(timing)).items():
      if name != 'step' and isinstance(value, int | float):
        self._events.add_scalar(name, value, step)
    if self._copy:
      self._events.flush()
      if self._copy.start_copy():
        self._events.close()
        self._events = self._open_events()

  def close(self) -> None:
    """Closes both files and completes their copies in a bucket."""
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


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
  """Reads metrics.jsonl without a last line that a crash has cut short.

  In a bucket, the last rows of a run that has not ended may be in a second object.
  """
  if not isinstance(path, Path):
    lines = bucket_log.read_lines(path)
  elif path.exists():
    lines = path.read_text().splitlines(True)
  else:
    return []
  return [json.loads(line) for line in lines if line.endswith('\n')]


def _plain(value: Any) -> int | float:
  """Converts a scalar array to an int or to a float that JSON writes with float32's digits."""
  value = np.asarray(value).item()
  return value if isinstance(value, int) else float(np.float32(value))


def write_results(workdir: AnyPath, step: int, results: Mapping[str, float]) -> None:
  """Writes results.json, with null for numbers that are not finite."""
  plain = {k: v if math.isfinite(v) else None for k, v in results.items()}
  files.write_text(workdir / 'results.json', json.dumps({'step': step} | plain, indent=1) + '\n')
