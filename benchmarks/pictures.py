"""Draws the pictures of docs/images from the numbers in benchmarks/results, in one style.

  python benchmarks/pictures.py                 # all of them, into docs/images
  python benchmarks/pictures.py soak forgetting

Nothing is measured here; the benchmarks call these functions for their --plot, too.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from xclip_jax import files
from xclip_jax.reports.theme import AMBER, BLUE, GREEN, INK, MUTED, PLUM, RED, STYLE, TRACK

ROOT = Path(__file__).resolve().parents[1]
Rows = Sequence[dict[str, Any]]
COLORS = (BLUE, AMBER, GREEN, PLUM, RED)
ABLATIONS = {                     # name of the metric: title, chance in percent
  'val/top1': ('Validation', 100 / 24),
  'time/in_order/against_reversed': ('Told from its reversal', 50),
  'time/shuffled/against_reversed': ('The same, shuffled', 50),
  'zero_shot/top1': ('8 unseen compositions', 100 / 8),
  'zero_shot_all/top1': ('The same among all 32', 100 / 32),
}
SOAK_PHASES = {
  'SIGTERM': 'from the start', 'SIGKILL': 'after SIGTERM',
  'after damage': 'after SIGKILL,\na damaged checkpoint', 'uninterrupted': 'the same in one piece',
}


def draw_ablations(rows: Rows) -> Figure:
  """Draws a dot for each run of an ablation, a column for each metric; a bar is the mean."""
  names = list(dict.fromkeys(row['variant'] for row in rows))
  figure = Figure(figsize=(11, 0.36 * len(names) + 1.5), layout='constrained')
  axes = figure.subplots(1, len(ABLATIONS), sharey=True)
  for axis, (metric, (title, chance)) in zip(axes, ABLATIONS.items(), strict=True):
    axis.axvline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for y, name in enumerate(names):
      values = [100 * row[metric] for row in rows if row['variant'] == name]
      axis.plot(values, [y] * len(values), 'o', color=BLUE, alpha=0.55, markersize=6,
                markeredgewidth=0)
      axis.plot(np.mean(values), y, '|', color=INK, markersize=13, markeredgewidth=1.6)
    axis.set_title(title, fontsize=9)
    axis.set(xlim=(-4, 104), xticks=[0, 50, 100])
    axis.xaxis.set_major_formatter('{x:.0f}%')
    axis.grid(axis='x', color=TRACK)
  axes[0].set_yticks(range(len(names)), [name.replace('_', ' ') for name in names])
  axes[0].tick_params(axis='y', labelcolor=INK)
  axes[0].invert_yaxis()
  figure.supxlabel('a dot is a seed, a bar the mean, the dashed line chance', color=MUTED,
                   fontsize=8.5)
  return figure


def draw_forgetting(rows: Rows) -> Figure:
  """Draws new against old classes for weights between before and after fine-tuning."""
  names = list(dict.fromkeys(row['variant'] for row in rows))
  figure = Figure(figsize=(8.6, 3.9), layout='constrained')
  axes = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
  for axis, name in zip(axes, names, strict=True):
    for color, row in zip(COLORS, [x for x in rows if x['variant'] == name], strict=False):
      old, new = (100 * np.array(row[videos]) for videos in ('old', 'new'))
      axis.plot(old, new, '-', color=color, linewidth=1.6, alpha=0.8)
      axis.plot(old, new, 'o', color=color, markersize=3.5, label=f'seed {row["seed"]}')
      middle = row['alpha'].index(0.5)
      axis.plot(old[middle], new[middle], 'o', color=color, markersize=8,
                markerfacecolor='white', markeredgewidth=1.8)
    last = [x for x in rows if x['variant'] == name][-1]
    for i, text, shift, side in ((0, 'before, α = 0', (-8, -4), 'right'),
                                 (-1, 'after, α = 1', (0, -15), 'left')):
      axis.annotate(text, (100 * last['old'][i], 100 * last['new'][i]), xytext=shift,
                    textcoords='offset points', color=MUTED, ha=side)
    axis.set_title(name[0].upper() + name[1:])
    axis.set_xlabel('24 old classes, right among 32')
    axis.grid(axis='both', color=TRACK)
    for formatted in (axis.xaxis, axis.yaxis):
      formatted.set_major_formatter('{x:.0f}%')
  axes[0].set_ylabel('8 new classes, right among 32')
  axes[0].plot([], [], 'o', color=MUTED, markersize=8, markerfacecolor='white',
               markeredgewidth=1.8, label='α = 0.5')
  axes[0].legend(loc='lower left')
  return figure


def draw_soak(rows: Rows, steps: int) -> Figure:
  """Draws the memory of a run and its workers over time, and where it was interrupted."""
  figure = Figure(figsize=(8, 3.2), layout='constrained')
  axis = figure.subplots()
  minutes = np.array([row['seconds'] for row in rows]) / 60
  for field, color, label in (('main', BLUE, 'training process'),
                              ('workers', AMBER, 'decoding processes, together')):
    axis.plot(minutes, [row[field] for row in rows], color=color, linewidth=1.2, label=label)
  top = max(row['main'] for row in rows)
  axis.set(ylim=(0, 1.3 * top), yticks=range(0, int(1.1 * top), 200))
  for i, row in enumerate(rows):
    if i and row['run'] == rows[i - 1]['run']:
      continue
    axis.axvline(minutes[i], color=MUTED, linewidth=0.8, linestyle=':')
    axis.text(minutes[i] + 0.1, 1.28 * top, SOAK_PHASES[row['run']], va='top', fontsize=7.5,
              color=MUTED)
  axis.set_title(f'Memory of a run of {steps:,} updates')
  axis.set_xlabel('minutes')
  axis.set_ylabel('PSS, MiB')
  axis.legend(loc='upper left', bbox_to_anchor=(-0.01, -0.16), ncols=2, borderaxespad=0)
  return figure


def draw_data_speed(rows: Rows, cpus: int) -> Figure:
  """Draws clips a second: for each reader and file on the left, for the pipeline on the right."""
  figure = Figure(figsize=(12.4, 3.9), layout='constrained')
  left, right = figure.subplots(1, 2, width_ratios=(2.3, 1))
  _draw_readers(left, [row for row in rows if 'cpu_ms' in row])
  scaling = [row for row in rows if 'workers' in row and 'clips_per_second' in row]
  names = list(dict.fromkeys(row['file'] for row in scaling))
  for color, name in zip(COLORS, names, strict=False):
    chosen = [row for row in scaling if row['file'] == name]
    pools = [f'{row["workers"]} × {row["threads"]}' for row in chosen]
    right.plot(pools, [row['clips_per_second'] for row in chosen], color=color, linewidth=1.8,
               marker='o', markersize=4, label=name)
  right.set(xlabel='worker processes × threads', ylabel='clips a second', yscale='log',
            ylim=(10, None))
  right.set_title(f'Training pipeline, {cpus} CPUs')
  right.yaxis.set_major_formatter('{x:g}')
  right.tick_params(which='minor', length=0)
  right.legend(loc='upper left', bbox_to_anchor=(-0.02, -0.22), ncols=3, borderaxespad=0,
               columnspacing=1, handletextpad=0.5)
  return figure


def _draw_readers(axis: Axes, rows: Rows) -> None:
  readers = list(dict.fromkeys(row['reader'] for row in rows))
  names = list(dict.fromkeys(row['file'] for row in rows))
  width = 0.8 / len(readers)
  for row in rows:
    held = [x['reader'] for x in rows if x['file'] == row['file']]
    i = held.index(row['reader']) - (len(held) - 1) / 2
    exact = not row['wrong_frames']
    axis.bar(names.index(row['file']) + i * width, row['clips_per_second_per_core'], width,
             color=COLORS[readers.index(row['reader'])], alpha=1 if exact else 0.35,
             hatch=None if exact else '////', edgecolor='white', linewidth=0.6)
  handles = [Patch(color=COLORS[i], label=reader) for i, reader in enumerate(readers)]
  handles.append(Patch(facecolor=MUTED, alpha=0.35, hatch='////', edgecolor='white',
                       label='some frames are wrong'))
  axis.set_xticks(range(len(names)), [_two_lines(name) for name in names], fontsize=7.5)
  axis.set(ylabel='clips a second and core', yscale='log')
  axis.set_title('One core, 8 frames of 250')
  axis.yaxis.set_major_formatter('{x:g}')
  axis.tick_params(which='minor', length=0)
  axis.legend(handles=handles, loc='upper left', bbox_to_anchor=(-0.01, -0.22), ncols=5,
              borderaxespad=0)


def _two_lines(name: str) -> str:
  """Breaks the name of a file after its first part, so that neighbours do not touch."""
  return name.replace(', ', ',\n', 1) if ', ' in name else name.replace(' avi', '\navi')


def write(path: str | Path, draw: Callable[..., Figure], *arguments: Any) -> None:
  """Draws a figure in the style of the reports and writes it as PNG."""
  with rc_context(STYLE):
    files.write_figure(Path(path), draw(*arguments))


def read(name: str) -> list[dict[str, Any]]:
  """Reads the JSON lines of one result, of which the first describes the measurement."""
  file = max((ROOT / 'benchmarks' / 'results').glob(f'*_{name}.jsonl'))
  return [json.loads(line) for line in file.read_text().splitlines()]


def redraw(name: str, folder: Path) -> None:
  """Draws one picture of docs/images from its results."""
  conditions, *rows = read({'data_speed': 'data'}.get(name, name))
  path = folder / f'{name}.png'
  if name == 'ablations':
    write(path, draw_ablations, rows)
  elif name == 'forgetting':
    write(path, draw_forgetting, rows)
  elif name == 'soak':
    write(path, draw_soak, [row['sample'] for row in rows if 'sample' in row], conditions['steps'])
  else:
    write(path, draw_data_speed, rows, conditions['cpus'])


def main() -> None:
  names = ('ablations', 'data_speed', 'forgetting', 'soak')
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='*', default=names, help=', '.join(names))
  parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'images', metavar='FOLDER')
  arguments = parser.parse_args()
  for name in arguments.names:
    if name not in names:
      parser.error(f'{name}: no such picture; there are {", ".join(names)}')
    redraw(name, arguments.out)
    print(arguments.out / f'{name}.png')


if __name__ == '__main__':
  main()
