"""The does-it-use-time test: accuracy by the order of the frames, as a sentence and a picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from xclip_jax.evaluation.scores import Scores
from xclip_jax.reports.theme import (
  AMBER,
  BLUE,
  CHANCE,
  INK,
  MUTED,
  NUMBER,
  PLUM,
  fit,
  legend_below,
  show_percent,
)
from xclip_jax.text_format import percent

Orders = Mapping[str, Scores]       # scores of the same videos by the order of their frames
Partner = Sequence[int | None]      # for each class the class that its clips become when reversed


def sentence(orders: Orders, partner: Partner) -> str:
  """Says whether the order of the frames matters, and claims no more than the clips bear.

  A difference counts if a sign test over the same clips puts it beyond one chance in a hundred.
  Where classes have a partner, the question is whether a clip is told from its reversal.
  """
  if not {'in order', 'shuffled'} <= orders.keys():
    return 'Accuracy by the order of the frames'
  ordered, shuffled = orders['in order'], orders['shuffled']
  _, i, j = np.intersect1d(ordered.index, shuffled.index, return_indices=True)
  wins = _wins(ordered, partner)[i]
  falls = _is_clear(wins - _wins(shuffled, partner)[j])
  if not _has_pairs(partner):
    claim = 'Accuracy depends on' if falls else 'No sign that accuracy depends on'
    a, b = percent(ordered.top(1)), percent(shuffled.top(1))
    return f'{claim} the order of the frames: {a} top-1 in order, {b} shuffled'
  a, b = percent(ordered.against(partner)), percent(shuffled.against(partner))
  if not _is_clear(wins):
    return ('No sign that the model tells a clip from its reversal: '
            f'{a} of choices between the two are right, chance is 50%')
  claim = 'The model uses time' if falls else 'No sign that the model uses time'
  return f'{claim}: it tells a clip from its reversal in {a} of cases in order, {b} shuffled'


def caption(orders: Orders, partner: Partner) -> str:
  """Returns the caption of the picture."""
  text = 'The same validation clips, one view of each video, with their frames rearranged'
  if 'reversed' in orders and _has_pairs(partner):
    share = _share_as_partner(orders['reversed'], partner)
    text += f'; played backwards, {percent(share)} are taken for the class they have become'
  return text + '.'


def draw(orders: Orders, partner: Partner) -> Figure:
  """Draws the accuracy for each order of the frames."""
  K, pairs = len(next(iter(orders.values())).texts), _has_pairs(partner)
  figure = Figure(figsize=(8, 3.5))
  ax = figure.add_axes((0.08, 0.2, 0.78, 0.62))
  names = {BLUE: 'top-1 accuracy', AMBER: 'told from its reversal', PLUM: 'taken for its reversal'}
  chances = {1 / K: BLUE} | ({0.5: AMBER} if pairs else {})
  for group, (name, scores) in enumerate(orders.items()):
    bars = {BLUE: scores.top(1)}
    if pairs:
      bars[AMBER] = scores.against(partner)
      if name == 'reversed':
        bars[PLUM] = _share_as_partner(scores, partner)
    for n, (color, value) in enumerate(bars.items()):
      x, top = group + 0.25 * (n - (len(bars) - 1) / 2), float(np.nan_to_num(value))
      ax.bar(x, top, 0.22, color=color, label=names.pop(color, None))
      # A number that a line of chance would cross stands above the line.
      above = max([top, *(chance for chance in chances if top < chance < top + 0.08)])
      ax.annotate(percent(value, 0), (x, above), (0, 3), ha='center',
                  textcoords='offset points', **NUMBER)
  for chance, color in chances.items():
    ax.axhline(chance, color=color, **CHANCE)
    ax.annotate(f'chance {percent(chance)}', (1, chance), (6, 0), ax.get_yaxis_transform(),
                textcoords='offset points', va='center', fontsize=7.5, color=color)
  ax.set_xticks(range(len(orders)), [fit(name, 9, 420 / len(orders)) for name in orders],
                fontsize=9, color=INK)
  ax.set(xlim=(-0.5, len(orders) - 0.5), ylim=(0, 1.08), yticks=np.linspace(0, 1, 5))
  show_percent(ax.yaxis)
  claim, _, numbers = sentence(orders, partner).partition(': ')
  ax.set_title(claim, pad=28)
  ax.annotate(numbers, (0, 1), (0, 15), 'axes fraction', textcoords='offset points', color=MUTED)
  legend_below(ax, 3, -0.12)
  return figure


def _wins(scores: Scores, partner: Partner) -> np.ndarray:
  """Returns [N]: 1 if the label beats its rival, 0 for a tie, -1 if not, nan without a rival.

  The rival is the partner class, or the best other class if no class has a partner.
  """
  rows, values = np.arange(len(scores.index)), scores.averaged.copy()
  label = values[rows, scores.labels]
  if _has_pairs(partner):
    other = scores.partners(partner)
    rival = np.where(other >= 0, values[rows, other], np.nan)
  else:
    values[rows, scores.labels] = -np.inf
    rival = values.max(axis=1)
  return np.sign(label - rival)


def _is_clear(differences: np.ndarray) -> bool:
  """Tells whether values lean to the positive side more than chance explains (z above 2.58)."""
  up, down = np.sum(differences > 0), np.sum(differences < 0)
  return bool(int(up) - int(down) > 2.58 * np.sqrt(int(up) + int(down)))


def _has_pairs(partner: Partner) -> bool:
  return any(p is not None for p in partner)


def _share_as_partner(scores: Scores, partner: Partner) -> float:
  """Returns how often a clip is taken for the class it becomes when played backwards."""
  other = scores.partners(partner)
  taken = (scores.averaged.argmax(axis=1) == other)[other >= 0]
  return float(taken.mean()) if len(taken) else float('nan')
