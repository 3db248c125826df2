"""Comparison of two models over the same videos."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.evaluation import metrics, scores
from xclip_jax.evaluation.results import describe_program
from xclip_jax.text_format import percent, points


@dataclasses.dataclass(frozen=True, eq=False)
class ModelComparison:
  """Difference of two models, b - a, over the videos that both were evaluated on.

  Fields:
    names: of a and of b, for people; predictions: their files.
    difference: over all videos; resamples, seed: of its bootstrap.
    videos: number of videos in the comparison; expected: number of videos listed.
    fingerprint: of the annotation list.
    classes: K names; counts: int [K], videos of each class.
    accuracies: of a and of b, float [K] each; nan for classes without videos.
  """

  names: tuple[str, str]
  predictions: tuple[Path, Path]
  difference: metrics.Difference
  resamples: int
  seed: int
  videos: int
  expected: int
  fingerprint: str
  classes: tuple[str, ...]
  counts: np.ndarray
  accuracies: tuple[np.ndarray, np.ndarray]

  def sentence(self) -> str:
    """Returns the result in one sentence that claims no more than the test bears."""
    (a, b), d = self.names, self.difference
    text = (f'top-1 {percent(d.a)} (a, {a}) and {percent(d.b)} (b, {b}) on the same '
            f'{self.videos:,} videos; b - a is {points(d.difference)} points, 95% interval '
            f'{points(d.low)} to {points(d.high)}, p = {d.p_value:.2g}; {d.only_a:,} '
            f'videos only a gets right, {d.only_b:,} only b')
    return text + ('' if d.p_value < 0.05 else '. No evidence that they differ')

  def content(self) -> dict[str, Any]:
    """Returns the content of results.json."""
    d = self.difference
    models = {
      name: {'predictions': str(file), 'sha256': files.sha256(file), 'top1': top1, 'only': only}
      for name, file, top1, only in zip(
        ('a', 'b'), self.predictions, (d.a, d.b), (d.only_a, d.only_b), strict=True)}
    return describe_program('compare') | models | {
      'difference': d.difference, 'interval': [d.low, d.high], 'level': 0.95,
      'p_value': d.p_value, 'resamples': self.resamples, 'seed': self.seed,
      'fingerprint': self.fingerprint, 'expected': self.expected, 'compared': self.videos,
      'classes': [
        {'name': name, 'videos': int(count), 'a': metrics.finite(a), 'b': metrics.finite(b)}
        for name, count, a, b in zip(self.classes, self.counts, *self.accuracies, strict=True)],
    }


def compare(a: str, b: str, resamples: int, seed: int) -> ModelComparison:
  """Compares two predictions files by a paired bootstrap over the videos that both hold.

  Args:
    a, b: predictions files, or folders that hold one predictions.npz.
    resamples: of the bootstrap; seed: of its random numbers.

  Raises:
    UserError: a file is missing or no predictions file, or the two are of different annotation
      lists, classes or labels.
  """
  paths = _predictions_file(a), _predictions_file(b)
  first, second = map(scores.load, paths)
  for path, x in zip(paths, (first, second), strict=True):
    if x.kind != 'single-label':
      raise UserError(f'{path} holds predictions of kind {x.kind}; those of one label a video can '
                      'be compared')
  if first.fingerprint != second.fingerprint:
    part = 'classes' if first.texts != second.texts else 'lists or labels'
    raise UserError(f'{paths[0]} and {paths[1]} are of different {part}; they cannot be compared')
  index, i, j = np.intersect1d(first.index, second.index, return_indices=True)
  if not len(index):
    raise UserError(f'no video was evaluated in both {paths[0]} and {paths[1]}')
  label, K = first.label[index], len(first.texts)
  hits = first.hits[i], second.hits[j]
  return ModelComparison(
    names=_names(a, b), predictions=paths,
    difference=metrics.paired_bootstrap(*hits, resamples, seed), resamples=resamples, seed=seed,
    videos=len(index), expected=first.expected, fingerprint=first.fingerprint,
    classes=first.texts, counts=np.bincount(label, minlength=K),
    accuracies=(metrics.class_accuracy(hits[0], label, K),
                metrics.class_accuracy(hits[1], label, K)))


def _predictions_file(name: str) -> Path:
  path = Path(name)
  if path.is_dir():
    held = sorted(x.name for x in path.glob('predictions*.npz'))
    if held != ['predictions.npz']:
      raise UserError(f'{path} holds ' + (f'{", ".join(held)}; name one of them' if held else
                                          'no predictions.npz'))
    path = path / 'predictions.npz'
  return path


def _names(a: str, b: str) -> tuple[str, str]:
  """Returns the shortest names that tell two predictions files apart."""
  paths = [Path(os.path.abspath(x)) for x in (a, b)]
  stems = [x.stem if x.suffix == '.npz' else x.name for x in paths]
  folders = [x.parent.name if name.startswith('predictions') else name
             for x, name in zip(paths, stems, strict=True)]
  for first, second in (folders, stems):
    if first != second:
      return first, second
  return a, b
