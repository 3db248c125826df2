"""Pages of `xclip eval`: an evaluation, a comparison of two models, a mean of results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from xclip_jax import files
from xclip_jax.evaluation import average
from xclip_jax.evaluation.compare import ModelComparison
from xclip_jax.evaluation.scores import Scores
from xclip_jax.reports import class_pictures, markdown
from xclip_jax.reports.theme import (
  AMBER,
  BLUE,
  CHANCE,
  INK,
  MUTED,
  PALE_BLUE,
  PALE_INK,
  STYLE,
  TRACK,
  legend_below,
  show_percent,
)
from xclip_jax.text_format import percent, points

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
  """Writes report.md and its pictures into an existing folder; arguments as `page`."""
  paragraphs = page(folder, title, summary, parts, facts)
  files.write_text(folder / 'report.md', '\n\n'.join(paragraphs) + '\n')


def page(
  folder: Path, title: str, summary: str, parts: Mapping[str, Scores], facts: Mapping[str, str]
) -> list[str]:
  """Writes the pictures of a page and returns its paragraphs.

  Args:
    folder: of the pictures.
    title: heading.
    summary: one sentence with the result.
    parts: scores by the name of their list.
    facts: rows of the table that describes the evaluation.
  """
  paragraphs = [f'# {markdown.escape(title)}', markdown.escape(summary), _numbers(parts)]
  paragraphs += [markdown.table(('', ''), facts.items())]
  for n, (name, scores) in enumerate(parts.items(), start=1):
    number = f'_{n}' if len(parts) > 1 else ''
    paragraphs += [f'## {markdown.escape(name)}'] if number else []
    paragraphs += markdown.failures(scores.failed)
    paragraphs += _draw(folder, _pictures(scores), number)
    if scores.kind == 'single-label' and len(scores.index):
      paragraphs.append(markdown.class_tables(scores))
  return paragraphs


def write_comparison(folder: Path, comparison: ModelComparison) -> None:
  """Writes report.md and the picture of the differences into an existing folder."""
  x = comparison
  a, b = (markdown.escape(name) for name in x.names)
  first, second = x.accuracies
  rows = [(x.classes[k], percent(first[k]), percent(second[k]), points(second[k] - first[k]))
          for k in class_pictures.rank_by_gain(first, second)]
  facts = {
    'a': str(x.predictions[0]), 'b': str(x.predictions[1]),
    'videos': f'{x.videos:,} of {x.expected:,}, those that were evaluated in both',
    'test': f'paired bootstrap, {x.resamples:,} resamples, seed {x.seed}',
  }
  paragraphs = [
    f'# {a} and {b}', x.sentence(), markdown.table(('', ''), facts.items()),
    *_draw(folder, {'differences': class_pictures.draw_differences(x)}, ''),
    markdown.table(('class', 'a', 'b', 'b - a'), rows),
  ]
  files.write_text(folder / 'report.md', '\n\n'.join(paragraphs) + '\n')


def write_average(folder: Path, result: Mapping[str, Any]) -> None:
  """Writes report.md about a mean from `average.average` into an existing folder."""
  paragraphs = [f'# {result["protocol"]}: mean of {len(result["results"])} results',
          *map(markdown.escape, average.summary_lines(result))]
  for x in result['lists']:
    paragraphs += [f'## {markdown.escape(x["name"])}', markdown.table(
      ('', 'mean', 'standard deviation'),
      [(k, f'{x["mean"][k]:.4f}', f'{x["std"][k]:.4f}') for k in x['mean']])]
  paragraphs.append('\n'.join(f'- {markdown.escape(path)}' for path in result['results']))
  files.write_text(folder / 'report.md', '\n\n'.join(paragraphs) + '\n')


def _numbers(parts: Mapping[str, Scores]) -> str:
  kind = next(iter(parts.values())).kind
  rows = {name: (scores, scores.summary()) for name, scores in parts.items()}
  videos = lambda row: f'{row["evaluated"]:,} of {row["expected"]:,}'
  if kind == 'captions':
    return markdown.table(
      ('', 'queries', 'R@1', 'R@5', 'R@10', 'median rank', 'mean rank', 'R@1 of expected'),
      [(f'{name}: {way.replace("_", " ")}', f'{n:,} of {expected:,}',
        *(percent(row[f'{way}/r{k}']) for k in (1, 5, 10)),
        *(_number(row[f'{way}/{x}_rank']) for x in ('median', 'mean')),
        percent(row[f'{way}/r1_of_expected']))
       for name, (_, row) in rows.items() for way, n, expected in (
         ('text_to_video', row['captions_evaluated'], row['captions']),
         ('video_to_text', row['evaluated'], row['expected']))])
  if kind == 'multi-label':
    return markdown.table(
      ('', 'classes with videos', 'videos', 'mAP', 'mAP of expected'),
      [(name, f'{row["classes_with_videos"]:,} of {len(scores.texts):,}', videos(row),
        percent(row['map']), percent(row['map_of_expected']))
       for name, (scores, row) in rows.items()])
  return markdown.table(
    ('', 'classes', 'videos', 'top-1', 'top-5', 'chance (top-1)', 'mean of classes',
     'calibration error', 'top-1 of expected'),
    [(name, f'{len(scores.texts):,}', videos(row), percent(row['top1']),
      percent(row.get('top5', np.nan)), percent(1 / len(scores.texts)),
      percent(row['mean_class_accuracy']), percent(row['ece']), percent(row['top1_of_expected']))
     for name, (scores, row) in rows.items()])


def _number(value: float) -> str:
  return f'{value:,.1f}' if np.isfinite(value) else 'n/a'


def _pictures(scores: Scores) -> dict[str, Figure]:
  if not len(scores.index):
    return {}
  with matplotlib.rc_context(STYLE):
    if scores.kind == 'captions':
      return {'recall': _draw_recall(scores)}
    per_class = {'per_class': class_pictures.draw_per_class(scores)}
    if scores.kind == 'multi-label':
      return per_class
    confusion = class_pictures.draw_confusion(scores, 'Confusion')
    return {'confusion': confusion} | per_class | {'reliability': _draw_reliability(scores)}


def _draw(folder: Path, pictures: Mapping[str, Figure], number: str) -> list[str]:
  """Writes pictures; returns paragraphs of Markdown that show them."""
  for name, figure in pictures.items():
    with matplotlib.rc_context(STYLE):
      files.write_figure(folder / f'{name}{number}.png', figure)
  return [f'![{name}]({name}{number}.png)\n\n*{_CAPTIONS[name]}*' for name in pictures]


def _draw_reliability(scores: Scores) -> Figure:
  bins = scores.reliability()
  edges, width = np.arange(len(bins.count)) / len(bins.count), 0.94 / len(bins.count)
  figure = Figure(figsize=(4.4, 5.0))
  ax = figure.add_axes((0.13, 0.36, 0.82, 0.56))
  below = figure.add_axes((0.13, 0.1, 0.82, 0.17))
  ax.bar(edges, np.nan_to_num(bins.accuracy), width, align='edge', color=PALE_BLUE,
         label='share of right ones')
  filled = bins.count > 0
  ax.plot(bins.confidence[filled], bins.accuracy[filled], 'o', color=INK, markersize=4,
          markeredgewidth=0, label='mean confidence')
  ax.plot([0, 1], [0, 1], color=INK, **CHANCE | {'zorder': 1.5}, label='perfect')
  ax.set(xlim=(0, 1), ylim=(0, 1.04), ylabel='accuracy')
  ax.set_title(f'Calibration: error {percent(bins.ece)}')
  below.legend(*ax.get_legend_handles_labels(), loc='upper left', bbox_to_anchor=(-0.02, -0.55),
               borderaxespad=0, ncols=3)
  below.bar(edges, bins.count / bins.count.sum(), width, align='edge', color=PALE_INK)
  below.set(xlim=(0, 1), xlabel='confidence', ylabel='videos')
  below.yaxis.set_major_locator(MaxNLocator(3))
  show_percent(ax.xaxis, ax.yaxis, below.xaxis, below.yaxis)
  return figure


def _draw_recall(scores: Scores) -> Figure:
  figure = Figure(figsize=(6.4, 3.4))
  ax = figure.add_axes((0.1, 0.16, 0.86, 0.7))
  by_text, by_video = scores.retrieval_ranks()
  pool = max(len(scores.index), 2)
  for name, ranks, color in (('text to video', by_text, BLUE), ('video to text', by_video, AMBER)):
    k = np.arange(1, pool + 1)
    shares = np.searchsorted(np.sort(ranks), k, side='right') / len(ranks)
    ax.step(k, shares, where='post', color=color, linewidth=2,
            label=f'{name}, R@1 {percent(shares[0])}')
  k = np.arange(1, pool + 1)
  ax.plot(k, k / pool, color=MUTED, **CHANCE, label='chance, text to video')
  ax.set(xscale='log', xlim=(1, pool), ylim=(0, 1.02), xlabel='k')
  ax.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  ax.xaxis.set_minor_formatter('')
  show_percent(ax.yaxis)
  ax.grid(True, axis='x', color=TRACK)
  ax.set_title('Recall at k')
  legend_below(ax, 3)
  return figure
