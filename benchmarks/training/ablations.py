"""Accuracy without each part of X-CLIP, and with each option, on the synthetic data set.

  python benchmarks/training/ablations.py --workdir runs/ablations
  python benchmarks/training/ablations.py --workdir runs/ablations --only full --seeds 0 --steps 200

Every run is the demo (configs/demo.py) with one thing changed, trained from random weights by
`train.run` in a process of its own. A seed is one of the weights and of the videos: three seeds are
three sets of videos. A run that is complete is not repeated; one that was interrupted goes on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
METRICS = {
  'val/top1': 'validation',
  'time/in_order/against_reversed': 'told from its reversal',
  'time/shuffled/against_reversed': 'the same, frames shuffled',
  'zero_shot/top1': '8 unseen compositions',
  'zero_shot_all/top1': 'the same among all 32',
}


def without_positions(c: Any) -> None:
  c.model.fields.mit_positions = False
  c.train.init_scale = c.train.init_scale[1:]          # the rule of the table that is not there


def frame_mean(c: Any) -> None:
  c.model.fields.update(messages=False, mit=False, prompt=False)
  c.train.init_scale = c.train.init_scale[1:]
  c.optim.groups = c.optim.groups[1:]                  # there are no new parts


def frozen_text(c: Any) -> None:
  c.train.freeze_text = True
  c.optim.groups = tuple(x for x in c.optim.groups if not x[0].startswith('text'))


VARIANTS = {
  'full': lambda c: None,
  'no_messages': lambda c: c.model.fields.update(messages=False),
  'no_mit_positions': without_positions,
  'no_prompt': lambda c: c.model.fields.update(prompt=False),
  'frame_mean': frame_mean,
  'frozen_text': frozen_text,
  'patch_dropout': lambda c: c.model.update(patch_dropout=0.5),
  'ema': lambda c: c.train.update(ema=0.99),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', required=True, help='for the runs, a folder each')
  parser.add_argument('--only', default=','.join(VARIANTS), help=f'of {", ".join(VARIANTS)}')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, default=800)
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  parser.add_argument('--plot', help='.png of all runs')
  parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  workdir = Path(arguments.workdir)
  names, seeds = arguments.only.split(','), [int(x) for x in arguments.seeds.split(',')]
  if unknown := set(names) - set(VARIANTS):
    parser.error(f'--only: {", ".join(sorted(unknown))} is none of {", ".join(VARIANTS)}')
  if arguments.one:
    train_one(names[0], seeds[0], arguments.steps, workdir)
    return
  lines = [about(arguments.steps)]
  print(json.dumps(lines[0]), flush=True)
  for seed in seeds:                                   # all variants of a seed see the same videos
    for name in names:
      folder = workdir / f'{name}_{seed}'
      if not (folder / 'results.json').exists():
        subprocess.run(
          [sys.executable, __file__, '--one', '--only', name, '--seeds', str(seed),
           '--steps', str(arguments.steps), '--workdir', str(folder)],
          check=True, cwd=ROOT, env=environment(),
        )
      results = json.loads((folder / 'results.json').read_text())
      lines.append({'variant': name, 'seed': seed} | {k: results[k] for k in METRICS})
      print(json.dumps(lines[-1]), flush=True)
  if arguments.out:
    Path(arguments.out).write_text('\n'.join(map(json.dumps, lines)) + '\n')
  print_table(lines[1:])
  if arguments.plot:
    from benchmarks import pictures  # here: a measured process should not import matplotlib

    pictures.write(arguments.plot, pictures.draw_ablations, lines[1:])


def train_one(name: str, seed: int, steps: int, workdir: Path) -> None:
  from configs import demo
  from xclip_jax.training import run as run_lib

  c = demo.get_config()
  c.seed, c.data.synthetic = seed, {'seed': seed}
  c.train.steps = c.eval.every_steps = steps           # nothing is chosen on the way
  VARIANTS[name](c)
  run_lib.run(c, workdir)


def environment() -> dict[str, str]:
  return os.environ | {'PYTHONPATH': str(ROOT)}       # this checkout, not another one installed


def about(steps: int) -> dict[str, Any]:
  import jax

  commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True,
                          text=True)
  return {
    'date': time.strftime('%Y-%m-%d'), 'steps': steps, 'cpus': len(os.sched_getaffinity(0)),
    'python': platform.python_version(), 'jax': jax.__version__,
    'commit': commit.stdout.strip() or None,
  }


def print_table(rows: list[dict[str, Any]]) -> None:
  print('| | ' + ' | '.join(METRICS.values()) + ' |')
  print('|---' * (1 + len(METRICS)) + '|')
  for name in dict.fromkeys(row['variant'] for row in rows):
    cells = []
    for metric in METRICS:
      values = [100 * row[metric] for row in rows if row['variant'] == name]
      cells.append(' '.join(f'{x:.1f}' for x in values))
    print(f'| {name} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
  main()
