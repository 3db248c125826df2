"""The `xclip weights` commands: which have a name, and what lies between two."""

import argparse
import os
from typing import Any

from xclip_jax import answers

_EXAMPLES = """examples:
  xclip weights
  xclip weights interpolate ViT-B/16 runs/tuned --alpha 0.5 -o between
"""


def add_commands(commands: Any) -> None:
  """Adds `weights` and what belongs to it to the subcommands of `xclip`."""
  command = commands.add_parser(
    'weights', help='list weights that have a name; mix two', description=list_weights.__doc__,
    epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.set_defaults(run=list_weights)
  group = command.add_subparsers(metavar='COMMAND')
  command = group.add_parser(
    'interpolate', help='write weights between two models (WiSE-FT)',
    description=interpolate.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  place = 'workdir of a run, a folder or file with weights, or a name'
  command.add_argument('first', metavar='FIRST', help=f'before fine-tuning: {place}')
  command.add_argument('second', metavar='SECOND', help=f'after it: {place}')
  command.add_argument('--alpha', type=float, default=0.5, metavar='A',
                       help='how far from FIRST (0) to SECOND (1) (default: 0.5)')
  command.add_argument('--seed', type=int, default=0, metavar='N',
                       help='config.seed of the run, where FIRST is a CLIP (default: 0)')
  command.add_argument('-o', '--output', required=True, metavar='FOLDER', help='to write')
  command.add_argument('--overwrite', action='store_true', help='replace a folder that is there')
  command.set_defaults(run=interpolate)


def list_weights(arguments: argparse.Namespace) -> int:
  """Prints the weights that have a name here."""
  from xclip_jax.weights import hub

  rows = [('NAME', 'MODEL', 'FRAMES', 'SIZE', 'LICENCE', 'PUBLISHED BY THE AUTHORS')]
  for name, known in hub.KNOWN.items():
    size = str(known.image_size)
    rows.append((name, known.variant, str(known.num_frames), size, known.licence, known.published))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print('  '.join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip())
  print('\nAccuracies are percent as published by the authors of the weights; none was measured '
        'with this program.\nSIZE is the side of a frame in pixels. Folders and files are taken '
        'too, as are other repositories of the Hugging Face hub (owner/name).')
  return 0


def interpolate(arguments: argparse.Namespace) -> int:
  """Writes (1 - A) x FIRST + A x SECOND as a folder that everything here takes as weights.

  What else belongs to weights (preprocessing, template) is SECOND's. A CLIP as FIRST is completed
  by the parts that SECOND has, drawn from --seed as a run draws them.
  """
  from xclip_jax import inference
  from xclip_jax.weights import interpolate as interpolation
  from xclip_jax.weights import native, rules

  try:
    native.check_free(inference.Path(arguments.output).resolve(), arguments.overwrite)
    second = inference.open_weights(arguments.second)
    first = inference.open_weights(arguments.first)
    if first.dialect in rules.CLIP_DIALECTS and first.config != second.config:
      first = inference.open_weights(
        arguments.first, seed=arguments.seed, new_modules=second.config,
        num_frames=second.config.num_frames)
    mixed = interpolation.interpolate(first, second, arguments.alpha)
    folder = native.save(arguments.output, mixed, arguments.overwrite)
  except (ValueError, OSError, RuntimeError) as error:
    if type(error).__module__.split('.')[0] not in ('builtins', 'xclip_jax'):
      raise
    raise answers.Refused(' '.join(str(error).split())) from error
  print(f'{os.path.relpath(folder)}: {mixed.source}')
  return 0
