"""The mean over evaluations of one protocol: draws of few videos, seeds, splits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xclip_jax.errors import UserError
from xclip_jax.evaluation import metrics
from xclip_jax.reports import markdown
from xclip_jax.text_format import percent

_ALIKE = ('templates', 'average', 'clips', 'crops', 'views', 'resize', 'sampling', 'stride')
_SKIPPED = ('expected', 'evaluated', 'missing', 'captions', 'captions_evaluated',
            'classes_with_videos')


def average(places: Sequence[str]) -> dict[str, Any]:
  """Averages results of `xclip eval`.

  Args:
    places: folders of results, or their results.json.

  Returns:
    what results.json of the mean holds: protocol, results, and by list (one of each result; base
    and novel) mean and std (ddof 0) of every number that all have; for base to novel also
    harmonic_mean, with of_means and mean and std.

  Raises:
    ValueError: fewer than two, one that is no result, or results that do not belong together.
  """
  if len(places) < 2:
    raise UserError(f'a mean is over two results or more, got {len(places)}')
  read = {place: _read(place) for place in places}
  if len(read) < len(places):
    raise UserError('a result is named twice')
  first_place, first = next(iter(read.items()))
  for place, content in read.items():
    for name, found, wanted in (
      ('protocol', content['protocol'], first['protocol']),
      ('protocol_version', content['protocol_version'], first['protocol_version']),
      ('number of lists', len(content['lists']), len(first['lists'])),
      *((f'options.{x}', content['options'].get(x), first['options'].get(x)) for x in _ALIKE)):
      if found != wanted:
        raise UserError(f'{place} and {first_place} do not belong together: {name} is {found!r} '
                         f'there and {wanted!r} here')
  result = {
    'protocol': first['protocol'], 'protocol_version': first['protocol_version'], 'std_ddof': 0,
    'results': list(read), 'missing': sum(
      len(x['missing']) for content in read.values() for x in content['lists']), 'lists': []}
  for n, about in enumerate(first['lists']):
    rows = [content['lists'][n]['metrics'] for content in read.values()]
    shared = [k for k in rows[0] if k not in _SKIPPED and all(r.get(k) is not None for r in rows)]
    each = {k: metrics.mean_and_deviation([r[k] for r in rows]) for k in shared}
    result['lists'].append({
      'name': about['name'], 'mean': {k: x[0] for k, x in each.items()},
      'std': {k: x[1] for k, x in each.items()}})
  if first['protocol'] == 'base-novel':
    found = [content['harmonic_mean']['top1'] for content in read.values()]
    mean, std = metrics.mean_and_deviation(found)
    base, novel = (x['mean']['top1'] for x in result['lists'])
    result['harmonic_mean'] = {
      'of_means': metrics.harmonic_mean(base, novel), 'mean': mean, 'std': std}
  return result


def lines(result: Mapping[str, Any]) -> list[str]:
  """Says for a terminal what was found."""
  found = []
  for x in result['lists']:
    name = next((k for k in ('top1', 'map', 'text_to_video/r1') if k in x['mean']), None)
    if name:
      found.append(f'{x["name"]}: {name} {percent(x["mean"][name])} ± '
                   f'{100 * x["std"][name]:.1f} over {len(result["results"])} results')
  if 'harmonic_mean' in result:
    h = result['harmonic_mean']
    found.append(f'harmonic mean: of the means {percent(h["of_means"])}; mean of each '
                 f'{percent(h["mean"])} ± {100 * h["std"]:.1f}')
  if result['missing']:
    found.append(f'{result["missing"]} videos are missing in these results')
  return found


def write(folder: Path, result: Mapping[str, Any]) -> None:
  """Writes results.json and report.md into a folder that is there."""
  (folder / 'results.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
  page = [f'# {result["protocol"]}: mean of {len(result["results"])} results',
          *map(markdown.escape, lines(result))]
  for x in result['lists']:
    page += [f'## {markdown.escape(x["name"])}', markdown.table(
      ('', 'mean', 'standard deviation'),
      [(k, f'{x["mean"][k]:.4f}', f'{x["std"][k]:.4f}') for k in x['mean']])]
  page.append('\n'.join(f'- {markdown.escape(place)}' for place in result['results']))
  (folder / 'report.md').write_text('\n\n'.join(page) + '\n', encoding='utf-8')


def _read(place: str) -> dict[str, Any]:
  path = Path(place)
  path = path / 'results.json' if path.is_dir() else path
  try:
    content = json.loads(path.read_bytes())
    content['protocol'], content['options'], content['lists'][0]['metrics']
  except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
    raise UserError(f'{place} is no result of an `xclip eval` protocol: {error!r}') from error
  return content
