"""`xclip eval supervised`, `zero-shot`, `base-novel`, `multi-label` and `retrieval`."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from xclip_jax.cli import options
from xclip_jax.cli.commands.evaluation import measurement
from xclip_jax.errors import UserError


def add_commands(commands: Any) -> None:
  """Adds the protocols to the subcommands of `xclip eval`."""
  command = _add(
    commands, 'supervised', supervised, 'measure accuracy on the classes trained on',
    'xclip eval supervised val.csv --weights runs/k400 --clips 4 --crops 3 -o results/k400')
  command.add_argument('list', metavar='LIST', help=options.LIST)
  _add_classes(command)

  command = _add(
    commands, 'zero-shot', zero_shot, 'measure accuracy on new classes', """
    xclip eval zero-shot 1/val.csv 2/val.csv 3/val.csv --root /data/hmdb51 --weights runs/k400 \\
        --template 'a video of {}' --template 'a person doing {}' -o results/hmdb51""")
  command.add_argument('list', metavar='LIST', nargs='+',
                       help=f'{options.LIST}; each is a split or a draw of classes')
  _add_classes(command, nargs='+', more=', or one for each list')

  command = _add(
    commands, 'base-novel', base_novel, 'measure accuracy on trained and on new classes', """
    xclip eval base-novel halves/val_base.csv halves/val_novel.csv --root /data \\
        --weights runs/base -o results/base_novel""")
  command.add_argument('list', metavar='LIST', nargs=2,
                       help='list of the base classes, then list of the novel classes')
  command.add_argument('--classes', nargs=2, metavar='FILE',
                       help='class lists of base and novel (default: classes_base.csv and '
                       'classes_novel.csv beside the lists)')

  command = _add(
    commands, 'multi-label', multi_label, 'measure mean average precision, several labels a video',
    'xclip eval multi-label charades/val.csv --weights runs/charades -o results/charades')
  command.add_argument('list', metavar='LIST', help='CSV with path,label; several labels as a;b')
  _add_classes(command)
  command.set_defaults(average='logits')

  command = _add(
    commands, 'retrieval', retrieval, 'find videos by captions, and captions by videos',
    'xclip eval retrieval captions.csv --weights runs/captions -o results/captions')
  command.add_argument('list', metavar='CAPTIONS', help='CSV with path,caption')
  options.add_truncate(command, 'captions')


def _add(
  commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> options.CommandParser:
  """Adds a protocol with the options that all protocols have."""
  command = options.add_command(commands, name, run, summary, example)
  options.add_model_options(command)
  options.add_output(command, 'folder for predictions, results and report', folder=True)
  options.add_root(command)
  options.add_template_option(command, 'as the weights were trained; bare captions')
  command.add_argument('--templates-file', metavar='FILE', help='templates, one a line')
  _add_views(command)
  options.add_batch_size(command)
  options.add_threads(command)
  command.add_argument('--clip-seconds', type=float, default=60.0, metavar='SECONDS',
                       help='a video that takes longer to read is missing; 0: no limit '
                       '(default: %(default)s)')
  options.add_quiet(command)
  options.add_host_options(command)
  command.set_defaults(truncate=False)
  return command


def _add_views(command: options.CommandParser) -> None:
  add = command.add_argument
  add('--clips', type=options.at_least(1), default=1, metavar='COUNT',
      help='clips per video (default: %(default)s)')
  add('--crops', type=int, default=1, choices=(1, 3), help='crops per clip (default: %(default)s)')
  add('--views', choices=('centred', 'reference'), default='centred',
      help='rule by which clips are chosen and three crops are cut (default: %(default)s)')
  add('--resize', type=float, metavar='RATIO',
      help='short side before the crops, over the image size (default: as the weights say)')
  add('--sampling', choices=('sparse', 'dense'), default='sparse',
      help='sparse: frames from all over the video; dense: frames close together '
      '(default: %(default)s)')
  add('--stride', type=options.at_least(1), default=4, metavar='FRAMES',
      help='distance between the frames of a dense clip (default: %(default)s)')
  add('--average', choices=('probabilities', 'logits'), default='probabilities',
      help='average over views (default: probabilities, as the reference; multi-label: logits; '
      'retrieval: always logits)')


def _add_classes(command: options.CommandParser, nargs: str | None = None, more: str = '') -> None:
  command.add_argument(
    '--classes', metavar='FILE', nargs=nargs,
    help=f'class list, CSV with id,name or JSON with {{"name": id}}{more} '
    '(default: classes.csv beside the list)')


def supervised(arguments: argparse.Namespace) -> int:
  """Classifies the videos of a list; each is counted once, missing ones are reported."""
  return measurement.run(arguments, 'supervised', lambda: _read_lists(arguments, [arguments.list]))


def zero_shot(arguments: argparse.Namespace) -> int:
  """Classifies the videos of lists whose classes were not trained on.

  Several lists are official splits or draws of classes: mean and standard deviation over them.
  """
  return measurement.run(arguments, 'zero-shot', lambda: _read_lists(arguments, arguments.list))


def base_novel(arguments: argparse.Namespace) -> int:
  """Classifies base classes among themselves, novel ones among themselves: harmonic mean."""
  if not arguments.classes:
    arguments.classes = [
      os.path.join(os.path.dirname(path), f'classes_{half}.csv')
      for path, half in zip(arguments.list, ('base', 'novel'), strict=True)
    ]
  return measurement.run(
    arguments, 'base-novel', lambda: _read_lists(arguments, arguments.list, ['base', 'novel']))


def multi_label(arguments: argparse.Namespace) -> int:
  """Ranks the videos for every class: mean average precision."""
  return measurement.run(
    arguments, 'multi-label',
    lambda: _read_lists(arguments, [arguments.list], is_multi_label=True))


def retrieval(arguments: argparse.Namespace) -> int:
  """Ranks videos for every caption, and captions for every video."""

  def read():
    from xclip_jax.evaluation import video_lists

    return [video_lists.captions(arguments.list, arguments.root)]

  return measurement.run(arguments, 'retrieval', read)


def _read_lists(
  arguments: argparse.Namespace, lists: Sequence[str], names: Sequence[str] | None = None,
  is_multi_label: bool = False,
) -> list[Any]:
  """Returns the evaluation sets of lists; one class list is for all, or there is one for each."""
  from xclip_jax.evaluation import video_lists

  classes = arguments.classes or [None]
  classes = [classes] if isinstance(classes, str) else classes
  if len(classes) == 1:
    classes = classes * len(lists)
  if len(classes) != len(lists):
    raise UserError(
      f'--classes names {len(classes)} files for {len(lists)} lists; give one, or one for each')
  names = names or video_lists.short_names(lists)
  return [
    video_lists.labelled(name, path, arguments.root, chosen, is_multi_label)
    for name, path, chosen in zip(names, lists, classes, strict=True)
  ]
