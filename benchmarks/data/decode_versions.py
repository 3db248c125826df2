"""Time that two versions of this package take to decode the frames of a clip, in one run.

  git worktree add ../before main~20
  python benchmarks/data/decode_versions.py ../before . --out versions.jsonl

The two take turns on each video, and must return the same pixels. Videos are written for the
purpose; those of --videos are read in their place.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data import barcode_videos

CLIP, ROUNDS = 8, 25
KINDS = ('H.264, long GOP, B-frames', 'VP9', 'MPEG-4 AVI, no B-frames', 'H.264 in MPEG-TS')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('versions', nargs=2, help='folders that hold xclip_jax: before, after')
  parser.add_argument('--videos', nargs='+', default=[], help='files to read')
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  arguments = parser.parse_args()
  readers = [load(folder).read_video for folder in arguments.versions]
  with tempfile.TemporaryDirectory() as folder:
    paths = {os.path.basename(path): path for path in arguments.videos} or {
      name: barcode_videos.write(barcode_videos.KINDS[name], Path(folder), 240)[0]
      for name in KINDS}
    rows = [{'video': name} | compare(readers, path) for name, path in paths.items()]
  machine = {'cpu': platform.processor() or platform.machine(), 'cpus': os.cpu_count(),
             'python': platform.python_version(), 'av': importlib.metadata.version('av')}
  lines = [json.dumps(row | machine) for row in rows]
  print('\n'.join(lines))
  if arguments.out:
    Path(arguments.out).write_text('\n'.join(lines) + '\n')


def load(folder: str) -> ModuleType:
  """Imports the decoder of one version; modules of another are forgotten by name."""
  for name in [name for name in sys.modules if name.split('.')[0] == 'xclip_jax']:
    del sys.modules[name]
  sys.path.insert(0, os.path.abspath(folder))
  try:
    module = importlib.import_module('xclip_jax.data.video.decode')
  finally:
    sys.path.pop(0)
  if not str(module.__file__).startswith(os.path.abspath(folder)):
    raise SystemExit(f'{folder} holds no xclip_jax; {module.__file__} was found')
  return module


def compare(readers: Sequence[Callable[..., np.ndarray]], path: str) -> dict[str, float]:
  """Returns the median milliseconds of both versions, and their ratio; pixels must be equal."""
  choose = lambda count: (np.arange(CLIP) * 2 + 1) * count // (2 * CLIP)
  np.testing.assert_array_equal(*(read(path, choose) for read in readers))
  taken: tuple[list[float], list[float]] = ([], [])
  for turn in range(ROUNDS):
    for which in (0, 1) if turn % 2 else (1, 0):
      begin = time.process_time()
      readers[which](path, choose)
      taken[which].append(time.process_time() - begin)
  before, after = (1e3 * statistics.median(seconds) for seconds in taken)
  return {'before_ms': round(before, 2), 'after_ms': round(after, 2),
          'ratio': round(after / before, 3)}


if __name__ == '__main__':
  main()
