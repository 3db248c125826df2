"""The `xclip train` command, which train.py runs from a checkout, too."""

import argparse
import functools
import gc
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from xclip_jax import errors

_EXAMPLES = """examples:
  xclip train --config demo --workdir runs/demo
  xclip train --config k400_b16_8f --workdir runs/k400 --config.data.root=/data/k400
  xclip train --config clips.py --workdir runs/clips --config.train.batch_size=128
  xclip train --config clips.py --workdir runs/clips --mode eval
"""


def add_commands(commands: Any) -> None:
  """Adds `train` to the subcommands of `xclip`."""
  command = commands.add_parser(
    'train', help='train a model, or evaluate a run, as a config says', description=train.__doc__,
    epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = command.add_argument
  add('--config', required=True, metavar='C',
      help='name of a published config, or a file of your own (docs/train.md); NAME:ARGUMENT where '
           'it takes an argument')
  add('--config.FIELD', metavar='VALUE', dest='config_field', help='change a field of the config; '
      'xclip_jax/config/fields.py explains each; may be repeated for other fields')
  add('--workdir', required=True, metavar='W', help='folder of the run, also gs://BUCKET/FOLDER; '
      'the same command continues an interrupted run')
  add('--mode', choices=('train', 'eval'), default='train',
      help='train, or only evaluate the checkpoint in the workdir (default: train)')
  add('--distributed', choices=('off', 'auto'),
      help='auto: join the other processes of a TPU pod, Slurm or MPI job; off: run alone, even '
           'where a launcher has started several tasks (default: alone)')
  add('--coordinator', metavar='HOST:PORT', help='address of process 0, if the cluster is not '
      'detected; goes with --num-processes and --process-id (docs/scale.md)')
  add('--num-processes', '--num_processes', type=int, metavar='N',
      help='number of processes of the run')
  add('--process-id', '--process_id', type=int, metavar='I',
      help='number of this process, from 0')
  add('--join-timeout', '--join_timeout', type=int, metavar='S',
      help='seconds to wait for the other processes at the start (default: 300)')
  add('--verbosity', '-v', type=int, metavar='N',
      help='log level: -1 warnings, 0 information, 1 also the traceback of an error that is shown '
           'in one line (default: errors only)')
  command.set_defaults(run=train, takes_more=True)
  command.format_help = functools.partial(_format_help, command)


def train(arguments: argparse.Namespace) -> int:
  """Trains a model and writes checkpoints, metrics and a report into a folder.

  A run that was interrupted goes on where it stopped when the same command is given again. Exit
  code: 0, also after SIGTERM; 2 if something given to the command cannot be used; 1 after a bug or
  the failure of another process; 130 after Ctrl-C.
  """
  gc.enable()                              # `xclip` has switched it off for the start of a command
  config = _read_config(arguments.config, arguments.more)
  from absl import flags, logging

  from xclip_jax.parallel import process_exit, processes, stop_signals
  from xclip_jax.training import run as run_lib

  flags.FLAGS.mark_as_parsed()             # Grain's workers read absl's flags
  logging.use_absl_handler()
  # By default the progress bar says enough.
  logging.set_verbosity(logging.ERROR if arguments.verbosity is None else arguments.verbosity)
  stop_signals.serve()
  stop_signals.leave_at_once(stop_signals.STARTING)
  with process_exit.failing_at_once(say_error):
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

  if isinstance(error, KeyboardInterrupt):
    print('\nerror: stopped by Ctrl-C; the same command goes on from the last checkpoint',
          file=sys.stderr)
    return 130
  if errors.is_shown_in_one_line(error):
    logging.debug('raised here:', exc_info=True)      # --verbosity=1 shows it
    kind = '' if isinstance(error, errors.UserError) else f'{type(error).__name__}: '
    print(f'error: {kind}{error}', file=sys.stderr)
    return 2
  traceback.print_exception(error)
  print(errors.REPORT, file=sys.stderr)
  return 1


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
  import textwrap

  from xclip_jax.config import published

  names = textwrap.fill(', '.join(published.names()), 78, initial_indent='  ',
                        subsequent_indent='  ')
  return f'{argparse.ArgumentParser.format_help(command)}\npublished configs:\n{names}\n'
