"""Trains or evaluates X-CLIP.

  python train.py --config configs/demo.py --workdir runs/demo [--config.FIELD=VALUE ...]
  python train.py --config configs/demo.py --workdir runs/demo --mode eval
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from xclip_jax import distributed, train

_CONFIG = config_flags.DEFINE_config_file('config', None, 'What to run.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; one run a folder.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'What to do.')
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', 'off', ['off', 'auto'],
  'auto: join the other hosts of a TPU pod, Slurm or MPI job before anything else.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where the others are not found by themselves; with '
  '--num_processes and --process_id (docs/scale.md).')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Of the run.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which this is, from 0.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)      # the progress bar says what there is to say
  try:
    distributed.join(
      _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    train.run(_CONFIG.value, _WORKDIR.value, _MODE.value)
  except (ValueError, RuntimeError) as error:
    if distributed.is_lost(error):
      logging.debug('raised here:', exc_info=True)
      distributed.leave(
        'another process of this run is gone, so this one stops, too. What was done since the last '
        'checkpoint is lost; start the same command on all hosts again, and it goes on from there. '
        f'(Seen as: {" ".join(str(error).split())[:200]})')
    # Everything a user can cause is raised with a message that says all; other errors have a trace.
    if type(error).__module__.split('.')[0] not in ('builtins', 'xclip_jax'):
      raise
    logging.debug('raised here:', exc_info=True)      # --verbosity=1 shows it
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  app.run(main)
