"""Speed and accuracy of each option for faster inference.

  python benchmarks/speed/faster_inference.py --run runs/demo --out faster.jsonl
  python benchmarks/speed/faster_inference.py --speed-only --variant B/16

Accuracy: the demo's validation videos (24 classes) with the weights of `make demo`, by
`xclip eval supervised`; and windows of those videos that share frames against windows encoded one
by one. Speed: a published size on random weights, one video and 400 encoded texts, all options
taking turns, each in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ACCURACY = {
  'float32': [], 'bfloat16': ['--dtype', 'bfloat16'], 'int8 kernels': ['--dtype', 'int8'],
  **{f'{n} pairs merged in each block': ['--merge-tokens', str(n)] for n in (1, 2, 3, 4)}}
SPEED = {
  'float32': ('float32', []), 'bfloat16': ('bfloat16', []),
  'int8 kernels': ('bfloat16', ['int8_kernels=True']),
  **{f'bfloat16, {n} pairs merged in each block': ('bfloat16', [f'merge_tokens={n}'])
     for n in (4, 8, 13)}}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--run', help='workdir of the demo')
  parser.add_argument('--variant', default='B/16')
  parser.add_argument('--speed-only', action='store_true')
  parser.add_argument('--accuracy-only', action='store_true')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', type=Path, help='file for the JSON lines')
  a = parser.parse_args()
  if not a.run and not a.speed_only:
    parser.error('--run is needed, but with --speed-only')
  from benchmarks.speed import step

  lines = [{'date': time.strftime('%Y-%m-%d'), 'cpu': step.cpu(), 'cores': os.cpu_count(),
            'jax': metadata.version('jax'), 'python': sys.version.split()[0]}]
  if not a.speed_only:
    lines += [accuracy(a.run, name, options) for name, options in ACCURACY.items()]
    lines.append(windows(a.run))
  if not a.accuracy_only:
    lines += speed(a.variant, a.rounds)
  for line in lines:
    print(json.dumps(line))
  if a.out:
    a.out.write_text('\n'.join(map(json.dumps, lines)) + '\n')


def folder_of(run: str) -> Path:
  from xclip_jax.data.datasets import synthetic
  config = json.loads((Path(run) / 'config.json').read_text())
  return synthetic.prepare_settings(config['data']['root'] or None, config['data']['synthetic'])


def accuracy(run: str, name: str, options: list[str]) -> dict[str, Any]:
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / 'result'
    subprocess.run(
      [sys.executable, '-m', 'xclip_jax.cli', 'eval', 'supervised', str(folder_of(run) / 'val.csv'),
       '--weights', run, '-o', str(out), '--quiet', *options],
      check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    one, = json.loads((out / 'results.json').read_text())['lists']
  return {'option': name, 'top1': one['metrics']['top1'], 'videos': one['metrics']['evaluated']}


def windows(run: str, videos: int = 96) -> dict[str, Any]:
  """Windows of 4 frames, of 8 that are taken of each video: five, one after another."""
  import numpy as np

  import xclip_jax
  from xclip_jax.data.datasets import annotations
  from xclip_jax.inference import long_video as windows_lib

  folder = folder_of(run)
  classes = annotations.read_classes(folder / 'classes.csv')
  classifier = xclip_jax.load(run)
  examples = annotations.read_annotations(folder / 'val.csv', folder, classes)
  files = [x.path for x in examples][:videos]
  apart, same, seconds = [], [], {False: 0.0, True: 0.0}
  for i, file in enumerate(files):
    found = {}
    for exact in (False, True):
      begun = time.perf_counter()
      found[exact] = list(
        windows_lib.classify(classifier, file, classes.names, every=2, exact=exact))
      seconds[exact] += (time.perf_counter() - begun) if i else 0     # the first compiles
    for x, y in zip(found[False], found[True], strict=True):
      x, y = x.answer.probabilities, y.answer.probabilities
      apart.append(float(np.abs(x - y).max()))
      same.append(int(x.argmax() == y.argmax()))
  return {
    'option': 'windows that share frames', 'windows': len(apart), 'same_answer': np.mean(same),
    'apart_mean': float(np.mean(apart)), 'apart_most': max(apart),
    'seconds_shared': round(seconds[False], 2), 'seconds_exact': round(seconds[True], 2)}


def speed(variant: str, rounds: int) -> list[dict[str, Any]]:
  from benchmarks.speed import step

  told = {'variant': variant, 'frames': 8, 'videos': 1, 'step': 'infer'}
  commands = {
    name: [sys.executable, str(ROOT / 'benchmarks/speed/step.py'), '--worker',
           json.dumps(told | {'dtype': dtype, 'set': fields})]
    for name, (dtype, fields) in SPEED.items()}
  found = step.alternate(commands, rounds, 3)
  base = found['float32']['median']
  return [{'variant': variant, 'option': name, 'faster': round(base / x['median'], 2)} | x
          for name, x in found.items()]


if __name__ == '__main__':
  main()
