"""How pictures and numbers look."""

from matplotlib.colors import LinearSegmentedColormap

INK, MUTED, TRACK = '#243342', '#7a8794', '#edf0f3'
BLUE, AMBER, PLUM, GREEN, RED = '#2f6690', '#e0a03b', '#8e6c9e', '#3c9d74', '#cf5261'
BLUES = LinearSegmentedColormap.from_list('blues', ['#f5f7f9', '#8fb6d0', BLUE, '#12304a'])
CHANCE = {'linewidth': 1, 'linestyle': (0, (4, 3))}         # how a line of chance is drawn
STYLE = {
  'font.family': 'DejaVu Sans', 'font.size': 8.5, 'text.color': INK,   # ships with matplotlib
  'text.parse_math': False, 'savefig.dpi': 160,              # a class name may hold a dollar sign
  'axes.titlesize': 10, 'axes.titleweight': 'bold', 'axes.titlelocation': 'left',
  'axes.titlepad': 12, 'axes.labelcolor': MUTED, 'axes.edgecolor': '#c9d0d7',
  'axes.spines.top': False, 'axes.spines.right': False, 'axes.spines.left': False,
  'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True, 'grid.color': TRACK,
  'xtick.color': MUTED, 'ytick.color': MUTED, 'xtick.major.size': 0, 'ytick.major.size': 0,
  'legend.frameon': False, 'legend.fontsize': 8, 'legend.handlelength': 1.4,
}
