"""Runs train.py with one phase slow or failing: slow_phase.py PHASE TRAIN.PY ...

In a slow phase the main thread is inside C for good. 'full' fails to read its third batch.
"""

import ctypes
import runpy
import sys

from xclip_jax.data.clips import batch_iterator
from xclip_jax.training import evaluate_run, step
from xclip_jax.training import job as job_lib

phase = sys.argv[1]
sys.argv = sys.argv[2:]


def hold(*_, **__):
  print('slow phase', flush=True)
  while True:                                    # as in a compiler: no handler of Python runs
    ctypes.CDLL(None).sleep(100)


if phase == 'start':
  job_lib.open_splits = hold
elif phase == 'full':
  read, reads = batch_iterator.Batches.__next__, []

  def fail(batches):
    reads.append(1)
    if len(reads) == 3:
      print('fails now', flush=True)
      raise OSError(28, 'No space left on device', '/dev/shm')
    return read(batches)

  batch_iterator.Batches.__next__ = fail
elif phase == 'compilation':
  step.jit_train_step = lambda *_, **__: hold
else:
  evaluate_run.Evaluation.finish = hold
runpy.run_path(sys.argv[0], run_name='__main__')
