"""What a model said about every view of every video of a list, its file, and its numbers."""

import dataclasses
import functools
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.evaluation import metrics as metrics_lib

VERSION = 1
KINDS = ('single-label', 'multi-label', 'captions')


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


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """Logits of V views of N readable videos, of R that are listed, over K texts.

  Nothing is averaged yet, so how views are averaged can be chosen again later.
  """

  kind: str                  # of KINDS: what the labels are
  texts: tuple[str, ...]     # K: class names, or the captions of all listed videos
  logits: np.ndarray         # float32 [N, V, K]
  index: np.ndarray          # int32 [N], row of each video, ascending
  label: np.ndarray          # int32 [R], or bool [R, K] of several labels, or the row that each
                             # caption belongs to, int32 [K]
  paths: tuple[str, ...]     # R
  failed: dict[int, str]     # row -> why it was not evaluated; with `index` every row once
  fingerprint: str           # of paths, labels and texts
  average: str = 'probabilities'

  def __post_init__(self):
    R, rows = len(self.paths), sorted([*map(int, self.index), *self.failed])
    if self.kind not in KINDS or self.logits.shape[::2] != (len(self.index), len(self.texts)):
      raise UserError(f'no scores: kind {self.kind!r}, logits {list(self.logits.shape)}')
    if rows != list(range(R)):
      raise UserError(f'{R} videos are listed, and not each of them is evaluated or failed, once')

  @property
  def expected(self) -> int:
    """R, the videos there should be."""
    return len(self.paths)

  @functools.cached_property
  def averaged(self) -> np.ndarray:
    """One score for each video and text, float64 [N, K]: probabilities, but for captions.

    Texts of captions are no alternatives, so there it is the mean logit; and with several labels,
    where one must not lower the other, it is so if `average` is 'logits'.
    """
    if self.kind == 'captions' or (self.kind == 'multi-label' and self.average == 'logits'):
      return self.logits.astype(np.float64).mean(axis=1)
    return metrics_lib.average_views(self.logits, self.average)

  @functools.cached_property
  def hits(self) -> np.ndarray:
    """Whether the label of each video alone is ranked first, bool [N]; single labels only."""
    return metrics_lib.label_ranks(self.averaged, self.label[self.index]) == 1

  def predictions(self) -> Predictions:
    """The same as one row of probabilities a video; single labels only."""
    return Predictions(
      self.texts, self.averaged, self.label[self.index], self.index, self.expected, self.failed)

  def summary(self) -> dict[str, float]:
    """Returns the numbers of the protocol; `..._of_expected` count what is missing as wrong."""
    counts = {
      'expected': self.expected, 'evaluated': len(self.index), 'missing': len(self.failed)}
    if self.kind == 'captions':
      return counts | self._retrieval()
    if self.kind == 'multi-label':
      return counts | self._multi_label()
    return counts | self._single_label()

  def _single_label(self) -> dict[str, float]:
    label, K, row = self.label[self.index], len(self.texts), {}
    ranks = metrics_lib.label_ranks(self.averaged, label)
    for k in (1, 5) if K > 5 else (1,):
      row[f'top{k}'] = metrics_lib.mean(ranks <= k)
      row[f'top{k}_of_expected'] = float(np.sum(ranks <= k) / self.expected)
    each = metrics_lib.class_accuracy(ranks == 1, label, K)
    row['mean_class_accuracy'] = metrics_lib.mean(each[np.isfinite(each)])
    return row | {'ece': self.reliability().ece}

  def reliability(self) -> metrics_lib.Reliability:
    """Returns how often the model is right when it is so sure; single labels only."""
    return metrics_lib.reliability(self.averaged, self.hits)

  def per_class(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns accuracy, or average precision of several labels, [K], and videos, [K].

    Over the videos that were evaluated; nan for classes without any.
    """
    label, K = self.label[self.index], len(self.texts)
    if self.kind == 'multi-label':
      return metrics_lib.average_precision(self.averaged, label), label.sum(axis=0)
    return metrics_lib.class_accuracy(self.hits, label, K), np.bincount(label, minlength=K)

  def _multi_label(self) -> dict[str, float]:
    everything = np.full(self.label.shape, -np.inf)
    everything[self.index] = self.averaged
    found = self.per_class()[0], metrics_lib.average_precision(everything, self.label)
    row = {name: metrics_lib.mean(x[np.isfinite(x)]) for name, x in
           zip(('map', 'map_of_expected'), found, strict=True)}
    return row | {'classes_with_videos': int(np.isfinite(found[0]).sum())}

  def ranks(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns ranks from text to video and from video to text; captions only.

    Of the videos that were evaluated, and their captions, among each other.
    """
    there = np.isin(self.label, self.index)
    owner, similarity = np.searchsorted(self.index, self.label[there]), self.averaged[:, there]
    return (metrics_lib.text_to_video_ranks(similarity, owner),
            metrics_lib.video_to_text_ranks(similarity, owner))

  def _retrieval(self) -> dict[str, float]:
    by_text, by_video = self.ranks()
    found = (('text_to_video', metrics_lib.retrieval(by_text, len(self.texts))),
             ('video_to_text', metrics_lib.retrieval(by_video, self.expected)))
    row = {'captions': len(self.texts), 'captions_evaluated': len(by_text)}
    return row | {f'{way}/{name}': x for way, numbers in found for name, x in numbers.items()}

  def save(self, path: str | os.PathLike) -> None:
    """Writes an .npz; names as here, and `failed` and `reasons` of the rows that are missing."""
    about = {'version': VERSION, 'kind': self.kind, 'average': self.average,
             'fingerprint': self.fingerprint}
    rows = sorted(self.failed)
    files.write_npz(
      files.as_path(path), about=np.array(json.dumps(about)), texts=np.array(self.texts, str),
      logits=self.logits, index=self.index, label=self.label, paths=np.array(self.paths, str),
      failed=np.array(rows, np.int32), reasons=np.array([self.failed[i] for i in rows], str),
    )


def load(path: str | os.PathLike) -> Scores:
  """Reads what `Scores.save` wrote; ValueError if it is no such file."""
  try:
    with np.load(path, allow_pickle=False) as file:
      about: dict[str, Any] = json.loads(str(file['about']))
      if about['version'] != VERSION:
        raise UserError(f'its version is {about["version"]}, this program reads {VERSION}')
      return Scores(
        kind=about['kind'], texts=tuple(file['texts'].tolist()), logits=file['logits'],
        index=file['index'], label=file['label'], paths=tuple(file['paths'].tolist()),
        failed=dict(zip(file['failed'].tolist(), file['reasons'].tolist(), strict=True)),
        fingerprint=about['fingerprint'], average=about['average'],
      )
  except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'{path} is no predictions file of `xclip eval`: {error}') from error
