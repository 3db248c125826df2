"""Trains or evaluates X-CLIP.

  python train.py --config configs/demo.py --workdir runs/demo [--config.FIELD=VALUE ...]
  python train.py --config configs/demo.py --workdir runs/demo --mode eval
"""

import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from xclip_jax.parallel import process_exit, processes, stop_signals
from xclip_jax.training import run as run_lib

_CONFIG = config_flags.DEFINE_config_file('config', None, 'What to run.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; one run a folder.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'What to do.')
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', None, ['off', 'auto'],
  'auto: join the other processes of a TPU pod, Slurm or MPI job before anything else; off: run '
  'alone, even where a launcher started several tasks (default: alone).',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where the others are not found by themselves; with '
  '--num_processes and --process_id (docs/scale.md).')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes of the run.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')
_JOIN_TIMEOUT = flags.DEFINE_integer(
  'join_timeout', processes.PATIENCE, 'Seconds to wait for the other processes at the start.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)      # the progress bar says what there is to say
  stop_signals.serve()
  stop_signals.exit_at_once(stop_signals.STARTING)
  with process_exit.end_all_on_failure(say):
    processes.join(
      _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
      _JOIN_TIMEOUT.value)
    run_lib.run(_CONFIG.value, _WORKDIR.value, _MODE.value)


def say(error: BaseException) -> int:
  """Prints why the run failed, and returns the exit code.

  Everything a user can cause is raised with a message that says all; other errors have a trace.
  """
  if isinstance(error, KeyboardInterrupt):
    print('\nerror: stopped by Ctrl-C; the same command goes on from the last checkpoint',
          file=sys.stderr)
    return 130
  ours = type(error).__module__.split('.')[0] in ('builtins', 'xclip_jax')
  if isinstance(error, ValueError | RuntimeError) and ours:
    logging.debug('raised here:', exc_info=True)      # --verbosity=1 shows it
    print(f'error: {error}', file=sys.stderr)
  else:
    traceback.print_exception(error)
  return 1


if __name__ == '__main__':
  app.run(main)
