"""Time to load a weight file with and without comparing it with its checksums, in turn.

  python benchmarks/data/weight_checksums.py               # 400 MB, 7 rounds, each kind of file
  python benchmarks/data/weight_checksums.py --megabytes 800 --rounds 5

A file of torch.save and one of our own format are written and stay in the page cache. A round reads
each without and with checksums and uses every byte once, as putting weights on a device does.
Prints medians, the difference and its range over the rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from xclip_jax.weights.files import archive

_MATRIX = (1024, 1024)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--megabytes', type=int, default=400)
  parser.add_argument('--rounds', type=int, default=7)
  arguments = parser.parse_args()
  matrix = np.random.default_rng(0).normal(size=_MATRIX).astype(np.float32)
  count = max(1, arguments.megabytes * 10**6 // matrix.nbytes)
  arrays = {f'layer_{i}': matrix + np.float32(i) for i in range(count)}
  with tempfile.TemporaryDirectory() as folder:
    paths = {kind: Path(folder) / kind for kind in ('torch.save', 'native')}
    archive.write_torch(paths['torch.save'], arrays)
    archive.write_safetensors(paths['native'], arrays, checksums=True)
    del arrays
    for kind, path in paths.items():
      measure(kind, path, arguments.rounds)


def measure(kind: str, path: Path, rounds: int) -> None:
  """Prints what comparing one file with its checksums costs."""
  use(path, True)                                         # the pages are mapped once before
  plain, compared = [], []
  for number in range(rounds):
    for checksums in (False, True) if number % 2 else (True, False):
      (compared if checksums else plain).append(use(path, checksums))
  costs = [with_ - without for with_, without in zip(compared, plain, strict=True)]
  size = path.stat().st_size / 1e9
  cost = statistics.median(costs)
  print(f'{kind:<11}{size:.2f} GB: {statistics.median(plain):.3f} s without checksums, '
        f'{statistics.median(compared):.3f} s with; the difference is {cost:.3f} s '
        f'({min(costs):.3f} to {max(costs):.3f}), {1000 * cost / size:.0f} ms a GB')


def use(path: Path, checksums: bool) -> float:
  """Returns the seconds to read a file and add up all its numbers."""
  start = time.perf_counter()
  contents = archive.read(path)
  arrays = [x for x in contents.tree.values() if isinstance(x, np.ndarray)]
  if checksums:
    contents.check(arrays)
  total = sum(float(x.sum()) for x in arrays)
  assert np.isfinite(total)
  return time.perf_counter() - start


if __name__ == '__main__':
  main()
