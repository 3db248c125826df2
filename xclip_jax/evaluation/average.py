"""Mean and standard deviation over results of one protocol: draws of few videos, seeds, splits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xclip_jax.errors import UserError
from xclip_jax.evaluation import metrics
from xclip_jax.evaluation.results import COUNTS
from xclip_jax.text_format import percent

# Options that must agree before results are averaged.
_EQUAL_OPTIONS = (
  'templates', 'average', 'clips', 'crops', 'views', 'resize', 'sampling', 'stride')


def average(paths: Sequence[str]) -> dict[str, Any]:
  """Averages results of `xclip eval`.

  Args:
    paths: folders of results, or their results.json.

  Returns:
    The content of results.json of the mean: protocol, results, and for each list (one of every
    result; base and novel) mean and std (ddof 0) of the numbers that all results have; for base to
    novel also harmonic_mean, with of_means, mean and std.

  Raises:
    UserError: fewer than two results, a file that is no result, or results of different protocols
      or options.
  """
  if len(paths) < 2:
    raise UserError(f'a mean is over two results or more, got {len(paths)}')
  contents = {path: _read(path) for path in paths}
  if len(contents) < len(paths):
    twice = next(x for x in paths if list(paths).count(x) > 1)
    raise UserError(f'a result is named twice: {twice}; name each once')
  _check_same_protocol(contents)
  first = next(iter(contents.values()))
  result = {
    'protocol': first['protocol'], 'protocol_version': first['protocol_version'], 'std_ddof': 0,
    'results': list(contents), 'missing': sum(
      len(x['missing']) for content in contents.values() for x in content['lists']), 'lists': []}
  for n, first_list in enumerate(first['lists']):
    rows = [content['lists'][n]['metrics'] for content in contents.values()]
    shared = [k for k in rows[0] if k not in COUNTS and all(r.get(k) is not None for r in rows)]
    statistics = {k: metrics.mean_and_deviation([r[k] for r in rows]) for k in shared}
    result['lists'].append({
      'name': first_list['name'], 'mean': {k: mean for k, (mean, _) in statistics.items()},
      'std': {k: std for k, (_, std) in statistics.items()}})
  if first['protocol'] == 'base-novel':
    mean, std = metrics.mean_and_deviation(
      [content['harmonic_mean']['top1'] for content in contents.values()])
    base, novel = (x['mean']['top1'] for x in result['lists'])
    result['harmonic_mean'] = {
      'of_means': metrics.harmonic_mean(base, novel), 'mean': mean, 'std': std}
  return result


def summary_lines(result: Mapping[str, Any]) -> list[str]:
  """Returns the means as lines for a terminal."""
  lines = []
  for x in result['lists']:
    name = next((k for k in ('top1', 'map', 'text_to_video/r1') if k in x['mean']), None)
    if name:
      lines.append(f'{x["name"]}: {name} {percent(x["mean"][name])} ± '
                   f'{100 * x["std"][name]:.1f} over {len(result["results"])} results')
  if 'harmonic_mean' in result:
    h = result['harmonic_mean']
    lines.append(f'harmonic mean: of the means {percent(h["of_means"])}; mean of each '
                 f'{percent(h["mean"])} ± {100 * h["std"]:.1f}')
  if result['missing']:
    lines.append(f'{result["missing"]} videos are missing in these results')
  return lines


def _check_same_protocol(contents: Mapping[str, dict[str, Any]]) -> None:
  first_path, first = next(iter(contents.items()))
  for path, content in contents.items():
    for name, value, expected in (
      ('protocol', content['protocol'], first['protocol']),
      ('protocol_version', content['protocol_version'], first['protocol_version']),
      ('number of lists', len(content['lists']), len(first['lists'])),
      *((f'options.{x}', content['options'].get(x), first['options'].get(x))
        for x in _EQUAL_OPTIONS)):
      if value != expected:
        raise UserError(f'{path} and {first_path} do not belong together: {name} is {value!r} '
                        f'there and {expected!r} here')


def _read(name: str) -> dict[str, Any]:
  path = Path(name)
  path = path / 'results.json' if path.is_dir() else path
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UserError(f'{name} is no result of an `xclip eval` protocol: {error!r}') from error
  keys = ('protocol', 'protocol_version', 'options', 'lists')
  missing = [key for key in keys if not isinstance(content, dict) or key not in content]
  if missing or not (isinstance(content['lists'], list) and isinstance(content['options'], dict)
                     and all(isinstance(x, dict) and 'metrics' in x for x in content['lists'])):
    raise UserError(f'{name} is no result of an `xclip eval` protocol: it has no '
                    f'{missing[0] if missing else "metrics"}')
  return content
