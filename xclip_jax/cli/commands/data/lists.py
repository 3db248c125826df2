"""`xclip data lists`, `few-shot` and `base-novel`: new lists of videos."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output_files
from xclip_jax.cli.commands.data import list_files
from xclip_jax.errors import UserError


def add_commands(commands: Any) -> None:
  """Adds `lists`, `few-shot` and `base-novel` to the subcommands of `xclip data`."""
  _add_lists(commands)
  command = options.add_command(
    commands, 'few-shot', few_shot, 'draw a few videos of each class',
    'xclip data few-shot train.csv --shots 16 --seed 1 -o train_16.csv')
  list_files.add_list(command)
  command.add_argument('--shots', type=int, required=True, metavar='COUNT',
                       help='videos to draw of each class')
  command.add_argument('--seed', type=int, default=0, metavar='NUMBER',
                       help='seed of the draw (default: %(default)s)')
  options.add_output(command, 'list to write')

  command = options.add_command(
    commands, 'base-novel', base_novel, 'split classes into frequent and rare',
    'xclip data base-novel train.csv val.csv -o base_novel')
  list_files.add_list(command, several=True)
  command.add_argument('-o', '--output', required=True, metavar='FOLDER',
                       help='folder for the lists')
  options.add_overwrite(command)


def _add_lists(commands: Any) -> None:
  command = options.add_command(
    commands, 'lists', write_lists, 'write lists of a published data set or of folders', """
    xclip data lists folder clips/ -o lists
    xclip data lists ucf101 /data/ucf101 --split-files ucfTrainTestlist --split 2 -o lists""")
  add = command.add_argument
  add('name', metavar='NAME', help='data set: folder, kinetics, hmdb51, ucf101 or ssv2')
  add('root', metavar='ROOT',
      help='folder of the videos; the paths of the lists start from it (config.data.root)')
  add('-o', '--output', required=True, metavar='FOLDER', help='folder for the lists')
  options.add_overwrite(command)
  for name, default, text in (
    ('train', 'train.csv', 'published list of training videos'),
    ('val', 'val.csv', 'published list of validation videos'),
    ('classes', 'labels.json', 'published class list'),
    ('videos', '', 'folder of the videos below ROOT'),
    ('split-files', '', 'folder of the official split files'),
  ):
    add(f'--{name}', default=default, metavar='PATH',
        help=f'{text}, as config.data.{name.replace("-", "_")} names it'
        f'{" (default: %(default)s)" if default else ""}')
  add('--split', type=int, default=1, metavar='NUMBER',
      help='number of the official split (default: %(default)s)')
  command.set_defaults(local_only=True)


def write_lists(arguments: argparse.Namespace) -> int:
  """Writes train.csv, val.csv and classes.csv, for the commands that take lists."""
  from xclip_jax import data
  from xclip_jax.data.datasets import annotations
  from xclip_jax.data.tools import derive_lists

  if arguments.name in ('files', 'synthetic', 'tfds'):
    raise UserError(f'{arguments.name} has lists already or needs none; name folder, kinetics, '
                    'hmdb51, ucf101 or ssv2')
  arguments.zero_shot = ''
  texts = {}
  for name, split in data.open_splits(arguments).items():
    assert isinstance(split.videos, annotations.VideoList)       # TFDS was refused above
    note = f'{arguments.name}, {split.count} videos, fingerprint {split.videos.fingerprint}'
    texts[f'{name}.csv'], classes = derive_lists.from_split(
      split.videos, split.classes, arguments.root, note)
    texts.setdefault('classes.csv', classes)
  return _write_all(arguments, texts)


def few_shot(arguments: argparse.Namespace) -> int:
  """Writes a list of a few videos of each class, drawn with a seed."""
  with output_files.open_file(arguments.output, arguments.overwrite) as write:
    from xclip_jax.data.datasets import annotations
    from xclip_jax.data.tools import derive_lists

    if Path(arguments.output).suffix != Path(arguments.list).suffix:
      raise UserError(f'-o {arguments.output} must end as {arguments.list} does')
    classes = annotations.read_classes(list_files.classes_of(arguments))
    write(derive_lists.few_shot(
      arguments.list, classes, arguments.shots, arguments.seed))
  print(f'{arguments.output}: {arguments.shots} videos of each of {len(classes)} classes')
  return 0


def base_novel(arguments: argparse.Namespace) -> int:
  """Writes lists of the frequent half of the classes (base) and of the rest (novel).

  The first list, of training videos, says how frequent a class is; the others are split alike.
  """
  from xclip_jax.data.datasets import annotations
  from xclip_jax.data.tools import derive_lists

  classes = annotations.read_classes(list_files.classes_of(arguments))
  return _write_all(arguments, derive_lists.base_novel(arguments.list, classes))


def _write_all(arguments: argparse.Namespace, texts: dict[str, bytes]) -> int:
  folder = Path(arguments.output)
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    writers = {
      name: stack.enter_context(output_files.open_file(str(folder / name), arguments.overwrite))
      for name in texts
    }
    for name, write in writers.items():
      write(texts[name])
  print('\n'.join(str(folder / name) for name in texts))
  return 0
