"""Runs train.py with one phase slow, its main thread inside C: slow_phase.py PHASE TRAIN.PY ..."""

import ctypes
import runpy
import sys

from xclip_jax import evaluate, train

phase = sys.argv[1]
sys.argv = sys.argv[2:]


def hold(*_, **__):
  print('slow phase', flush=True)
  while True:                                    # as in a compiler: no handler of Python runs
    ctypes.CDLL(None).sleep(100)


if phase == 'start':
  train.open_splits = hold
elif phase == 'compilation':
  train.jit_train_step = lambda *_, **__: hold
else:
  evaluate.Evaluation.finish = hold
runpy.run_path(sys.argv[0], run_name='__main__')
