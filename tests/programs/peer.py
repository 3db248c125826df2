"""A process that has joined others and does nothing else: peer.py MODE WHO PROCESS COUNT PORT.

MODE says what process WHO does; the others wait in a collective, or for their end.
"""

import functools
import os
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from xclip_jax.parallel import process_exit, processes

mode, port = sys.argv[1], sys.argv[5]
who, process, count = map(int, sys.argv[2:5])
if mode == 'late':                    # JAX's own barrier at the end is given up after 2 s
  jax.distributed.initialize = functools.partial(
    jax.distributed.initialize, shutdown_timeout_seconds=2)
assert processes.join('off', f'localhost:{port}', count, process, 60) == (process, count)
multihost_utils.process_allgather(np.int32(process))
print('joined', flush=True)

if mode == 'late':
  if process == who:
    time.sleep(5)
  print('at the end', flush=True)
  sys.exit(0)

if process == who:
  if mode == 'OSError':
    raise OSError(28, 'No space left on device')
  if mode == 'ValueError':
    raise ValueError('of this host alone')
  if mode == 'MemoryError':
    raise MemoryError
  if mode == 'KeyboardInterrupt':
    raise KeyboardInterrupt
  if mode == 'thread':
    threading.Thread(target=lambda: 1 / 0).start()
    time.sleep(120)
  if mode == 'device':                # an error of JAX's own type, with all others alive
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
  if mode == 'killed':
    os.kill(os.getpid(), 9)
if mode == 'sleep':                   # until a signal comes
  time.sleep(120)
try:
  multihost_utils.process_allgather(np.int32(2))
except (ValueError, RuntimeError) as error:
  if process_exit.is_peer_failure(error):
    process_exit.exit_now('another process of this run is gone')
  raise
