"""The `xclip data` commands: check, show and prepare lists of videos, and make lists of lists."""

import argparse
import contextlib
import gc
import io
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xclip_jax import errors
from xclip_jax.cli import output as output_lib
from xclip_jax.errors import UserError

_EXAMPLES = """examples:
  xclip data check train.csv --report report.txt --clean train_clean.csv
  xclip data show train.csv -o sheet.png
  xclip data prepare train.csv -o prepared
  xclip data prepare train.csv -o prepared --verify
  xclip data few-shot train.csv --shots 16 --seed 1 -o train_16.csv
  xclip data base-novel train.csv val.csv -o base_novel
"""


def add_commands(commands: Any) -> None:
  """Adds `data` and what belongs to it to the subcommands of `xclip`."""
  group = commands.add_parser(
    'data', help='check, show, prepare and make lists of videos', description=__doc__,
    epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
  ).add_subparsers(metavar='COMMAND', required=True)
  command = _command(group, 'check', check, 'find what is wrong with a list')
  command.add_argument('--frames', type=int, default=8, metavar='T',
                       help='frames of a clip; shorter videos are a problem (default: 8)')
  command.add_argument('--processes', type=int, default=os.cpu_count(), metavar='N',
                       help='that decode (default: one a CPU)')
  command.add_argument('--report', metavar='FILE', help='write all problems; JSON if named .json')
  command.add_argument('--clean', metavar='FILE', help='write the list without the bad rows')
  command.add_argument('--quiet', action='store_true', help='no progress bar')

  command = _command(group, 'show', show, 'draw training clips as the model sees them')
  command.add_argument('-o', '--output', required=True, metavar='FILE', help='.png to write')
  command.add_argument('--count', type=int, default=12, metavar='N', help='clips (default: 12)')
  command.add_argument('--seed', type=int, default=0, help='of order, frames and augmentation')
  command.add_argument('--frames', type=int, default=8, metavar='T', help='default: 8')
  command.add_argument('--size', type=int, default=224, metavar='S', help='pixels (default: 224)')
  command.add_argument('--crop', choices=('multiscale', 'center'), default='multiscale')
  for name, default in (('flip', 0.5), ('color-jitter', 0.8), ('grayscale', 0.2)):
    command.add_argument(f'--{name}', type=float, default=default, metavar='P',
                         help=f'probability (default: {default})')

  command = _command(group, 'prepare', prepare, 'store videos anew so that they are read fast',
                     overwrite='begin again, if this list was prepared there already')
  command.add_argument('-o', '--output', required=True, metavar='FOLDER', help='for the shards')
  command.add_argument('--format', choices=('h264', 'jpeg'), default='h264',
                       help='all frames, or some frames as JPEG (default: h264)')
  command.add_argument('--short-side', type=int, default=256, metavar='PIXELS',
                       help='larger videos are made smaller (default: 256)')
  for name, kind, text in (
    ('crf', int, 'quality of h264, 0 to 51; lower is better (default: 23)'),
    ('gop', int, 'frames from key frame to key frame of h264 (default: 12)'),
    ('quality', int, 'of jpeg, 1 to 100 (default: 90)'),
    ('fps', float, 'frames a second of jpeg (default: 4)'),
  ):
    command.add_argument(f'--{name}', type=kind, metavar='N', help=text)
  command.add_argument('--per-shard', type=int, default=0, metavar='N',
                       help='videos in a file (default: 256, fewer if the list is short)')
  command.add_argument('--processes', type=int, default=os.cpu_count(), metavar='N',
                       help='that encode (default: one a CPU)')
  command.add_argument('--max-bad-share', type=float, default=0.05, metavar='SHARE',
                       help='of videos that may fail; more is an error (default: 0.05)')
  command.add_argument('--retry', action='store_true',
                       help='do again what holds videos that failed')
  command.add_argument('--verify', action='store_true',
                       help='prepare nothing; read again what is there and compare it')
  command.add_argument('--quiet', action='store_true', help='no progress bar')

  command = group.add_parser('lists', help='write lists of a published data set or of folders',
                             description=write_lists.__doc__)
  command.add_argument('name', metavar='NAME', help='folder, kinetics, hmdb51, ucf101 or ssv2')
  command.add_argument('root', metavar='ROOT', help='config.data.root; also where lists belong')
  command.add_argument('-o', '--output', required=True, metavar='FOLDER', help='for the lists')
  for name, default in (('train', 'train.csv'), ('val', 'val.csv'), ('classes', 'labels.json'),
                        ('videos', ''), ('split-files', '')):
    command.add_argument(f'--{name}', default=default, help='as in config.data')
  command.add_argument('--split', type=int, default=1, metavar='N', help='official split')
  command.add_argument('--overwrite', action='store_true', help='replace files that are there')
  command.set_defaults(run=write_lists)

  command = _command(group, 'few-shot', few_shot, 'draw a few videos of each class')
  command.add_argument('--shots', type=int, required=True, metavar='K', help='videos of a class')
  command.add_argument('--seed', type=int, default=0)
  command.add_argument('-o', '--output', required=True, metavar='FILE', help='list to write')

  command = _command(group, 'base-novel', base_novel, 'split classes into frequent and rare',
                     lists='+')
  command.add_argument('-o', '--output', required=True, metavar='FOLDER', help='for the lists')


def check(arguments: argparse.Namespace) -> int:
  """Checks every row of a list: label, file, one decoded frame, length, duplicates.

  Exit status 0: nothing found; 1: problems; 2: the list cannot be read.
  """
  from xclip_jax.data.datasets import annotations
  from xclip_jax.data.tools import check, derive_lists

  path = arguments.list
  for name in ('frames', 'processes'):
    if getattr(arguments, name) < 1:
      raise errors.UserError(f'--{name} must be at least 1, got {getattr(arguments, name)}')
  gc.enable()
  with contextlib.ExitStack() as stack:
    run_page, clean = (
      stack.enter_context(output_lib.Output(file, arguments.overwrite))
      for file in (arguments.report, arguments.clean)
    )
    if arguments.report and arguments.clean and run_page.target == clean.target:
      raise errors.UserError(f'--report and --clean both write to {arguments.clean}')
    with output_lib.show_user_errors():
      columns, _ = annotations.read_rows(path, ('path',))
      if arguments.clean and annotations.is_reference_list(path) != annotations.is_reference_list(
        arguments.clean):
        raise UserError(f'--clean {arguments.clean} must end in {Path(path).suffix}, as the list')
      found = check.check_list(
        path, _root(arguments), _classes(arguments) if 'label' in columns else None,
        num_frames=arguments.frames, processes=arguments.processes, progress=_bar(arguments.quiet),
      )
      summary = f'{path}: {found.present} of {found.listed} present'
      lines = [
        f'line {x.line}: {x.kind}: {x.path}: {x.reason}' if x.line else f'{x.kind}: {x.reason}'
        for x in found.problems
      ]
      kinds = [x.kind for x in found.problems]
      counts = {kind: kinds.count(kind) for kind in check.KINDS if kind in kinds}
      if (arguments.report or '').endswith('.json'):
        run_page.write(output_lib.to_json({
          'list': path, 'listed': found.listed, 'present': found.present, 'problems': [
            {'kind': x.kind, 'line': x.line, 'path': x.path, 'reason': x.reason}
            for x in found.problems],
        }))
      else:
        run_page.write(('\n'.join([summary, *lines]) + '\n').encode(errors='surrogateescape'))
      if arguments.clean:
        clean.write(derive_lists.without(path, found.bad_lines).encode())
  print(summary)
  for line in lines[:20]:
    print(output_lib.printable(f'  {line}'))
  if len(lines) > 20:
    print(f'  and {len(lines) - 20} more; --report writes them all')
  for kind, count in counts.items():
    print(f'{count} {kind}: {check.KINDS[kind]}')
  print('nothing is wrong with it' if not lines else f'{len(found.bad_lines)} rows are bad')
  return 1 if lines else 0


def show(arguments: argparse.Namespace) -> int:
  """Draws augmented training clips as the model sees them before normalisation."""
  if not arguments.output.endswith('.png'):
    raise errors.UserError(f'-o {arguments.output} must end in .png')
  if min(arguments.count, arguments.frames, arguments.size) < 1:
    raise errors.UserError('--count, --frames and --size must be at least 1')
  with output_lib.Output(arguments.output, arguments.overwrite) as output, output_lib.show_user_errors():
    from xclip_jax.data.clips import augment, pipeline, sampling
    from xclip_jax.data.datasets import annotations
    from xclip_jax.reports import run_page

    classes = annotations.read_classes(_classes(arguments))
    examples = annotations.read_annotations(arguments.list, _root(arguments), classes)
    videos = annotations.VideoList(examples, classes, _root(arguments))
    if not videos.is_single_label:
      raise UserError(f'{arguments.list}: gives a video several labels; training reads one')
    transform = augment.TrainTransform(
      arguments.size, arguments.crop, arguments.flip, arguments.color_jitter, arguments.grayscale)
    clips, failed = [], 0
    with pipeline.train_batches(
      videos, transform, sampling.ClipSampler(arguments.frames), pipeline.HostShare(1),
      pipeline.TrainStream(arguments.seed), pipeline.Reading(threads=1),
    ) as batches:
      for batch in itertools.islice(batches, arguments.count):
        failed += int(batch['failed'][0] >= 0)
        if batch['mask'][0]:
          clips.append(run_page.Clip(batch['video'][0], classes.names[batch['label'][0]], ()))
    if not clips:
      raise UserError(f'{arguments.list}: no video could be read; see `xclip data check`')
    picture = io.BytesIO()
    run_page.draw_clips(clips, picture)
    output.write(picture.getvalue())
  replaced = f'; {failed} unreadable videos were replaced' if failed else ''
  print(f'{arguments.output}: {len(clips)} clips{replaced}')
  return 0


def prepare(arguments: argparse.Namespace) -> int:
  """Stores the videos of a list in files that are read fast, and writes a list of them.

  Run the same command again after a crash or a kill: what is complete is kept. A video that cannot
  be read is left out of the list and named in LIST_failed.csv. Exit status 0: prepared, or
  verified; 1: --verify has found damage, which the command without it repairs; 2: not done.
  """
  from xclip_jax.data.datasets import annotations
  from xclip_jax.data.tools import prepare
  from xclip_jax.data.video import encode

  gc.enable()
  if arguments.processes < 1:
    raise errors.UserError(f'--processes must be at least 1, got {arguments.processes}')
  own = dict(h264=('crf', 'gop'), jpeg=('quality', 'fps'))
  given = {
    name: getattr(arguments, name) for names in own.values() for name in names
    if getattr(arguments, name) is not None
  }
  for name in given:
    if name not in own[arguments.format]:
      raise errors.UserError(f'--{name} does nothing to --format {arguments.format}')
  with output_lib.show_user_errors(), _ending_on_sigterm():
    columns, _ = annotations.read_rows(arguments.list, ('path',))
    place = (arguments.list, _root(arguments),
             _classes(arguments) if 'label' in columns else None, arguments.output)
    options = dict(processes=arguments.processes, progress=_bar(arguments.quiet))
    if arguments.verify:
      return _say_verdict(arguments.output, *prepare.verify(*place, **options))
    encoding = encode.Encoding(arguments.format, arguments.short_side, **given)
    try:
      run_page = prepare.prepare(
        *place, encoding, per_shard=arguments.per_shard, max_bad_share=arguments.max_bad_share,
        overwrite=arguments.overwrite, retry=arguments.retry, **options)
    except KeyboardInterrupt:
      print('stopped; what is complete is kept, and the same command goes on', file=sys.stderr)
      return 130
    except RuntimeError as error:
      raise errors.UserError(str(error)) from error
  _say_report(run_page, Path(arguments.output) / Path(arguments.list).name)
  return 0


def _say_verdict(folder: str, count: int, damaged: list[tuple[str, str]]) -> int:
  for name, fault in damaged:
    print(output_lib.printable(f'  {name}: {fault}'))
  print(f'{folder}: {len(damaged)} files are damaged; the command without --verify repairs them'
        if damaged else f'{folder}: {count} shards, all as they were written')
  return 1 if damaged else 0


def _say_report(report: Any, path: Path) -> None:
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
    print(output_lib.printable(f'  {video}: {reason}'))
  if report.failed:
    print(f'{len(report.failed)} videos failed: {path.stem}_failed.csv names them')


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
  """Makes SIGTERM an exception, so that processes that were started are ended, too."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def write_lists(arguments: argparse.Namespace) -> int:
  """Writes train.csv, val.csv and classes.csv, for the commands that want lists."""
  with output_lib.show_user_errors():
    from xclip_jax import data
    from xclip_jax.data.tools import derive_lists

    if arguments.name in ('files', 'synthetic', 'tfds'):
      raise UserError(f'{arguments.name} has lists already or needs none; name folder, kinetics, '
                       'hmdb51, ucf101 or ssv2')
    arguments.zero_shot = ''
    texts = {}
    for name, split in data.open_splits(arguments).items():
      note = f'{arguments.name}, {split.count} videos, fingerprint {split.videos.fingerprint}'
      texts[f'{name}.csv'], classes = derive_lists.from_split(
        split.videos, split.classes, arguments.root, note)
      texts.setdefault('classes.csv', classes)
  return _write_all(arguments, texts)


def few_shot(arguments: argparse.Namespace) -> int:
  """Writes a list of K videos of each class, drawn with a seed."""
  with output_lib.Output(arguments.output, arguments.overwrite) as output, output_lib.show_user_errors():
    from xclip_jax.data.datasets import annotations
    from xclip_jax.data.tools import derive_lists

    if Path(arguments.output).suffix != Path(arguments.list).suffix:
      raise UserError(f'-o {arguments.output} must end as {arguments.list} does')
    classes = annotations.read_classes(_classes(arguments))
    output.write(
      derive_lists.few_shot(arguments.list, classes, arguments.shots, arguments.seed).encode())
  print(f'{arguments.output}: {arguments.shots} videos of each of {len(classes)} classes')
  return 0


def base_novel(arguments: argparse.Namespace) -> int:
  """Writes lists of the frequent half of the classes (base) and of the rest (novel).

  The first list, of training, says how frequent a class is; the others are split alike.
  """
  with output_lib.show_user_errors():
    from xclip_jax.data.datasets import annotations
    from xclip_jax.data.tools import derive_lists

    classes = annotations.read_classes(_classes(arguments))
    texts = derive_lists.base_novel(arguments.list, classes)
  return _write_all(arguments, texts)


def _write_all(arguments: argparse.Namespace, texts: dict[str, str]) -> int:
  folder = Path(arguments.output)
  with output_lib.show_user_errors():
    folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    outputs = {
      name: stack.enter_context(output_lib.Output(str(folder / name), arguments.overwrite))
      for name in texts
    }
    for name, output in outputs.items():
      output.write(texts[name].encode())
  print('\n'.join(str(folder / name) for name in texts))
  return 0


def _command(
  group: Any, name: str, run: Any, help_text: str, lists: Any = None,
  overwrite: str = 'replace files that are there',
) -> Any:
  command = group.add_parser(name, help=help_text, description=run.__doc__)
  command.add_argument('list', metavar='LIST', nargs=lists, help='CSV with path,label, or .txt')
  command.add_argument('--root', help="folder that its paths start from (default: the list's)")
  command.add_argument('--classes', help='class list (default: classes.csv beside the list)')
  command.add_argument('--overwrite', action='store_true', help=overwrite)
  command.set_defaults(run=run)
  return command


def _folder(arguments: argparse.Namespace) -> Path:
  first = arguments.list if isinstance(arguments.list, str) else arguments.list[0]
  return Path(first).parent


def _root(arguments: argparse.Namespace) -> Path:
  return Path(arguments.root) if arguments.root else _folder(arguments)


def _classes(arguments: argparse.Namespace) -> Path:
  path = Path(arguments.classes) if arguments.classes else _folder(arguments) / 'classes.csv'
  if not path.is_file():
    raise UserError(f'{path} is not there; name the class list with --classes')
  return path


def _bar(quiet: bool) -> Any:
  if quiet or not sys.stderr.isatty():
    return None
  import tqdm

  return lambda items, **options: tqdm.tqdm(
    items, unit='file', dynamic_ncols=True, leave=False, **options)
