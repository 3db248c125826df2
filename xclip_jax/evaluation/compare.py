"""Two evaluations of the same videos, compared video by video."""

import json
import os
from pathlib import Path

import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.evaluation import metrics, scores
from xclip_jax.evaluation.results import about_run
from xclip_jax.reports import evaluation_page


def compare(a: str, b: str, resamples: int, seed: int, folder: Path | None) -> str:
  """Compares two predictions files, b - a; writes into `folder`, if there is one.

  Returns:
    one sentence.

  Raises:
    ValueError: no such files, or ones of other lists, texts or labels.
  """
  files = [_predictions_file(place) for place in (a, b)]
  one, other = (scores.load(file) for file in files)
  for file, x in zip(files, (one, other), strict=True):
    if x.kind != 'single-label':
      raise UserError(f'{file} holds predictions of kind {x.kind}; those of one label a video can '
                       'be compared')
  if one.fingerprint != other.fingerprint:
    what = 'classes' if one.texts != other.texts else 'lists or labels'
    raise UserError(f'{files[0]} and {files[1]} are of different {what}; they cannot be compared')
  index, i, j = np.intersect1d(one.index, other.index, return_indices=True)
  if not len(index):
    raise UserError(f'no video was evaluated in both {files[0]} and {files[1]}')
  label, K = one.label[index], len(one.texts)
  found = metrics.paired_bootstrap(one.hits[i], other.hits[j], resamples, seed)
  accuracies = tuple(
    metrics.class_accuracy(hits, label, K) for hits in (one.hits[i], other.hits[j]))
  names = _names(a, b)
  counts = np.bincount(label, minlength=K)
  if folder:
    content = about_run('compare') | {
      **{name: {'predictions': str(file), 'sha256': files.sha256(file), 'top1': top1, 'only': only}
         for name, file, top1, only in (('a', files[0], found.a, found.only_a),
                                        ('b', files[1], found.b, found.only_b))},
      'difference': found.difference, 'interval': [found.low, found.high], 'level': 0.95,
      'p_value': found.p_value, 'resamples': resamples, 'seed': seed,
      'fingerprint': one.fingerprint, 'expected': one.expected, 'compared': len(index),
      'classes': [
        {'name': one.texts[k], 'videos': int(counts[k]),
         'a': metrics.finite(accuracies[0][k]), 'b': metrics.finite(accuracies[1][k])}
        for k in range(K)],
    }
    (folder / 'results.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    evaluation_page.write_comparison(folder, names, found, len(index), one.texts, accuracies, {
      'a': str(files[0]), 'b': str(files[1]),
      'videos': f'{len(index):,} of {one.expected:,}, those that were evaluated in both',
      'test': f'paired bootstrap, {resamples:,} resamples, seed {seed}',
    })
  return evaluation_page.sentence(names, found, len(index))


def _predictions_file(place: str) -> Path:
  path = Path(place)
  if path.is_dir():
    found = sorted(x.name for x in path.glob('predictions*.npz'))
    if found != ['predictions.npz']:
      raise UserError(f'{path} holds ' + (f'{", ".join(found)}; name one of them' if found else
                                           'no predictions.npz'))
    path = path / 'predictions.npz'
  return path


def _names(a: str, b: str) -> tuple[str, str]:
  names = [Path(os.path.abspath(x)) for x in (a, b)]
  short = tuple(x.parent.name if x.name == 'predictions.npz' else x.stem for x in names)
  return short if short[0] != short[1] else (a, b)
