"""Contact sheet: clips with their true class and the model's three best guesses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from xclip_jax.reports.theme import GREEN, INK, MUTED, PALE_INK, RED, STYLE, TRACK, fit
from xclip_jax.text_format import percent

_WIDTH, _GAP = 3.85, 0.3                # inches of a tile, and between tiles


@dataclass(frozen=True)
class Clip:
  """Describes one tile of a contact sheet.

  Fields:
    frames: uint8 [T, H, W, 3], as the model sees them.
    label: true class.
    top: three best (class name, probability); empty without a model.
  """

  frames: np.ndarray
  label: str
  top: tuple[tuple[str, float], ...]


def write(clips: Sequence[Clip], file: BinaryIO) -> None:
  """Writes a contact sheet as PNG into an open file."""
  with matplotlib.rc_context(STYLE):
    draw(clips).savefig(file, format='png', bbox_inches='tight', pad_inches=0.2)


def draw(clips: Sequence[Clip]) -> Figure:
  """Draws clips in two columns."""
  columns = min(2, len(clips))
  rows = -(-len(clips) // columns)
  strips = [_strip(clip.frames) for clip in clips]
  longest = max(4, *(strip.shape[1] / strip.shape[0] for strip in strips))
  frame_height = _WIDTH / longest
  height = frame_height + (0.82 if any(clip.top for clip in clips) else 0.25)
  size = (columns * (_WIDTH + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
  figure = Figure(figsize=size)
  ax = figure.add_axes((0, 0, 1, 1))
  for n, (clip, strip) in enumerate(zip(clips, strips, strict=True)):
    x, y = n % columns * (_WIDTH + _GAP), n // columns * (height + _GAP)
    strip_width = frame_height * strip.shape[1] / strip.shape[0]
    ax.imshow(strip, extent=(x, x + strip_width, y + frame_height, y), aspect='auto')
    _draw_guesses(ax, clip, x, y + frame_height + 0.17)
  ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
  ax.axis('off')
  return figure


def _draw_guesses(ax: Axes, clip: Clip, x: float, y: float) -> None:
  """Draws the true class of a clip, and below it a bar for each guess."""
  indent = 0.18 * bool(clip.top)
  if clip.top:
    right = clip.top[0][0] == clip.label
    ax.text(x, y, '✓' if right else '✗', color=GREEN if right else RED, va='center', size=10)
  ax.text(x + indent, y, fit(clip.label, 8.5, 220), va='center', weight='bold')
  for rank, (name, share) in enumerate(clip.top[:3]):
    y += 0.19
    color = GREEN if name == clip.label else PALE_INK if rank else RED
    ax.text(x + indent, y, fit(name, 7.5, 150), va='center', fontsize=7.5,
            color=MUTED if rank and name != clip.label else INK)
    ax.add_patch(Rectangle((x + 2.38, y - 0.035), 1.08, 0.07, facecolor=TRACK))
    ax.add_patch(Rectangle((x + 2.38, y - 0.035), 1.08 * share, 0.07, facecolor=color))
    ax.text(x + _WIDTH, y, percent(share, 0), va='center', ha='right', fontsize=7.5, color=MUTED)


def _strip(frames: np.ndarray) -> np.ndarray:
  """Returns up to eight frames side by side on white, uint8 [H, w, 3]."""
  T, H, W = frames.shape[:3]
  gap = np.full((H, max(1, W // 20), 3), 255, np.uint8)
  shown = np.linspace(0, T - 1, min(T, 8)).round().astype(int)
  return np.concatenate([part for t in shown for part in (gap, frames[t])][1:], axis=1)
