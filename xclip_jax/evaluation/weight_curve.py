"""Weights between two models: how good they are on lists of videos (WiSE-FT).

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: a straight line in weights
from the model before fine-tuning to the one after often passes a point that is better than both, or
that has kept most of what the first model knew.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from xclip_jax.data.clips import pipeline
from xclip_jax.errors import UserError
from xclip_jax.evaluation.scorer import READING, Progress, Scorer, Views
from xclip_jax.evaluation.scores import Scores
from xclip_jax.evaluation.video_lists import EvaluationSet
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.text_format import percent
from xclip_jax.weights import interpolate
from xclip_jax.weights.native import Weights

ALPHAS = tuple(n / 10 for n in range(11))
ONE_VIEW = Views()
METRICS = {'single-label': ('top1', 'top-1'), 'multi-label': ('map', 'mAP')}


@dataclasses.dataclass(frozen=True)
class CurveOptions:
  """Options of the evaluation at each point of a curve.

  Fields:
    templates: around labels; None: those of the second weights.
    views: of each video.
    batch_size: most clips predicted at once.
    reading: threads and processes that decode videos, and their time limit.
  """

  templates: Sequence[str] | None = None
  views: Views = ONE_VIEW
  batch_size: int = 16
  reading: pipeline.Reading = READING


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """Scores of models between two, for the videos of some lists.

  Fields:
    alphas: A distances from the first model (0) to the second (1), ascending.
    lists: names of the lists.
    scores: for each list, one Scores for each alpha.
  """

  alphas: tuple[float, ...]
  lists: tuple[str, ...]
  scores: dict[str, tuple[Scores, ...]]

  def values(self, name: str) -> list[float]:
    """Returns the main number for each alpha: top-1, or mAP of multi-label lists."""
    return [x.summary()[METRICS[x.kind][0]] for x in self.scores[name]]

  def metric(self, name: str) -> str:
    """Returns the name of the main number."""
    return METRICS[self.scores[name][0].kind][1]

  def best(self, names: Sequence[str] | None = None) -> float:
    """Returns the smallest alpha with the best mean over lists (default: all)."""
    mean = np.mean([self.values(name) for name in names or self.lists], axis=0)
    return self.alphas[int(np.argmax(mean > np.nanmax(mean) - 1e-9))]

  def at(self, name: str, alpha: float) -> Scores:
    """Returns the scores of one list at one alpha."""
    return self.scores[name][self.alphas.index(alpha)]

  def table(self) -> list[tuple[str, ...]]:
    """Returns rows of text: a heading, then alpha and the main number of each list."""
    columns = [self.values(name) for name in self.lists]
    rows = [(f'{alpha:g}', *(percent(x[n]) for x in columns))
            for n, alpha in enumerate(self.alphas)]
    return [('alpha', *(f'{name} ({self.metric(name)})' for name in self.lists)), *rows]


def measure(
  first: Weights, second: Weights, sets: Sequence[EvaluationSet],
  alphas: Sequence[float] = ALPHAS, options: CurveOptions = CurveOptions(),
  progress: Callable[[str], Progress] = lambda _: iter,
) -> Curve:
  """Evaluates (1 - alpha) * first + alpha * second on every list, for every alpha.

  Every video is decoded once for each alpha. One model is on the devices at a time.

  Args:
    first, second: of one architecture; preprocessing and template are the second's.
    sets: single-label or multi-label lists.
    alphas: in [0, 1].
    options: of each evaluation.
    progress: takes a description and returns a wrapper of the batches.

  Raises:
    UserError: models of different architectures, no alphas, or alphas outside [0, 1].
  """
  alphas = tuple(sorted(set(map(float, alphas))))
  if not alphas or not sets:
    raise UserError('a curve needs at least one alpha and one list')
  for x in sets:
    if x.kind not in METRICS:
      raise UserError(f'{x.name}: a curve is over lists with labels, this one has {x.kind}')
  template = second.template
  templates = options.templates or ((template,) if isinstance(template, str) else template)
  scorer = Scorer(XCLIP(second.config), second.preprocess, mesh_lib.make_mesh({'data': -1}),
                  options.batch_size, options.reading)
  measured: dict[str, list[Scores]] = {x.name: [] for x in sets}
  params = None
  for alpha in alphas:
    params = None                                # frees the devices before the next model comes
    params = scorer.place(interpolate.interpolate(first, second, alpha).params)
    for x in sets:
      average = 'logits' if x.kind == 'multi-label' else 'probabilities'
      text = scorer.encode_texts(params, x.unique_texts, templates)
      measured[x.name].append(x.score(
        scorer, params, text, options.views, average, progress(f'alpha {alpha:g}, {x.name}')))
  return Curve(alphas, tuple(measured), {name: tuple(x) for name, x in measured.items()})
