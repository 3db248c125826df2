"""A run that fails, is stopped or finds its workdir in use: real processes, over Gloo."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import reading

import tiny
from xclip_jax.data import shared_memory
from xclip_jax.data.clips import augment
from xclip_jax.storage import run_lock

SLOW = pytest.mark.slow
PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def free_port():
  with socket.socket() as found:
    found.bind(('localhost', 0))
    return found.getsockname()[1]


def start(*command):
  return subprocess.Popen(
    [*map(str, command)], env=tiny.environment(), text=True, cwd=tiny.REPO,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(processes, seconds=90):
  """Returns exit codes and outputs; a process that is still there then is an error."""
  try:
    said = [process.communicate(timeout=seconds)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said


def peers(mode, who, count=2):
  port = free_port()
  return [start(sys.executable, PROGRAMS / 'peer.py', mode, who, i, count, port)
          for i in range(count)]


def wait_for_line(process, text):
  """Reads the output up to the line that holds the text."""
  seen = []
  for line in process.stdout:
    seen.append(line)
    if text in line:
      return
  raise AssertionError(''.join(seen))


def train(workdir, root, *more, count=1, **changes):
  where = (f'--coordinator=localhost:{free_port()}', f'--num_processes={count}')
  return [start(*tiny.command(
    workdir, root, *(() if count == 1 else (*where, f'--process_id={i}')), *more, **changes))
    for i in range(count)]


# --- failing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(('mode', 'who', 'cause', 'code'), [
  ('OSError', 1, 'OSError: [Errno 28] No space left on device', 1),
  ('OSError', 0, 'OSError: [Errno 28] No space left on device', 1),
  pytest.param('ValueError', 0, 'of this host alone', 1, marks=SLOW),
  pytest.param('MemoryError', 1, 'MemoryError', 1, marks=SLOW),
  pytest.param('KeyboardInterrupt', 1, 'KeyboardInterrupt', 130, marks=SLOW),
  pytest.param('thread', 1, 'ZeroDivisionError: division by zero', 1, marks=SLOW),
  pytest.param('device', 1, 'JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory', 1, marks=SLOW),
])
def test_an_error_on_one_process_ends_all_with_its_cause(mode, who, cause, code):
  codes, said = end(peers(mode, who))
  assert codes == [code] * 2, said
  assert 'Traceback' in said[who] and cause in said[who]
  assert f'error: process {who}: {cause}' in said[1 - who], said
  assert 'Check failure stack trace' not in ''.join(said)


@SLOW
@pytest.mark.parametrize('who', [0, 2])
def test_all_of_three_processes_know_the_first_cause(who):
  codes, said = end(peers('OSError', who, count=3))
  assert codes == [1] * 3, said
  for process in {0, 1, 2} - {who}:
    assert f'error: process {who}: OSError: [Errno 28]' in said[process], said


@SLOW
@pytest.mark.parametrize('who', [0, 1])
def test_a_killed_process_is_gone(who):
  """With process 0 goes what the others meet at: JAX ends them itself, and they still say why."""
  codes, said = end(peers('killed', who))
  assert codes[1 - who] == 1 and 'another process of this run is gone' in said[1 - who], said


@SLOW
def test_a_full_device_is_no_lost_process(tmp_path):
  codes, said = end(peers('device', 0))
  assert codes == [1, 1] and 'is gone' not in ''.join(said), said


@SLOW
def test_what_is_wrong_with_an_evaluation_on_one_host_ends_all(tmp_path):
  (tmp_path / 'val.csv').write_text('path,label\n0.mp4,0\n')
  (tmp_path / 'classes.csv').write_text('id,name\n0,run\n')
  port = free_port()
  codes, said = end([
    start(sys.executable, '-m', 'xclip_jax.cli', 'eval', 'supervised', tmp_path / name, '--weights',
          tmp_path / 'weights', '-o', tmp_path / 'out', '--coordinator', f'localhost:{port}',
          '--num-processes', 2, '--process-id', i) for i, name in enumerate(('val.csv', 'no.csv'))])
  assert 0 not in codes and 'no.csv' in said[1], said
  assert not [x for x in tmp_path.iterdir() if 'out' in x.name]


def test_all_wait_for_the_process_that_is_late_at_the_end():
  begun = time.monotonic()
  codes, said = end(peers('late', 0))
  assert codes == [0, 0], said
  assert time.monotonic() - begun > 5


@SLOW
@pytest.mark.parametrize('who', [0, 1])
def test_a_batch_that_one_process_cannot_read_ends_all_with_its_cause(root, tmp_path, who):
  port, processes = free_port(), []
  for i in range(2):
    command = tiny.command(
      tmp_path / 'run', root, f'--coordinator=localhost:{port}', '--num_processes=2',
      f'--process_id={i}', data__workers=1, eval__every_steps=12)
    hook = [PROGRAMS / 'slow_phase.py', 'full'] if i == who else []
    processes.append(start(command[0], *hook, *command[1:]))
  codes, said = end(processes, 150)
  assert codes == [1, 1], said
  cause = "OSError: [Errno 28] No space left on device: '/dev/shm'"
  assert cause in said[who] and f'error: process {who}: {cause}' in said[1 - who], said
  assert not (tmp_path / 'run' / run_lock.NAME).exists()


@SLOW
def test_another_config_is_said_whatever_the_workdir_is_called(root, tmp_path):
  """The words of its path are those of JAX's messages about lost processes."""
  run = tmp_path / 'preemptible_barrier_b16'
  changes = {'train__steps': 2, 'report': False, 'data__zero_shot': ''}
  assert end(train(run, root, **changes), 300)[0] == [0]
  codes, said = end(train(run, root, count=2, optim__lr=0.25, **changes), 300)
  assert codes == [2, 2], said
  for text in said:
    assert 'holds a run with another config' in text and 'optim.lr: ' in text, said
    assert 'is gone' not in text


@SLOW
@pytest.mark.parametrize('count', [1, 2])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(root, tmp_path, count):
  """Whatever threads of Orbax live on, or wait for the one that failed."""
  run = tmp_path / 'run'
  changes = {'train__steps': 400, 'checkpoint__every_steps': 3, 'eval__every_steps': 400}
  processes = train(run, root, count=count, **changes)
  wait_for_steps(run, 2, processes)
  folder = run / 'checkpoints'
  folder.rename(run / 'elsewhere')
  folder.write_text('no folder')
  codes, said = end(processes, 150)
  assert codes == [1] * count, said
  assert all('could not write a checkpoint' in text for text in said), said
  assert not (run / run_lock.NAME).exists()


def wait_for_steps(workdir, count, processes):
  file = workdir / 'metrics.jsonl'
  for _ in range(1200):
    if file.exists() and len(file.read_text().splitlines()) >= count:
      return
    assert all(process.poll() is None for process in processes), end(processes)
    time.sleep(0.1)
  raise AssertionError(end(processes))


# --- SIGTERM -------------------------------------------------------------------------------------


def test_sigterm_to_one_process_ends_all_that_have_nothing_to_save():
  processes = peers('sleep', -1)
  for process in processes:
    wait_for_line(process, 'joined')
  processes[1].send_signal(signal.SIGTERM)
  codes, said = end(processes)
  assert codes == [143, 143] and 'process 1: stopped by SIGTERM' in said[0], said


@SLOW
@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('phase', ['start', 'compilation', 'last evaluation', 'eval'])
def test_sigterm_is_served_in_every_phase(root, tmp_path, phase, count):
  run, changes = tmp_path / 'run', {'train__steps': 2, 'report': False, 'eval__every_steps': 2}
  hook = PROGRAMS / 'slow_phase.py'
  if phase == 'eval':
    assert end(train(run, root, **changes), 300)[0] == [0]
  processes = []
  port = free_port()
  for i in range(count):
    where = (f'--coordinator=localhost:{port}', f'--num_processes={count}', f'--process_id={i}')
    command = tiny.command(run, root, *(where if count > 1 else ()),
                           *(('--mode=eval',) if phase == 'eval' else ()), **changes)
    processes.append(start(command[0], hook, phase, *command[1:]))
  for process in processes:
    wait_for_line(process, 'slow phase')
  processes[-1].send_signal(signal.SIGTERM)
  codes, said = end(processes)
  assert codes == [0] * count and all('stopped by SIGTERM' in text for text in said), said
  if phase in ('last evaluation', 'eval'):
    assert (run / 'checkpoints/2').is_dir()
  assert not (run / run_lock.NAME).exists()


# --- the workdir ---------------------------------------------------------------------------------


def test_a_second_run_is_refused_while_the_first_lives_and_takes_over_when_it_is_dead(tmp_path):
  holder = start(sys.executable, PROGRAMS / 'hold_lock.py', tmp_path)
  try:
    wait_for_line(holder, 'held')
    with pytest.raises(ValueError, match=(
      f'in use by process {holder.pid} on {re.escape(socket.gethostname())}, started ')):
      with run_lock.hold(tmp_path):
        pass
    assert (tmp_path / run_lock.NAME).exists()
  finally:
    holder.kill()
  holder.wait()
  with run_lock.hold(tmp_path):
    assert json.loads((tmp_path / run_lock.NAME).read_text())['pid'] == os.getpid()
  assert list(tmp_path.iterdir()) == []


def test_a_lock_outlives_neither_an_error_nor_a_process_number_that_is_used_again(tmp_path):
  with pytest.raises(KeyError), run_lock.hold(tmp_path):
    raise KeyError
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(KeyError), run_lock.hold(tmp_path / 'new'):
    raise KeyError
  assert list(tmp_path.iterdir()) == []                      # nor does a folder that holds nothing
  with run_lock.hold(tmp_path / 'new'):
    (tmp_path / 'new/config.json').write_text('{}')
  assert [x.name for x in (tmp_path / 'new').iterdir()] == ['config.json']
  with run_lock.hold(tmp_path):
    about = json.loads((tmp_path / run_lock.NAME).read_text())
  about |= {'token': 'older', 'process_start': '1'}          # this process's number, started before
  (tmp_path / run_lock.NAME).write_text(json.dumps(about))
  with run_lock.hold(tmp_path):
    pass


def test_a_lock_of_another_host_counts_as_long_as_it_is_renewed(tmp_path, monkeypatch, capsys):
  """By what the file system says and shows; clocks of hosts differ."""
  with run_lock.hold(tmp_path):
    about = json.loads((tmp_path / run_lock.NAME).read_text())
  lock = tmp_path / run_lock.NAME
  about |= {'host': 'node7', 'machine': 'node7', 'token': 'theirs', 'pid': 1}
  lock.write_text(json.dumps(about))
  sleeps = []

  def renewed(_):
    sleeps.append(lock.write_text(json.dumps(about | {'renewals': len(sleeps) + 1})))

  monkeypatch.setattr(run_lock.time, 'sleep', renewed)
  with pytest.raises(ValueError, match='in use by process 1 on node7'), run_lock.hold(tmp_path):
    pass
  assert 'waiting up to 150 s' in capsys.readouterr().err
  monkeypatch.setattr(run_lock.time, 'sleep', lambda _: None)
  long_ago = time.time() - 1000
  os.utime(lock, (long_ago, long_ago))
  with run_lock.hold(tmp_path):
    assert json.loads(lock.read_text())['token'] != 'theirs'


def test_a_run_whose_lock_was_taken_over_stops(tmp_path, monkeypatch):
  """It was suspended for so long that it counted as dead."""
  stops = []

  def fail(error, say):
    stops.append(str(error))
    threading.Event().wait()                     # the real one does not return

  monkeypatch.setattr(run_lock.process_exit, 'fail', fail)
  monkeypatch.setattr(run_lock, 'RENEWAL', 0.1)
  lock = tmp_path / run_lock.NAME
  with run_lock.hold(tmp_path):
    about = json.loads(lock.read_text())
    while (run_lock._read(run_lock.epath.Path(lock)) or about)['renewals'] == about['renewals']:
      time.sleep(0.05)
    while not stops:                             # again, if a renewal has just been under way
      lock.write_text(json.dumps(about | {'token': 'theirs', 'host': 'node7'}))
      time.sleep(0.05)
  assert 'on node7, started ' in stops[0] and 'took over the workdir' in stops[0]
  assert json.loads(lock.read_text())['token'] == 'theirs'       # which is theirs to remove


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_found_at_the_start(tmp_path):
  port = free_port()
  codes, said = end([
    start(sys.executable, PROGRAMS / 'hold_lock.py', tmp_path / name, i, 2, port, 3)
    for i, name in enumerate(('here', 'there'))])
  assert codes == [2, 2], said
  for text in said:
    assert 'process 1 on ' in text and 'does not see the file ' in text, said
    assert 'the workdir must be one folder for all' in text


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'cannot write to the workdir .*file/run'):
    with run_lock.hold(tmp_path / 'file/run'):
      pass


@SLOW
def test_two_training_runs_in_one_workdir(root, tmp_path):
  run = tmp_path / 'run'
  changes = {'train__steps': 12, 'report': False}
  first, = train(run, root, **changes)
  wait_for_steps(run, 1, [first])
  codes, said = end(train(run, root, **changes))
  assert codes == [2] and f'in use by process {first.pid}' in said[0], said
  assert end([first], 300)[0] == [0]
  assert not (run / run_lock.NAME).exists()


# --- shared memory -------------------------------------------------------------------------------


def test_too_little_shared_memory_is_told_before_training():
  batch = 16 * 8 * 224 * 224 * 3                             # 19.3 MB; Docker gives 64 MB
  with pytest.raises(ValueError) as error:
    shared_memory.check(2, batch, free=64 * 2**20)
  message = str(error.value)
  assert '67 MB free' in message and '9 batches of 19.3 MB' in message, message
  assert '--shm-size=1g' in message and '\n' not in message
  shared_memory.check(2, batch, free=9 * batch)
  shared_memory.check(0, batch, free=0)


def test_a_pipeline_of_workers_asks_for_shared_memory(monkeypatch):
  monkeypatch.setattr(shared_memory, '_free_bytes', lambda: 2**20)
  with pytest.raises(ValueError, match='--shm-size'):
    reading.open_training(
      [None] * 64, augment.TrainTransform(224, 'center', 0.0, 0.0, 0.0), num_frames=8,
      batch_size=16, seed=0, workers=2)
