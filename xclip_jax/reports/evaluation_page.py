"""The page and the pictures of an evaluation, and of a comparison of two."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from xclip_jax import files
from xclip_jax.evaluation import average, metrics
from xclip_jax.evaluation.compare import ModelComparison
from xclip_jax.evaluation.scores import Scores
from xclip_jax.reports import markdown, run_page
from xclip_jax.reports.run_page import fit
from xclip_jax.reports.theme import AMBER, BLUE, CHANCE, INK, MUTED, RED, STYLE, TRACK
from xclip_jax.text_format import percent, points

BARS = 40             # with more classes than this a picture shows the best and worst half of it
_NAMES = 2.3          # inches for the names of classes, beside bars
PICTURES = ('confusion', 'per_class', 'reliability', 'recall', 'differences')
_CAPTIONS = {
  'confusion': 'Each row shows where the videos of one class went; a perfect model fills the '
               'diagonal.',
  'per_class': 'Each class by itself.',
  'reliability': 'How often the model is right when it is so sure, and how often it is so sure.',
  'recall': 'How often the right one is among the k best.',
  'differences': 'What the second model gains and loses, class by class.',
}


def write(
  folder: Path, title: str, summary: str, parts: Mapping[str, Scores], facts: Mapping[str, str]
) -> None:
  """Writes report.md and its pictures.

  Args:
    folder: is there.
    title: heading of the page.
    summary: one sentence with the result.
    parts: scores by the name of the list they are of.
    facts: what was evaluated, and how.
  """
  page = [f'# {markdown.escape(title)}', markdown.escape(summary), _numbers(parts)]
  page += [markdown.table(('', ''), facts.items())]
  for n, (name, scores) in enumerate(parts.items(), start=1):
    number = f'_{n}' if len(parts) > 1 else ''
    page += [f'## {markdown.escape(name)}'] if number else []
    page += markdown.failures(scores.failed)
    page += _draw(folder, _pictures(scores), number)
    if scores.kind == 'single-label' and len(scores.index):
      page.append(markdown.class_tables(scores.predictions()))
  files.write_text(folder / 'report.md', '\n\n'.join(page) + '\n')


def write_comparison(folder: Path, comparison: ModelComparison) -> None:
  """Writes report.md and the picture of the differences into an existing folder."""
  x = comparison
  a, b = (markdown.escape(name) for name in x.names)
  rows = [(x.classes[k], percent(x.accuracies[0][k]), percent(x.accuracies[1][k]),
           points(x.accuracies[1][k] - x.accuracies[0][k])) for k in _ranked(*x.accuracies)]
  facts = {
    'a': str(x.predictions[0]), 'b': str(x.predictions[1]),
    'videos': f'{x.videos:,} of {x.expected:,}, those that were evaluated in both',
    'test': f'paired bootstrap, {x.resamples:,} resamples, seed {x.seed}',
  }
  page = [
    f'# {a} and {b}', x.sentence(), markdown.table(('', ''), facts.items()),
    *_draw(folder, {'differences': _differences(x)}, ''),
    markdown.table(('class', 'a', 'b', 'b - a'), rows),
  ]
  files.write_text(folder / 'report.md', '\n\n'.join(page) + '\n')


def write_average(folder: Path, result: Mapping[str, Any]) -> None:
  """Writes report.md about a mean from `average.average` into an existing folder."""
  page = [f'# {result["protocol"]}: mean of {len(result["results"])} results',
          *map(markdown.escape, average.summary_lines(result))]
  for x in result['lists']:
    page += [f'## {markdown.escape(x["name"])}', markdown.table(
      ('', 'mean', 'standard deviation'),
      [(k, f'{x["mean"][k]:.4f}', f'{x["std"][k]:.4f}') for k in x['mean']])]
  page.append('\n'.join(f'- {markdown.escape(path)}' for path in result['results']))
  files.write_text(folder / 'report.md', '\n\n'.join(page) + '\n')


def _numbers(parts: Mapping[str, Scores]) -> str:
  kind = next(iter(parts.values())).kind
  found = {name: (scores, scores.summary()) for name, scores in parts.items()}
  videos = lambda row: f'{row["evaluated"]:,} of {row["expected"]:,}'
  if kind == 'captions':
    return markdown.table(
      ('', 'queries', 'R@1', 'R@5', 'R@10', 'median rank', 'mean rank', 'R@1 of expected'),
      [(f'{name}: {way.replace("_", " ")}', f'{n:,} of {expected:,}',
        *(percent(row[f'{way}/r{k}']) for k in (1, 5, 10)),
        *(_number(row[f'{way}/{x}_rank']) for x in ('median', 'mean')),
        percent(row[f'{way}/r1_of_expected']))
       for name, (_, row) in found.items() for way, n, expected in (
         ('text_to_video', row['captions_evaluated'], row['captions']),
         ('video_to_text', row['evaluated'], row['expected']))])
  if kind == 'multi-label':
    return markdown.table(
      ('', 'classes with videos', 'videos', 'mAP', 'mAP of expected'),
      [(name, f'{row["classes_with_videos"]:,} of {len(scores.texts):,}', videos(row),
        percent(row['map']), percent(row['map_of_expected']))
       for name, (scores, row) in found.items()])
  return markdown.table(
    ('', 'classes', 'videos', 'top-1', 'top-5', 'chance (top-1)', 'mean of classes',
     'calibration error', 'top-1 of expected'),
    [(name, f'{len(scores.texts):,}', videos(row), percent(row['top1']),
      percent(row.get('top5', np.nan)), percent(1 / len(scores.texts)),
      percent(row['mean_class_accuracy']), percent(row['ece']), percent(row['top1_of_expected']))
     for name, (scores, row) in found.items()])


def _number(value: float) -> str:
  return f'{value:,.1f}' if np.isfinite(value) else 'n/a'


def _pictures(scores: Scores) -> dict[str, Figure]:
  if not len(scores.index):
    return {}
  with matplotlib.rc_context(STYLE):
    if scores.kind == 'captions':
      return {'recall': _recall(scores)}
    found = {'per_class': _per_class(scores)}
    if scores.kind == 'single-label':
      found = {'confusion': run_page.confusion(scores.predictions(), 'Confusion')} | found
      found['reliability'] = _reliability(scores)
  return found


def _draw(folder: Path, pictures: Mapping[str, Figure], number: str) -> list[str]:
  for name, figure in pictures.items():
    with matplotlib.rc_context(STYLE):
      files.write_figure(folder / f'{name}{number}.png', figure)
  return [f'![{name}]({name}{number}.png)\n\n*{_CAPTIONS[name]}*' for name in pictures]


def _reliability(scores: Scores) -> Figure:
  found = scores.reliability()
  bins = len(found.count)
  figure = Figure(figsize=(4.4, 5.0))
  ax = figure.add_axes((0.13, 0.36, 0.82, 0.56))
  below = figure.add_axes((0.13, 0.1, 0.82, 0.17))
  edges = np.arange(bins) / bins
  ax.bar(edges, np.nan_to_num(found.accuracy), 0.94 / bins, align='edge', color='#8fb6d0',
         label='share of right ones')
  some = found.count > 0
  ax.plot(found.confidence[some], found.accuracy[some], 'o', color=INK, markersize=4,
          markeredgewidth=0, label='mean confidence')
  ax.plot([0, 1], [0, 1], color=INK, **CHANCE, label='perfect')
  ax.set(xlim=(0, 1), ylim=(0, 1.04), ylabel='accuracy')
  ax.set_title(f'Calibration: error {percent(found.ece)}')
  below.legend(*ax.get_legend_handles_labels(), loc='upper left', bbox_to_anchor=(-0.02, -0.55),
               borderaxespad=0, ncols=3)
  below.bar(edges, found.count / found.count.sum(), 0.94 / bins, align='edge', color='#b4bdc6')
  below.set(xlim=(0, 1), xlabel='confidence', ylabel='videos')
  below.yaxis.set_major_locator(MaxNLocator(3))
  for axis in (ax.xaxis, ax.yaxis, below.xaxis, below.yaxis):
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
  return figure


def _per_class(scores: Scores) -> Figure:
  values, counts = scores.per_class()
  single = scores.kind == 'single-label'
  what = 'Top-1 accuracy of each class' if single else 'Average precision of each class'
  mean = metrics.mean(values[np.isfinite(values)])
  chosen = _cut([int(k) for k in np.argsort(-values, kind='stable') if np.isfinite(values[k])])
  row = lambda k: (scores.texts[k], values[k], percent(values[k], 0) + (
    f' of {counts[k]:,}' if single else f', {counts[k]:,} videos'))
  figure, ax = _bars([None if k is None else row(k) for k in chosen], lambda value: BLUE)
  ax.set(xlim=(0, 1.15))
  ax.axvline(mean, color=AMBER, **CHANCE, zorder=0.9)
  shown = sum(k is not None for k in chosen)
  few = f', best and worst {shown // 2} of {np.isfinite(values).sum():,}' if None in chosen else ''
  ax.set_title(f'{what}{few}; mean {percent(mean)}', x=-_NAMES / ax.get_position().width / 8,
               ha='left')
  return figure


def _bars(
  rows: Sequence[tuple[str, float, str] | None], color: Callable[[float], str]
) -> tuple[Figure, Axes]:
  """Draws (name, value, text) as horizontal bars, the first on top; None is a gap."""
  height = max(0.165 * len(rows), 0.5)
  figure = Figure(figsize=(8, height + 1))
  ax = figure.add_axes((_NAMES / 8, 0.45 / (height + 1), 1 - _NAMES / 8, height / (height + 1)))
  ax.grid(False)
  for y, row in enumerate(rows):
    if row is None:
      ax.text(0, y, '  ...', va='center', color=MUTED)
      continue
    _, value, text = row
    ax.barh(y, value, 0.72, color=color(value))
    left = value < 0
    ax.annotate(text, (value, y), (-3 if left else 3, 0), textcoords='offset points', va='center',
                ha='right' if left else 'left', fontsize=7, color=MUTED,
                path_effects=[withStroke(linewidth=3, foreground='white')])
  names = [fit(row[0], 7.5, 72 * _NAMES - 8) if row else '' for row in rows]
  ax.set_yticks(range(len(rows)), names, fontsize=7.5, color=INK)
  ax.set(ylim=(len(rows) - 0.4, -0.6), xticks=[])
  ax.spines['bottom'].set_visible(False)
  ax.axvline(0, color='#c9d0d7', linewidth=0.8)
  return figure, ax


def _cut(ranked: list[int]) -> list[int | None]:
  half = BARS // 2
  return [*ranked] if len(ranked) <= BARS else [*ranked[:half], None, *ranked[-half:]]


def _ranked(a: np.ndarray, b: np.ndarray) -> list[int]:
  """Returns classes by what b gains over a, most first; those without videos are left out."""
  return [int(k) for k in np.argsort(a - b, kind='stable') if np.isfinite(a[k] - b[k])]


def _differences(comparison: ModelComparison) -> Figure:
  classes, (a, b), whole = comparison.classes, comparison.accuracies, comparison.difference
  with matplotlib.rc_context(STYLE):
    chosen = _cut(_ranked(a, b))
    figure, ax = _bars(
      [(classes[k], b[k] - a[k], points(b[k] - a[k])) if k is not None else None for k in chosen],
      lambda value: BLUE if value > 0 else RED)
    values = [b[k] - a[k] for k in chosen if k is not None] + [whole.low, whole.high]
    low, high = min(*values, -0.01), max(*values, 0.01)
    space = 0.12 * (high - low)                   # for the numbers at the ends of bars
    ax.set(xlim=(low - space, high + space))
    ax.axvspan(whole.low, whole.high, color=AMBER, alpha=0.3, linewidth=0, zorder=0.8)
    ax.axvline(whole.difference, color=AMBER, linewidth=1, zorder=0.9)
    left = {'x': -_NAMES / ax.get_position().width / 8, 'ha': 'left'}
    first, second = comparison.names
    title = f'{fit(second, 10, 200)} minus {fit(first, 10, 200)}, points of top-1'
    ax.set_title(title, pad=24, **left)
    ax.annotate(f'all videos: {points(whole.difference)}, 95% interval {points(whole.low)} to '
                f'{points(whole.high)} (the band)', (0, 1), (-72 * _NAMES, 10), 'axes fraction',
                textcoords='offset points', color=MUTED)
  return figure


def _recall(scores: Scores) -> Figure:
  figure = Figure(figsize=(6.4, 3.4))
  ax = figure.add_axes((0.1, 0.16, 0.86, 0.7))
  ways = zip(('text to video', 'video to text'), scores.ranks(), (BLUE, AMBER), strict=True)
  pool = max(len(scores.index), 2)
  for name, ranks, color in ways:
    k = np.arange(1, pool + 1)
    shares = np.searchsorted(np.sort(ranks), k, side='right') / len(ranks)
    ax.step(k, shares, where='post', color=color, linewidth=2,
            label=f'{name}, R@1 {percent(shares[0])}')
  k = np.arange(1, pool + 1)
  ax.plot(k, k / pool, color=MUTED, **CHANCE, label='chance, text to video')
  ax.set(xscale='log', xlim=(1, pool), ylim=(0, 1.02), xlabel='k')
  ax.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  ax.xaxis.set_minor_formatter('')
  ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  ax.grid(True, axis='x', color=TRACK)
  ax.set_title('Recall at k')
  ax.legend(loc='upper left', bbox_to_anchor=(-0.02, -0.18), borderaxespad=0, ncols=3)
  return figure
