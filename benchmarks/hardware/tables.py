"""Turns the rows of benchmarks/gpu.sh and benchmarks/tpu.sh into the tables of docs/speed.md.

  python benchmarks/hardware/tables.py             # prints them
  python benchmarks/hardware/tables.py --write     # puts them between the markers in docs/speed.md

Reads benchmarks/results/*_gpu.jsonl and *_tpu.jsonl; of each row and device the last line counts.
Needs no package.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.hardware import results as hardware_results  # noqa: E402
from benchmarks.hardware import rows as hardware_rows  # noqa: E402

BEGIN, END = '<!-- hardware tables: begin -->', '<!-- hardware tables: end -->'
# Shown even where nothing was measured: heading, platform, start of the device's name.
WANTED = (('NVIDIA H100', 'gpu', 'NVIDIA H100'), ('TPU v5e', 'tpu', 'TPU v5 lite'))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--write', action='store_true', help='change docs/speed.md')
  arguments = parser.parse_args()
  tables = make(measured(ROOT / 'benchmarks/results'))
  if arguments.write:
    page = ROOT / 'docs/speed.md'
    page.write_text(insert(page.read_text(), tables))
  else:
    print(tables, end='')


def measured(folder: Path) -> list[dict[str, Any]]:
  """Returns the latest record of every row and device, of files in the order of their names."""
  latest = {}
  for platform in ('gpu', 'tpu'):
    for path in sorted(folder.glob(f'*_{platform}.jsonl')):
      for record in hardware_results.read(path):
        if record.get('platform') == platform and not record.get('tiny'):
          latest[record['device'], record['row']] = record
  return list(latest.values())


def make(records: Iterable[dict[str, Any]]) -> str:
  """Returns the tables of all devices as markdown."""
  by_device: dict[str, dict[str, dict[str, Any]]] = {}
  for record in records:
    by_device.setdefault(record['device'], {})[record['row']] = record
  parts = []
  for heading, platform, start in WANTED:
    if not any(device.startswith(start) for device in by_device):
      count = sum(map(len, hardware_rows.plan(platform)))
      parts.append(f'### {heading}\n\n| rows | result |\n|---|---|\n'
                   f'| all {count} of `benchmarks/{platform}.sh` | not run |\n')
  for device, rows in sorted(by_device.items()):
    parts.append(device_tables(device, rows))
  return '\n'.join(parts)


def device_tables(device: str, records: dict[str, dict[str, Any]]) -> str:
  """Returns the heading and both tables of one device: checks, then speed and memory."""
  about = next(iter(records.values()))
  platform = about['platform']
  rows = [row for group in hardware_rows.plan(platform) for row in group]
  said = {k: ', '.join(sorted({str(x[k]) for x in records.values()}))
          for k in ('date', 'jax', 'flax', 'commit')}
  lines = [
    f'### {device}', '', f'{said["date"]}; jax {said["jax"]}, flax {said["flax"]}; commit '
    f'{said["commit"]}.', '', '| check | largest error | bound | result |', '|---|---|---|---|']
  lines += [check_line(row.name, records.get(row.name)) for row in rows
            if row.kind in ('goldens', 'attention', 'dtypes')]
  lines += ['', '| step | videos | videos/s | ms | of the peak | memory, GiB | compile, s | '
            'transformers, videos/s |', '|---' * 8 + '|']
  for row in rows:
    if row.kind == 'speed':
      model = row.settings['model']
      peer = records.get(f'transformers {model["variant"]} {row.settings["step"]} bfloat16')
      lines.append(speed_line(row.name, records.get(row.name),
                              peer if model['dtype'] == 'bfloat16' else None))
  return '\n'.join(lines) + '\n'


def check_line(name: str, record: dict[str, Any] | None) -> str:
  if not record or 'errors' not in record:
    return table_line(name, '', '', without_result(record))
  # The part that is nearest to its bound, or over it.
  share = lambda part: float('inf') if record['errors'][part] is None else (
    record['errors'][part] / record['bounds'][part])
  worst = max(record['errors'], key=share)
  error = record['errors'][worst]
  return table_line(
    name, f'{"nan" if error is None else f"{error:.1e}"} ({worst})',
    f'{record["bounds"][worst]:.0e}', 'passed' if record['passed'] else '**failed**')


def speed_line(name: str, record: dict[str, Any] | None, peer: dict[str, Any] | None) -> str:
  beside = f'{peer["videos_per_second"]:.1f}' if peer and peer['status'] == 'ok' else (
    without_result(peer) if peer else '')
  if not record or record['status'] != 'ok':
    return table_line(name, '', without_result(record), '', '', '', '', beside)
  share, compiled = record['mfu'], record['compile_seconds']
  memory = record['peak_bytes'] or record['compiled_bytes']
  return table_line(
    name, str(record['batch']), f'{record["videos_per_second"]:.1f}', f'{record["ms"]:.1f}',
    f'{share:.0%}' if share else '', f'{memory / 2**30:.2f}' if memory else '',
    f'{compiled:.0f}' if compiled else '', beside)


def table_line(*cells: str) -> str:
  return ''.join(f'| {cell} ' if cell else '| ' for cell in cells) + '|'


def without_result(record: dict[str, Any] | None) -> str:
  """Says why a row has no numbers, without what would end a cell of a table."""
  if record is None or record['status'] == 'not run':
    return 'not run'
  if record['status'] == 'out of memory':
    return 'out of memory'
  return f'{record["status"]}: {record.get("reason", "")}'.replace('|', '/').rstrip(': ')


def insert(page: str, tables: str) -> str:
  """Returns a page with the tables between its markers.

  Raises:
    ValueError: the page does not hold both markers once.
  """
  if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
    raise ValueError(f'the page must hold {BEGIN!r} and {END!r} once each, in this order')
  before, after = page[:page.index(BEGIN)], page[page.index(END):]
  return f'{before}{BEGIN}\n\n{tables}\n{after}'


if __name__ == '__main__':
  main()
