"""What lies between two models: how good weights on the way from one to the other are (WiSE-FT).

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: a straight line in weights
from the model before fine-tuning to the one after often passes a point that is better than both, or
that has kept most of what the first knew.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xclip_jax import protocols, report, scores, sharding
from xclip_jax.evaluation_sets import EvaluationSet
from xclip_jax.scorer import Scorer, Views
from xclip_jax.style import AMBER, BLUE, GREEN, INK, MUTED, PLUM, RED, STYLE, percent
from xclip_jax.weights import interpolate
from xclip_jax.weights.native import Weights

ALPHAS = tuple(n / 10 for n in range(11))
METRICS = {'single-label': ('top1', 'top-1'), 'multi-label': ('map', 'mAP')}
ONE_VIEW = Views()
COLORS = (BLUE, AMBER, GREEN, PLUM, RED)
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """What models between two said about the videos of some lists.

  Fields:
    alphas: A, how far from the first (0) to the second (1), ascending.
    lists: names of the lists.
    scores: of each list, one Scores for each alpha.
  """

  alphas: tuple[float, ...]
  lists: tuple[str, ...]
  scores: dict[str, tuple[scores.Scores, ...]]

  def values(self, name: str) -> list[float]:
    """The number that counts, for each alpha: top-1, or mAP of several labels."""
    return [x.summary()[METRICS[x.kind][0]] for x in self.scores[name]]

  def metric(self, name: str) -> str:
    """What `values` are."""
    return METRICS[self.scores[name][0].kind][1]

  def best(self, names: Sequence[str] | None = None) -> float:
    """The alpha with the best mean over lists (all, or some); of equal ones the smallest."""
    mean = np.mean([self.values(name) for name in names or self.lists], axis=0)
    return self.alphas[int(np.argmax(mean > np.nanmax(mean) - 1e-9))]

  def at(self, name: str, alpha: float) -> scores.Scores:
    return self.scores[name][self.alphas.index(alpha)]

  def table(self) -> list[tuple[str, ...]]:
    """Rows of text: a heading, then alpha and the number of each list."""
    columns = [self.values(name) for name in self.lists]
    rows = [(f'{alpha:g}', *(percent(x[n]) for x in columns))
            for n, alpha in enumerate(self.alphas)]
    return [('alpha', *(f'{name} ({self.metric(name)})' for name in self.lists)), *rows]


def measure(
  first: Weights, second: Weights, sets: Sequence[EvaluationSet],
  alphas: Sequence[float] = ALPHAS, *, templates: Sequence[str] | None = None,
  views: Views = ONE_VIEW, batch_size: int = 16, threads: int = 4, clip_seconds: float = 60.0,
  progress: Callable[[str], Progress] = lambda _: iter,
) -> Curve:
  """Evaluates (1 - alpha) * first + alpha * second on every list, for every alpha.

  Every video is decoded once for each alpha. One model is on the devices at a time.

  Args:
    first, second: of one architecture; what else belongs to weights is the second's.
    sets: of one or several labels a video.
    alphas: in [0, 1].
    templates: around labels; None: the second's.
    views, batch_size, threads, clip_seconds: as Scorer has them.
    progress: what is measured -> a wrapper of its batches.

  Raises:
    ValueError: models that differ, no alphas, or ones outside [0, 1].
  """
  alphas = tuple(sorted(set(map(float, alphas))))
  if not alphas or not sets:
    raise ValueError('a curve needs at least one alpha and one list')
  for x in sets:
    if x.kind not in METRICS:
      raise ValueError(f'{x.name}: a curve is over lists with labels, this one has {x.kind}')
  own = (second.template,) if isinstance(second.template, str) else second.template
  found: dict[str, list[scores.Scores]] = {x.name: [] for x in sets}
  scorer = None
  for alpha in alphas:
    mixed = interpolate.interpolate(first, second, alpha)
    if scorer is None:
      scorer = Scorer(mixed, sharding.make_mesh({'data': -1}), batch_size, threads)
    else:
      scorer.use(mixed)
    for x in sets:
      average = 'logits' if x.kind == 'multi-label' else 'probabilities'
      found[x.name].append(x.score(
        scorer, templates or own, views, average, clip_seconds,
        progress(f'alpha {alpha:g}, {x.name}')))
  return Curve(alphas, tuple(found), {name: tuple(x) for name, x in found.items()})


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
       'values': [protocols.finite(x) for x in curve.values(name)],
       'metrics': [{k: protocols.finite(v) for k, v in x.summary().items()}
                   for x in curve.scores[name]],
       'fingerprint': curve.scores[name][0].fingerprint,
       'missing': [{'path': curve.scores[name][0].paths[row], 'reason': reason}
                   for row, reason in curve.scores[name][0].failed.items()]}
      for name in curve.lists],
  }
  (folder / 'curve.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
  draw(curve, names).savefig(folder / 'curve.png', bbox_inches='tight', pad_inches=0.2)
  (folder / 'curve.md').write_text('\n\n'.join(
    (f'# From {report.escape(names[0])} to {report.escape(names[1])}', *section(curve))) + '\n',
    encoding='utf-8')


def section(curve: Curve) -> list[str]:
  """Paragraphs of a page about a curve whose picture lies beside it."""
  heading, *rows = curve.table()
  return [
    '![curve](curve.png)',
    '*Weights (1 - alpha) x before + alpha x after: 0 is the model before, 1 the one after.*',
    report.table(heading, rows),
  ]


def draw(curve: Curve, names: tuple[str, str]) -> Figure:
  """Draws each list over alpha; and, of two lists, one against the other."""
  two = len(curve.lists) == 2
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(8, 3.6) if two else (5.2, 3.6))
    ax = figure.add_axes((0.08, 0.15, 0.38, 0.68) if two else (0.12, 0.15, 0.83, 0.7))
    for name, color in zip(curve.lists, COLORS * len(curve.lists), strict=False):
      ax.plot(curve.alphas, curve.values(name), 'o-', color=color, markersize=4,
              label=f'{report.fit(name, 8, 180)} ({curve.metric(name)})')
    ax.set(xlabel='alpha: 0 before, 1 after')
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.margins(y=0.12)
    ax.legend(loc='best')
    ax.set_title(report.fit(f'From {names[0]} to {names[1]}', 10, 290))
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
  ax.set(xlabel=report.fit(curve.lists[0], 8, 180), ylabel=report.fit(curve.lists[1], 8, 160))
  ax.set_title('One against the other, by alpha')
