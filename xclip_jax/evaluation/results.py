"""Results of an `xclip eval` protocol: predictions files and results.json."""

import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xclip_jax
from xclip_jax import files
from xclip_jax.evaluation import metrics
from xclip_jax.evaluation.scores import Scores
from xclip_jax.evaluation.video_lists import EvaluationSet
from xclip_jax.text_format import percent
from xclip_jax.weights import native

# Protocol versions. Raise one whenever the same predictions would give another number.
PROTOCOLS = {
  'supervised': 1, 'zero-shot': 1, 'base-novel': 1, 'multi-label': 1, 'retrieval': 1, 'compare': 1,
}
# Metrics that count videos, captions or classes: they are not averaged over lists or results.
COUNTS = ('expected', 'evaluated', 'missing', 'captions', 'captions_evaluated',
          'classes_with_videos')


@dataclasses.dataclass(frozen=True, eq=False)
class ProtocolRun:
  """Scores of one model by one protocol.

  Fields:
    protocol: key of PROTOCOLS.
    sets: evaluated lists; scores: scores of each list by its name.
    given: name that the weights were opened by; weights: what was opened.
    options: protocol options; names to values that JSON can hold.
  """

  protocol: str
  sets: Sequence[EvaluationSet]
  scores: Mapping[str, Scores]
  given: str
  weights: native.Weights
  options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
  """Text of a written result.

  Fields:
    title: heading of its page; lines: the numbers, for a terminal; facts: rows of the page's table.
  """

  title: str
  lines: list[str]
  facts: dict[str, str]


def write(folder: Path, run: ProtocolRun) -> Result:
  """Writes predictions files and results.json into an empty folder."""
  content = describe_program(run.protocol) | {
    'weights': {'given': run.given} | _describe_weights(run.weights),
    'options': dict(run.options), 'lists': []}
  rows, lines = {}, []
  for n, x in enumerate(run.sets, start=1):
    scores = run.scores[x.name]
    file = f'predictions_{x.name if run.protocol == "base-novel" else n}.npz'
    file = file if len(run.sets) > 1 else 'predictions.npz'
    scores.save(folder / file)
    rows[x.name] = scores.summary()
    content['lists'].append({
      'name': x.name, **x.origin, 'predictions': file, 'metrics': _to_json(rows[x.name]),
      'missing': [{'row': row, 'path': scores.paths[row], 'reason': reason}
                  for row, reason in scores.failed.items()],
    })
    lines.append(f'{x.name}: {_summary_line(rows[x.name])}')
  if len(run.sets) > 1:
    overall, line = _summarise_lists(run.protocol, rows)
    content |= overall
    lines.append(line)
  files.write_json(folder / 'results.json', content)
  return Result(f'{run.protocol}: {run.given}', lines, _facts(run, content))


def describe_program(protocol: str) -> dict[str, Any]:
  """Returns the protocol and the program version, as every results.json begins."""
  return {'protocol': protocol, 'protocol_version': PROTOCOLS[protocol],
          'version': xclip_jax.__version__, 'git_commit': _git_commit()}


def _facts(run: ProtocolRun, content: Mapping[str, Any]) -> dict[str, str]:
  options, model = run.options, run.weights.config
  commit = content['git_commit'] or 'unknown'
  templates = options['templates']
  return {
    'protocol': f'{run.protocol}, version {PROTOCOLS[run.protocol]}',
    'weights': f'{run.given} (parameters sha256 {content["weights"]["sha256"][:12]})',
    'views': f'{options["clips"]} clips x {options["crops"]} crops of '
             f'{model.num_frames} frames, {options["views"]}, {options["sampling"]}, '
             f'short side {options["resize"]:.4g} x {model.image_size} pixels',
    'average of views': options['average'] if run.protocol != 'retrieval' else 'logits',
    'templates': ' / '.join(templates[:3]) + (
      f' and {len(templates) - 3} more' if len(templates) > 3 else ''),
    **{f'list {x.name}': f'{os.path.basename(x.origin["list"])}, sha256 '
                         f'{x.origin["list_sha256"][:12]}' for x in run.sets},
    'program': f'xclip-jax {content["version"]}, commit {commit[:12]}',
  }


def _summarise_lists(
  protocol: str, rows: Mapping[str, dict[str, float]]
) -> tuple[dict[str, Any], str]:
  """Computes the numbers over all lists, for results.json and as a line."""
  if protocol == 'base-novel':
    base, novel = (rows[name]['top1'] for name in ('base', 'novel'))
    value = metrics.harmonic_mean(base, novel)
    line = (f'base {percent(base)}, novel {percent(novel)}, '
            f'harmonic mean {percent(value)} (top-1)')
    return {'harmonic_mean': {'top1': metrics.finite(value)}}, line
  shared = [name for name in next(iter(rows.values())) if name not in COUNTS
            and all(name in row for row in rows.values())]
  statistics = {name: metrics.mean_and_deviation([row[name] for row in rows.values()])
                for name in shared}
  mean, deviation = statistics['top1']
  line = (f'mean of {len(rows)} lists: top-1 {percent(mean)}, standard deviation '
          f'{100 * deviation:.1f}')
  return {
    'mean': _to_json({name: x[0] for name, x in statistics.items()}),
    'std': _to_json({name: x[1] for name, x in statistics.items()}), 'std_ddof': 0,
  }, line


def _summary_line(row: Mapping[str, float]) -> str:
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


def _describe_weights(weights: native.Weights) -> dict[str, Any]:
  return {
    'source': weights.source, 'dialect': weights.dialect,
    'sha256': native.fingerprint(weights.params),
    'run_config': _run_config(weights), 'template': weights.template,
    'model': dataclasses.asdict(weights.config),
    'preprocess': dataclasses.asdict(weights.preprocess),
  }


def _run_config(weights: native.Weights) -> dict[str, Any] | None:
  """Reads the config of the run that trained the weights; None if no run did."""
  if weights.dialect != 'run':
    return None
  file: Any = files.as_path(weights.source, 'weights') / 'config.json'
  return native.read_json(file) if files.exists(file) else None


def _git_commit() -> str | None:
  """Returns the commit of this checkout, with '+' if files were changed; None outside one."""
  folder = Path(xclip_jax.__file__).resolve().parents[1]
  if not (folder / '.git').exists():
    return None
  git = lambda *words: subprocess.run(
    ['git', '-C', str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()
  try:
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
  except (OSError, subprocess.CalledProcessError):
    return None


def _to_json(row: Mapping[str, float]) -> dict[str, float | None]:
  return {name: metrics.finite(value) for name, value in row.items()}
