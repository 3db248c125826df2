"""The `xclip` command: its parser, its exit codes, and what becomes of an error.

To add a subcommand, write a module with `add_commands` and name it in `COMMANDS`.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

import xclip_jax
from xclip_jax.cli import options, output, startup
from xclip_jax.cli.commands import (
  convert,
  data,
  evaluation,
  export,
  finetune,
  plan,
  train,
  weights,
)
from xclip_jax.cli.commands.videos import classify, embed, windows

COMMANDS = (
  classify, embed, windows, train, finetune, evaluation, plan, weights, convert, export, data)

# Arguments that are no paths; and paths that may be in a bucket.
_TEXTS = ('labels', 'template', 'coordinator', 'more')
_MAY_BE_REMOTE = ('weights', 'source', 'first', 'second', 'labels_file', 'templates_file', 'list',
                  'lists', 'classes', 'base', 'base_classes', 'workdir')
_EPILOG = """examples:
  xclip classify --weights toy sample:ring          (a model and a clip in the package)
  xclip classify clip.mp4 --weights runs/demo --labels "a dog running, a cat asleep"
  xclip classify videos/ 'more/*.avi' --weights microsoft/xclip-base-patch32 \\
      --labels-file labels.txt --template 'a video of {}' --csv answers.csv
  xclip embed videos/ --weights microsoft/xclip-base-patch32 -o videos.npz
  xclip weights

exit codes: 0 all went well; 1 done, but not for every video; 2 refused, with the reason in one
line; 70 a bug of xclip-jax; 130 stopped by Ctrl-C; 141 the reader of a pipe is gone.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Returns:
    The exit code. 0: all went well. 1: done, but some video could not be used (`xclip plan`: the
    run does not fit). 2: refused, the reason was printed in one line. 70: a bug, its traceback was
    printed. 130: stopped by Ctrl-C. 141: a pipe was closed by its reader, as `| head` does.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):      # a label must not fail where the locale is ASCII
      stream.reconfigure(errors='backslashreplace')
  try:
    try:
      return _run(argv)
    finally:                                      # also after --help, which raises SystemExit
      for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
  except BrokenPipeError as error:
    closed = output.streams_without_reader()
    if not closed:                                # a pipe between our own processes: a bug
      return output.report_error(error)
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in closed:                         # the interpreter flushes it once more at its end
      os.dup2(null, stream.fileno())
    return output.READER_GONE


def _run(argv: Sequence[str] | None) -> int:
  """Parses and runs a command; prints why where that fails."""
  arguments = None
  try:
    with startup.paused_collector():
      arguments = _parse(argv)
    with startup.exiting_on_sigterm(), startup.saying_warnings():
      return arguments.run(arguments)
  except BrokenPipeError:
    raise
  except (KeyboardInterrupt, Exception) as error:
    return output.report_error(error, getattr(arguments, 'when_stopped', output.NOTHING_WRITTEN))


def build_parser() -> options.CommandParser:
  """Returns the parser of the command and all subcommands."""
  parser = options.CommandParser(
    prog='xclip', description='X-CLIP: say what a video shows, in your own words.', epilog=_EPILOG)
  parser.add_argument('--version', action='version', version=f'xclip {xclip_jax.__version__}',
                      help='print the version and exit')
  parser.set_defaults(run=lambda arguments: options.print_help(parser))
  commands = parser.add_subparsers(metavar='COMMAND', title='commands')
  for module in COMMANDS:
    module.add_commands(commands)
  return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = build_parser()
  arguments, rest = parser.parse_known_args(argv)
  if hasattr(arguments, 'more'):                  # `--config.FIELD=VALUE` of `xclip train`
    arguments.more, rest = rest, []
  if any(x.startswith('-') for x in rest) or (rest and not hasattr(arguments, 'videos')):
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  if rest:                                        # videos after options, which argparse leaves
    arguments.videos += rest
  _check_paths(arguments)
  return arguments


def _check_paths(arguments: argparse.Namespace) -> None:
  """Refuses paths such as s3://..., and gs://... for videos and for what is written."""
  remote = () if getattr(arguments, 'local_only', False) else _MAY_BE_REMOTE
  for name, value in vars(arguments).items():
    for path in value if isinstance(value, list) else [value]:
      if name not in _TEXTS and isinstance(path, str) and ':/' in path:
        from xclip_jax import files

        files.check_scheme(path, name.replace('_', '-'), name in remote)

