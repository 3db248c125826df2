"""`xclip data check`: what is wrong with a list of videos."""

import argparse
import contextlib
import functools
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output, output_files
from xclip_jax.cli.commands.data import list_files
from xclip_jax.errors import UserError

_MOST_LINES = 20           # problems that are printed; --report holds all
_MOST_NOTES = 5


def add_commands(commands: Any) -> None:
  """Adds `check` to the subcommands of `xclip data`."""
  command = options.add_command(
    commands, 'check', check, 'find what is wrong with a list', """
    xclip data check train.csv --report report.txt --clean train_clean.csv
    xclip data check val.csv --root /data/videos --frames 16 --report problems.json""")
  list_files.add_list(command)
  command.add_argument('--frames', type=options.at_least(1), default=8, metavar='COUNT',
                       help='frames per clip; a shorter video is a problem (default: %(default)s)')
  command.add_argument('--full', action='store_true',
                       help='decode all frames of every video: slower, and no damage is missed')
  options.add_processes(command, 'decoding')
  command.add_argument('--report', metavar='FILE',
                       help='file for all problems; JSON if its name ends in .json')
  command.add_argument('--clean', metavar='FILE', help='file for the list without the bad rows')
  options.add_overwrite(command)
  options.add_quiet(command)


def check(arguments: argparse.Namespace) -> int:
  """Checks every row of a list: label, file, frames of all its parts, length, duplicates.

  Exit code: 0 without problems, 1 with problems, 2 if the list cannot be read.
  """
  from xclip_jax.data.datasets import annotations
  from xclip_jax.data.tools import check as check_tool
  from xclip_jax.data.tools import derive_lists

  path, clean = arguments.list, arguments.clean
  if output_files.is_same(arguments.report, clean):
    raise UserError(f'--report and --clean both write to {clean}')
  with contextlib.ExitStack() as stack:
    write_report, write_clean = (
      stack.enter_context(output_files.open_file(file, arguments.overwrite))
      for file in (arguments.report, clean)
    )
    names, _ = annotations.read_rows(path, ('path',))
    if clean and annotations.is_reference_list(path) != annotations.is_reference_list(clean):
      raise UserError(f'--clean {clean} must end in {Path(path).suffix}, as the list')
    result = check_tool.check_list(
      path, list_files.root_of(arguments),
      list_files.classes_of(arguments) if 'label' in names else None,
      check_tool.Inspection(arguments.frames, arguments.full), processes=arguments.processes,
      progress=functools.partial(output.show_progress, unit='file', quiet=arguments.quiet),
    )
    summary = f'{path}: {result.present} of {result.listed} present'
    lines = _format(result.problems)
    notes = _format(result.notes)
    if (arguments.report or '').endswith('.json'):
      write_report(_to_json(path, result))
    else:
      write_report(('\n'.join([summary, *lines, *notes]) + '\n').encode(errors='surrogateescape'))
    if clean:
      write_clean(derive_lists.without(path, result.bad_lines))
  print(summary)
  for line in lines[:_MOST_LINES]:
    print(output.printable(f'  {line}'))
  if len(lines) > _MOST_LINES:
    print(f'  and {len(lines) - _MOST_LINES} more; --report writes them all')
  for line in notes[:_MOST_NOTES]:
    print(output.printable(f'  {line}'))
  kinds = [x.kind for x in (*result.problems, *result.notes)]
  for kind, meaning in (check_tool.KINDS | check_tool.NOTES).items():
    if kind in kinds:
      print(f'{kinds.count(kind)} {kind}: {meaning}')
  print(f'{len(result.bad_lines)} rows are bad' if lines else 'nothing is wrong with it')
  return output.FAILED_IN_PART if lines else 0


def _format(problems: Any) -> list[str]:
  return [f'line {x.line}: {x.kind}: {x.path}: {x.reason}' if x.line else f'{x.kind}: {x.reason}'
          for x in problems]


def _to_json(path: str, result: Any) -> bytes:
  show = lambda problems: [
    {'kind': x.kind, 'line': x.line, 'path': x.path, 'reason': x.reason} for x in problems]
  return output_files.to_json({
    'list': path, 'listed': result.listed, 'present': result.present,
    'problems': show(result.problems), 'notes': show(result.notes)})
