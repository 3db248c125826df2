"""`xclip finetune`: own labels, in one command."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xclip_jax import errors
from xclip_jax.cli import output

_EXAMPLES = """examples:
  xclip finetune clips/ --weights microsoft/xclip-base-patch32 -o tuned
  xclip finetune labels.csv --weights ViT-B/16 -o tuned --base kinetics/val.csv
  xclip finetune clips/ --weights W -o tuned --dry-run
"""


def add_commands(commands: Any, keep_compilations: Callable[[], None]) -> None:
  """Adds `finetune` to the subcommands of `xclip`."""
  command = commands.add_parser(
    'finetune', help='teach a model your own labels', description=finetune.__doc__,
    epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = command.add_argument
  add('place', metavar='FOLDER_OR_CSV',
      help='a folder with a subfolder of videos for each label (or two such, train and val), or a '
           'CSV with path,label')
  add('--weights', required=True, metavar='W',
      help='to start from: workdir of a run, a folder or file with weights, or a name')
  add('-o', '--output', required=True, metavar='FOLDER',
      help='for weights, report, lists and the run; an interrupted one goes on')
  add('--root', help="folder that the paths of a CSV start from (default: the CSV's)")
  add('--base', metavar='LIST', help='CSV with path,label of what must not be forgotten; it is '
                                     'measured, and counts when alpha is chosen')
  add('--base-classes', metavar='FILE', help='its class list (default: classes.csv beside it)')
  add('--base-root', help='folder that its paths start from (default: its own)')
  add('--val-share', type=float, default=0.2, metavar='S',
      help='share of each label held out, if there are no folders train and val (default: 0.2)')
  add('--epochs', type=float, metavar='N',
      help='default: 50, or 30 with more than 16 clips a label; at least 100 updates')
  add('--batch-size', type=int, metavar='N', help='clips an update (default: up to 64)')
  add('--lr', type=float, metavar='R', help='learning rate of the pretrained parts (default: 8e-6 '
                                            'x batch / 256; ten times that for new parts)')
  add('--tune-text', action='store_true', help='train the text tower, too')
  add('--frame-mean', action='store_true',
      help='with weights of CLIP: no new parts, the mean over frames')
  add('--flip', type=float, metavar='P', help='probability of a mirrored clip (default: 0.5; 0 if '
                                              'a label tells left from right)')
  add('--threads', type=int, default=4, metavar='N', help='that decode (default: 4)')
  add('--seed', type=int, default=0, metavar='N', help='default: 0')
  add('--dry-run', action='store_true', help='say what would be done, and stop')
  add('--quiet', action='store_true', help='no progress bars of the evaluation')
  command.set_defaults(run=finetune, keep_compilations=keep_compilations)


def finetune(arguments: argparse.Namespace) -> int:
  """Trains a model on your own videos, and writes weights for `xclip classify`.

  It looks at every video, holds some of each label out, trains, and measures weights on the way
  from before to after. The same command again goes on where it was stopped. Exit code: 0, 1 if
  videos had to be left out, 2 if it cannot be done.
  """
  for name, least in (('epochs', 0), ('batch_size', 1), ('lr', 0), ('threads', 1)):
    value = getattr(arguments, name)
    if value is not None and (value < least or not value):
      raise errors.UserError(f'--{name.replace("_", "-")} must be positive, got {value}')
  if arguments.flip is not None and not 0 <= arguments.flip <= 1:
    raise errors.UserError(f'--flip is a probability, got {arguments.flip}')
  if (arguments.base_classes or arguments.base_root) and not arguments.base:
    raise errors.UserError('--base-classes and --base-root belong to --base, which is not given')
  from xclip_jax.data.datasets import own_clips

  with output.show_user_errors():
    clips = own_clips.read(arguments.place, arguments.root)
    _say(f'{len(clips.clips)} clips, {len(clips.classes)} labels'
         f'{", several for a clip" if clips.several else ""}; looking at each')
    arguments.keep_compilations()
    from xclip_jax.evaluation import video_lists
    from xclip_jax.training import finetune as tuning
    from xclip_jax.weights import opening

    options = tuning.Options(
      arguments.epochs, arguments.batch_size, arguments.lr, arguments.tune_text,
      arguments.frame_mean, arguments.flip, arguments.val_share, arguments.threads, arguments.seed)
    base = arguments.base and video_lists.labelled(
      'base', arguments.base, arguments.base_root, arguments.base_classes)
    weights = opening.open_weights(arguments.weights)
    for note in weights.notes:
      _say(f'{weights.source}: {note}')
    clips = own_clips.usable(clips, weights.config.num_frames)
    for path, reason in clips.left_out[:5]:
      _say(f'left out: {path}: {reason}')
    if clips.left_out[5:]:
      _say(f'left out: {len(clips.left_out) - 5} more, all in the report')
    clips = own_clips.split(clips, arguments.val_share, arguments.seed)
    out = Path(os.path.abspath(arguments.output))
    given = arguments.weights
    given = os.path.abspath(given) if os.path.exists(given) else given
    config = tuning.recipe(clips, weights, given, out, options)
    counts = [clips.count(x) for x in ('train', 'val')]
    output.print_table([
      ('label', 'to train on', 'held out'),
      *((name, *(str(x[name]) for x in counts)) for name in clips.classes[:40])])
    if clips.classes[40:]:
      print(f'and {len(clips.classes) - 40} more labels')
    print()
    output.print_table(tuning.choices(config, clips))
    if arguments.dry_run:
      return 1 if clips.left_out else 0
    print(flush=True)
    _check_output(out)
    results = tuning.run(
      clips, weights, given, out, config, base or None,
      lambda what: output.batch_bar(what, arguments.quiet))
  if not results:
    _say('stopped; the same command goes on from here')
    return 1
  place = os.path.relpath(out)
  print(f'\n{output.printable(tuning.sentence(results))}\n'
        f'weights: {os.path.join(place, "weights")}\nreport:  {os.path.join(place, "report.md")}')
  return 1 if clips.left_out else 0


def _check_output(out: Path) -> None:
  """Refuses a folder that holds something else."""
  if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / 'run').is_dir()
                                            and not (out / 'train.csv').is_file())):
    raise errors.UserError(f'{out} is there and no fine-tuning; choose another folder with -o')


def _say(text: str) -> None:
  print(output.printable(f'xclip: {text}'), file=sys.stderr, flush=True)
