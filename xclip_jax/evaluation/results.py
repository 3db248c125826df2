"""What an evaluation leaves: predictions, results.json and a report; and what two of them say."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xclip_jax
from xclip_jax import files
from xclip_jax.evaluation import metrics
from xclip_jax.evaluation.scores import Scores
from xclip_jax.reports import evaluation_page
from xclip_jax.text_format import percent
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
  about = about_run(protocol) | {
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
  evaluation_page.write(folder, f'{protocol}: {given}', lines[-1], found, facts)
  return lines


def _over(protocol: str, rows: Mapping[str, dict[str, float]]) -> tuple[dict[str, Any], str]:
  """Returns what is computed over several lists, and a line about it."""
  if protocol == 'base-novel':
    base, novel = (rows[name]['top1'] for name in ('base', 'novel'))
    value = metrics.harmonic_mean(base, novel)
    line = (f'base {percent(base)}, novel {percent(novel)}, '
            f'harmonic mean {percent(value)} (top-1)')
    return {'harmonic_mean': {'top1': metrics.finite(value)}}, line
  shared = [name for name in next(iter(rows.values())) if name not in _COUNTS
            and all(name in row for row in rows.values())]
  each = {name: metrics.mean_and_deviation([row[name] for row in rows.values()])
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


def about_run(protocol: str) -> dict[str, Any]:
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
  return {name: metrics.finite(value) for name, value in row.items()}
