"""The page and the picture of the weights between two models."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xclip_jax.evaluation import metrics
from xclip_jax.evaluation.weight_curve import Curve
from xclip_jax.reports import markdown, run_page
from xclip_jax.reports.theme import AMBER, BLUE, GREEN, INK, MUTED, PLUM, RED, STYLE

COLORS = (BLUE, AMBER, GREEN, PLUM, RED)


def write(folder: Path, curve: Curve, names: tuple[str, str], facts: dict[str, Any]) -> None:
  """Writes curve.json, curve.png and curve.md into a folder that is there.

  Args:
    folder: for them.
    curve: to be shown.
    names: of the first model and of the second.
    facts: what was measured, and how; for curve.json.
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
  (folder / 'curve.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
  draw(curve, names).savefig(folder / 'curve.png', bbox_inches='tight', pad_inches=0.2)
  (folder / 'curve.md').write_text('\n\n'.join(
    (f'# From {markdown.escape(names[0])} to {markdown.escape(names[1])}', *section(curve))) + '\n',
    encoding='utf-8')


def section(curve: Curve) -> list[str]:
  """Paragraphs of a page about a curve whose picture lies beside it."""
  heading, *rows = curve.table()
  return [
    '![curve](curve.png)',
    '*Weights (1 - alpha) x before + alpha x after: 0 is the model before, 1 the one after.*',
    markdown.table(heading, rows),
  ]


def draw(curve: Curve, names: tuple[str, str]) -> Figure:
  """Draws each list over alpha; and, of two lists, one against the other."""
  two = len(curve.lists) == 2
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(8, 3.6) if two else (5.2, 3.6))
    ax = figure.add_axes((0.08, 0.15, 0.38, 0.68) if two else (0.12, 0.15, 0.83, 0.7))
    for name, color in zip(curve.lists, COLORS * len(curve.lists), strict=False):
      ax.plot(curve.alphas, curve.values(name), 'o-', color=color, markersize=4,
              label=f'{run_page.fit(name, 8, 180)} ({curve.metric(name)})')
    ax.set(xlabel='alpha: 0 before, 1 after')
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.margins(y=0.12)
    ax.legend(loc='best')
    ax.set_title(run_page.fit(f'From {names[0]} to {names[1]}', 10, 290))
    if two:
      _trade(figure.add_axes((0.58, 0.15, 0.38, 0.68)), curve)
  return figure


def _trade(ax: Axes, curve: Curve) -> None:
  x, y = (curve.values(name) for name in curve.lists)
  ax.plot(x, y, 'o-', color=INK, markersize=4, linewidth=1)
  ends = (0, len(x) - 1)
  middle = int(np.argmin(np.abs(np.array(curve.alphas) - 0.5)))
  for n in dict.fromkeys((*ends, middle)):
    ax.annotate(f'{curve.alphas[n]:g}', (x[n], y[n]), (5, 5), textcoords='offset points',
                color=MUTED)
  ax.grid(True, axis='both')
  for axis in (ax.xaxis, ax.yaxis):
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
  ax.margins(0.14)
  ax.set(xlabel=run_page.fit(curve.lists[0], 8, 180), ylabel=run_page.fit(curve.lists[1], 8, 160))
  ax.set_title('One against the other, by alpha')
