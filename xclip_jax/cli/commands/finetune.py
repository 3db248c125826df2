"""`xclip finetune`: a model for your own labels, in one command."""

import argparse
import functools
import os
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output, startup
from xclip_jax.errors import UserError

_MOST_LABELS = 40          # labels whose counts are printed
_MOST_REASONS = 5          # clips left out whose reasons are printed


def add_commands(commands: Any) -> None:
  """Adds `finetune` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'finetune', finetune, 'teach a model your own labels', """
    xclip finetune clips/ --weights microsoft/xclip-base-patch32 -o tuned
    xclip finetune labels.csv --weights ViT-B/16 -o tuned --base kinetics/val.csv
    xclip finetune clips/ --weights runs/k400 -o tuned --dry-run""")
  add = command.add_argument
  add('place', metavar='FOLDER_OR_CSV',
      help='a folder with a subfolder of videos for each label (or two such, train and val), or a '
      'CSV with path,label')
  add('--weights', required=True, metavar='WEIGHTS',
      help=f'weights to start from: {options.WEIGHTS}')
  add('-o', '--output', required=True, metavar='FOLDER',
      help='folder for weights, report, lists and the run; an interrupted run continues')
  options.add_root(command)
  add('--base', metavar='LIST',
      help='CSV with path,label of videos that must not be forgotten; accuracy on them is '
      'measured, and counts when alpha is chosen')
  add('--base-classes', metavar='FILE',
      help='class list of --base (default: classes.csv beside it)')
  add('--base-root', metavar='FOLDER',
      help='folder that the paths of --base start from (default: the folder of the list)')
  _add_training(command)
  options.add_threads(command)
  add('--seed', type=int, default=0, metavar='NUMBER',
      help='seed of the split, of training and of new parts (default: %(default)s)')
  add('--extend', action='store_true',
      help='continue an earlier fine-tuning in the output folder with more epochs')
  add('--dry-run', action='store_true', help='print what would be done, and stop')
  add('--quiet', action='store_true', help='show no progress of the evaluation')
  command.set_defaults(when_stopped='stopped; the same command goes on from here')


def _add_training(command: options.CommandParser) -> None:
  add = command.add_argument
  add('--val-share', type=float, default=0.2, metavar='SHARE',
      help='share of each label held out, if there are no folders train and val '
      '(default: %(default)s)')
  add('--epochs', type=options.positive, metavar='COUNT',
      help='passes over the clips (default: 50, or 30 with more than 16 clips a label; at least '
      '100 updates)')
  add('--batch-size', type=options.at_least(1), metavar='COUNT',
      help='clips per update (default: up to 64)')
  add('--lr', type=options.positive, metavar='RATE',
      help='learning rate of the pretrained parts; new parts have ten times that (default: 8e-6 x '
      'batch size / 256; more for models smaller than B/32)')
  add('--tune-text', action='store_true', help='train the text tower, too')
  add('--frame-mean', action='store_true',
      help='take the mean over frames in place of new parts; for weights of CLIP')
  add('--flip', type=options.share, metavar='PROBABILITY',
      help='probability of a mirrored clip (default: 0.5; 0 if a label tells left from right)')


def finetune(arguments: argparse.Namespace) -> int:
  """Trains a model on your own videos, and writes weights for `xclip classify`.

  The command looks at every video, holds some of each label out, trains, and measures weights
  between those before and those after training. The same command continues an interrupted
  fine-tuning. Exit code: 0; 1 if videos had to be left out; 2 if refused.
  """
  if (arguments.base_classes or arguments.base_root) and not arguments.base:
    raise UserError('--base-classes and --base-root belong to --base, which is not given')
  with startup.paused_collector():
    startup.prepare_compilation(arguments.quiet)
    from xclip_jax import files
    from xclip_jax.data.datasets import own_clips
    from xclip_jax.evaluation import video_lists
    from xclip_jax.training.finetuning import finetune as tuning
    from xclip_jax.training.finetuning import page
    from xclip_jax.training.finetuning import recipe as recipes
    from xclip_jax.weights import opening

  folder = Path(os.path.abspath(arguments.output))
  files.check_text(folder, '--output')
  clips = own_clips.read(arguments.place, arguments.root)
  output.say(f'{len(clips.clips)} clips, {len(clips.classes)} labels'
             f'{", several for a clip" if clips.is_multi_label else ""}; looking at each')
  base = arguments.base and video_lists.labelled(
    'base', arguments.base, arguments.base_root, arguments.base_classes)
  with startup.paused_collector():
    weights = opening.open_weights(arguments.weights)
  for note in weights.notes:
    output.say(f'{weights.source}: {note}')
  clips = own_clips.usable(clips, weights.config.num_frames)
  _say_left_out(clips)
  clips = own_clips.split(clips, arguments.val_share, arguments.seed)
  given = arguments.weights
  given = os.path.abspath(given) if os.path.exists(given) else given
  config = recipes.recipe(clips, weights, given, folder, recipes.Options(
    arguments.epochs, arguments.batch_size, arguments.lr, arguments.tune_text,
    arguments.frame_mean, arguments.flip, arguments.val_share, arguments.threads, arguments.seed,
    arguments.extend))
  _print_plan(clips, recipes.choices(config, clips))
  if arguments.dry_run:
    return output.FAILED_IN_PART if clips.left_out else 0
  _check_output(folder)
  results = tuning.run(
    tuning.Finetuning(clips, weights, given, folder, config, base or None),
    lambda desc: functools.partial(
      output.show_progress, unit='batch', desc=desc, quiet=arguments.quiet))
  if not results:
    output.say('stopped; the same command goes on from here')
    return output.FAILED_IN_PART
  shown = os.path.relpath(folder)
  print(f'\n{output.printable(page.summarise(results))}\n'
        f'weights: {os.path.join(shown, "weights")}\nreport:  {os.path.join(shown, "report.md")}')
  return output.FAILED_IN_PART if clips.left_out else 0


def _say_left_out(clips: Any) -> None:
  from xclip_jax.data.datasets import folders

  left_out = clips.left_out
  if clips.unnamed:
    output.say(output.printable(folders.describe_left_out(clips.unnamed)))
  for path, note in clips.notes[:_MOST_REASONS]:
    output.say(output.printable(f'used in part: {path}: {note}'))
  if clips.notes[_MOST_REASONS:]:
    output.say(f'used in part: {len(clips.notes) - _MOST_REASONS} more; see `xclip data check`')
  for path, reason in left_out[:_MOST_REASONS]:
    output.say(output.printable(f'left out: {path}: {reason}'))
  if left_out[_MOST_REASONS:]:
    output.say(f'left out: {len(left_out) - _MOST_REASONS} more, all in the report')


def _print_plan(clips: Any, choices: Any) -> None:
  """Prints how many clips of each label are trained on, and how the run was chosen."""
  counts = [clips.count(x) for x in ('train', 'val')]
  output.print_table([
    ('label', 'to train on', 'held out'),
    *((name, *(str(x[name]) for x in counts)) for name in clips.classes[:_MOST_LABELS])])
  if clips.classes[_MOST_LABELS:]:
    print(f'and {len(clips.classes) - _MOST_LABELS} more labels')
  print()
  output.print_table(choices)
  print(flush=True)


def _check_output(folder: Path) -> None:
  """Refuses a folder that holds something else than a fine-tuning."""
  if folder.exists() and (
      not folder.is_dir() or (any(folder.iterdir()) and not (folder / 'run').is_dir()
                              and not (folder / 'train.csv').is_file())):
    raise UserError(f'{folder} exists and is no fine-tuning; choose another folder with -o')
