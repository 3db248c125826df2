"""The `xclip weights` commands: which have a name, and what lies between two."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from xclip_jax import errors
from xclip_jax.cli import output
from xclip_jax.cli.commands import convert

_EXAMPLES = """examples:
  xclip weights
  xclip weights inspect runs/tuned
  xclip weights interpolate ViT-B/16 runs/tuned --alpha 0.5 -o between
  xclip weights curve ViT-B/16 runs/tuned --on new/val.csv --on old/val.csv -o curve
"""


def add_commands(commands: Any, keep_compilations: Callable[[], None]) -> None:
  """Adds `weights` and what belongs to it to the subcommands of `xclip`.

  Args:
    commands: where to.
    keep_compilations: called before anything is compiled.
  """
  command = commands.add_parser(
    'weights', help='list weights that have a name; describe, mix and compare weights',
    description=list_weights.__doc__,
    epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.set_defaults(run=list_weights)
  group = command.add_subparsers(metavar='COMMAND')
  convert.add_inspect_command(group)
  command = group.add_parser(
    'interpolate', help='write weights between two models (WiSE-FT)',
    description=interpolate.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  _add_both(command)
  command.add_argument('--alpha', type=float, default=0.5, metavar='A',
                       help='how far from FIRST (0) to SECOND (1) (default: 0.5)')
  command.set_defaults(run=interpolate)
  command = group.add_parser(
    'curve', help='measure weights between two models (WiSE-FT), with a picture',
    description=curve.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  _add_both(command)
  add = command.add_argument
  add('--on', action='append', required=True, metavar='LIST', dest='lists',
      help='CSV with path,label to be evaluated on, e.g. of new classes; may be repeated, e.g. for '
           'what must not be forgotten')
  add('--classes', action='append', metavar='FILE',
      help='class list: one for all lists or one for each (default: classes.csv beside the list)')
  add('--root', help="folder that paths start from (default: the list's)")
  add('--multi-label', action='store_true', help='a video may have several labels, as a;b: mAP')
  add('--alphas', default='0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1', metavar='A,B,...',
      help='from FIRST (0) to SECOND (1) (default: in steps of 0.1)')
  add('--template', action='append', metavar='"a {}"',
      help='text around every label; several times for an ensemble (default: as SECOND has it)')
  add('--batch-size', type=int, default=16, metavar='N',
      help='clips predicted at once over all devices (default: 16)')
  add('--threads', type=int, default=4, metavar='N', help='that decode (default: 4)')
  add('--quiet', action='store_true', help='no progress bar')
  command.set_defaults(run=curve, keep_compilations=keep_compilations)


def _add_both(command: Any) -> None:
  place = 'workdir of a run, a folder or file with weights, or a name'
  command.add_argument('first', metavar='FIRST', help=f'before fine-tuning: {place}')
  command.add_argument('second', metavar='SECOND', help=f'after it: {place}')
  command.add_argument('--seed', type=int, default=0, metavar='N',
                       help='config.seed of the run, where FIRST is a CLIP (default: 0)')
  command.add_argument('-o', '--output', required=True, metavar='FOLDER', help='to write')
  command.add_argument('--overwrite', action='store_true', help='replace a folder that is there')


def list_weights(arguments: argparse.Namespace) -> int:
  """Prints the weights that have a name here."""
  from xclip_jax.assets import bundled
  from xclip_jax.weights import hub

  rows = [('NAME', 'MODEL', 'FRAMES', 'SIZE', 'LICENCE', 'PUBLISHED BY THE AUTHORS')]
  top1 = bundled.about_toy()['top1_of_this_file']['val, 24 classes']
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
  """Writes (1 - A) x FIRST + A x SECOND as a folder that everything here takes as weights.

  What else belongs to weights (preprocessing, template) is SECOND's. A CLIP as FIRST is completed
  by the parts that SECOND has, drawn from --seed as a run draws them.
  """
  from xclip_jax.inference import classifier
  from xclip_jax.weights import interpolate as interpolation
  from xclip_jax.weights import native

  with output.show_user_errors():
    native.check_free(classifier.Path(arguments.output).resolve(), arguments.overwrite)
    mixed = interpolation.interpolate(*_open_both(arguments), arguments.alpha)
    folder = native.save(arguments.output, mixed, arguments.overwrite)
  print(f'{os.path.relpath(folder)}: {mixed.source}')
  return 0


def curve(arguments: argparse.Namespace) -> int:
  """Evaluates (1 - A) x FIRST + A x SECOND on lists of videos, for A from 0 to 1.

  Writes a folder with curve.png, curve.md and curve.json. Exit code: 0, or 1 if videos are missing.
  """
  try:
    alphas = [float(x) for x in arguments.alphas.split(',')]
  except ValueError as error:
    raise errors.UserError(
      f'--alphas {arguments.alphas}: numbers from 0 to 1 wanted, as in 0,0.5,1') from error
  if any(not 0 <= x <= 1 for x in alphas):
    raise errors.UserError(f'--alphas {arguments.alphas}: each must lie from 0 to 1')
  for template in arguments.template or ():
    if '{}' not in template:
      raise errors.UserError(f'template {template!r} must hold {{}} for the label')
  classes = arguments.classes or [None]
  if len(classes) not in (1, len(arguments.lists)):
    raise errors.UserError(f'--classes is given {len(classes)} times for {len(arguments.lists)} '
                          'lists; give it once, or once for each')
  classes = classes * len(arguments.lists) if len(classes) == 1 else classes
  ours = re.compile(r'curve\.(png|md|json)')
  with output.Folder(
    arguments.output, arguments.overwrite, lambda name: ours.fullmatch(name) is not None
  ) as folder:
    arguments.keep_compilations()
    from xclip_jax.evaluation import video_lists, weight_curve
    from xclip_jax.reports import weight_curve_page

    with output.show_user_errors():
      sets = [
        video_lists.labelled(name, path, arguments.root, chosen, arguments.multi_label)
        for name, path, chosen in zip(
          video_lists.short_names(arguments.lists), arguments.lists, classes, strict=True)]
      found = weight_curve.measure(
        *_open_both(arguments), sets, alphas, templates=arguments.template,
        batch_size=arguments.batch_size, threads=arguments.threads,
        progress=lambda what: output.batch_bar(what, arguments.quiet))
      weight_curve_page.write(folder.temporary, found, (arguments.first, arguments.second),
                          {'lists': [x.about for x in sets], 'templates': arguments.template})
    folder.keep()
  output.print_table(found.table())
  missing = []
  for name in found.lists:
    failed = found.scores[name][-1].failed
    missing += failed
    for row, reason in list(failed.items())[:5]:
      print(output.printable(f'xclip: {name}: row {row}: {reason}'), file=sys.stderr)
  print(f'picture: {os.path.join(arguments.output, "curve.png")}')
  return 1 if missing else 0


def _open_both(arguments: argparse.Namespace) -> tuple[Any, Any]:
  """Opens FIRST and SECOND; a CLIP as FIRST is completed by the parts that SECOND has."""

  from xclip_jax.weights import opening
  second = opening.open_weights(arguments.second)
  return opening.open_start_weights(arguments.first, second.config, arguments.seed), second
