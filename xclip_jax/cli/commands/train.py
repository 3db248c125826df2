"""The `xclip train` command, which train.py runs from a checkout, too."""

import argparse
import faulthandler
import functools
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from xclip_jax import errors
from xclip_jax.cli import options, output, startup

_STOPPED = 'stopped by Ctrl-C; the same command goes on from the last checkpoint'


def add_commands(commands: Any) -> None:
  """Adds `train` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'train', train, 'train a model, or evaluate a run, as a config says', """
    xclip train --config demo --workdir runs/demo
    xclip train --config k400_b16_8f --workdir runs/k400 --config.data.root=/data/k400
    xclip train --config clips.py --workdir runs/clips --config.train.batch_size=128
    xclip train --config clips.py --workdir runs/clips --mode eval""")
  command.allow_abbrev = False             # --config.train.steps is no abbreviation
  add = command.add_argument
  add('--config', required=True, metavar='NAME',
      help='name of a published config, or a file of your own (docs/train.md); NAME:ARGUMENT if '
      'it takes an argument')
  add('--config.FIELD', metavar='VALUE', dest='config_field', help='change a field of the config; '
      'xclip_jax/config/fields.py explains each; repeat the option for other fields')
  add('--workdir', required=True, metavar='FOLDER', help='folder of the run, also '
      'gs://BUCKET/FOLDER; the same command continues an interrupted run')
  add('--mode', choices=('train', 'eval'), default='train',
      help='train, or only evaluate the checkpoint in the workdir (default: train)')
  options.add_host_options(command)
  for name in ('num_processes', 'process_id', 'join_timeout'):       # as train.py has them
    add(f'--{name}', type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
  add('--verbosity', '-v', type=int, metavar='LEVEL',
      help='log level: -1 warnings, 0 information, 1 also the traceback of an error that is shown '
      'in one line (default: errors only)')
  command.set_defaults(more=(), when_stopped=_STOPPED)
  command.format_help = functools.partial(_format_help, command)


def train(arguments: argparse.Namespace) -> int:
  """Trains a model and writes checkpoints, metrics and a report into a folder.

  The same command continues an interrupted run. Exit code: 0, also after SIGTERM; 1 if the run
  fails on its way; 2 if the config or another argument cannot be used; 70 after a bug; 130 after
  Ctrl-C.
  """
  config = _read_config(arguments.config, arguments.more)
  with startup.paused_collector():
    from absl import flags, logging

    from xclip_jax.parallel import process_exit, processes, stop_signals
    from xclip_jax.training import run as run_lib

  faulthandler.enable()                    # a crash in C shows where Python was
  flags.FLAGS.mark_as_parsed()             # Grain's workers read absl's flags
  logging.use_absl_handler()
  # By default the progress bar says enough.
  logging.set_verbosity(logging.ERROR if arguments.verbosity is None else arguments.verbosity)
  stop_signals.serve()
  stop_signals.exit_at_once(stop_signals.STARTING)
  with process_exit.end_all_on_failure(say_error):
    processes.join(
      arguments.distributed, arguments.coordinator, arguments.num_processes, arguments.process_id,
      arguments.join_timeout)
    run_lib.run(config, arguments.workdir, arguments.mode)
  return 0


def say_error(error: BaseException) -> int:
  """Prints why the run failed and returns the exit code.

  Errors of the user are one line, Ctrl-C names the way to continue, bugs keep their traceback.
  """
  from absl import logging

  from xclip_jax.parallel import process_exit

  if isinstance(error, KeyboardInterrupt):
    print(f'\nerror: {_STOPPED}', file=sys.stderr)
    return output.STOPPED
  if errors.is_shown_in_one_line(error):
    logging.debug('raised here:', exc_info=True)      # --verbosity=1 shows it
    is_file_error = isinstance(error, OSError) and not isinstance(error, errors.UserError)
    kind = f'{type(error).__name__}: ' if is_file_error else ''
    print(f'error: {kind}{errors.explain(error)}', file=sys.stderr)
    return process_exit.exit_code(error)
  print(errors.explain(error), file=sys.stderr)
  return output.BUG


def _read_config(source: str, flags: Sequence[str]) -> Any:
  """Loads a config and applies the `--config.FIELD=VALUE` flags."""
  from xclip_jax.config import overrides, published

  config = published.load(source)
  stray = overrides.apply_flags(config, flags)
  if stray:
    raise errors.UserError(f'unexpected arguments: {" ".join(stray)} (see xclip train --help)')
  return config


def _format_help(command: argparse.ArgumentParser) -> str:
  """Returns the help of the command, with the names of the published configs at its end."""
  from xclip_jax.config import published

  names = textwrap.fill(', '.join(published.names()), 78, initial_indent='  ',
                        subsequent_indent='  ')
  return f'{argparse.ArgumentParser.format_help(command)}\npublished configs:\n{names}\n'
