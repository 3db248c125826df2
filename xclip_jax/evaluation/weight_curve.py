"""What lies between two models: how good weights on the way from one to the other are (WiSE-FT).

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: a straight line in weights
from the model before fine-tuning to the one after often passes a point that is better than both, or
that has kept most of what the first knew.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.evaluation import scores
from xclip_jax.evaluation.scorer import Scorer, Views
from xclip_jax.evaluation.video_lists import EvaluationSet
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.text_format import percent
from xclip_jax.weights import interpolate
from xclip_jax.weights.native import Weights

ALPHAS = tuple(n / 10 for n in range(11))
METRICS = {'single-label': ('top1', 'top-1'), 'multi-label': ('map', 'mAP')}
ONE_VIEW = Views()


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
    raise UserError('a curve needs at least one alpha and one list')
  for x in sets:
    if x.kind not in METRICS:
      raise UserError(f'{x.name}: a curve is over lists with labels, this one has {x.kind}')
  own = (second.template,) if isinstance(second.template, str) else second.template
  found: dict[str, list[scores.Scores]] = {x.name: [] for x in sets}
  scorer = None
  for alpha in alphas:
    mixed = interpolate.interpolate(first, second, alpha)
    if scorer is None:
      scorer = Scorer(mixed, mesh_lib.make_mesh({'data': -1}), batch_size, threads)
    else:
      scorer.use(mixed)
    for x in sets:
      average = 'logits' if x.kind == 'multi-label' else 'probabilities'
      found[x.name].append(x.score(
        scorer, templates or own, views, average, clip_seconds,
        progress(f'alpha {alpha:g}, {x.name}')))
  return Curve(alphas, tuple(found), {name: tuple(x) for name, x in found.items()})
