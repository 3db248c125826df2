"""The `xclip` command: which label fits a video, and what videos and texts look like as vectors."""

import argparse
import gc
import io
import os
import sys
from collections.abc import Sequence

import xclip_jax
from xclip_jax import compilation_cache, errors
from xclip_jax.cli import output as output_lib
from xclip_jax.cli.commands import convert, data, evaluate, finetune, plan, weights
from xclip_jax.cli.commands.classify import classify, embed, windows

# Nothing else at the top: whoever asks for --help, or mistypes a name, should not wait for JAX.

# Arguments that are no paths; and those that may be in a bucket, unless they are of `xclip data`.
_TEXTS = ('labels', 'template', 'coordinator')
_MAY_BE_REMOTE = ('weights', 'source', 'first', 'second', 'labels_file', 'templates_file', 'list',
                  'lists', 'classes', 'base', 'base_classes')
_EXAMPLES = """examples:
  xclip classify --weights toy sample:ring          (a model and a clip in the package)
  xclip classify clip.mp4 --weights runs/demo --labels "a dog running, a cat asleep"
  xclip classify videos/ 'more/*.avi' --weights microsoft/xclip-base-patch32 \\
      --labels-file labels.txt --template 'a video of {}' --csv answers.csv
  xclip embed videos/ --weights microsoft/xclip-base-patch32 -o videos.npz
  xclip weights
"""


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> None:
    raise errors.UserError(f'{message} (see {self.prog} --help)')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Returns:
    0 if all went well, 1 if some video could not be used, 2 if what was asked for cannot be done.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):      # a label must not fail where the locale is ASCII
      stream.reconfigure(errors='backslashreplace')
  # Importing and tracing make objects that stay. Looking through them for garbage is a seventh of
  # the time to the first answer; from then on it is done as ever.
  gc.disable()
  try:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if any(x.startswith('-') for x in rest) or (rest and not hasattr(arguments, 'videos')):
      parser.error(f'unrecognized arguments: {" ".join(rest)}')
    if rest:                                      # videos after options, which argparse leaves
      arguments.videos += rest
    _check_places(arguments)
    return arguments.run(arguments)
  except errors.UserError as error:
    output_lib.say(error)
    return 2
  except KeyboardInterrupt:
    output_lib.say('stopped; nothing was written')
    return 130
  except BrokenPipeError:                         # `| head`, and it has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  finally:
    gc.enable()


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='xclip', description='X-CLIP: say what a video shows, in your own words.',
    epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=f'xclip {xclip_jax.__version__}')
  commands = parser.add_subparsers(metavar='COMMAND', required=True)

  model = _Parser(add_help=False)
  model.add_argument('--weights', required=True, metavar='W',
                     help='workdir of a run, a folder or file with weights, or a name '
                     '(see xclip weights), as toy')
  model.add_argument('--frames', type=int, metavar='T',
                     help='frames of a clip, if not as the weights were trained')
  model.add_argument('--heads', choices=('file', 'reference'), help='head counts to follow where '
                     'a config beside the weights disagrees with the reference (default: file)')
  model.add_argument('--dtype', choices=('float32', 'bfloat16', 'int8'), help='of matrix products; '
                     'bfloat16 is faster, int8 also holds kernels in 8 bits (default: as the '
                     'weights say, mostly float32)')
  model.add_argument('--merge-tokens', type=int, metavar='N', help='merge N pairs of similar '
                     'patches in each block of the vision tower: faster, less exact (default: 0)')
  model.add_argument('--labels', metavar='"A, B"', help='labels, separated by commas '
                     '(default: those stored with the weights, as toy has)')
  model.add_argument('--labels-file', metavar='F',
                     help='labels, one a line (# starts a comment); or a CSV with id,name')
  model.add_argument('--template', help='text around every label, {} stands for it '
                     '(default: as the weights were trained)')
  model.add_argument('--overwrite', action='store_true', help='replace files that are there')
  model.add_argument('--quiet', action='store_true', help='no progress bar')
  videos_help = ('files, folders (searched for videos at any depth) and globs; sample:ring and '
                 'its like are clips in the package')

  command = commands.add_parser('classify', parents=[model], help='say which labels fit videos',
                                description=classify.__doc__)
  command.add_argument('videos', nargs='+', metavar='VIDEO', help=videos_help)
  command.add_argument('--top', type=int, default=5, metavar='N', help='labels shown (default: 5)')
  command.add_argument('--csv', metavar='FILE', help="also write a CSV; '-' is standard output")
  command.add_argument('--json', metavar='FILE', help="also write JSON; '-' is standard output")
  command.add_argument('--timings', action='store_true', help='say on stderr what took how long')
  command.set_defaults(run=classify)

  command = commands.add_parser('embed', parents=[model], help='turn videos or texts into vectors',
                                description=embed.__doc__)
  command.add_argument('videos', nargs='*', metavar='VIDEO', help=videos_help)
  command.add_argument('-o', '--output', required=True, metavar='FILE', help='.npz to write')
  command.set_defaults(run=embed)

  command = commands.add_parser('windows', parents=[model], description=windows.__doc__,
                                help='say what a long video shows from moment to moment')
  command.add_argument('video', metavar='VIDEO')
  command.add_argument('--every', type=int, default=8, metavar='N',
                       help='of how many frames one is taken (default: 8)')
  command.add_argument('--stride', type=int, default=1, metavar='N',
                       help='frames taken that the next window begins later (default: 1)')
  command.add_argument('--exact', action='store_true', help='encode every window by itself')
  command.add_argument('--top', type=int, default=1, metavar='N', help='labels shown (default: 1)')
  command.add_argument('--csv', metavar='FILE', help="also write a CSV; '-' is standard output")
  command.set_defaults(run=windows)

  finetune.add_commands(commands, compilation_cache.enable)
  weights.add_commands(commands, compilation_cache.enable)
  data.add_commands(commands)
  evaluate.add_commands(commands, compilation_cache.enable)
  convert.add_commands(commands)
  plan.add_commands(commands)
  return parser


def _check_places(arguments: argparse.Namespace) -> None:
  """Refuses paths such as s3://..., and gs://... for videos and for what is written."""
  for name, value in vars(arguments).items():
    for place in value if isinstance(value, list) else [value]:
      if name not in _TEXTS and isinstance(place, str) and ':/' in place:
        from xclip_jax import files

        bucket = name in _MAY_BE_REMOTE and arguments.run.__module__ != data.__name__
        with output_lib.show_user_errors():
          files.check_scheme(place, name.replace('_', '-'), bucket)
