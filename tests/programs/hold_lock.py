"""Holds the lock of a workdir: hold_lock.py WORKDIR [PROCESS COUNT PORT SECONDS]."""

import sys
import time

from xclip_jax.parallel import process_exit, processes
from xclip_jax.storage import run_lock

if len(sys.argv) > 2:
  process, count, port, run_lock.SHARED = (int(x) for x in sys.argv[2:6])
else:
  process, count, port = 0, 1, 0


def say(error):
  print(f'error: {error}', file=sys.stderr)
  return process_exit.exit_code(error)


with process_exit.end_all_on_failure(say):
  if count > 1:
    processes.join('off', f'localhost:{port}', count, process, 60)
  with run_lock.hold(sys.argv[1]):
    print('held', flush=True)
    if count == 1:
      time.sleep(120)
