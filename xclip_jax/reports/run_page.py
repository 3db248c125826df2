"""The report of a run: four pictures, and a page of Markdown that shows and explains them."""

import bisect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import PercentFormatter

from xclip_jax import files
from xclip_jax.evaluation.scores import Predictions
from xclip_jax.reports import curves
from xclip_jax.reports.markdown import class_tables, escape, failures, table
from xclip_jax.reports.theme import (
  AMBER,
  BLUE,
  BLUES,
  CHANCE,
  GREEN,
  INK,
  MUTED,
  PLUM,
  RED,
  STYLE,
  TRACK,
)
from xclip_jax.text_format import percent

NAMED_CLASSES = 60    # a confusion matrix with more classes than this has no names at its sides


@dataclass(frozen=True)
class Clip:
  """One tile of the contact sheet."""

  frames: np.ndarray                    # uint8 [T, H, W, 3] as the model saw them
  label: str
  top: tuple[tuple[str, float], ...]    # best three (class name, probability)


def write(
  folder: Path, *, title: str, history: list[dict[str, Any]], val: Predictions,
  zero_shot: Predictions | None, zero_shot_all: Predictions | None,
  order: dict[str, Predictions], partner: Sequence[int | None], clips: list[Clip],
  facts: dict[str, str],
) -> Path:
  """Writes the report into `folder` and returns the path of its page.

  Args:
    folder: created; pictures of an earlier report that this one lacks are removed.
    title: heading of the page.
    history: rows of metrics.jsonl.
    val: the validation set.
    zero_shot: videos of classes never trained on, scored among those classes only.
    zero_shot_all: the same videos, scored among trained and new classes together.
    order: how the frames were arranged ('in order', 'shuffled', 'reversed', 'single frame', ...)
      -> the validation set seen that way; empty if the test was not made.
    partner: for each class of `val` the class its clips become when played backwards, or None.
    clips: examples; the first twelve are shown.
    facts: rows of the table that describes the run.

  Each file is written whole or not at all.
  """
  files.make_folder(folder)
  with matplotlib.rc_context(STYLE):
    pictures = {                        # name -> figure if there is one, caption
      'curves': (curves.draw(history, 'Top-1 accuracy', [
        ('val/top1', 'validation', BLUE, 1 / len(val.class_names)),
        ('zero_shot/top1', 'zero-shot', AMBER,
         1 / len(zero_shot.class_names) if zero_shot else None)]),
                 'Training loss and accuracy over the course of the run.'),
      'time': (order and _time(order, partner), _time_caption(order, partner)),
      'contact_sheet': (clips and _contact_sheet(clips[:12]),
                        'What the model saw, the true class, and its three best guesses.'),
      'confusion': (confusion(val), 'Each row shows where the videos of one class went; '
                    'a perfect model fills the diagonal.'),
    }
    for name, (figure, _) in pictures.items():
      if figure:
        files.write_figure(folder / f'{name}.png', figure)
      else:
        files.remove(folder / f'{name}.png')
  page = '\n\n'.join([
    f'# {escape(title)}', _result(val, zero_shot, zero_shot_all), *failures(val.failed),
    *([table(('run', ''), facts.items())] if facts else []),
    *(f'![{name}]({name}.png)\n\n*{text}*' for name, (figure, text) in pictures.items() if figure),
    class_tables(val),
  ])
  files.write_text(folder / 'report.md', page + '\n')
  return folder / 'report.md'


def draw_clips(clips: list[Clip], file: BinaryIO) -> None:
  """Draws clips with their labels, and guesses where there are some, as PNG."""
  with matplotlib.rc_context(STYLE):
    _contact_sheet(clips).savefig(file, format='png', bbox_inches='tight', pad_inches=0.2)


def time_sentence(order: dict[str, Predictions], partner: Sequence[int | None]) -> str:
  """Says whether the order of frames matters, no more than the clips bear.

  A difference counts when a sign test over the same clips puts it beyond one chance in a hundred.
  Where classes have a partner the question is whether a clip is told from its reversal.
  """
  if not {'in order', 'shuffled'} <= order.keys():
    return 'Accuracy by the order of the frames'
  ordered, shuffled = order['in order'], order['shuffled']
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


def _wins(predictions: Predictions, partner: Sequence[int | None]) -> np.ndarray:
  """Returns [N]: 1 if the label beats its rival, 0 for a tie, -1 if not, nan without a rival.

  The rival is the partner class, or the best other class if no class has a partner.
  """
  rows, scores = np.arange(len(predictions.label)), predictions.probabilities.copy()
  own = scores[rows, predictions.label]
  if _has_pairs(partner):
    other = _partners(predictions, partner)
    rival = np.where(other >= 0, scores[rows, other], np.nan)
  else:
    scores[rows, predictions.label] = -np.inf
    rival = scores.max(axis=1)
  return np.sign(own - rival)


def _is_clear(differences: np.ndarray) -> bool:
  """Tells whether values lean to the positive side more than chance explains (z above 2.58)."""
  up, down = np.sum(differences > 0), np.sum(differences < 0)
  return bool(up - down > 2.58 * np.sqrt(up + down))


def _has_pairs(partner: Sequence[int | None]) -> bool:
  return any(p is not None for p in partner)


def _partners(predictions: Predictions, partner: Sequence[int | None]) -> np.ndarray:
  """Returns [N], the class each clip becomes when played backwards, -1 if there is none."""
  return np.array([-1 if p is None else p for p in partner])[predictions.label]


def _share_as_partner(predictions: Predictions, partner: Sequence[int | None]) -> float:
  """Returns how often a clip is taken for the class it becomes when played backwards."""
  other = _partners(predictions, partner)
  taken = (predictions.probabilities.argmax(axis=1) == other)[other >= 0]
  return float(taken.mean()) if len(taken) else float('nan')


# --- pictures -------------------------------------------------------------------------------------
def confusion(val: Predictions, title: str = 'Confusion, validation') -> Figure:
  """Draws where the videos of each class went."""
  K, counts = len(val.class_names), val.confusion()
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
    size = float(np.clip(0.66 * 72 * side / K, 4.5, 8))
    names = [fit(name, size, 150) for name in val.class_names]
    ax.set_yticks(np.arange(K) + 0.5, names, fontsize=size, color=INK)
    if flat := K <= 4:
      names = ['\n'.join(fit(line, size, 78) for line in
                         textwrap.wrap(name, 14, break_long_words=False)) for name in names]
    ax.set_xticks(np.arange(K) + 0.5, names, fontsize=size, color=INK, rotation=0 if flat else 90)
  if K <= 12:
    for (i, j), share in np.ndenumerate(shares):
      if share is not np.ma.masked:
        ax.text(j + 0.5, i + 0.5, f'{100 * share:.0f}', ha='center', va='center',
                color='white' if share > 0.5 else INK)
  bar = figure.colorbar(image, cax=ax.inset_axes((1 + 0.15 / side, 0, 0.12 / side, 1)))
  bar.outline.set_visible(False)
  bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  bar.set_label('share of the true class')
  return figure


def _contact_sheet(clips: list[Clip]) -> Figure:
  columns = min(2, len(clips))
  rows = -(-len(clips) // columns)
  width, gap = 3.85, 0.3                # inches of a tile, and between tiles
  strips = [_strip(clip.frames) for clip in clips]
  longest = max(4, *(strip.shape[1] / strip.shape[0] for strip in strips))
  frame_height = width / longest
  height = frame_height + (0.82 if any(clip.top for clip in clips) else 0.25)
  size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
  figure = Figure(figsize=size)
  ax = figure.add_axes((0, 0, 1, 1))
  for n, (clip, strip) in enumerate(zip(clips, strips, strict=True)):
    x, y = n % columns * (width + gap), n // columns * (height + gap)
    strip_width = frame_height * strip.shape[1] / strip.shape[0]
    ax.imshow(strip, extent=(x, x + strip_width, y + frame_height, y), aspect='auto')
    y += frame_height + 0.17
    if clip.top:
      right = clip.top[0][0] == clip.label
      ax.text(x, y, '✓' if right else '✗', color=GREEN if right else RED, va='center', size=10)
    ax.text(x + 0.18 * bool(clip.top), y, fit(clip.label, 8.5, 220), va='center', weight='bold')
    for rank, (name, share) in enumerate(clip.top[:3]):
      y += 0.19
      color = GREEN if name == clip.label else '#b4bdc6' if rank else RED
      ax.text(x + 0.18, y, fit(name, 7.5, 150), va='center', fontsize=7.5,
              color=MUTED if rank and name != clip.label else INK)
      ax.add_patch(Rectangle((x + 2.38, y - 0.035), 1.08, 0.07, facecolor=TRACK))
      ax.add_patch(Rectangle((x + 2.38, y - 0.035), 1.08 * share, 0.07, facecolor=color))
      ax.text(x + width, y, percent(share, 0), va='center', ha='right', fontsize=7.5, color=MUTED)
  ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
  ax.axis('off')
  return figure


def _strip(frames: np.ndarray) -> np.ndarray:
  """Returns up to eight frames side by side on white, uint8 [H, w, 3]."""
  T, H, W = frames.shape[:3]
  gap = np.full((H, max(1, W // 20), 3), 255, np.uint8)
  kept = np.linspace(0, T - 1, min(T, 8)).round().astype(int)
  return np.concatenate([part for t in kept for part in (gap, frames[t])][1:], axis=1)


def _time(order: dict[str, Predictions], partner: Sequence[int | None]) -> Figure:
  K, pairs = len(next(iter(order.values())).class_names), _has_pairs(partner)
  figure = Figure(figsize=(8, 3.5))
  ax = figure.add_axes((0.08, 0.2, 0.78, 0.62))
  names = {BLUE: 'top-1 accuracy', AMBER: 'told from its reversal', PLUM: 'taken for its reversal'}
  for group, (name, predictions) in enumerate(order.items()):
    bars = {BLUE: predictions.top(1)}
    if pairs:
      bars[AMBER] = predictions.against(partner)
      if name == 'reversed':
        bars[PLUM] = _share_as_partner(predictions, partner)
    for n, (color, value) in enumerate(bars.items()):
      x = group + 0.25 * (n - (len(bars) - 1) / 2)
      ax.bar(x, np.nan_to_num(value), 0.22, color=color, label=names.pop(color, None))
      ax.text(x, np.nan_to_num(value) + 0.02, percent(value, 0), ha='center', fontsize=7.5,
              path_effects=[withStroke(linewidth=3, foreground='white')])
  chances = {1 / K: BLUE} | ({0.5: AMBER} if pairs else {})
  for chance, color in chances.items():
    ax.axhline(chance, color=color, **CHANCE, zorder=0.9)
    ax.annotate(f'chance {percent(chance)}', (1, chance), (6, 0), ax.get_yaxis_transform(),
                textcoords='offset points', va='center', fontsize=7.5, color=color)
  ax.set_xticks(range(len(order)), [fit(name, 9, 420 / len(order)) for name in order],
                fontsize=9, color=INK)
  ax.set(xlim=(-0.5, len(order) - 0.5), ylim=(0, 1.08), yticks=np.linspace(0, 1, 5))
  ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  claim, _, numbers = time_sentence(order, partner).partition(': ')
  ax.set_title(claim, pad=28)
  ax.annotate(numbers, (0, 1), (0, 15), 'axes fraction', textcoords='offset points', color=MUTED)
  ax.legend(loc='upper left', bbox_to_anchor=(-0.01, -0.12), ncols=3, handlelength=0.8,
            handleheight=0.8, borderaxespad=0, columnspacing=2)
  return figure


def fit(text: str, size: float, width: float) -> str:
  """Shortens text to at most `width` points at a font size."""
  text = ' '.join(text.split())
  measure = lambda part: TextPath((0, 0), part, size=size).get_extents().width
  if not text or measure(text) <= width:
    return text
  kept = bisect.bisect(range(len(text)), width, key=lambda n: measure(text[:n] + '…')) - 1
  return text[:max(kept, 0)].rstrip() + '…'


# --- page -----------------------------------------------------------------------------------------
def _result(
  val: Predictions, zero_shot: Predictions | None, zero_shot_all: Predictions | None
) -> str:
  """Returns a paragraph about the validation set and a table of all sets."""
  K = len(val.class_names)
  text = (f'On the validation set the right one of {K:,} classes is ranked first for '
          f'{percent(val.top(1))} of the videos (top-1; chance is {percent(1 / K)})')
  if K > 5:
    text += f' and is among the best five for {percent(val.top(5))} (top-5)'
  text += f'; {len(val.label):,} of {val.expected:,} videos were evaluated.'
  splits = {'validation': val, 'never trained on, among new classes only': zero_shot,
            'never trained on, among trained and new classes': zero_shot_all}
  return f'{text}\n\n' + table(('', 'classes', 'videos', 'top-1', 'top-5', 'chance (top-1)'), [
    (name, f'{len(p.class_names):,}', f'{len(p.label):,} of {p.expected:,}', percent(p.top(1)),
     percent(p.top(5) if len(p.class_names) > 5 else np.nan), percent(1 / len(p.class_names)))
    for name, p in splits.items() if p is not None
  ])


def _time_caption(order: dict[str, Predictions], partner: Sequence[int | None]) -> str:
  text = 'The same validation clips, one view of each video, with their frames rearranged'
  if 'reversed' in order and _has_pairs(partner):
    share = _share_as_partner(order['reversed'], partner)
    text += f'; played backwards, {percent(share)} are taken for the class they have become'
  return text + '.'
