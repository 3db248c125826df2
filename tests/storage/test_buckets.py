"""Runs, weights and lists in gs:// buckets, against a server of the storage API on loopback."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from test_run import saved_params

import gcs_server
import tiny
from gcs_server import upload
from xclip_jax import files
from xclip_jax.cli import main
from xclip_jax.storage import metrics_log
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.training import job as job_lib
from xclip_jax.training import run as run_lib
from xclip_jax.training import start_weights
from xclip_jax.weights import native, opening

SLOW = pytest.mark.slow
RUN = 'gs://bucket/runs/tiny'
# Kept short: what is tested is where a run's files go, and what is left after SIGKILL.
SHORT = dict(report=False, data__zero_shot='', profile__first=2, profile__steps=1)


@pytest.fixture(scope='module')
def server():
  with gcs_server.running('bucket') as found:
    yield found


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def local(root, tmp_path_factory):
  """The run in a local folder, never interrupted."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  run_lib.run(tiny.config(root, **SHORT), workdir)
  return workdir


@pytest.fixture(scope='module')
def resumed(server, root):
  """Repeats the run in a bucket, kills it after its second checkpoint and starts it again."""
  process = tiny.start(RUN, root, **SHORT)
  wait_for(lambda: 'runs/tiny/checkpoints/6/commit_success.txt' in server.names('bucket'), process)
  process.kill()
  process.wait()
  assert 'runs/tiny/checkpoints/12/commit_success.txt' not in server.names('bucket')
  begun = metrics_log.read_metrics(files.as_path(RUN) / 'metrics.jsonl')
  assert [row['step'] for row in begun][:2] == [2, 4]          # no more than an interval is lost
  run_lib.run(tiny.config(root, **SHORT), RUN)
  return RUN


def wait_for(condition, process, seconds=300):
  deadline = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline, 'too slow'
    time.sleep(0.02)


def relative(server, prefix='runs/tiny/'):
  return {name.removeprefix(prefix) for name in server.names('bucket', prefix)}


# --- a run ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_in_a_bucket_that_was_killed_ends_like_one_in_a_folder(
    server, local, resumed, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert server.read('bucket', 'runs/tiny/metrics.jsonl') == (local / 'metrics.jsonl').read_bytes()
  for name in ('config.json', 'results.json', 'predictions_val.npz'):
    assert server.read('bucket', f'runs/tiny/{name}') == (local / name).read_bytes(), name
  found, wanted = saved_params(resumed), saved_params(local)
  for name in wanted:
    np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
  held = relative(server)
  with Checkpoints(local) as one, Checkpoints(resumed) as other:
    assert one._manager.all_steps() == other._manager.all_steps()
    assert one.best_step() == other.best_step()
  of_steps = {name.split('/')[1] for name in held if name.startswith('checkpoints/')}
  assert of_steps == {x.name for x in (local / 'checkpoints').iterdir()}     # others are deleted
  assert any(name.startswith('profile/') and name.endswith('.xplane.pb') for name in held)
  assert 'metrics.tail.jsonl' not in held and not [x for x in held if '.write_check' in x]
  assert not list(tmp_path.iterdir())                                      # no folder named gs:


@pytest.mark.slow
def test_tensorboard_reads_the_events_in_a_bucket(server, resumed, tmp_path):
  accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  for name in server.names('bucket', 'runs/tiny/tensorboard/'):
    (tmp_path / name.split('/')[-1]).write_bytes(server.read('bucket', name))
  events = accumulator.EventAccumulator(str(tmp_path)).Reload()
  assert [x.step for x in events.Scalars('loss')] == [2, 4, 6, 8, 10, 12]


@pytest.mark.slow
def test_every_log_row_is_in_the_events_of_the_bucket(server, resumed):
  content = b''.join(
    server.read('bucket', name) for name in server.names('bucket', 'runs/tiny/tensorboard/'))
  assert content.count(b'videos_per_second') >= 6


@pytest.mark.slow
def test_evaluation_alone_repeats_the_numbers_of_a_run_in_a_bucket(server, root, resumed):
  before = json.loads(server.read('bucket', 'runs/tiny/results.json'))
  del server.buckets['bucket']['runs/tiny/results.json']
  run_lib.run(tiny.config(root, **SHORT), RUN, 'eval')
  assert json.loads(server.read('bucket', 'runs/tiny/results.json')) == before


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_put_aside_and_the_run_ends_the_same(
    server, root, local, resumed, capsys):
  upload(local, 'gs://bucket/damaged')
  start = 'damaged/checkpoints/12/state/'
  for name in server.names('bucket', start):
    if '/d/' in name:
      content = bytearray(server.read('bucket', name))
      content[len(content) // 2] ^= 1
      server.buckets['bucket'][name] = gcs_server.Object(bytes(content), 10 ** 6)
  held = server.names('bucket', 'damaged/checkpoints/12/')
  run_lib.run(tiny.config(root, **SHORT), 'gs://bucket/damaged')
  assert 'going on from step 9' in capsys.readouterr().err
  aside = 'damaged/damaged_checkpoints/12/'
  assert server.names('bucket', aside) == [
    name.replace('damaged/checkpoints/12/', aside) for name in held]
  assert 'damaged/checkpoints/12/commit_success.txt' in server.names('bucket')    # a new one
  assert server.read('bucket', 'damaged/metrics.jsonl') == (local / 'metrics.jsonl').read_bytes()


@pytest.mark.slow
def test_the_weights_of_a_run_in_a_bucket_are_those_in_a_folder(server, local, resumed):
  found, wanted = opening.open_weights(resumed), opening.open_weights(str(local))
  assert native.fingerprint(found.params) == native.fingerprint(wanted.params)
  assert (found.config, found.preprocess, found.template) == (
    wanted.config, wanted.preprocess, wanted.template)


@pytest.mark.slow
def test_a_checkpoint_whose_writer_was_killed_counts_as_none_and_is_written_again(
    server, root, local):
  upload(local, 'gs://bucket/uncommitted')
  start = 'uncommitted/checkpoints/12/'
  held = server.buckets['bucket']
  for name in (f'{start}commit_success.txt', f'{start}state/commit_success.txt'):
    del held[name]
  held[f'{start}state/d/left_over'] = gcs_server.Object(b'of the killed process', 1)
  run_lib.run(tiny.config(root, **SHORT), 'gs://bucket/uncommitted')
  assert f'{start}commit_success.txt' in held
  assert server.read('bucket', 'uncommitted/metrics.jsonl') == (
    local / 'metrics.jsonl').read_bytes()
  found, wanted = saved_params('gs://bucket/uncommitted'), saved_params(local)
  for name in wanted:
    np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@SLOW
def test_a_run_starts_from_the_weights_of_one_in_a_bucket(server, root, local, resumed):
  config = tiny.config(root, train__init_from=RUN)
  found = start_weights.read_params(config, job_lib.make_model(config))
  config = tiny.config(root, train__init_from=str(local))
  wanted = start_weights.read_params(config, job_lib.make_model(config))
  np.testing.assert_array_equal(found['vision']['ln_pre']['scale'],
                                wanted['vision']['ln_pre']['scale'])


@SLOW
def test_classify_takes_a_run_in_a_bucket(server, root, local, resumed, capsys):
  video = str(next(root.rglob('*.mp4')))
  answers = []
  for weights in (str(local), resumed):
    assert main.main(['classify', video, '--weights', weights, '--labels', 'up, down']) == 0
    answers.append(capsys.readouterr().out)
  assert answers[0] == answers[1] and '%' in answers[0]


@SLOW
def test_eval_takes_a_run_and_lists_in_a_bucket(server, root, local, resumed, tmp_path):
  for name in ('val.csv', 'classes.csv'):
    files.write_bytes(files.as_path(f'gs://bucket/lists/{name}'), (root / name).read_bytes())
  both = []
  for n, (weights, lists) in enumerate([(str(local), str(root)), (resumed, 'gs://bucket/lists')]):
    command = ['eval', 'supervised', f'{lists}/val.csv', '--weights', weights, '--root', str(root),
               '-o', str(tmp_path / str(n)), '--quiet']
    assert main.main(command) == 0
    both.append(json.loads((tmp_path / f'{n}/results.json').read_text()))
  assert both[0]['lists'][0]['metrics'] == both[1]['lists'][0]['metrics']
  assert both[0]['weights']['sha256'] == both[1]['weights']['sha256']
  assert both[1]['weights']['run_config']['seed'] == 0


# --- from the command line, as on a cluster ------------------------------------------------------


@SLOW
def test_the_commands_of_a_cluster_work_with_a_bucket(server, root, tmp_path):
  run = 'gs://bucket/runs/commands'
  process = tiny.start(run, root)
  wait_for(lambda: 'runs/commands/checkpoints/3/commit_success.txt' in server.names('bucket'),
           process)
  process.kill()
  process.wait()
  done = tiny.finish(run, root)
  assert done.returncode == 0, done.stdout
  whole = tiny.finish(tmp_path / 'whole', root)
  assert whole.returncode == 0, whole.stdout
  read = lambda name: server.read('bucket', f'runs/commands/{name}')
  assert read('metrics.jsonl') == (tmp_path / 'whole/metrics.jsonl').read_bytes()
  pictures = {x.name for x in (tmp_path / 'whole/report').iterdir()}
  assert {x.split('/')[-1] for x in server.names('bucket', 'runs/commands/report/')} == pictures
  assert read('report/confusion.png') == (tmp_path / 'whole/report/confusion.png').read_bytes()
  results = read('results.json')
  assert tiny.finish(run, root, '--mode=eval').returncode == 0
  assert read('results.json') == results
  more = tiny.finish('gs://bucket/runs/more', root, train__init_from=run, train__steps=3)
  assert more.returncode == 0, more.stdout
  command = [sys.executable, '-m', 'xclip_jax.cli', 'classify', str(next(root.rglob('*.mp4'))),
             '--labels', 'up, down', '--weights', run]
  done = subprocess.run(command, env=tiny.environment(), text=True, capture_output=True)
  assert done.returncode == 0 and '%' in done.stdout, done.stderr


@SLOW
@pytest.mark.parametrize('task', ['multi-label'])
def test_a_run_on_lists_writes_its_report_into_a_bucket(server, root, task):
  run = f'gs://bucket/runs/{task}'
  done = tiny.finish(run, root, train__task=task, data__zero_shot='', train__steps=4,
                     augment__mixup=0.0, augment__cutmix=0.0, augment__reverse=False)
  assert done.returncode == 0, done.stdout
  held = server.names('bucket', f'runs/{task}/')
  assert f'runs/{task}/report/curves.png' in held
  assert b'![curves](curves.png)' in server.read('bucket', f'runs/{task}/report/report.md')
  assert f'runs/{task}/predictions_val.npz' in held


@SLOW
def test_two_processes_share_a_workdir_in_a_bucket(server, root, tmp_path):
  from test_several_processes import end, same
  from test_several_processes import train as start_train

  processes = start_train('gs://bucket/runs/two', root, 2)
  name = 'runs/two/checkpoints/6/commit_success.txt'
  wait_for(lambda: name in server.names('bucket'), processes[0])
  for process in processes:
    process.kill()
    process.wait()
  codes, said = end(start_train('gs://bucket/runs/two', root, 2))
  assert codes == [0, 0], said
  codes, said = end(start_train(tmp_path / 'local', root, 2))
  assert codes == [0, 0], said
  copy = tmp_path / 'copy'
  copy.mkdir()
  (copy / 'metrics.jsonl').write_bytes(server.read('bucket', 'runs/two/metrics.jsonl'))
  same(copy, tmp_path / 'local')
  shutil.rmtree(copy)
  weights = opening.open_weights('gs://bucket/runs/two')
  assert np.isfinite(weights.params['vision']['ln_pre']['scale']).all()
  codes, said = end(start_train('gs://missing/two', root, 2))
  assert codes == [2, 2] and all('no bucket missing' in text for text in said), said
