"""Accuracy on old and new classes after fine-tuning, and of the weights in between (WiSE-FT).

  python benchmarks/training/ablations.py --workdir runs/ablations --only full
  python benchmarks/training/forgetting.py --workdir runs/ablations

The model of ablations.py knows 24 compositions of shape and motion. It is fine-tuned on 16 videos
of each of the 8 others only, with a frozen or a trained text tower. Interpolations between the
weights before and after are evaluated on unseen videos of the 8 new classes and on the validation
videos of the 24 old ones, always among all 32 classes.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.training import ablations  # noqa: E402

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
VARIANTS = {'frozen text': True, 'tuned text': False}
SHOTS = 16


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True, help='workdir of ablations.py')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, default=100)
  parser.add_argument('--lr', type=float, default=1e-4)
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  parser.add_argument('--plot', help='.png of the curves')
  parser.add_argument('--one', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  workdir = Path(arguments.workdir)
  seeds = [int(x) for x in arguments.seeds.split(',')]
  if arguments.one:
    print(json.dumps(fine_tune(workdir, seeds[0], arguments.one, arguments.steps, arguments.lr)))
    return
  lines = [ablations.about(arguments.steps) | {'lr': arguments.lr, 'shots': SHOTS}]
  print(json.dumps(lines[0]), flush=True)
  for seed in seeds:
    for name in VARIANTS:
      done = subprocess.run(
        [sys.executable, __file__, '--one', name, '--seeds', str(seed), '--workdir', str(workdir),
         '--steps', str(arguments.steps), '--lr', str(arguments.lr)],
        check=True, cwd=ablations.ROOT, env=ablations.environment(), stdout=subprocess.PIPE,
        text=True,
      )
      lines.append(json.loads(done.stdout.splitlines()[-1]))
      print(json.dumps(lines[-1]), flush=True)
  if arguments.out:
    Path(arguments.out).write_text('\n'.join(map(json.dumps, lines)) + '\n')
  print_table(lines[1:])
  if arguments.plot:
    from benchmarks import pictures  # here: a measured process should not import matplotlib

    pictures.write(arguments.plot, pictures.draw_forgetting, lines[1:])


def fine_tune(workdir: Path, seed: int, name: str, steps: int, lr: float) -> dict[str, Any]:
  """Trains `full_{seed}` on the new classes; the curve of weights from before to after."""
  from configs import demo
  from xclip_jax.evaluation import video_lists, weight_curve
  from xclip_jax.training import run as run_lib
  from xclip_jax.weights import opening

  before = workdir / f'full_{seed}'
  if not (before / 'results.json').exists():
    raise SystemExit(
      f'{before} is no finished run; first: benchmarks/training/ablations.py --only full')
  lists = write_lists(workdir / f'lists_{seed}', seed)
  c = demo.get_config()
  c.seed, c.data.name, c.data.root = seed, 'files', str(lists['root'])
  c.data.train, c.data.val = str(lists['new_train']), str(lists['new'])
  c.data.classes, c.data.zero_shot = str(lists['classes']), ''
  c.train.init_from, c.train.freeze_text = str(before), VARIANTS[name]
  c.train.steps = c.eval.every_steps = steps
  c.optim.lr, c.optim.warmup_steps = lr, steps // 10
  if VARIANTS[name]:
    c.optim.groups = tuple(x for x in c.optim.groups if not x[0].startswith('text'))
  c.report = False
  after = workdir / f'new_{name.replace(" ", "_")}_{seed}'
  run_lib.run(c, after)
  sets = [video_lists.labelled(k, lists[k], lists['root'], lists['classes'])
          for k in ('new', 'old')]
  found = weight_curve.measure(
    opening.open_weights(before), opening.open_weights(after), sets, ALPHAS,
    weight_curve.CurveOptions(batch_size=48))
  return {'variant': name, 'seed': seed, 'alpha': ALPHAS} | {
    x.name: found.values(x.name) for x in sets}


def write_lists(folder: Path, seed: int) -> dict[str, Path]:
  """Writes lists whose labels are names among all 32 classes: 16 new ones each, and the rest."""
  from xclip_jax.data.datasets import annotations, synthetic
  from xclip_jax.data.tools import derive_lists

  root = synthetic.prepare(recipe=synthetic.Recipe(seed=seed))
  old, new = (annotations.read_classes(root / f'{x}.csv') for x in ('classes', 'classes_zero_shot'))
  folder.mkdir(parents=True, exist_ok=True)
  chosen = folder / 'chosen.csv'
  chosen.write_bytes(derive_lists.few_shot(root / 'zero_shot.csv', new, SHOTS, seed))
  shown = {row['path'] for _, row in annotations.read_rows(chosen, ('path',))[1]}
  rows = {
    name: [(row['path'], classes.names[int(row['label'])])
           for _, row in annotations.read_rows(root / file, ('path', 'label'))[1]]
    for name, file, classes in (('old', 'val.csv', old), ('new', 'zero_shot.csv', new))
  }
  rows['new_train'] = [row for row in rows['new'] if row[0] in shown]
  rows['new'] = [row for row in rows['new'] if row[0] not in shown]
  reverse = lambda c: [c.names[k] for k in c.reverse]
  classes = zip(old.names + new.names, reverse(old) + reverse(new), strict=True)
  tables = {name: [('path', 'label'), *found] for name, found in rows.items()}
  tables['classes'] = [('id', 'name', 'reverse'), *((i, *x) for i, x in enumerate(classes))]
  for name, table in tables.items():
    with open(folder / f'{name}.csv', 'w', newline='', encoding='utf-8') as file:
      csv.writer(file, lineterminator='\n').writerows(table)
  return {'root': root} | {name: (folder / f'{name}.csv').resolve() for name in tables}


def print_table(rows: list[dict[str, Any]]) -> None:
  shown = [0.0, 0.3, 0.5, 0.7, 1.0]
  print('| | | ' + ' | '.join(f'α = {a}' for a in shown) + ' |')
  print('|---' * (2 + len(shown)) + '|')
  for name in dict.fromkeys(row['variant'] for row in rows):
    for videos in ('new', 'old'):
      cells = [
        ' '.join(f'{100 * row[videos][row["alpha"].index(a)]:.1f}'
                 for row in rows if row['variant'] == name) for a in shown]
      print(f'| {name} | {videos} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
  main()
