"""`xclip weights`: weights that have a name, and weights between two models."""

import argparse
import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output, output_files, startup
from xclip_jax.cli.commands import convert
from xclip_jax.errors import UserError


def add_commands(commands: Any) -> None:
  """Adds `weights` and its subcommands to the subcommands of `xclip`."""
  command, group = options.add_group(
    commands, 'weights', 'list weights that have a name; describe, mix and compare weights',
    list_weights.__doc__ or '', """
    xclip weights
    xclip weights inspect runs/tuned
    xclip weights interpolate ViT-B/16 runs/tuned --alpha 0.5 -o between""")
  command.set_defaults(run=list_weights)
  convert.add_inspect_command(group)

  command = options.add_command(
    group, 'interpolate', interpolate, 'write weights between two models (WiSE-FT)',
    'xclip weights interpolate ViT-B/16 runs/tuned --alpha 0.5 -o between')
  _add_both(command)
  options.add_output(command, 'folder for the weights', folder=True)
  command.add_argument('--alpha', type=float, default=0.5, metavar='SHARE',
                       help='share of SECOND, from 0 to 1 (default: %(default)s)')

  command = options.add_command(
    group, 'curve', curve, 'measure weights between two models (WiSE-FT), with a picture',
    'xclip weights curve ViT-B/16 runs/tuned --on new/val.csv --on old/val.csv -o curve')
  _add_both(command)
  options.add_output(command, 'folder for curve.png, curve.md and curve.json', folder=True)
  add = command.add_argument
  add('--on', action='append', required=True, metavar='LIST', dest='lists',
      help='CSV with path,label to evaluate on, e.g. of new classes; repeat the option for more '
      'lists, e.g. of classes that must not be forgotten')
  add('--classes', action='append', metavar='FILE',
      help='class list: one for all lists, or one for each (default: classes.csv beside the list)')
  options.add_root(command)
  add('--multi-label', action='store_true',
      help='take several labels a video, as a;b, and measure mAP')
  add('--alphas', type=_parse_alphas, default=[n / 10 for n in range(11)], metavar='A,B,...',
      help='shares of SECOND, from 0 to 1 (default: in steps of 0.1)')
  options.add_template_option(command, 'as SECOND was trained')
  options.add_batch_size(command)
  options.add_threads(command)
  options.add_quiet(command)


def _add_both(command: options.CommandParser) -> None:
  command.add_argument('first', metavar='FIRST',
                       help=f'weights before fine-tuning: {options.WEIGHTS}')
  command.add_argument('second', metavar='SECOND', help='weights after fine-tuning, likewise')
  command.add_argument('--seed', type=int, default=0, metavar='NUMBER',
                       help='config.seed of the run, where FIRST is a CLIP (default: %(default)s)')


def _parse_alphas(text: str) -> list[float]:
  try:
    alphas = [float(x) for x in text.split(',')]
  except ValueError:
    alphas = []
  if not alphas or any(not 0 <= x <= 1 for x in alphas):
    raise argparse.ArgumentTypeError(f'{text}: numbers from 0 to 1 wanted, as in 0,0.5,1')
  return alphas


def list_weights(arguments: argparse.Namespace) -> int:
  """Prints the weights that have a name: where a command takes weights, it takes these names."""
  from xclip_jax.assets import bundled
  from xclip_jax.weights import hub

  rows = [('NAME', 'MODEL', 'FRAMES', 'SIZE', 'LICENCE', 'PUBLISHED BY THE AUTHORS')]
  top1 = bundled.describe_toy()['top1_of_this_file']['val, 24 classes']
  rows.append((bundled.TOY, 'small', '4', '64', 'Apache-2.0',
               f'moving shapes {100 * top1:.1f} top-1, measured here; in the package'))
  for name, known in hub.KNOWN.items():
    size = str(known.image_size)
    rows.append((name, known.variant, str(known.num_frames), size, known.licence, known.published))
  output.print_table(rows)
  print('\nAccuracies are percent as published by the authors of the weights; except for toy, none '
        'was measured\nwith this program. SIZE is the side of a frame in pixels. Folders and files '
        'are taken too, as are\nother repositories of the Hugging Face hub (owner/name).')
  return 0


def interpolate(arguments: argparse.Namespace) -> int:
  """Writes (1 - A) x FIRST + A x SECOND as a folder that every command takes as weights.

  What else belongs to weights (preprocessing, template) is SECOND's. A CLIP as FIRST is completed
  by the parts that SECOND has, drawn from --seed as a run draws them.
  """
  with startup.paused_collector():
    from xclip_jax.weights import interpolate as interpolation
    from xclip_jax.weights import native

    native.check_free(Path(arguments.output).resolve(), arguments.overwrite)
    first, second = _open_both(arguments)
  mixed = interpolation.interpolate(first, second, arguments.alpha)
  folder = native.save(arguments.output, mixed, arguments.overwrite)
  output.print_past_bar(f'{os.path.relpath(folder)}: {mixed.source}')
  return 0


def curve(arguments: argparse.Namespace) -> int:
  """Evaluates (1 - A) x FIRST + A x SECOND on lists of videos, for A from 0 to 1.

  Exit code: 0; 1 if videos are missing; 2 if refused.
  """
  is_ours = re.compile(r'curve\.(png|md|json)').fullmatch
  classes = _class_list_of_each(arguments)
  with output_files.open_folder(
      arguments.output, arguments.overwrite, lambda name: is_ours(name) is not None) as folder:
    with startup.paused_collector():
      startup.prepare_compilation(arguments.quiet)
      from xclip_jax.evaluation import video_lists, weight_curve
      from xclip_jax.reports import weight_curve_page

    names = video_lists.short_names(arguments.lists)
    sets = [
      video_lists.labelled(name, path, arguments.root, chosen, arguments.multi_label)
      for name, path, chosen in zip(names, arguments.lists, classes, strict=True)]
    with startup.paused_collector():
      first, second = _open_both(arguments)
    settings = weight_curve.CurveOptions(
      arguments.template, batch_size=arguments.batch_size,
      reading=dataclasses.replace(weight_curve.READING, threads=arguments.threads))
    result = weight_curve.measure(
      first, second, sets, arguments.alphas, settings, lambda desc: functools.partial(
        output.show_progress, unit='batch', desc=desc, quiet=arguments.quiet))
    weight_curve_page.write(folder, result, (arguments.first, arguments.second),
                            {'lists': [x.origin for x in sets], 'templates': arguments.template})
  output.print_table(result.table())
  is_complete = True
  for name in result.lists:
    failed = result.scores[name][-1].failed
    is_complete &= not failed
    output.say_failures([f'{name}: row {row}: {reason}' for row, reason in failed.items()])
  print(f'picture: {os.path.join(arguments.output, "curve.png")}')
  return 0 if is_complete else output.FAILED_IN_PART


def _class_list_of_each(arguments: argparse.Namespace) -> list[str | None]:
  """Returns the class list of every list; None: the one beside it."""
  classes: list[str | None] = arguments.classes or [None]
  count = len(arguments.lists)
  if len(classes) not in (1, count):
    raise UserError(f'--classes is given {len(classes)} times for {count} lists; give it once, or '
                    'once for each')
  return classes * count if len(classes) == 1 else classes


def _open_both(arguments: argparse.Namespace) -> tuple[Any, Any]:
  """Opens FIRST and SECOND; a CLIP as FIRST is completed by the parts that SECOND has."""
  from xclip_jax.weights import opening

  second = opening.open_weights(arguments.second)
  return opening.open_start_weights(arguments.first, second.config, arguments.seed), second
