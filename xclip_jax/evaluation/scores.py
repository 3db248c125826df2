"""Scores of a model for every view of every video of a list: the record, its file, its numbers."""

import dataclasses
import functools
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.evaluation import metrics as metrics_lib

VERSION = 1
_ARRAYS = ('about', 'texts', 'logits', 'index', 'label', 'paths', 'failed', 'reasons')
KINDS = ('single-label', 'multi-label', 'captions')


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """Logits of V views of N readable videos, of R listed ones, for K texts.

  Views are kept apart, so that another average can be chosen later.

  Fields:
    kind: of KINDS; what the labels are.
    texts: K class names, or the captions of all listed videos.
    logits: float32 [N, V, K].
    index: int32 [N], row of each readable video in the list, ascending.
    label: int32 [R] class ids (-1: unknown, of an unreadable video); or bool [R, K] of several
      labels; or int32 [K], the row of the video that each caption describes.
    paths: R paths, as listed.
    failed: row -> reason why it was not evaluated; with `index` every row once.
    fingerprint: of paths, labels and texts.
    average: how views are averaged, of `metrics.AVERAGES`.
  """

  kind: str
  texts: tuple[str, ...]
  logits: np.ndarray
  index: np.ndarray
  label: np.ndarray
  paths: tuple[str, ...]
  failed: dict[int, str]
  fingerprint: str
  average: str = 'probabilities'

  def __post_init__(self):
    R, rows = len(self.paths), sorted([*map(int, self.index), *self.failed])
    if self.kind not in KINDS or self.logits.shape[::2] != (len(self.index), len(self.texts)):
      raise ValueError(f'no scores: kind {self.kind!r}, logits {list(self.logits.shape)}')
    if rows != list(range(R)):
      raise ValueError(f'{R} videos are listed, and not each of them is evaluated or failed, once')

  @property
  def expected(self) -> int:
    """Returns R, the number of listed videos."""
    return len(self.paths)

  @functools.cached_property
  def averaged(self) -> np.ndarray:
    """Averages the views to one score for each video and text, float64 [N, K].

    Captions: mean logit over views, since captions do not exclude each other. Multi-label with
    average='logits': likewise. Otherwise probabilities.
    """
    if self.kind == 'captions' or (self.kind == 'multi-label' and self.average == 'logits'):
      return self.logits.astype(np.float64).mean(axis=1)
    return metrics_lib.average_views(self.logits, self.average)

  def summary(self) -> dict[str, float]:
    """Returns the metrics of the kind; `..._of_expected` count missing videos as wrong."""
    counts = {
      'expected': self.expected, 'evaluated': len(self.index), 'missing': len(self.failed)}
    if self.kind == 'captions':
      return counts | self._retrieval()
    if self.kind == 'multi-label':
      return counts | self._multi_label()
    return counts | self._single_label()

  def per_class(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns accuracy, or average precision of multi-label lists, [K], and videos, int [K].

    Over the evaluated videos; nan for classes without any.
    """
    label, K = self.labels, len(self.texts)
    if self.kind == 'multi-label':
      return metrics_lib.average_precision(self.averaged, label), label.sum(axis=0)
    return metrics_lib.class_accuracy(self.hits, label, K), np.bincount(label, minlength=K)

  @property
  def labels(self) -> np.ndarray:
    """Returns the labels of the evaluated videos, int32 [N] or bool [N, K]; not of captions."""
    return self.label[self.index]

  # --- one label a video --------------------------------------------------------------------------
  @functools.cached_property
  def ranks(self) -> np.ndarray:
    """Ranks the label of each video, int [N], from 1; ties are no success."""
    return metrics_lib.label_ranks(self.averaged, self.labels)

  @property
  def hits(self) -> np.ndarray:
    """Tells whether the label of each video is ranked first, bool [N]."""
    return self.ranks == 1

  def top(self, k: int) -> float:
    """Returns the share of videos whose label is among the k best classes; nan without videos."""
    return metrics_lib.mean(self.ranks <= k)

  def confusion(self) -> np.ndarray:
    """Returns counts, int [K, K], true class by predicted class."""
    return metrics_lib.confusion(self.averaged, self.labels)

  def reliability(self) -> metrics_lib.Reliability:
    """Bins the videos by the confidence of their best class."""
    return metrics_lib.reliability(self.averaged, self.hits)

  def partners(self, partner: Sequence[int | None]) -> np.ndarray:
    """Returns the partner class of each video's label, int [N]; -1 for None."""
    return np.array([-1 if p is None else p for p in partner], int)[self.labels]

  def against(self, partner: Sequence[int | None]) -> float:
    """Returns how often the label beats one other class; chance is 0.5.

    Args:
      partner: for each of K classes the class to tell it from, such as the one that its clips show
        when played backwards; None leaves the class out.
    """
    rival = self.partners(partner)
    rows = np.flatnonzero(rival >= 0)
    if not len(rows):
      return float('nan')
    label, other = self.averaged[rows, self.labels[rows]], self.averaged[rows, rival[rows]]
    return float(np.mean(label > other) + 0.5 * np.mean(label == other))

  def _single_label(self) -> dict[str, float]:
    K, row = len(self.texts), {}
    for k in (1, 5) if K > 5 else (1,):
      row[f'top{k}'] = self.top(k)
      row[f'top{k}_of_expected'] = float(np.sum(self.ranks <= k) / self.expected)
    accuracies = self.per_class()[0]
    row['mean_class_accuracy'] = metrics_lib.mean(accuracies[np.isfinite(accuracies)])
    return row | {'ece': self.reliability().ece}

  # --- several labels a video ---------------------------------------------------------------------
  def _multi_label(self) -> dict[str, float]:
    of_all = np.full(self.label.shape, -np.inf)
    of_all[self.index] = self.averaged
    precisions = {'map': self.per_class()[0],
                  'map_of_expected': metrics_lib.average_precision(of_all, self.label)}
    row = {name: metrics_lib.mean(x[np.isfinite(x)]) for name, x in precisions.items()}
    return row | {'classes_with_videos': int(np.isfinite(precisions['map']).sum())}

  # --- videos and captions ------------------------------------------------------------------------
  def retrieval_ranks(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns ranks from text to video and from video to text, from 1.

    Among the evaluated videos and their captions.
    """
    evaluated = np.isin(self.label, self.index)
    owner = np.searchsorted(self.index, self.label[evaluated])
    similarity = self.averaged[:, evaluated]
    return (metrics_lib.text_to_video_ranks(similarity, owner),
            metrics_lib.video_to_text_ranks(similarity, owner))

  def _retrieval(self) -> dict[str, float]:
    by_text, by_video = self.retrieval_ranks()
    row: dict[str, float] = {'captions': len(self.texts), 'captions_evaluated': len(by_text)}
    for way, ranks, expected in (('text_to_video', by_text, len(self.texts)),
                                 ('video_to_text', by_video, self.expected)):
      row |= {f'{way}/{k}': x for k, x in metrics_lib.retrieval(ranks, expected).items()}
    return row

  # --- file ---------------------------------------------------------------------------------------
  def save(self, path: str | os.PathLike) -> None:
    """Writes an .npz; names as here, with `failed` and `reasons` of the missing rows."""
    header = {'version': VERSION, 'kind': self.kind, 'average': self.average,
              'fingerprint': self.fingerprint}
    rows = sorted(self.failed)
    files.write_npz(
      files.as_path(path), about=np.array(json.dumps(header)), texts=np.array(self.texts, str),
      logits=self.logits, index=self.index, label=self.label, paths=np.array(self.paths, str),
      failed=np.array(rows, np.int32), reasons=np.array([self.failed[i] for i in rows], str),
    )


def load(path: str | os.PathLike) -> Scores:
  """Reads a file of `Scores.save`.

  Raises:
    UserError: the file is missing, damaged, or was written by another version.
  """
  refuse = lambda reason: UserError(f'{path} is no predictions file of this program: {reason}')
  try:
    file = np.load(path, allow_pickle=False)
    arrays = {name: file[name] for name in file} if isinstance(file, np.lib.npyio.NpzFile) else {}
  except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
    raise refuse(error) from error
  if 'probabilities' in arrays and 'about' not in arrays:
    raise refuse(
      'a training run of an earlier xclip-jax wrote it (format 0: probabilities without logits '
      'and without the fingerprint of the list); write it again with train.py --mode=eval')
  missing = [name for name in _ARRAYS if name not in arrays]
  if missing:
    raise refuse(f'it has no array {missing[0]!r}')
  header = _read_header(str(arrays['about']))
  if header.get('version') != VERSION:
    raise refuse(f'its version is {header.get("version")}, this program reads {VERSION}')
  missing = [name for name in ('kind', 'average', 'fingerprint') if name not in header]
  if missing:
    raise refuse(f'its header has no {missing[0]}')
  lists = {
    name: np.ravel(arrays[name]).tolist() for name in ('texts', 'paths', 'failed', 'reasons')}
  if len(lists['failed']) != len(lists['reasons']) or arrays['logits'].ndim != 3:
    raise refuse('its arrays do not belong together')
  try:
    return Scores(
      kind=header['kind'], texts=tuple(lists['texts']), logits=arrays['logits'],
      index=arrays['index'], label=arrays['label'], paths=tuple(lists['paths']),
      failed=dict(zip(lists['failed'], lists['reasons'], strict=True)),
      fingerprint=header['fingerprint'], average=header['average'],
    )
  except ValueError as error:               # Scores refuses arrays that contradict each other
    raise refuse(error) from error


def _read_header(text: str) -> dict[str, Any]:
  """Parses the header of a predictions file; {} if it is none."""
  try:
    header = json.loads(text)
  except (ValueError, RecursionError):
    return {}
  return header if isinstance(header, dict) else {}
