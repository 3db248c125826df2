"""What an evaluation leaves: predictions, results.json and a report; and what two of them say."""

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import xclip_jax
from xclip_jax import eval_report, files, protocols, scores
from xclip_jax.scores import Scores
from xclip_jax.style import percent
from xclip_jax.weights import native

# Counted up whenever the same predictions would give another number.
PROTOCOLS = {
  'supervised': 1, 'zero-shot': 1, 'base-novel': 1, 'multi-label': 1, 'retrieval': 1, 'compare': 1,
}
_COUNTS = ('expected', 'evaluated', 'missing', 'captions', 'captions_evaluated',
           'classes_with_videos')


def write(
  folder: Path, protocol: str, sets: Sequence[Any], found: Mapping[str, Scores], given: str,
  weights: Any, options: Mapping[str, Any],
) -> list[str]:
  """Writes everything into a folder and returns lines for a terminal.

  Args:
    folder: is there, and empty.
    protocol: of PROTOCOLS.
    sets: the EvaluationSets.
    found: their scores by name.
    given: what the weights were opened by.
    weights: that were evaluated, a `weights.native.Weights`.
    options: how; names to what JSON can hold.
  """
  about = _about(protocol) | {
    'weights': {'given': given} | _weights(weights), 'options': dict(options), 'lists': []}
  rows, lines = {}, []
  for n, x in enumerate(sets, start=1):
    score = found[x.name]
    file = {'base-novel': f'predictions_{x.name}.npz'}.get(protocol, f'predictions_{n}.npz')
    file = file if len(sets) > 1 else 'predictions.npz'
    score.save(folder / file)
    rows[x.name] = score.summary()
    about['lists'].append({
      'name': x.name, **x.about, 'predictions': file, 'metrics': _plain(rows[x.name]),
      'missing': [{'row': row, 'path': score.paths[row], 'reason': reason}
                  for row, reason in score.failed.items()],
    })
    lines.append(f'{x.name}: {_line(rows[x.name])}')
  if len(sets) > 1:
    over, line = _over(protocol, rows)
    about |= over
    lines.append(line)
  (folder / 'results.json').write_text(json.dumps(about, indent=1) + '\n', encoding='utf-8')
  facts = {
    'protocol': f'{protocol}, version {PROTOCOLS[protocol]}',
    'weights': f'{given} (parameters sha256 {about["weights"]["sha256"][:12]})',
    'views': f'{options["clips"]} clips x {options["crops"]} crops of '
             f'{weights.config.num_frames} frames, {options["views"]}, {options["sampling"]}, '
             f'short side {options["resize"]:.4g} x {weights.config.image_size} pixels',
    'average of views': options['average'] if protocol != 'retrieval' else 'logits',
    'templates': ' / '.join(options['templates'][:3]) + (
      f' and {len(options["templates"]) - 3} more' if len(options['templates']) > 3 else ''),
    **{f'list {x.name}': f'{os.path.basename(x.about["list"])}, sha256 '
                         f'{x.about["list_sha256"][:12]}' for x in sets},
    'program': f'xclip-jax {about["version"]}, commit {(about["git_commit"] or "unknown")[:12]}',
  }
  eval_report.write(folder, f'{protocol}: {given}', lines[-1], found, facts)
  return lines


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
      raise ValueError(f'{file} holds predictions of kind {x.kind}; those of one label a video can '
                       'be compared')
  if one.fingerprint != other.fingerprint:
    what = 'classes' if one.texts != other.texts else 'lists or labels'
    raise ValueError(f'{files[0]} and {files[1]} are of different {what}; they cannot be compared')
  index, i, j = np.intersect1d(one.index, other.index, return_indices=True)
  if not len(index):
    raise ValueError(f'no video was evaluated in both {files[0]} and {files[1]}')
  label, K = one.label[index], len(one.texts)
  found = protocols.paired_bootstrap(one.hits[i], other.hits[j], resamples, seed)
  accuracies = tuple(
    protocols.class_accuracy(hits, label, K) for hits in (one.hits[i], other.hits[j]))
  names = _names(a, b)
  counts = np.bincount(label, minlength=K)
  if folder:
    content = _about('compare') | {
      **{name: {'predictions': str(file), 'sha256': _sha256(file), 'top1': top1, 'only': only}
         for name, file, top1, only in (('a', files[0], found.a, found.only_a),
                                        ('b', files[1], found.b, found.only_b))},
      'difference': found.difference, 'interval': [found.low, found.high], 'level': 0.95,
      'p_value': found.p_value, 'resamples': resamples, 'seed': seed,
      'fingerprint': one.fingerprint, 'expected': one.expected, 'compared': len(index),
      'classes': [
        {'name': one.texts[k], 'videos': int(counts[k]),
         'a': protocols.finite(accuracies[0][k]), 'b': protocols.finite(accuracies[1][k])}
        for k in range(K)],
    }
    (folder / 'results.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    eval_report.write_comparison(folder, names, found, len(index), one.texts, accuracies, {
      'a': str(files[0]), 'b': str(files[1]),
      'videos': f'{len(index):,} of {one.expected:,}, those that were evaluated in both',
      'test': f'paired bootstrap, {resamples:,} resamples, seed {seed}',
    })
  return eval_report.sentence(names, found, len(index))


def _predictions_file(place: str) -> Path:
  path = Path(place)
  if path.is_dir():
    found = sorted(x.name for x in path.glob('predictions*.npz'))
    if found != ['predictions.npz']:
      raise ValueError(f'{path} holds ' + (f'{", ".join(found)}; name one of them' if found else
                                           'no predictions.npz'))
    path = path / 'predictions.npz'
  return path


def _names(a: str, b: str) -> tuple[str, str]:
  names = [Path(os.path.abspath(x)) for x in (a, b)]
  short = tuple(x.parent.name if x.name == 'predictions.npz' else x.stem for x in names)
  return short if short[0] != short[1] else (a, b)


def _over(protocol: str, rows: Mapping[str, dict[str, float]]) -> tuple[dict[str, Any], str]:
  """Returns what is computed over several lists, and a line about it."""
  if protocol == 'base-novel':
    base, novel = (rows[name]['top1'] for name in ('base', 'novel'))
    value = protocols.harmonic_mean(base, novel)
    line = (f'base {percent(base)}, novel {percent(novel)}, '
            f'harmonic mean {percent(value)} (top-1)')
    return {'harmonic_mean': {'top1': protocols.finite(value)}}, line
  shared = [name for name in next(iter(rows.values())) if name not in _COUNTS
            and all(name in row for row in rows.values())]
  each = {name: protocols.mean_and_deviation([row[name] for row in rows.values()])
          for name in shared}
  line = (f'mean of {len(rows)} lists: top-1 {percent(each["top1"][0])}, standard deviation '
          f'{100 * each["top1"][1]:.1f}')
  return {
    'mean': _plain({name: x[0] for name, x in each.items()}),
    'std': _plain({name: x[1] for name, x in each.items()}), 'std_ddof': 0,
  }, line


def _line(row: Mapping[str, float]) -> str:
  videos = f'{row["evaluated"]} of {row["expected"]} videos'
  if 'map' in row:
    return f'mAP {percent(row["map"])}, {videos}'
  if 'top1' in row:
    top5 = f', top-5 {percent(row["top5"])}' if 'top5' in row else ''
    return f'top-1 {percent(row["top1"])}{top5}, {videos}'
  return ', '.join(
    f'{way} ' + ' '.join(f'R@{k} {percent(row[f"{key}/r{k}"])}' for k in (1, 5, 10))
    for way, key in (('text to video', 'text_to_video'), ('video to text', 'video_to_text'))
  ) + f', {videos}'


def _about(protocol: str) -> dict[str, Any]:
  return {'protocol': protocol, 'protocol_version': PROTOCOLS[protocol],
          'version': xclip_jax.__version__, 'git_commit': _git_commit()}


def _weights(weights: Any) -> dict[str, Any]:
  return {
    'source': weights.source, 'dialect': weights.dialect,
    'sha256': native.fingerprint(weights.params),
    'run_config': _run_config(weights), 'template': weights.template,
    'model': dataclasses.asdict(weights.config),
    'preprocess': dataclasses.asdict(weights.preprocess),
  }


def _run_config(weights: Any) -> dict[str, Any] | None:
  """The config of the run that weights are of; None if they are not of a run."""
  if weights.dialect != 'run':
    return None
  file = files.as_path(weights.source, 'weights') / 'config.json'
  return native.read_json(file) if files.exists(file) else None


def _git_commit() -> str | None:
  """The commit that this program was checked out from, '+' if it was changed since; else None."""
  folder = Path(xclip_jax.__file__).resolve().parents[1]
  if not (folder / '.git').exists():
    return None
  git = lambda *words: subprocess.run(
    ['git', '-C', str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()
  try:
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
  except (OSError, subprocess.CalledProcessError):
    return None


def _plain(row: Mapping[str, float]) -> dict[str, float | None]:
  return {name: protocols.finite(value) for name, value in row.items()}


def _sha256(path: Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()
