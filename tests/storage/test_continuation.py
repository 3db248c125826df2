"""Tests of settings that may change when a run is continued: micro-batches and its length."""

import json
import shutil

import numpy as np
import pytest

import tiny
from xclip_jax.config import duration
from xclip_jax.data import open_splits
from xclip_jax.storage import continuation, metrics_log, workdir
from xclip_jax.storage import state as state_lib
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.training import job as job_lib
from xclip_jax.training import optimizer
from xclip_jax.training import run as run_lib


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def config(root, **changes):
  return tiny.config(root, **dict(
    train__steps=4, train__accumulation=2, optim__lag_steps=1, optim__floor=0.1, log_steps=1,
    checkpoint__every_steps=2, checkpoint__keep_latest=9, eval__every_steps=100, report=False,
    data__zero_shot='') | changes)


@pytest.fixture(scope='module')
def finished(root, tmp_path_factory):
  """A run of 4 updates in 2 micro-batches each, with checkpoints at 2 and 4."""
  folder = tmp_path_factory.mktemp('finished')
  run_lib.run(config(root), folder)
  return folder


def rows(folder):
  read = metrics_log.read_metrics(folder / 'metrics.jsonl')
  return {row['step']: row for row in read if 'lr' in row}


def last_params(folder, c):
  abstract = state_lib.abstract(job_lib.make_model(c), job_lib.optax.identity()).params
  with Checkpoints(folder) as ckpt:
    return job_lib.optax.tree.norm(ckpt.restore_params(ckpt.latest_step(), abstract))


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_other_micro_batches_and_computes_the_same(
    finished, root, tmp_path):
  shutil.copytree(finished, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/checkpoints/4')
  c = config(root, train__accumulation=1)
  run_lib.run(c, tmp_path / 'run')
  whole, found = rows(finished), rows(tmp_path / 'run')
  assert whole.keys() == found.keys() == {1, 2, 3, 4}
  for step, row in whole.items():
    assert found[step]['lr'] == row['lr']            # though its lag is counted in micro-batches
    np.testing.assert_allclose(found[step]['loss'], row['loss'], rtol=1e-5)
  np.testing.assert_allclose(
    last_params(tmp_path / 'run', c), last_params(finished, c), rtol=1e-6)
  saved = json.loads((tmp_path / 'run/config.json').read_text())
  assert saved['train']['accumulation'] == 1
  assert saved['history'] == [{'step': 2, 'from': {'train.accumulation': 2}}]
  # A third value is compared with the second, and the lag stays that of the first.
  began = claim(config(root, train__accumulation=4), tmp_path / 'run', 4)
  assert began.accumulation == 2


@pytest.mark.slow
def test_a_finished_run_is_prolonged_where_that_is_said(finished, root, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(finished, run)
  before = (run / 'config.json').read_bytes()
  with pytest.raises(ValueError, match=r'(?s)train.steps: 4 -> 7 .*from 4 to 7 updates, add '
                                       r'--config.train.extend_schedule=True'):
    run_lib.run(config(root, train__steps=7), run)
  assert (run / 'config.json').read_bytes() == before
  longer = config(root, train__steps=7, train__extend_schedule=True)
  results = run_lib.run(longer, run)
  assert results['val/evaluated'] == 41
  assert json.loads((run / 'results.json').read_text())['step'] == 7
  found, whole = rows(run), rows(finished)
  assert all(found[step] == whole[step] for step in (1, 2, 3, 4))
  params = state_lib.abstract(job_lib.make_model(longer), job_lib.optax.identity()).params
  _, schedule = optimizer.make(longer.optim, params, 7, 1, accumulation=2)
  for step in (5, 6, 7):
    np.testing.assert_allclose(found[step]['lr'], schedule(step - 1), rtol=1e-6)
  saved = json.loads((run / 'config.json').read_text())
  assert (saved['updates'], saved['train']['steps']) == (7, 7)
  assert saved['history'] == [{'step': 4, 'from': {'updates': 4, 'train.steps': 4}}]

  # The same command again changes nothing; a shorter one is refused.
  run_lib.run(longer, run)
  assert json.loads((run / 'config.json').read_text()) == saved
  with pytest.raises(ValueError, match='7 updates it would have 5: a run can only be prolonged'):
    run_lib.run(config(root, train__steps=5, train__extend_schedule=True), run)


def claim(c, folder, step=None):
  splits = open_splits(c.data)
  return workdir.claim(c, folder, splits, step is None, step=step or 0)


@pytest.fixture
def started(root, tmp_path):
  """Claims a workdir for a config and tries to go on with another one: (changes, changes)."""
  def try_both(first, then):
    claim(config(root, **first), tmp_path, None)
    return claim(config(root, **first | then), tmp_path, 3)
  return try_both


@pytest.mark.parametrize(('first', 'reason'), [
  ({'augment__mixup': 0.8}, 'config.augment.mixup is 0.8: clips are mixed within'),
  ({'augment__cutmix': 1.0}, 'config.augment.cutmix is 1.0'),
  ({'model__patch_dropout': 0.5}, 'config.model.patch_dropout is 0.5: patches are drawn'),
  ({'model__fields': tiny.FIELDS | {'drop_path': 0.1}}, 'config.model.fields.drop_path is 0.1'),
  ({'train__interpolate_up_to': 0.6}, 'config.train.interpolate_up_to is 0.6'),
  ({'train__task': 'captions'}, "config.train.task is 'captions': captions are compared"),
])
def test_other_micro_batches_are_refused_where_numbers_depend_on_them(root, first, reason):
  c, then = config(root), config(root)
  for changed in (c, then):
    with changed.unlocked():
      for name, value in first.items():
        room, field = name.split('__')
        changed[room][field] = value
  then.train.accumulation = 1
  flat = lambda x: json.loads(x.to_json_best_effort())
  with pytest.raises(ValueError, match=rf'(?s)train.accumulation: 2 -> 1 \(numbers .*{reason}'):
    continuation.check(flat(c), flat(then), flat(c))


@pytest.mark.parametrize('frozen', [True, False])
def test_templates_do_not_depend_on_micro_batches(started, frozen):
  """Compares both kinds of templates: averaged (frozen text tower) and drawn for each update."""
  fields = {'data__templates': ('a {}', 'b {}'), 'train__freeze_text': frozen}
  assert started(fields, {'train__accumulation': 4}).accumulation == 2


@pytest.mark.parametrize(('then', 'message'), [
  ({'train__batch_size': 16}, r'\n  train.batch_size: 8 -> 16\nUse the same'),
  ({'train__steps': 3, 'train__extend_schedule': True}, 'can only be prolonged'),
  ({'optim__warmup_steps': 2}, r'optim.warmup_steps: 1 -> 2\nUse'),
  ({'optim__lr': 1.0, 'train__steps': 9, 'train__extend_schedule': True}, r'optim.lr: 0.0005 -> 1'),
])
def test_what_changes_the_steps_done_is_refused(started, then, message):
  with pytest.raises(ValueError, match=message):
    started({}, then)


def test_a_length_may_be_said_in_another_way(started):
  assert started({}, {'train__steps': 0, 'train__epochs': 4 / 9}).updates == 4


def test_epochs_can_be_prolonged_and_averages_start_where_they_would_have(started, root):
  fields = {'train__steps': 0, 'train__epochs': 1.0, 'train__average_from': 0.5}
  began = started(fields, {'train__epochs': 2.0, 'train__extend_schedule': True})
  assert began.updates == 9                                  # of 18 now
  average = optimizer.make_average(config(root, **fields).train, began.updates)
  assert [float(average(step)) for step in (4, 5, 6, 7)] == [1, 1, 0.5, np.float32(1 / 3)]


def test_a_run_older_than_groups_and_passes_says_what_to_set(root, tmp_path):
  fields = {'train__steps': 0, 'train__epochs': 3.0, 'train__batch_size': 16,
            'optim__warmup_steps': 2}
  c = config(root, **fields, augment__mixup=0.8)
  claim(c, tmp_path)
  file = tmp_path / 'config.json'
  old = json.loads(file.read_text())
  for name in ('updates', 'warmup_updates', 'history'):
    del old[name]
  del old['augment']['blend_rows'], old['train']['extend_schedule']
  file.write_text(json.dumps(old))
  with pytest.raises(ValueError) as error:
    claim(c, tmp_path, 2)
  message = str(error.value)
  assert 'augment.blend_rows: 0 -> 8' in message             # it blended all rows of a micro-batch
  assert 'updates: 12 -> 14 (an epoch was a number of whole batches' in message
  assert '--config.train.steps=12 continues it' in message
  followed = config(root, **fields | {'train__steps': 12}, augment__mixup=0.8,
                    augment__blend_rows=0)
  assert claim(followed, tmp_path, 2).updates == 12


def test_groups_do_not_matter_to_a_run_that_blends_nothing(started):
  started({}, {'augment__blend_rows': 4})


@pytest.mark.slow
def test_evaluating_does_not_ask_for_a_length(finished, root, tmp_path):
  shutil.copytree(finished, tmp_path / 'run')
  c = config(root, train__steps=1, optim__warmup_steps=50)
  with pytest.raises(ValueError, match='more than half'):
    duration.run_length(c, 72)
  assert run_lib.run(c, tmp_path / 'run', mode='eval')['val/evaluated'] == 41
