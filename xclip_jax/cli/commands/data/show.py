"""`xclip data show`: a picture of training clips."""

import argparse
import io
import itertools
from typing import Any

from xclip_jax.cli import options, output_files
from xclip_jax.cli.commands.data import list_files
from xclip_jax.errors import UserError


def add_commands(commands: Any) -> None:
  """Adds `show` to the subcommands of `xclip data`."""
  command = options.add_command(
    commands, 'show', show, 'draw training clips as the model sees them', """
    xclip data show train.csv -o sheet.png
    xclip data show train.csv -o sheet.png --count 4 --crop center --flip 0""")
  list_files.add_list(command)
  options.add_output(command, 'picture to write; its name ends in .png')
  for name, default, text in (
    ('count', 12, 'clips to draw'), ('frames', 8, 'frames per clip'),
    ('size', 224, 'height and width of a frame in pixels'),
  ):
    command.add_argument(f'--{name}', type=options.at_least(1), default=default, metavar='NUMBER',
                         help=f'{text} (default: %(default)s)')
  command.add_argument('--seed', type=int, default=0, metavar='NUMBER',
                       help='seed of the order, the frames and the augmentation '
                       '(default: %(default)s)')
  command.add_argument('--crop', choices=('multiscale', 'center'), default='multiscale',
                       help='crop of the frames (default: %(default)s)')
  for name, default, text in (
    ('flip', 0.5, 'a mirrored clip'), ('color-jitter', 0.8, 'changed colours'),
    ('grayscale', 0.2, 'a clip without colours'),
  ):
    command.add_argument(f'--{name}', type=options.share, default=default, metavar='PROBABILITY',
                         help=f'probability of {text} (default: %(default)s)')


def show(arguments: argparse.Namespace) -> int:
  """Draws augmented training clips as the model sees them before normalisation."""
  if not arguments.output.endswith('.png'):
    raise UserError(f'-o {arguments.output} must end in .png')
  with output_files.open_file(arguments.output, arguments.overwrite) as write:
    from xclip_jax.reports import contact_sheet

    clips, failed = _read_clips(arguments)
    if not clips:
      raise UserError(f'{arguments.list}: no video could be read; see `xclip data check`')
    picture = io.BytesIO()
    contact_sheet.write(clips, picture)
    write(picture.getvalue())
  replaced = f'; {failed} unreadable videos were replaced' if failed else ''
  print(f'{arguments.output}: {len(clips)} clips{replaced}')
  return 0


def _read_clips(arguments: argparse.Namespace) -> tuple[list[Any], int]:
  """Returns augmented clips to draw, and the number of videos that could not be read."""
  from xclip_jax.data.clips import augment, pipeline, sampling
  from xclip_jax.data.datasets import annotations
  from xclip_jax.reports import contact_sheet

  classes = annotations.read_classes(list_files.classes_of(arguments))
  root = list_files.root_of(arguments)
  examples = annotations.read_annotations(arguments.list, root, classes)
  videos = annotations.VideoList(examples, classes, root)
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
        clips.append(contact_sheet.Clip(batch['video'][0], classes.names[batch['label'][0]], ()))
  return clips, failed
