"""Time from starting `xclip classify` to the answer, by phase.

  python benchmarks/speed/cold_start.py                # random weights of B/32, 5 repeats
  python benchmarks/speed/cold_start.py --weights W --video clip.mp4 --out cold_start.jsonl

Every call is a fresh process. The first has an empty compilation cache, the others find what it
compiled. Files are in the page cache: they have just been written or read.
"""

import argparse
import fractions
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import jax
import numpy as np

from xclip_jax.models.config import make_config
from xclip_jax.weights import apply, native

COLUMNS = ('start', 'import', 'load', 'compile and run', 'answer', 'process', 'rss_gb')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--weights', help='default: random ones of --variant, made for this')
  parser.add_argument('--variant', default='B/32')
  parser.add_argument('--video', help='default: 8 s of 640 x 360 H.264, made for this')
  parser.add_argument('--labels', default='a dog running, a cat asleep, a red ball')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='cold_start') as folder:
    weights = arguments.weights or write_weights(Path(folder) / 'weights', arguments.variant)
    video = arguments.video or write_clip(Path(folder) / 'clip.mp4')
    command = [
      sys.executable, '-m', 'xclip_jax.cli', 'classify', str(video), '--weights', str(weights),
      '--labels', arguments.labels, '--timings',
    ]
    rows = [call(command, Path(folder)) for _ in range(1 + arguments.repeats)]
  about = {
    'date': time.strftime('%Y-%m-%d'),
    'weights': arguments.weights or f'random {arguments.variant}',
    'cpus': len(os.sched_getaffinity(0)), 'cpu': cpu_name(), 'jax': jax.__version__,
    'python': platform.python_version(),
  }
  lines = [json.dumps(about)] + [json.dumps({'call': i} | row) for i, row in enumerate(rows)]
  print('\n'.join(lines))
  if arguments.out:
    Path(arguments.out).write_text('\n'.join(lines) + '\n')
  print_table(rows)


def call(command: list[str], folder: Path) -> dict[str, float]:
  """Runs the command once; seconds by part, of the whole, and peak memory."""
  load = os.getloadavg()[0]
  with open(folder / 'stderr', 'w+') as stderr:
    begin = time.perf_counter()
    process = subprocess.Popen(
      command, env=os.environ | {'XCLIP_CACHE': str(folder)}, stdout=subprocess.PIPE, stderr=stderr
    )
    process.stdout.readline()
    answer = time.perf_counter() - begin
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    end = time.perf_counter() - begin
    stderr.seek(0)
    said = stderr.read()
  if process.returncode:
    raise SystemExit(f'{" ".join(command)} failed:\n{said}')
  times = json.loads(said.split('xclip: timings ')[1].splitlines()[0])
  parts = {'import': times['import'], 'load': times['load'],
           'compile and run': times['first answer']}
  row = {'start': answer - sum(parts.values()), **parts, 'answer': answer, 'process': end,
         'cpu_seconds': usage.ru_utime + usage.ru_stime,
         'rss_gb': usage.ru_maxrss * 1024 / 1e9, 'load_before': load}
  return {k: round(x, 3) for k, x in row.items()}


def write_weights(folder: Path, variant: str) -> Path:
  config, rng = make_config(variant), np.random.default_rng(0)

  def draw(x):
    fan = np.prod(x.shape[:-1], dtype=int)
    return (rng.standard_normal(x.shape, np.float32) / max(fan, 1) ** 0.5).astype(np.float32)

  params = jax.tree.map(draw, apply.abstract_params(config))
  return native.save(folder, native.Weights(config, params, source='random numbers'))


def write_clip(path: Path, seconds: int = 8, fps: int = 30) -> Path:
  y, x = np.mgrid[:360, :640]
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=fps)
    stream.width, stream.height, stream.pix_fmt = 640, 360, 'yuv420p'
    for number in range(seconds * fps):
      frame = np.stack([x + 3 * number, y + number, (x + y) // 4], -1).astype(np.uint8)
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      picture.pts, picture.time_base = number, fractions.Fraction(1, fps)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return path


def cpu_name() -> str:
  info = Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.is_file() else []
  return next((x.split(': ')[1] for x in lines if x.startswith('model name')), platform.machine())


def print_table(rows: list[dict[str, float]]) -> None:
  first, *later = rows
  print('\nseconds ' + ''.join(f'{name:>17}' for name in COLUMNS))
  print('first   ' + ''.join(f'{first[name]:17.2f}' for name in COLUMNS))
  for name, choose in (('median', statistics.median), ('least', min), ('most', max)):
    if later:
      print(f'{name:8}' + ''.join(f'{choose(r[c] for r in later):17.2f}' for c in COLUMNS))


if __name__ == '__main__':
  main()
