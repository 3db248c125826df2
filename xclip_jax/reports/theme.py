"""Colours, styles and text measures that all pictures share."""

import bisect
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.textpath import TextPath
from matplotlib.ticker import PercentFormatter

INK, MUTED, TRACK = '#243342', '#7a8794', '#edf0f3'
PALE_BLUE, PALE_INK, EDGE = '#8fb6d0', '#b4bdc6', '#c9d0d7'
BLUE, AMBER, PLUM, GREEN, RED = '#2f6690', '#e0a03b', '#8e6c9e', '#3c9d74', '#cf5261'
BLUES = LinearSegmentedColormap.from_list('blues', ['#f5f7f9', PALE_BLUE, BLUE, '#12304a'])
# Lines of chance and of means lie behind bars, curves and numbers.
CHANCE: Any = {'linewidth': 1, 'linestyle': (0, (4, 3)), 'zorder': 0.9}
# Numbers beside bars: a white box keeps lines from striking through them.
NUMBER: Any = {
  'fontsize': 7.5, 'bbox': {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1}}
STYLE: Any = {
  'font.family': 'DejaVu Sans', 'font.size': 8.5, 'text.color': INK,   # ships with matplotlib
  'text.parse_math': False, 'savefig.dpi': 160,              # a class name may hold a dollar sign
  'axes.titlesize': 10, 'axes.titleweight': 'bold', 'axes.titlelocation': 'left',
  'axes.titlepad': 12, 'axes.labelcolor': MUTED, 'axes.edgecolor': EDGE,
  'axes.spines.top': False, 'axes.spines.right': False, 'axes.spines.left': False,
  'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True, 'grid.color': TRACK,
  'xtick.color': MUTED, 'ytick.color': MUTED, 'xtick.major.size': 0, 'ytick.major.size': 0,
  'legend.frameon': False, 'legend.fontsize': 8, 'legend.handlelength': 1.4,
}


def fit(text: str, size: float, width: float) -> str:
  """Shortens text to at most `width` points at a font size."""
  text = ' '.join(text.split())
  measure = lambda part: TextPath((0, 0), part, size=size).get_extents().width
  if not text or measure(text) <= width:
    return text
  kept = bisect.bisect(range(len(text)), width, key=lambda n: measure(text[:n] + '…')) - 1
  return text[:max(kept, 0)].rstrip() + '…'


def show_percent(*axes: Any) -> None:
  """Labels axes (`ax.xaxis`, `ax.yaxis`) in whole percent."""
  for axis in axes:
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def legend_below(ax: Axes, columns: int, y: float = -0.18) -> None:
  """Puts the legend below the axes, at their left edge."""
  ax.legend(loc='upper left', bbox_to_anchor=(-0.02, y), borderaxespad=0, ncols=columns)
