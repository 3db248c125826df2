"""`xclip data prepare`: videos stored anew, in files that are read fast."""

import argparse
import functools
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output
from xclip_jax.cli.commands.data import list_files
from xclip_jax.errors import UserError

_OPTIONS_OF_FORMAT = {'h264': ('crf', 'gop'), 'jpeg': ('quality', 'fps')}


def add_commands(commands: Any) -> None:
  """Adds `prepare` to the subcommands of `xclip data`."""
  command = options.add_command(
    commands, 'prepare', prepare, 'store videos anew so that they are read fast', """
    xclip data prepare train.csv -o prepared
    xclip data prepare train.csv -o prepared --verify
    xclip data prepare train.csv -o prepared_jpeg --format jpeg --fps 8 --short-side 320""")
  list_files.add_list(command)
  add = command.add_argument
  add('-o', '--output', required=True, metavar='FOLDER', help='folder for the shards and the list')
  add('--overwrite', action='store_true',
      help='begin again, if this list was prepared there already')
  add('--format', choices=tuple(_OPTIONS_OF_FORMAT), default='h264',
      help='h264 stores all frames, jpeg some frames a second (default: %(default)s)')
  add('--short-side', type=int, default=256, metavar='PIXELS',
      help='shorter side to which larger videos are scaled down (default: %(default)s)')
  add('--crf', type=int, metavar='NUMBER',
      help='quality of h264 from 0 to 51, lower is better (default: 23)')
  add('--gop', type=int, metavar='FRAMES',
      help='frames from key frame to key frame of h264 (default: 12)')
  add('--quality', type=int, metavar='NUMBER', help='quality of jpeg from 1 to 100 (default: 90)')
  add('--fps', type=float, metavar='RATE', help='frames a second that jpeg stores (default: 4)')
  add('--per-shard', type=int, default=0, metavar='COUNT',
      help='videos per file (default: 256, fewer if the list is short)')
  options.add_processes(command, 'encoding')
  add('--max-bad-share', type=float, default=0.05, metavar='SHARE',
      help='stop if a larger share of videos fails (default: %(default)s)')
  add('--retry', action='store_true', help='try the shards again in which videos failed')
  add('--verify', action='store_true',
      help='prepare nothing; read the shards again and compare them with what was written')
  options.add_quiet(command)
  command.set_defaults(
    when_stopped='stopped; what is complete is kept, and the same command goes on')


def prepare(arguments: argparse.Namespace) -> int:
  """Stores the videos of a list in files that are read fast, and writes a list of them.

  Run the same command again after a crash or a kill: complete shards are kept. A video that cannot
  be read is left out of the list and named in LIST_failed.csv. Exit code: 0 if prepared or
  verified; 1 if --verify finds damage, which the command without it repairs; 2 if refused.
  """
  from xclip_jax.data.datasets import annotations
  from xclip_jax.data.tools import prepare as prepare_tool
  from xclip_jax.data.video import encode

  settings = _settings_of_format(arguments)
  names, _ = annotations.read_rows(arguments.list, ('path',))
  listed = prepare_tool.ListFiles(
    arguments.list, list_files.root_of(arguments),
    list_files.classes_of(arguments) if 'label' in names else None)
  how = dict(
    processes=arguments.processes,
    progress=functools.partial(output.show_progress, unit='file', quiet=arguments.quiet))
  if arguments.verify:
    return _print_damage(arguments.output, *prepare_tool.verify(listed, arguments.output, **how))
  encoding = encode.Encoding(arguments.format, arguments.short_side, **settings)
  report = prepare_tool.prepare(
    listed, arguments.output, encoding, prepare_tool.Options(
      arguments.per_shard, arguments.max_bad_share, arguments.overwrite, arguments.retry), **how)
  _print_report(report, Path(arguments.output) / Path(arguments.list).name)
  return 0


def _settings_of_format(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns the given options of the chosen format; UserError if one belongs to another format."""
  settings = {}
  for form, names in _OPTIONS_OF_FORMAT.items():
    for name in names:
      if (value := getattr(arguments, name)) is None:
        continue
      if form != arguments.format:
        raise UserError(f'--{name} does nothing to --format {arguments.format}')
      settings[name] = value
  return settings


def _print_damage(folder: str, count: int, damaged: list[tuple[str, str]]) -> int:
  for name, fault in damaged:
    print(output.printable(f'  {name}: {fault}'))
  print(f'{folder}: {len(damaged)} files are damaged; the command without --verify repairs them'
        if damaged else f'{folder}: {count} shards, all as they were written')
  return output.FAILED_IN_PART if damaged else 0


def _print_report(report: Any, path: Path) -> None:
  print(f'{path}: {report.prepared} of {report.listed} videos, {report.shards} shards')
  before, after = (x / 1e6 for x in (report.bytes_before, report.bytes_after))
  ratio = f', {after / before:.2f} times' if before else ''
  print(f'{report.hours:.2f} hours, {report.frames} frames; {before:.1f} MB before, {after:.1f} MB '
        f'after{ratio}')
  if report.psnr['mean'] is not None:
    print('PSNR {mean:.1f} dB on average, {lowest:.1f} lowest, {fifth_percentile:.1f} at the 5th '
          'percentile'.format(**report.psnr))
  settings = ', '.join(f'{name} {value}' for name, value in report.encoding.items())
  print(f'{report.cpu_seconds_per_video:.2f} s of CPU a video; {settings}')
  for video, reason in report.failed[:5]:
    print(output.printable(f'  {video}: {reason}'))
  for video, note in report.notes[:5]:
    print(output.printable(f'  {video}: {note}'))
  if report.notes:
    print(f'{len({video for video, _ in report.notes})} videos were stored with such notes: '
          f'{path.stem}_report.json names them')
  if report.failed:
    print(f'{len(report.failed)} videos failed: {path.stem}_failed.csv names them')
