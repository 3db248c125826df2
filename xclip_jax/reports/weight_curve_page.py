"""Page and picture of the weights between two models."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xclip_jax import files
from xclip_jax.evaluation import metrics
from xclip_jax.evaluation.weight_curve import Curve
from xclip_jax.reports import markdown
from xclip_jax.reports.theme import (
  AMBER,
  BLUE,
  GREEN,
  INK,
  MUTED,
  PLUM,
  RED,
  STYLE,
  fit,
  show_percent,
)

COLORS = (BLUE, AMBER, GREEN, PLUM, RED)


def write(folder: Path, curve: Curve, names: tuple[str, str], facts: dict[str, Any]) -> None:
  """Writes curve.json, curve.png and curve.md into an existing folder.

  Args:
    folder: of the files.
    curve: from `weight_curve.measure`.
    names: of the first model and of the second.
    facts: lists and options of the measurement, for curve.json.
  """
  content = facts | {
    'first': names[0], 'second': names[1], 'alphas': curve.alphas,
    'lists': [
      {'name': name, 'metric': curve.metric(name),
       'values': [metrics.finite(x) for x in curve.values(name)],
       'metrics': [{k: metrics.finite(v) for k, v in x.summary().items()}
                   for x in curve.scores[name]],
       'fingerprint': curve.scores[name][0].fingerprint,
       'missing': [{'path': curve.scores[name][0].paths[row], 'reason': reason}
                   for row, reason in curve.scores[name][0].failed.items()]}
      for name in curve.lists],
  }
  files.write_json(folder / 'curve.json', content)
  with matplotlib.rc_context(STYLE):
    files.write_figure(folder / 'curve.png', draw(curve, names))
  heading = f'# From {markdown.escape(names[0])} to {markdown.escape(names[1])}'
  files.write_text(folder / 'curve.md', '\n\n'.join((heading, *section(curve))) + '\n')


def section(curve: Curve) -> list[str]:
  """Returns paragraphs about a curve whose picture lies beside the page."""
  heading, *rows = curve.table()
  return [
    '![curve](curve.png)',
    '*Weights (1 - alpha) x before + alpha x after: 0 is the model before, 1 the one after.*',
    markdown.table(heading, rows),
  ]


def draw(curve: Curve, names: tuple[str, str]) -> Figure:
  """Draws the number of each list over alpha; of two lists also one against the other."""
  two = len(curve.lists) == 2
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(8, 3.6) if two else (5.2, 3.6))
    ax = figure.add_axes((0.08, 0.15, 0.38, 0.68) if two else (0.12, 0.15, 0.83, 0.7))
    for name, color in zip(curve.lists, COLORS * len(curve.lists), strict=False):
      ax.plot(curve.alphas, curve.values(name), 'o-', color=color, markersize=4,
              label=f'{fit(name, 8, 180)} ({curve.metric(name)})')
    ax.set(xlabel='alpha: 0 before, 1 after')
    show_percent(ax.yaxis)
    ax.margins(y=0.12)
    ax.legend(loc='best')
    ax.set_title(fit(f'From {names[0]} to {names[1]}', 10, 290))
    if two:
      _draw_trade_off(figure.add_axes((0.58, 0.15, 0.38, 0.68)), curve)
  return figure


def _draw_trade_off(ax: Axes, curve: Curve) -> None:
  x, y = (curve.values(name) for name in curve.lists)
  ax.plot(x, y, 'o-', color=INK, markersize=4, linewidth=1)
  ends = (0, len(x) - 1)
  middle = int(np.argmin(np.abs(np.array(curve.alphas) - 0.5)))
  for n in dict.fromkeys((*ends, middle)):
    ax.annotate(f'{curve.alphas[n]:g}', (x[n], y[n]), (5, 5), textcoords='offset points',
                color=MUTED)
  ax.grid(True, axis='both')
  show_percent(ax.xaxis, ax.yaxis)
  ax.margins(0.14)
  ax.set(xlabel=fit(curve.lists[0], 8, 180), ylabel=fit(curve.lists[1], 8, 160))
  ax.set_title('One against the other, by alpha')
