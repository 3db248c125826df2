"""What a model got right, and the files where the numbers of a run are kept."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from xclip_jax import bucket_log, files


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Scores of N videos over K classes, one row for each video that was evaluated.

  N is the number of readable videos; `expected` the number there should have been.
  """

  class_names: tuple[str, ...]
  probabilities: np.ndarray            # float32 [N, K], rows sum to 1
  label: np.ndarray                    # int32 [N]
  index: np.ndarray                    # int32 [N], row in the annotation file
  expected: int
  failed: dict[int, str] = dataclasses.field(default_factory=dict)   # row -> why it is missing

  def top(self, k: int) -> float:
    """Returns the share of videos whose label is among the k best classes (k up to K).

    Ties are no success: a class that scores exactly like the right one counts as better, and so
    does every class where scores are NaN.
    """
    if not len(self.label):
      return float('nan')
    own = np.take_along_axis(self.probabilities, self.label[:, None], axis=1)
    better = (~(self.probabilities < own)).sum(axis=1) - 1
    return float(np.mean(better < min(k, len(self.class_names))))

  def per_class(self) -> np.ndarray:
    """Returns top-1 accuracy [K]; nan for classes without a video."""
    confusion = self.confusion()
    total = confusion.sum(axis=1)
    with np.errstate(invalid='ignore'):
      return np.diag(confusion) / np.where(total, total, np.nan)

  def confusion(self) -> np.ndarray:
    """Returns counts [K, K], true class by predicted class."""
    K = len(self.class_names)
    # Of equal scores the right class comes last, as in `top`.
    scores, rows = self.probabilities.astype(np.float64), np.arange(len(self.label))
    tied = (scores == scores[rows, self.label][:, None]).sum(axis=1) > 1
    scores[rows[tied], self.label[tied]] = -np.inf
    pairs = np.stack([self.label, scores.argmax(axis=1)])
    return np.bincount(np.ravel_multi_index(pairs, (K, K)), minlength=K * K).reshape(K, K)

  def against(self, partner: Sequence[int | None]) -> float:
    """Returns how often the label beats one other class, chance 0.5.

    Args:
      partner: [K], for each class the class to tell it from, e.g. the one that its clips turn into
        when played backwards; None leaves the class out.
    """
    other = np.array([-1 if p is None else p for p in partner])[self.label]
    rows = np.flatnonzero(other >= 0)
    if not len(rows):
      return float('nan')
    own = self.probabilities[rows, self.label[rows]]
    rival = self.probabilities[rows, other[rows]]
    return float(np.mean(own > rival) + 0.5 * np.mean(own == rival))

  def summary(self) -> dict[str, float]:
    """Returns the scalars that go into metrics files."""
    return {
      'top1': self.top(1), 'top5': self.top(5),
      'evaluated': len(self.label), 'expected': self.expected,
    }

  def save(self, path: Path) -> None:
    """Writes an .npz with one row per video; whole or not at all."""
    files.write_npz(
      path, class_names=np.array(self.class_names), probabilities=self.probabilities,
      label=self.label, index=self.index, expected=self.expected,
      failed=np.array(sorted(self.failed), np.int32),
      reasons=np.array([self.failed[i] for i in sorted(self.failed)], str),
    )

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
