"""Pictures of classes: the confusion matrix, and bars with a number for each class."""

import textwrap
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xclip_jax.evaluation import metrics
from xclip_jax.evaluation.compare import ModelComparison
from xclip_jax.evaluation.scores import Scores
from xclip_jax.reports.theme import (
  AMBER,
  BLUE,
  BLUES,
  CHANCE,
  EDGE,
  INK,
  MUTED,
  NUMBER,
  RED,
  STYLE,
  fit,
  show_percent,
)
from xclip_jax.text_format import percent, points

NAMED_CLASSES = 60    # a confusion matrix with more classes has no names at its sides
BARS = 40             # a picture of more classes shows the best and the worst half of this number
_NAMES = 2.3          # inches for the names of classes, beside bars


def draw_confusion(scores: Scores, title: str) -> Figure:
  """Draws where the videos of each class went."""
  K, counts = len(scores.texts), scores.confusion()
  total = counts.sum(axis=1, keepdims=True)
  shares = np.ma.masked_invalid(counts / np.where(total, total, np.nan))
  side = float(np.clip(1.15 * K, 2.3, 5.6))                     # inches
  figure = Figure(figsize=(8, 8))
  ax = figure.add_axes((0.2, 0.2, side / 8, side / 8))
  ax.set_facecolor('#dfe3e7')                                   # rows of classes without a video
  image = ax.pcolormesh(shares, cmap=BLUES, vmin=0, vmax=1, edgecolors='white',
                        linewidth=0.5 if K <= NAMED_CLASSES else 0)
  ax.set(xlim=(0, K), ylim=(K, 0), xticks=[], yticks=[], xlabel='predicted', ylabel='true')
  ax.grid(False)
  ax.spines['bottom'].set_visible(False)
  ax.set_title(title if K <= NAMED_CLASSES else
               f'{title}: {K:,} classes, too many to name at the sides')
  if K <= NAMED_CLASSES:
    _name_sides(ax, scores.texts, side)
  if K <= 12:
    for (i, j), share in np.ndenumerate(shares.filled(np.nan)):
      if np.isfinite(share):
        ax.text(j + 0.5, i + 0.5, f'{100 * share:.0f}', ha='center', va='center',
                color='white' if share > 0.5 else INK)
  bar = figure.colorbar(image, cax=ax.inset_axes((1 + 0.15 / side, 0, 0.12 / side, 1)))
  bar.outline.set_visible(False)
  show_percent(bar.ax.yaxis)
  bar.set_label('share of the true class')
  return figure


def draw_per_class(scores: Scores) -> Figure:
  """Draws the accuracy, or the average precision, of each class."""
  values, counts = scores.per_class()
  single = scores.kind == 'single-label'
  head = 'Top-1 accuracy of each class' if single else 'Average precision of each class'
  mean = metrics.mean(values[np.isfinite(values)])
  ranked = [int(k) for k in np.argsort(-values, kind='stable') if np.isfinite(values[k])]
  shown = _best_and_worst(ranked)
  number = lambda k: percent(float(values[k]), 0) + (
    f' of {counts[k]:,}' if single else f', {counts[k]:,} videos')
  figure, ax = _draw_bars(
    [None if k is None else (scores.texts[k], values[k], number(k)) for k in shown],
    lambda value: BLUE)
  ax.set(xlim=(0, 1.15))
  ax.axvline(mean, color=AMBER, **CHANCE)
  few = f', best and worst {BARS // 2} of {len(ranked):,}' if None in shown else ''
  ax.set_title(f'{head}{few}; mean {percent(mean)}', **_title_place(ax))
  return figure


def draw_differences(comparison: ModelComparison) -> Figure:
  """Draws for each class what the second model gains over the first."""
  (a, b), whole = comparison.accuracies, comparison.difference
  first, second = comparison.names
  with matplotlib.rc_context(STYLE):
    shown = _best_and_worst(rank_by_gain(a, b))
    figure, ax = _draw_bars(
      [None if k is None else (comparison.classes[k], b[k] - a[k], points(b[k] - a[k]))
       for k in shown], lambda value: BLUE if value > 0 else RED)
    values = [b[k] - a[k] for k in shown if k is not None] + [whole.low, whole.high]
    low, high = min(*values, -0.01), max(*values, 0.01)
    space = 0.12 * (high - low)                   # for the numbers at the ends of bars
    ax.set(xlim=(low - space, high + space))
    ax.axvspan(whole.low, whole.high, color=AMBER, alpha=0.3, linewidth=0, zorder=0.8)
    ax.axvline(whole.difference, color=AMBER, linewidth=1, zorder=0.9)
    ax.set_title(f'{fit(second, 10, 200)} minus {fit(first, 10, 200)}, points of top-1', pad=24,
                 **_title_place(ax))
    ax.annotate(f'all videos: {points(whole.difference)}, 95% interval {points(whole.low)} to '
                f'{points(whole.high)} (the band)', (0, 1), (-72 * _NAMES, 10), 'axes fraction',
                textcoords='offset points', color=MUTED)
  return figure


def rank_by_gain(a: np.ndarray, b: np.ndarray) -> list[int]:
  """Returns classes by the gain of b over a, largest first, without classes that have no videos."""
  return [int(k) for k in np.argsort(a - b, kind='stable') if np.isfinite(a[k] - b[k])]


def _name_sides(ax: Axes, texts: Sequence[str], side: float) -> None:
  """Writes class names at the sides of a matrix of `side` inches."""
  K = len(texts)
  size = float(np.clip(0.66 * 72 * side / K, 4.5, 8))
  names = [fit(name, size, 150) for name in texts]
  ax.set_yticks(np.arange(K) + 0.5, names, fontsize=size, color=INK)
  if flat := K <= 4:
    names = ['\n'.join(fit(line, size, 78) for line in
                       textwrap.wrap(name, 14, break_long_words=False)) for name in names]
  ax.set_xticks(np.arange(K) + 0.5, names, fontsize=size, color=INK, rotation=0 if flat else 90)


def _draw_bars(
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
    ax.annotate(text, (value, y), (-4 if left else 4, 0), textcoords='offset points',
                va='center_baseline', ha='right' if left else 'left', color=MUTED,
                **NUMBER | {'fontsize': 7})
  names = [fit(row[0], 7.5, 72 * _NAMES - 8) if row else '' for row in rows]
  ax.set_yticks(range(len(rows)), names, fontsize=7.5, color=INK)
  ax.set(ylim=(len(rows) - 0.4, -0.6), xticks=[])
  ax.spines['bottom'].set_visible(False)
  ax.axvline(0, color=EDGE, linewidth=0.8)
  return figure, ax


def _title_place(ax: Axes) -> dict:
  """Places a title at the left edge of the names beside bars."""
  return {'x': -_NAMES / ax.get_position().width / 8, 'ha': 'left'}


def _best_and_worst(ranked: list[int]) -> list[int | None]:
  half = BARS // 2
  return [*ranked] if len(ranked) <= BARS else [*ranked[:half], None, *ranked[-half:]]
