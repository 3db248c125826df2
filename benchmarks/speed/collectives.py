"""Communication, operations and memory of each device in a step, for every mesh.

  python benchmarks/speed/collectives.py --out collectives.jsonl [--only B/16] [--step train]
  python benchmarks/speed/collectives.py --platform v5e:2x4 --only B/16     (needs libtpu)

Compiles the step of every size for 8 devices, simulated CPUs unless asked otherwise, on every mesh,
and prints a JSON line for each, and a table. Nothing is run. XLA:CPU has no reduce-scatter: it
all-reduces the gradients of split parameters, and cuts; on TPU and GPU it does not.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SIZES = {'B/32': 8, 'B/16': 8, 'L/14': 8, 'L/14@336': 16}       # frames
MESHES = ('data=8', 'data=1,fsdp=8', 'data=2,fsdp=4', 'data=2,tensor=4', 'data=2,fsdp=2,tensor=2',
          'dcn=2,data=4', 'dcn=2,data=1,fsdp=2,tensor=2')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--platform', default='cpu:8')
  parser.add_argument('--only', help='one variant')
  parser.add_argument('--mesh', help='one mesh')
  parser.add_argument('--step', default='train', choices=('train', 'eval'))
  parser.add_argument('--videos', type=int, default=8, help='over all devices')
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  arguments = parser.parse_args()
  lines = [{'date': time.strftime('%Y-%m-%d'), 'jax': metadata.version('jax'),
            'python': sys.version.split()[0]}]
  for variant, frames in SIZES.items():
    for mesh in MESHES:
      if arguments.only in (None, variant) and arguments.mesh in (None, mesh):
        lines.append(one(variant, frames, mesh, arguments))
        print(json.dumps(lines[-1]), flush=True)
        if arguments.out:
          Path(arguments.out).write_text('\n'.join(map(json.dumps, lines)) + '\n')
  print_table(lines[1:])


def one(variant: str, frames: int, mesh: str, arguments: Any) -> dict[str, Any]:
  """In a process of its own, whose standard error is where XLA's partitioner complains."""
  command = [
    sys.executable, '-m', 'xclip_jax.cli', 'plan', '--variant', variant, '--frames', str(frames),
    '--platform', arguments.platform, '--batch', str(arguments.videos), '--mesh', mesh,
    '--step', arguments.step, '--no-suggest', '--json', '-']
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True,
    env=os.environ | {'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
                      'XLA_FLAGS': '--xla_backend_optimization_level=0'})   # of machine code only
  if done.returncode not in (0, 1) or not done.stdout:
    raise SystemExit(f'{" ".join(command)}\n{done.stderr[-2000:]}')
  plan, = json.loads(done.stdout)
  return {
    'variant': variant, 'frames': frames, 'mesh': mesh, 'step': arguments.step,
    'platform': arguments.platform, 'videos': arguments.videos,
    'traffic': plan['traffic'], 'memory': plan['memory'],
    'work': plan['work'], 'rematerialized': done.stderr.count('nvoluntary full remat'),
    'compile_seconds': round(plan['compile_seconds'], 1)}


def print_table(rows: list[dict[str, Any]]) -> None:
  mib = lambda n: f'{n / 2**20:.0f}'
  kinds = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
  print('| size | mesh | work, of ideal | state and batch, MiB | temporary, MiB | '
        + ' | '.join(f'{kind}, MiB' for kind in kinds) + ' |')
  print('|---' * (5 + len(kinds)) + '|')
  for x in rows:
    cells = [f'{t["count"]}: {mib(t["bytes"])}' if (t := x['traffic'].get(kind)) else ''
             for kind in kinds]
    print('| ' + ' | '.join([
      x['variant'], x['mesh'], f'{x["work"]:.2f}', mib(x['memory']['arguments']),
      mib(x['memory']['temporary']), *cells]) + ' |')


if __name__ == '__main__':
  main()
