"""Work in other processes ends when it should."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from preparing import ROOT, children, is_alive, until

from xclip_jax.data import workers

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'

SLEEPING = (PROGRAMS / 'sleeping_workers.py').read_text()


@pytest.mark.parametrize('way', [signal.SIGKILL, signal.SIGTERM])
def test_processes_leave_with_the_one_that_started_them(tmp_path, way):
  (tmp_path / 'sleep.py').write_text(SLEEPING)
  process = subprocess.Popen([sys.executable, str(tmp_path / 'sleep.py')],
                             env=os.environ | {'PYTHONPATH': str(ROOT)}, stderr=subprocess.DEVNULL)
  until(lambda: len(children(process)) == 2, 'nobody works')
  busy = children(process)
  time.sleep(1)
  process.send_signal(way)
  process.wait(30)
  until(lambda: not any(map(is_alive, busy)), 'they stay behind', 20)


def test_who_is_interrupted_waits_only_for_what_has_begun():
  results = workers.unordered(time.sleep, [0.0] * 2 + [0.2] * 200, 2, None, chunk=1)
  next(results)
  begun = time.monotonic()
  results.close()
  assert time.monotonic() - begun < 10                     # of 20 s that are left for two


def test_no_thread_of_a_pool_is_left_for_the_end_of_the_interpreter():
  def managers():
    return [x for x in threading.enumerate() if 'ExecutorManager' in type(x).__name__]

  assert len(list(workers.unordered(abs, range(4), 2, None, chunk=1))) == 4
  assert not managers()
  stopped = workers.unordered(abs, range(40), 2, None, chunk=1)
  next(stopped)
  stopped.close()
  assert not managers()
