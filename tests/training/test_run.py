"""A run keeps its promises: it resumes exactly, stops cleanly, and says what is wrong."""

import json
import os
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest

import tiny
from xclip_jax.data.datasets import annotations, synthetic_scenes
from xclip_jax.evaluation import scores as scores_lib
from xclip_jax.inference import classifier as classifier_lib
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import stop_signals, tree_names
from xclip_jax.storage import checkpoints, metrics_log, workdir
from xclip_jax.storage import state as state_lib
from xclip_jax.storage.checkpoints import CheckpointError, Checkpoints
from xclip_jax.training import job as job_lib
from xclip_jax.training import monitoring, optimizer
from xclip_jax.training import run as run_lib

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def finished(root, tmp_path_factory):
  """Runs once without interruption, with the model that compiles fast."""
  workdir = tmp_path_factory.mktemp('finished')
  with pytest.MonkeyPatch.context() as patch:
    tiny.draw_with_numpy(patch)
    run_lib.run(tiny.config(root, **tiny.FAST), workdir)
  return workdir


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
  """Runs once without interruption, with the whole model, in a separate process."""
  workdir = tmp_path_factory.mktemp('whole')
  done = tiny.finish(workdir, root)
  assert done.returncode == 0, done.stdout
  return workdir


def losses(workdir):
  rows = metrics_log.read_metrics(workdir / 'metrics.jsonl')
  return [row['loss'] for row in rows if 'loss' in row]


def saved_params(workdir, step=12, **changes):
  c = tiny.config(workdir, **changes)
  abstract = state_lib.abstract(job_lib.make_model(c), job_lib.optax.identity()).params
  with Checkpoints(workdir) as ckpt:
    return tree_names.flatten(ckpt.restore_params(step, abstract))


def assert_same_run(a, b, **changes):
  assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()
  left, right = saved_params(a, **changes), saved_params(b, **changes)
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def wait_for_step(process, workdir, step):
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    rows = metrics_log.read_metrics(workdir / 'metrics.jsonl')
    if rows and rows[-1]['step'] >= step:
      return
    if process.poll() is not None:
      raise AssertionError(process.stdout.read())
    time.sleep(0.02)
  raise AssertionError('the run made no progress')


@pytest.mark.parametrize('run', ['finished', pytest.param('whole', marks=pytest.mark.slow)])
def test_a_run_leaves_all_that_it_promises(request, run):
  finished = request.getfixturevalue(run)
  for name in ('config.json', 'metrics.jsonl', 'results.json', 'predictions_val.npz',
               'predictions_zero_shot.npz', 'predictions_zero_shot_all.npz', 'report/report.md',
               'report/curves.png', 'report/confusion.png', 'report/contact_sheet.png',
               'report/time.png'):
    assert (finished / name).stat().st_size > 0, name
  assert list((finished / 'tensorboard').glob('events*'))
  rows = metrics_log.read_metrics(finished / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'loss' in r] == [2, 4, 6, 8, 10, 12]
  assert [r['step'] for r in rows if 'val/top1' in r] == [6, 12]
  results = json.loads((finished / 'results.json').read_text())
  assert results['val/evaluated'] == results['val/expected'] == 41
  assert results['zero_shot_all/evaluated'] == 13
  saved = scores_lib.load(finished / 'predictions_val.npz')
  np.testing.assert_array_equal(saved.index, np.arange(41))
  np.testing.assert_allclose(saved.averaged.sum(axis=1), 1, atol=1e-5)
  assert results['val/top1'] == pytest.approx((saved.averaged.argmax(axis=1) == saved.label).mean())


@pytest.mark.slow
@pytest.mark.parametrize('step', [pytest.param(4, marks=pytest.mark.slow), 10])
def test_resume_after_sigkill_is_exact(whole, root, tmp_path, step):
  process = tiny.start(tmp_path, root)
  wait_for_step(process, tmp_path, step)
  assert process.poll() is None
  process.kill()
  process.communicate()
  done = tiny.finish(tmp_path, root)
  assert done.returncode == 0, done.stdout
  assert_same_run(whole, tmp_path)


@pytest.fixture
def stopping_at(monkeypatch):
  """Returns a function: after the log row of a step, this process sends itself SIGTERM."""
  monkeypatch.setattr(stop_signals, '_phase', stop_signals._Phase())
  write = metrics_log.MetricsWriter.write

  def stop_at(stop):
    def write_and_stop(self, step, *arguments):
      write(self, step, *arguments)
      if step == stop:
        os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(metrics_log.MetricsWriter, 'write', write_and_stop)
  return stop_at


def test_a_run_that_sigterm_stops_is_saved_and_goes_on_exactly(
    root, finished, stopping_at, tmp_path, capfd, monkeypatch):
  tiny.draw_with_numpy(monkeypatch)
  config = tiny.config(root, **tiny.FAST)
  stopping_at(4)
  assert run_lib.run(config, tmp_path) == {}
  with Checkpoints(tmp_path) as ckpt:
    assert ckpt.latest_step() == 4                 # between those that are due
  said = capfd.readouterr()
  assert 'stopped at step 4' in said.out + said.err
  stopping_at(None)
  run_lib.run(config, tmp_path)
  assert_same_run(finished, tmp_path, **tiny.FAST)


@pytest.mark.slow
def test_sigterm_saves_and_exits_zero_and_the_run_goes_on_exactly(whole, root, tmp_path):
  process = tiny.start(tmp_path, root)
  wait_for_step(process, tmp_path, 2)
  process.send_signal(signal.SIGTERM)
  begin = time.monotonic()
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 0, output
  assert time.monotonic() - begin < 60      # seconds on a quiet machine
  with Checkpoints(tmp_path) as ckpt:
    stopped_at = ckpt.latest_step()
  if stopped_at < 12:
    assert f'stopped at step {stopped_at}' in output
  assert tiny.finish(tmp_path, root).returncode == 0
  assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does_and_count_every_video_once(whole, root, tmp_path):
  done = tiny.finish(tmp_path, root, devices=8)
  assert done.returncode == 0, done.stdout
  np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-5)
  one, eight = (scores_lib.load(x / 'predictions_val.npz') for x in (whole, tmp_path))
  np.testing.assert_array_equal(one.index, eight.index)
  np.testing.assert_allclose(one.averaged, eight.averaged, atol=1e-5)


def test_evaluation_alone_repeats_the_run_s_numbers(finished, root, tmp_path, monkeypatch):
  tiny.draw_with_numpy(monkeypatch)
  shutil.copytree(finished, tmp_path / 'run')
  before = json.loads((finished / 'results.json').read_text())
  results = run_lib.run(tiny.config(root, **tiny.FAST), tmp_path / 'run', mode='eval')
  assert {k: v for k, v in before.items() if k != 'step'} == pytest.approx(results, nan_ok=True)


def test_a_changed_config_is_refused_with_a_diff(finished, root, tmp_path):
  shutil.copytree(finished, tmp_path / 'run')
  with pytest.raises(ValueError, match=r'optim.lr: 0.\d+ -> 0.5'):
    run_lib.run(tiny.config(root, optim__lr=0.5, **tiny.FAST), tmp_path / 'run')
  other = tmp_path / 'data'
  shutil.copytree(root, other)
  (other / 'train.csv').write_text(''.join((root / 'train.csv').read_text().splitlines(True)[:-1]))
  with pytest.raises(ValueError, match=r'data_fingerprint\.train'):
    run_lib.run(tiny.config(other, **tiny.FAST), tmp_path / 'run')


def test_a_run_that_is_older_than_a_field_had_its_default(tmp_path):
  old, new = tiny.config(tmp_path), tiny.config(tmp_path)
  with old.unlocked():
    del old.model.attention
  workdir.claim(old, tmp_path / 'run', {}, fresh=True)
  workdir.claim(new, tmp_path / 'run', {}, fresh=False)
  new.model.attention = 'chunked'
  with pytest.raises(ValueError, match=r'model\.attention: xla -> chunked'):
    workdir.claim(new, tmp_path / 'run', {}, fresh=False)


def test_a_checkpoint_of_another_size_is_refused(finished, root, tmp_path, monkeypatch):
  tiny.draw_with_numpy(monkeypatch)
  fields = tiny.FEWER | {'vision_mlp': 48}
  config = tiny.config(root, train__init_from=str(finished))
  with config.unlocked():
    config.model.fields = fields
  with pytest.raises(CheckpointError, match=r'(?s)vision/blocks_0/mlp/c_fc.*saved .*wanted'):
    run_lib.run(config, tmp_path / 'run')


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(finished, root, tmp_path):
  config = tiny.config(
    root, train__init_from=str(finished), train__steps=1, optim__lr=1e-12, report=False,
    **tiny.FAST)
  run_lib.run(config, tmp_path / 'run')
  with Checkpoints(finished) as ckpt:
    best = ckpt.best_step()
  before = saved_params(finished, best, **tiny.FAST)
  after = saved_params(tmp_path / 'run', 1, **tiny.FAST)
  for name in before:
    np.testing.assert_allclose(after[name], before[name], atol=1e-9, err_msg=name)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(root, tmp_path, monkeypatch):
  tiny.draw_with_numpy(monkeypatch)
  config = tiny.config(
    root, optim__lr=1e30, optim__clip_norm=0.0, optim__warmup_epochs=0.0, **tiny.FAST)
  with pytest.raises(monitoring.NonFiniteLossError) as error:
    run_lib.run(config, tmp_path / 'run')
  message = str(error.value)
  assert 'at step 2 ' in message and '.mp4' in message and 'Last good checkpoint: none' in message


@pytest.mark.slow
def test_a_full_disk_loses_nothing(root, tmp_path):
  """Files may not grow past a size that config.json fits in and a checkpoint does not."""
  config = tiny.command(tmp_path / 'run', root, train__steps=6)
  done = tiny.subprocess.run(
    [config[0], PROGRAMS / 'full_disk_run.py', *config[1:]], env=tiny.environment(), text=True,
    timeout=300, stdout=tiny.subprocess.PIPE, stderr=tiny.subprocess.STDOUT,
  )
  assert done.returncode == 1, done.stdout
  assert 'error: could not write a checkpoint' in done.stdout
  assert 'Traceback' not in done.stdout
  assert 'step 3 is complete and safe' in done.stdout
  again = tiny.finish(tmp_path / 'run', root, train__steps=6)
  assert again.returncode == 0, again.stdout
  assert 'steps 4 to 6' in again.stdout


@pytest.mark.slow
def test_too_little_room_is_told_before_anything_is_written(root, tmp_path, monkeypatch):
  usage = checkpoints.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda _: usage._replace(free=10**5))
  with pytest.raises(CheckpointError, match=r'(?s)it takes .* GB, and 0.00 GB are free'):
    run_lib.run(tiny.config(root, train__steps=6, report=False), tmp_path / 'other')


@pytest.mark.slow
def test_a_broken_video_is_replaced_named_and_counted(root, tmp_path):
  shutil.copytree(root, tmp_path / 'data')
  broken = tmp_path / 'data/videos/train/00005.mp4'
  broken.write_bytes(b'not a video')
  (tmp_path / 'data/videos/val/00003.mp4').unlink()
  config = tiny.config(tmp_path / 'data', report=False)
  results = run_lib.run(config, tmp_path / 'run')
  assert (results['val/evaluated'], results['val/expected']) == (40, 41)
  rows = metrics_log.read_metrics(tmp_path / 'run/metrics.jsonl')
  assert [r for r in rows if 'loss' in r][-1]['unreadable_files'] == 1
  assert '00005.mp4' in (tmp_path / 'run/unreadable_files.txt').read_text()
  with np.load(tmp_path / 'run/predictions_val.npz') as saved:
    assert saved['failed'].tolist() == [3] and '00003.mp4' in saved['reasons'][0]
  with pytest.raises(ValueError, match=r'1 of 72 videos cannot be read.*max_bad_share'):
    run_lib.run(tiny.config(tmp_path / 'data', data__max_bad_share=0.0), tmp_path / 'strict')


@pytest.mark.slow
def test_fewer_than_five_classes_are_enough(root, tmp_path):
  data = tmp_path / 'data'
  shutil.copytree(root, data)
  (data / 'classes.csv').write_text('id,name\n0,up\n1,"down, slowly"\n')
  for split in ('train', 'val'):
    rows = [f'videos/{split}/{i:05d}.mp4,{i % 2}\n' for i in range(12)]
    (data / f'{split}.csv').write_text('path,label\n' + ''.join(rows))
  config = tiny.config(data, data__zero_shot='', train__steps=3)
  results = run_lib.run(config, tmp_path / 'run')
  assert results['val/top5'] == 1.0 and results['val/evaluated'] == 12


@pytest.mark.parametrize('changes, message', [
  ({'model__variant': 'B/8'}, "unknown variant 'B/8'"),
  ({'train__batch_size': 7, 'train__accumulation': 2}, r'train.batch_size=7 does not divide by'),
  ({'eval__batch_size': 0}, r'config.eval.batch_size=0 must be 1 or more'),
  ({'eval__crops': 2}, 'config.eval.crops=2 must be one of 1, 3'),
  ({'eval__clips': 0}, 'config.eval.clips=0 must be 1 or more'),
  ({'eval__views': 'all'}, "config.eval.views='all' must be one of centred, reference"),
  ({'data__sampling': 'all'}, "config.data.sampling='all' must be one of sparse, dense"),
  ({'data__name': 'webvid'}, r"config.data.name='webvid' must be one of"),
  ({'data__train': 'nothing.csv'}, r'nothing.csv: cannot be read'),
  ({'data__template': 'a video'}, r'must hold \{\}'),
  ({'train__init_from': 'nowhere'}, r"init_from: 'nowhere' is not there"),
  ({'augment__crop': 'middle'}, 'middle'),
  ({'mesh__data': 3}, r'does not cover the 1 devices'),
  ({'model__dtype': 'float16'}, r"dtype='float16' must be one of float32, bfloat16"),
])
def test_a_wrong_field_is_named(root, tmp_path, changes, message, monkeypatch):
  tiny.draw_with_numpy(monkeypatch)
  with pytest.raises(ValueError, match=message):
    run_lib.run(tiny.config(root, **changes), tmp_path / 'run')
  assert not metrics_log.read_metrics(tmp_path / 'run' / 'metrics.jsonl')  # nothing was trained


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'config.data.root=.* is not a folder'):
    run_lib.run(tiny.config(tmp_path / 'nothing'), tmp_path / 'run')


def test_evaluating_an_empty_workdir_is_an_error(root, tmp_path):
  with pytest.raises(ValueError, match='holds no checkpoint to evaluate'):
    run_lib.run(tiny.config(root), tmp_path / 'run', mode='eval')


def test_a_typo_on_the_command_line_is_an_error(root, tmp_path):
  done = tiny.finish(tmp_path, root, '--config.optim.lrr=1')
  assert done.returncode != 0 and 'lrr' in done.stdout


@pytest.mark.slow
def test_a_run_without_message_integration_and_prompt_goes_through(root, tmp_path):
  fields = tiny.FIELDS | dict(messages=False, mit=False, prompt=False)
  config = tiny.config(
    root, train__steps=2, optim__groups=(('.*', 1.0),), train__init_scale=(('.*', 1.0),),
    report=False)
  with config.unlocked():
    config.model.fields = fields
  results = run_lib.run(config, tmp_path)
  assert results['val/evaluated'] == 41
  classifier = classifier_lib.load(tmp_path)
  assert classifier.params.keys() == {'vision', 'text', 'logit_scale'}
  video = sorted((root / 'videos/val').iterdir())[0]
  assert np.isclose(classifier.classify(video, ['up', 'down']).probabilities.sum(), 1)
  # Frames are a set to this model: shuffled, backwards, it answers as before.
  assert results['time/reversed/top1'] == results['time/in_order/top1']


def test_reversing_needs_a_partner_for_every_class(root, tmp_path):
  (tmp_path / 'data').mkdir()
  for name in ('train.csv', 'val.csv'):
    (tmp_path / 'data' / name).write_text('path,label\na.mp4,0\n')
  (tmp_path / 'data/classes.csv').write_text('id,name\n0,clapping\n')
  config = tiny.config(tmp_path / 'data', augment__reverse=True, data__zero_shot='')
  with pytest.raises(ValueError, match="'clapping' has none"):
    run_lib.run(config, tmp_path / 'run')


def test_the_synthetic_set_opens_by_name(tmp_path, monkeypatch):
  monkeypatch.setenv('XCLIP_CACHE', str(tmp_path))
  recipe = dict(train=24, val=24, zero_shot=8, size=32, frames=4)
  config = tiny.config('', data__name='synthetic')
  with config.unlocked():
    config.data.synthetic = recipe
  splits = job_lib.open_splits(config.data)
  assert {k: len(v.videos) for k, v in splits.items()} == dict(train=24, val=24, zero_shot=8)
  assert not set(splits['val'].classes.names) & set(splits['zero_shot'].classes.names)
  assert len(splits['zero_shot'].classes) == len(synthetic_scenes.compositions('zero_shot'))


def test_every_state_leaf_has_a_place(root):
  config = tiny.config(root)
  model = job_lib.make_model(config)
  params = tiny.draw_params(model.config)
  tx, _ = optimizer.make(config.optim, params, 10, 1)
  mesh = mesh_lib.make_mesh(config.mesh)
  shardings = mesh_lib.infer(state_lib.abstract(model, tx), config.sharding, mesh)
  assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(state_lib.abstract(model, tx)))


def test_labels_and_classes_come_from_the_files(root):
  classes = annotations.read_classes(root / 'classes.csv')
  assert len(classes) == 24 and all(r is not None for r in classes.reverse)
