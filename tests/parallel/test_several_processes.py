"""Several processes are one program: real ones, over Gloo, started from the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_weight_curve import random_weights

import tiny
import videos
from xclip_jax import errors
from xclip_jax.evaluation import scores
from xclip_jax.parallel import processes as processes_lib
from xclip_jax.weights import native

SLOW = pytest.mark.slow
PROGRAMS = tiny.REPO / 'tests/programs'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def free_port():
  with socket.socket() as found:
    found.bind(('localhost', 0))
    return found.getsockname()[1]


def start(commands, devices=1):
  """Starts process i of n with commands[i](flags that make them one), each with some devices."""
  port = free_port()
  return [
    subprocess.Popen(
      command(f'localhost:{port}', len(commands), i), env=tiny.environment(devices), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tiny.REPO)
    for i, command in enumerate(commands)]


def end(processes, seconds=400):
  """Exit codes and what was said."""
  try:
    said = [process.communicate(timeout=seconds)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said


def train(workdir, root, count, **changes):
  flags = lambda where, n, i: (
    f'--coordinator={where}', f'--num_processes={n}', f'--process_id={i}')
  return start([
    lambda *about: tiny.command(workdir, root, *flags(*about), **changes)] * count)


def rows(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def same(workdir, whole):
  assert [row.keys() for row in rows(workdir)] == [row.keys() for row in rows(whole)]
  for row, other in zip(rows(workdir), rows(whole), strict=True):
    for name in row:
      np.testing.assert_allclose(row[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


# --- evaluation ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def videos_and_weights(tmp_path_factory):
  """Seven videos, one of them broken and one missing, and a model."""
  root = tmp_path_factory.mktemp('eval')
  for n in range(6):
    frames = np.random.default_rng(n).integers(0, 256, (5, 40, 48, 3), np.uint8)
    videos.write_video(root / f'{n}.mp4', frames, codec='mpeg4')
  (root / '3.mp4').write_text('no video')
  (root / 'classes.csv').write_text('id,name\n0,run\n1,jump\n2,sleep\n')
  (root / 'val.csv').write_text('path,label\n' + ''.join(f'{n}.mp4,{n % 3}\n' for n in range(7)))
  native.save(root / 'weights', random_weights(0))
  return root


def evaluate(root, output, count):
  join = lambda where, n, i: [] if n == 1 else [
    '--coordinator', where, '--num-processes', str(n), '--process-id', str(i)]
  command = lambda *about: [
    sys.executable, '-m', 'xclip_jax.cli', 'eval', 'supervised', str(root / 'val.csv'), '--weights',
    str(root / 'weights'), '-o', str(output), '--batch-size', '4', '--quiet', *join(*about)]
  return end(start([command] * count))


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, pytest.param(4, marks=SLOW)])
def test_an_evaluation_is_the_same_on_any_number_of_processes(videos_and_weights, tmp_path, count):
  root = videos_and_weights
  assert evaluate(root, tmp_path / 'one', 1)[0] == [1]               # 1: videos are missing
  codes, said = evaluate(root, tmp_path / 'several', count)
  assert codes == [1] * count, said
  one, several = (scores.load(tmp_path / x / 'predictions.npz') for x in ('one', 'several'))
  np.testing.assert_allclose(several.logits, one.logits, atol=1e-4)
  assert several.index.tolist() == one.index.tolist() == [0, 1, 2, 4, 5]
  assert several.failed == one.failed and 'no such file' in one.failed[6].lower()
  options = json.loads((tmp_path / 'several/results.json').read_text())['options']
  assert options['processes'] == count
  assert 'top-1' in said[0] and not [text for text in said[1:] if 'top-1' in text]


# --- training ------------------------------------------------------------------------------------


@SLOW
def test_two_processes_compute_what_one_does(root, tmp_path):
  done = tiny.finish(tmp_path / 'one', root)
  assert done.returncode == 0, done.stdout
  codes, said = end(train(tmp_path / 'two', root, 2))
  assert codes == [0, 0], said
  same(tmp_path / 'two', tmp_path / 'one')
  one, two = (json.loads((tmp_path / x / 'results.json').read_text()) for x in ('one', 'two'))
  assert one == pytest.approx(two, nan_ok=True, abs=1e-5)
  assert 'training' in said[0] and 'report' not in said[1]           # one of them speaks


@SLOW
def test_each_process_reads_its_share(root, tmp_path):
  """Checks every global batch: each process decodes its rows, and no clip is decoded by both."""
  changes = {'train__steps': 2, 'eval__every_steps': 2, 'report': False}
  env = 'XCLIP_TEST_COUNT'
  port = free_port()
  processes = []
  for i in range(2):
    command = tiny.command(
      tmp_path / 'run', root, f'--coordinator=localhost:{port}', '--num_processes=2',
      f'--process_id={i}', **changes)
    processes.append(subprocess.Popen(
      [command[0], PROGRAMS / 'count_reads.py', *command[1:]], text=True, cwd=tiny.REPO,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      env=tiny.environment() | {env: str(tmp_path / 'read')}))
  codes, said = end(processes)
  assert codes == [0, 0], said
  read = [file.read_text().split() for file in tmp_path.glob('read*')]
  # Once in the loop and once at the end, where one reading serves both class lists of zero_shot.
  for split, times in (('/val/', 41 * 2), ('/zero_shot/', 13 * 2)):
    found = [sum(split in path for path in paths) for paths in read]
    assert len(found) == 2 and sum(found) == times and min(found) > times // 4, found


@SLOW
def test_a_run_goes_on_with_another_number_of_processes_and_another_mesh(root, tmp_path):
  changes = {'train__steps': 72, 'checkpoint__every_steps': 9, 'eval__every_steps': 36}
  assert tiny.finish(tmp_path / 'whole', root, **changes).returncode == 0
  run = tmp_path / 'run'

  processes = train(run, root, 2, **changes)
  wait_for_rows(run, 2, processes)
  processes[1].send_signal(signal.SIGTERM)              # one is told to go: all save, all leave
  codes, said = end(processes)
  assert codes == [0, 0] and 'which is saved' in said[0], said

  processes = train(run, root, 1, **changes)
  wait_for_rows(run, len(rows(run)) + 1, processes)
  processes[0].send_signal(signal.SIGTERM)
  assert end(processes)[0] == [0]

  codes, said = end(train(run, root, 4, **changes, mesh__fsdp=2))
  assert codes == [0] * 4, said
  same(run, tmp_path / 'whole')


@SLOW
@pytest.mark.parametrize('victim', [1, 0])
def test_all_stop_when_one_is_killed_and_go_on_exactly(root, tmp_path, victim):
  changes = {'train__steps': 24, 'checkpoint__every_steps': 3, 'eval__every_steps': 12}
  whole = train(tmp_path / 'whole', root, 2, **changes)
  assert end(whole)[0] == [0, 0]
  run = tmp_path / 'run'
  processes = train(run, root, 2, **changes)
  wait_for_rows(run, 3, processes)
  processes[victim].kill()
  begun = time.monotonic()
  _, said = end([processes[1 - victim]], seconds=120)
  assert time.monotonic() - begun < 60 and processes[1 - victim].returncode != 0
  # With process 0 goes what they meet at, and JAX ends the others itself.
  assert ('another process of this run is gone' if victim else 'another task died') in said[0]
  assert end(train(run, root, 2, **changes))[0] == [0, 0]
  assert (run / 'metrics.jsonl').read_text() == (tmp_path / 'whole/metrics.jsonl').read_text()


@SLOW
def test_a_file_that_one_process_cannot_read_puts_the_checkpoint_aside_on_all(root, tmp_path):
  """Each reads its share: only one of them meets the file that was cut off, or lost."""
  changes = {'train__steps': 6, 'checkpoint__every_steps': 3, 'eval__every_steps': 12,
             'mesh__fsdp': 2, 'mesh__data': 1}
  run = tmp_path / 'run'
  assert end(train(run, root, 2, **changes))[0] == [0, 0]
  whole = (run / 'metrics.jsonl').read_text()
  damages = {1: lambda file: os.truncate(file, file.stat().st_size // 2),
             0: lambda file: file.unlink()}
  for process, damage in damages.items():
    files = (run / f'checkpoints/6/state/ocdbt.process_{process}').rglob('*')
    damage(max((x for x in files if x.is_file()), key=lambda x: x.stat().st_size))
    codes, said = end(train(run, root, 2, **changes))
    assert codes == [0, 0] and 'could not read the checkpoint' in said[0], said
    assert 'going on from step 3' in said[0] and (run / 'metrics.jsonl').read_text() == whole
  assert len(list((run / 'damaged_checkpoints').iterdir())) == 2


def wait_for_rows(workdir, count, processes):
  file = workdir / 'metrics.jsonl'
  for _ in range(1200):
    if file.exists() and len(file.read_text().splitlines()) >= count:
      return
    assert all(process.poll() is None for process in processes), end(processes)
    time.sleep(0.1)
  raise AssertionError(end(processes))


@SLOW
def test_what_is_wrong_on_one_host_is_said_on_all(root, tmp_path):
  port = free_port()
  places = [root, tmp_path]                             # the second host has no data
  processes = [
    subprocess.Popen(
      tiny.command(tmp_path / 'run', place, f'--coordinator=localhost:{port}', '--num_processes=2',
                   f'--process_id={i}'),
      env=tiny.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for i, place in enumerate(places)]
  codes, said = end(processes)
  assert codes == [2, 2], said
  assert 'error: process 1: ' in said[0] and all('cannot be read' in text for text in said)


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(('arguments', 'message'), [
  (('auto', 'a:1', 2, 0), 'give either'),
  (('off', 'a:1', None, 0), 'give all three'),
  (('off', 'a', 2, 0), "HOST:PORT of process 0, got 'a'"),
  (('off', 'a:1', 2, 2), r'process_id=2 must lie in 0\.\.1'),
  (('on', None, None, None), "off or auto, got 'on'"),
])
def test_a_start_that_cannot_be_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    processes_lib.join(*arguments)


def test_alone_is_alone():
  assert processes_lib.join() == (0, 1)
  assert processes_lib.all_gather_json({'a': 1}) == [{'a': 1}]
  assert processes_lib.merge_failures({3: 'x', 1: 'y'}) == {1: 'y', 3: 'x'}
  assert processes_lib.run_on_all_processes(lambda: 7) == 7


@pytest.mark.parametrize(('error', 'kind'), [
  (errors.UserError('list.csv is empty'), errors.UserError),
  (OSError(28, 'No space left'), errors.UserError),
  (KeyError('a bug'), RuntimeError),
  (ValueError('a bug'), RuntimeError),
])
def test_a_bug_of_another_process_is_a_bug_here_too(monkeypatch, error, kind):
  def fails():
    raise error

  sent = []
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(processes_lib, 'all_gather_json', lambda value: sent.append(value) or [None])
  with pytest.raises(type(error)):
    processes_lib.run_on_all_processes(fails)
  monkeypatch.setattr(processes_lib, 'all_gather_json', lambda value: [value, *sent])
  with pytest.raises(kind, match='process 1: ') as raised:
    processes_lib.run_on_all_processes(lambda: 7)
  assert errors.is_shown_in_one_line(raised.value) == (kind is errors.UserError)
  assert str(error.args[-1]) in str(raised.value)


def test_who_waits_in_vain_says_so(tmp_path):
  done = subprocess.run(
    [sys.executable, PROGRAMS / 'join_in_vain.py', str(free_port())], env=tiny.environment(),
    capture_output=True, text=True, timeout=60)
  assert done.returncode == 1 and 'did not come within 3 s' in done.stderr
  assert jax.process_count() == 1
