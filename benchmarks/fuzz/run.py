"""Random damage to every kind of file that people give, which must be read or refused in one line.

  python benchmarks/fuzz/run.py --files 10000 --seed 0
  python benchmarks/fuzz/run.py --files 300 --kind safetensors --kind lists

Prints a table and a JSON line for each kind (see `harness`); exits 1 if anything but reading and
refusing happened.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests/weights')]

from benchmarks.fuzz import harness, list_files, model_folders, video_files, weight_files  # noqa: E402

KINDS = {kind.name: kind for module in (weight_files, model_folders, video_files, list_files)
         for kind in module.KINDS}
COLUMNS = ('kind', 'files', 'read', 'refused', 'other', 'seconds', 'slowest_ms', 'grown_mb')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--files', type=int, default=10_000, help='of each kind')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kind', choices=KINDS, action='append')
  args = parser.parse_args()
  rows = []
  print(' '.join(f'{name:>13}' for name in COLUMNS))
  for name in args.kind or KINDS:
    rows.append(harness.fuzz(KINDS[name], args.files, args.seed))
    print(' '.join(f'{rows[-1][name]!s:>13}' for name in COLUMNS), flush=True)
  for row in rows:
    print(json.dumps(row))
  sys.exit(any(row['other'] for row in rows))


if __name__ == '__main__':
  main()
