"""How a run went: training loss, and a number of it and of evaluations, over steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from xclip_jax.reports.theme import BLUE, CHANCE, MUTED
from xclip_jax.text_format import percent


def draw(
  history: list[dict[str, Any]], title: str,
  lines: Sequence[tuple[str, str, str, float | None]], training: str = 'accuracy',
) -> Figure:
  """Draws the loss on the left, and shares from 0 to 1 on the right.

  Args:
    history: rows of metrics.jsonl.
    title: of the right picture.
    lines: (name in history, name for people, color, what chance is worth) of each evaluation.
    training: name in history of the same number on training batches.
  """
  figure = Figure(figsize=(8, 3.3), layout='constrained')
  left, right = figure.subplots(1, 2)
  figure.get_layout_engine().set(wspace=0.09)
  _draw_noisy(left, *_series(history, 'loss'), BLUE, 'training batches')
  broken = sum('loss' in row and not np.isfinite(row['loss']) for row in history)
  if broken:
    left.plot([], [], ' ', label=f'{broken} not finite, left out')
  left.set_title('Training loss')
  _draw_noisy(right, *_series(history, training), MUTED, 'training batches')
  for key, name, color, chance in lines:
    steps, values = _series(history, key)
    if len(steps):
      right.plot(steps, values, color=color, linewidth=2, marker='o' if len(steps) < 40 else None,
                 markersize=4, markeredgewidth=0, label=f'{name}, {percent(values[-1])}')
    if chance is not None:
      right.axhline(chance, color=color, **CHANCE)
  if any(chance is not None for *_, chance in lines):
    right.plot([], [], color=MUTED, **CHANCE, label='chance')
  right.set(ylim=(0, 1.02))
  right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  right.set_title(title)
  for ax, keys in (left, ['loss']), (right, [training, *(line[0] for line in lines)]):
    ax.set_xlabel('step')
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
    if any(len(_series(history, key)[0]) for key in keys):
      ax.legend(loc='upper left', bbox_to_anchor=(-0.02, -0.2), borderaxespad=0, ncols=2)
    else:
      ax.text(0.5, 0.5, 'nothing recorded', color=MUTED, ha='center', transform=ax.transAxes)
      ax.set(xticks=[], yticks=[])
  return figure


def _series(history: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
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
