"""A failed write is reported once, and only while checkpoints are open; nothing is left behind."""

import json
import logging
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import pytest

import tiny
from xclip_jax.storage import failed_writes
from xclip_jax.storage.checkpoints import CheckpointError, Checkpoints
from xclip_jax.storage.state import TrainState


@pytest.fixture
def logging_before():
  """Returns what tests change and must restore: the hook, and the filters of both loggers."""
  def state():
    filters = [list(logging.getLogger(name).filters) for name in ('absl', 'asyncio')]
    return sys.unraisablehook, filters

  for monitor in list(failed_writes._monitors):          # left open by other tests of this process
    monitor.close()
  before = state()
  yield lambda: state() == before
  assert state() == before


def train_state():
  return TrainState(step=jnp.int32(3), params={'kernel': jnp.ones((4, 2))}, opt_state=())


def error_record(pathname='/orbax/checkpoint/future.py', name='absl', level=logging.ERROR):
  return logging.LogRecord(name, level, pathname, 1, 'failed', (), None)


def is_silenced(record):
  return not logging.getLogger('absl').filter(record)


def test_importing_changes_neither_loggers_nor_the_hook():
  done = subprocess.run(
    [sys.executable, tiny.REPO / 'tests/programs/logging_after_import.py'], text=True,
    capture_output=True, env=tiny.environment(), check=True)
  assert json.loads(done.stdout) == []


def test_closing_takes_back_what_opening_has_installed(tmp_path, logging_before):
  with Checkpoints(tmp_path) as checkpoints:
    assert not logging_before() and is_silenced(error_record())
    assert not is_silenced(error_record('/elsewhere/file.py'))
    assert not is_silenced(error_record(level=logging.WARNING))
    checkpoints.save(3, train_state(), {})
  assert logging_before() and not is_silenced(error_record())


def test_an_exception_takes_back_what_opening_has_installed(tmp_path, logging_before):
  with pytest.raises(KeyError), Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, train_state(), {})
    raise KeyError
  assert logging_before()


def test_the_last_of_several_open_checkpoints_takes_it_back(tmp_path, logging_before):
  one, other = Checkpoints(tmp_path / 'one'), Checkpoints(tmp_path / 'other')
  one.__enter__()
  other.__enter__()
  one.__exit__(None)                                     # not in the order of opening
  assert not logging_before() and is_silenced(error_record())
  other.__exit__(None)
  assert logging_before()


def test_a_hook_that_others_have_put_around_ours_stays_and_hears_everything(tmp_path, monkeypatch):
  heard = []
  monkeypatch.setattr(sys, 'unraisablehook', heard.append)
  closed_loop = type('Unraisable', (), {'exc_value': RuntimeError('Event loop is closed')})
  with Checkpoints(tmp_path):
    sys.unraisablehook(closed_loop)
    assert not heard
    ours = sys.unraisablehook
    theirs = lambda unraisable: ours(unraisable)
    sys.unraisablehook = theirs
  assert sys.unraisablehook is theirs
  theirs(closed_loop)
  assert heard == [closed_loop]


def test_a_failed_write_is_one_error_and_no_log_record(
    tmp_path, logging_before, caplog, monkeypatch):
  monkeypatch.setattr(failed_writes, '_LINGER', 0.0)

  def fail():
    logging.getLogger('absl').handle(error_record())     # as each thread of Orbax does
    raise OSError(28, 'No space left on device')

  with pytest.raises(CheckpointError, match=r'No space left(?s:.*)step 3 is complete and safe'):
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(3, train_state(), {})
      checkpoints.wait()
      monkeypatch.setattr(checkpoints._manager, 'wait_until_finished', fail)
      checkpoints.wait()
  assert not [x for x in caplog.records if x.levelno >= logging.ERROR]
  wait_until(logging_before)


def wait_until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_silence_lasts_until_the_threads_of_a_failed_write_have_ended(logging_before, monkeypatch):
  monkeypatch.setattr(failed_writes, '_LINGER', 0.0)

  class OrbaxThread(threading.Thread):
    pass

  OrbaxThread.__module__ = 'orbax.checkpoint.futures'
  end = threading.Event()
  thread = OrbaxThread(target=end.wait)
  thread.start()
  monitor = failed_writes.FailedWriteMonitor(lambda error: error)
  monitor.open()
  monitor.close_after_failure()
  assert is_silenced(error_record())
  end.set()
  thread.join()
  wait_until(logging_before)
