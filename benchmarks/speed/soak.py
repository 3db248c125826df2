"""Memory, processes, shared memory and speed of a long run that is killed and resumed.

  python benchmarks/speed/soak.py --workdir runs/soak --out soak.jsonl --picture soak.png

The demo's model and videos with two decoding processes, a checkpoint every 100 and an evaluation
every 250 of 3,000 updates, through `train.py` as a user starts it. At a third SIGTERM comes, as
where a machine is taken away; at two thirds SIGKILL, and after it a bit of the latest checkpoint is
changed. Each time the same command is started again. Every second /proc is read: PSS (a page that n
processes share counts 1/n for each) of the training process and of its decoding processes. A second
run without interruption tells whether the first one ended the same. Linux only.
"""

import argparse
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FLAGS = ['--config.train.batch_size=8', '--config.data.workers=2', '--config.data.threads=1',
         '--config.checkpoint.every_steps=100', '--config.eval.every_steps=250',
         '--config.log_steps=10', '--config.optim.lr=1e-4']


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True, type=Path, help='a folder that is not there yet')
  parser.add_argument('--steps', type=int, default=3000)
  parser.add_argument('--out', type=Path, help='file for the JSON lines')
  parser.add_argument('--picture', type=Path)
  arguments = parser.parse_args()
  if arguments.workdir.exists():
    raise SystemExit(f'{arguments.workdir} is there already; name another folder')
  steps = arguments.steps
  samples, begun, shared = [], time.time(), shared_memory()
  flags = [*FLAGS, f'--config.train.steps={steps}']
  broken = arguments.workdir / 'interrupted'
  parts = []
  for name, until, how in (
    ('SIGTERM', steps // 3, signal.SIGTERM), ('SIGKILL', 2 * steps // 3, signal.SIGKILL),
    ('after damage', None, None)):
    if how is None:
      whole = [x for x in (broken / 'checkpoints').iterdir() if x.name.isdecimal()]
      damage(max(whole, key=lambda x: int(x.name)))       # beside it what was being written
    parts.append(run(name, broken, flags, Stop(until, how), samples, begun))
    print(json.dumps(parts[-1]), flush=True)
  whole = run('uninterrupted', arguments.workdir / 'whole', flags, None, samples, begun)
  print(json.dumps(whole), flush=True)
  rows = [(x / 'metrics.jsonl').read_bytes() for x in (broken, arguments.workdir / 'whole')]
  summary = {
    'date': time.strftime('%Y-%m-%d'), 'machine': platform.machine(), 'cores': os.cpu_count(),
    'python': sys.version.split()[0],
    **{name: metadata.version(name) for name in ('jax', 'orbax-checkpoint', 'grain')},
    'steps': steps, 'same_metrics': rows[0] == rows[1],
    'shared_memory_left': sorted(shared_memory() - shared),
    'put_aside': [x.name for x in (broken / 'damaged_checkpoints').iterdir()]}
  print(json.dumps(summary), flush=True)
  if arguments.out:
    lines = [summary, *parts, whole, *({'sample': x} for x in samples)]
    arguments.out.write_text('\n'.join(map(json.dumps, lines)) + '\n')
  if arguments.picture:
    from benchmarks import pictures  # here: the sampling process should not import matplotlib

    pictures.write(arguments.picture, pictures.draw_soak, samples, steps)


class Stop(NamedTuple):
  """The end of a process: `signal` is sent once `step` is logged; None: it ends by itself."""

  step: int | None
  signal: int | None


def run(name: str, workdir: Path, flags: list[str], stop: Stop | None,
        samples: list[dict[str, Any]], begun: float) -> dict[str, Any]:
  """Runs one training process, samples its memory every second, and returns a summary."""
  command = [sys.executable, str(ROOT / 'train.py'), f'--config={ROOT / "configs/demo.py"}',
             f'--workdir={workdir}', *flags]
  workdir.mkdir(parents=True, exist_ok=True)
  rows, log = workdir / 'metrics.jsonl', workdir.parent / f'{name.replace(" ", "_")}.log'
  mine = []
  with log.open('w') as output:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    asked, family = False, set()
    while process.poll() is None:
      time.sleep(1)
      step = last_step(rows)
      now = children(process.pid)
      family |= set(now)
      x = {'run': name, 'seconds': round(time.time() - begun, 1), 'step': step,
           'main': pss(process.pid), 'workers': sum(map(pss, now)), 'processes': len(now),
           'files': open_files(process.pid)}
      if x['main']:
        mine.append(x)
      if stop and stop.step and stop.signal and not asked and step >= stop.step:
        process.send_signal(stop.signal)
        asked = True
  samples += mine
  time.sleep(10)                                        # time for orphaned workers to end
  left = [pid for pid in family if Path(f'/proc/{pid}').exists()
          and 'train.py' in command_of(pid)]
  start = next((x['step'] for x in mine if x['step']), 0)
  steady = [x for x in mine if x['step'] > start + 200]
  return {
    'run': name, 'returncode': process.returncode, 'ends_at': last_step(rows),
    'left_processes': len(left), 'peak_processes': max(x['processes'] for x in mine),
    'open_files': [min(x['files'] for x in steady), max(x['files'] for x in steady)],
    'main_mib': mean(steady, 'main'), 'workers_mib': mean(steady, 'workers'),
    'main_mib_per_1000_steps': slope(steady, 'main'),
    'workers_mib_per_1000_steps': slope(steady, 'workers'), 'steps_per_second': rates(steady),
    'said': [x for x in log.read_text(errors='replace').splitlines()
             if 'damaged' in x or 'going on from' in x or x.startswith('stopped at')]}


def damage(checkpoint: Path) -> None:
  file = max((x for x in checkpoint.rglob('*') if x.is_file()), key=lambda x: x.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)


def read(rows: Path) -> list[dict[str, Any]]:
  lines = rows.read_text().splitlines() if rows.exists() else []
  return [json.loads(line) for line in lines if line.endswith('}')]


def last_step(rows: Path) -> int:
  found = read(rows)
  return found[-1]['step'] if found else 0


def rates(samples: list[dict[str, Any]]) -> list[float]:
  """Updates a second, evaluations and checkpoints included, in three parts of a run."""
  seconds, steps = ([x[k] for x in samples] for k in ('seconds', 'step'))
  edges = np.linspace(0, len(samples) - 1, 4).astype(int)
  return [round((steps[b] - steps[a]) / (seconds[b] - seconds[a]), 2)
          for a, b in itertools.pairwise(edges)]


def slope(samples: list[dict[str, Any]], field: str) -> float:
  """MiB in a thousand steps, by least squares."""
  steps = np.array([x['step'] for x in samples]) / 1000
  return round(float(np.polyfit(steps, [x[field] for x in samples], 1)[0]), 2)


def mean(samples: list[dict[str, Any]], field: str) -> float:
  return round(float(np.mean([x[field] for x in samples])), 1)


def children(pid: int) -> list[int]:
  """All processes below one."""
  found = []
  try:
    for task in Path(f'/proc/{pid}/task').iterdir():
      for child in (task / 'children').read_text().split():
        found += [int(child), *children(int(child))]
  except OSError:
    pass
  return found


def pss(pid: int) -> float:
  """MiB; 0 if the process is gone."""
  try:
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return round(int(next(x for x in lines if x.startswith('Pss:')).split()[1]) / 1024, 1)
  except (OSError, StopIteration):
    return 0.0


def open_files(pid: int) -> int:
  try:
    return len(list(Path(f'/proc/{pid}/fd').iterdir()))
  except OSError:
    return 0


def command_of(pid: int) -> str:
  try:
    return Path(f'/proc/{pid}/cmdline').read_text().replace('\0', ' ')
  except OSError:
    return ''


def shared_memory() -> set[str]:
  return {x.name for x in Path('/dev/shm').iterdir()}


if __name__ == '__main__':
  main()
