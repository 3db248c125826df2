"""Curves of a run: training loss and evaluation metrics over steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from xclip_jax.reports.theme import BLUE, CHANCE, MUTED, legend_below, show_percent
from xclip_jax.text_format import percent


@dataclasses.dataclass(frozen=True)
class Line:
  """Describes the curve of an evaluation metric.

  Fields:
    key: its name in metrics.jsonl; name: for people.
    color: of the line.
    chance: value of a model that guesses, if known.
  """

  key: str
  name: str
  color: str
  chance: float | None = None


def draw(
  history: list[dict[str, Any]], title: str, lines: Sequence[Line], training: str = 'accuracy'
) -> Figure:
  """Draws the loss on the left, and shares from 0 to 1 on the right.

  Args:
    history: rows of metrics.jsonl.
    title: of the right picture.
    lines: evaluation metrics.
    training: key of the same metric on training batches; '' if there is none.
  """
  figure = Figure(figsize=(8, 3.3), layout=ConstrainedLayoutEngine(wspace=0.09))
  left, right = figure.subplots(1, 2)
  _draw_noisy(left, *_series(history, 'loss'), BLUE, 'training batches')
  infinite = sum('loss' in row and not np.isfinite(row['loss']) for row in history)
  if infinite:
    left.plot([], [], ' ', label=f'{infinite} not finite, left out')
  left.set_title('Training loss')
  _draw_noisy(right, *_series(history, training), MUTED, 'training batches')
  for line in lines:
    steps, values = _series(history, line.key)
    if len(steps):
      right.plot(steps, values, color=line.color, linewidth=2,
                 marker='o' if len(steps) < 40 else None, markersize=4, markeredgewidth=0,
                 label=f'{line.name}, {percent(values[-1])}')
    if line.chance is not None:
      right.axhline(line.chance, color=line.color, **CHANCE)
  if any(line.chance is not None for line in lines):
    right.plot([], [], color=MUTED, **CHANCE, label='chance')
  right.set(ylim=(0, 1.02))
  show_percent(right.yaxis)
  right.set_title(title)
  for ax, keys in (left, ['loss']), (right, [training, *(line.key for line in lines)]):
    ax.set_xlabel('step')
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
    if any(len(_series(history, key)[0]) for key in keys):
      legend_below(ax, 2, -0.2)
    else:
      ax.text(0.5, 0.5, 'nothing recorded', color=MUTED, ha='center', transform=ax.transAxes)
      ax.set(xticks=[], yticks=[])
  return figure


def _series(history: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the steps [n] and finite values [n] of one metric."""
  rows = [(row['step'], row[key]) for row in history if key in row and np.isfinite(row[key])]
  steps, values = np.array(rows, float).reshape(-1, 2).T
  return steps, values


def _draw_noisy(ax: Axes, steps: np.ndarray, values: np.ndarray, color: str, name: str) -> None:
  """Draws values thin and pale, and their running mean over a twentieth of them on top."""
  if not len(steps):
    return
  window = np.ones(2 * (len(values) // 40) + 1)
  counts = np.convolve(np.ones(len(values)), window, 'same')    # fewer neighbours at the ends
  ax.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
  ax.plot(steps, np.convolve(values, window, 'same') / counts, color=color, linewidth=2,
          marker='o' if len(steps) == 1 else None, markersize=4, label=name)
