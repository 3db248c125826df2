"""Tests of training on several labels a video, on captions, and with the sigmoid loss."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import tiny
import xclip_jax
from xclip_jax.cli import main
from xclip_jax.data import open_splits
from xclip_jax.evaluation import scores
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import metrics_log
from xclip_jax.storage import state as state_lib
from xclip_jax.text import captions
from xclip_jax.training import job as job_lib
from xclip_jax.training import run as run_lib
from xclip_jax.training import start_weights
from xclip_jax.training.objectives import losses, targets
from xclip_jax.weights import apply, native

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'

PLAIN = {'augment__mixup': 0.0, 'augment__cutmix': 0.0, 'augment__label_smoothing': 0.0,
         'data__zero_shot': '', 'train__freeze_text': False}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Rendered videos with one class, several classes, and captions."""
  root = tiny.write_data(tmp_path_factory.mktemp('data'))
  for split in ('train', 'val'):
    rows = [line.split(',') for line in (root / f'{split}.csv').read_text().splitlines()[1:]]
    (root / f'{split}_several.csv').write_text('path,label\n' + ''.join(
      f'{path},{label};{(int(label) + 3) % 24}\n' for path, label, _ in rows))
    (root / f'{split}_captions.csv').write_text('path,caption\n' + ''.join(
      f'{path},{caption}\n' for path, _, caption in rows))
  return root


def config(root, task, **changes):
  file = {'multi-label': '_several', 'captions': '_captions'}.get(task, '')
  lists = {f'data__{x}': f'{x}{file}.csv' for x in ('train', 'val')}
  return tiny.config(root, **(PLAIN | lists | {'train__task': task} | changes))


# --- losses, computed again with numpy -----------------------------------------------------------


def sigmoid_loss(logits, targets, rows, columns):
  p = 1 / (1 + np.exp(-logits))
  each = -targets * np.log(p) - (1 - targets) * np.log(1 - p)
  return each[rows][:, columns].sum() / rows.sum()


def test_the_sigmoid_loss_asks_every_pair_and_sums_over_texts():
  rng = np.random.default_rng(0)
  logits, wanted = rng.normal(size=(4, 6)), rng.random((4, 6))
  rows, columns = np.array([1, 0, 1, 1], bool), np.array([1, 1, 0, 1, 1, 1], bool)
  found = losses.sigmoid_cross_entropy(logits, wanted, rows, columns)
  np.testing.assert_allclose(found, sigmoid_loss(logits, wanted, rows, columns), rtol=1e-5)
  found = losses.sigmoid_cross_entropy(logits, wanted, rows)
  np.testing.assert_allclose(found, sigmoid_loss(logits, wanted, rows, columns | True), rtol=1e-5)


def test_the_sigmoid_loss_is_siglips_for_hard_labels():
  logits = np.random.default_rng(1).normal(size=(3, 3))
  z = 2 * np.eye(3) - 1                                   # their labels: 1 and -1
  wanted = -np.log(1 / (1 + np.exp(-z * logits))).sum() / 3
  found = losses.sigmoid_cross_entropy(logits, np.eye(3), np.ones(3, bool))
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_contrastive_loss_is_clips_and_spreads_over_equal_captions():
  x = np.random.default_rng(2).normal(size=(4, 4))
  log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
  everything = np.ones(4, bool)
  clip = -(np.diag(log_softmax(x)).mean() + np.diag(log_softmax(x.T)).mean()) / 2
  found = losses.contrastive(x, np.eye(4, dtype=bool), everything)
  np.testing.assert_allclose(found, clip, rtol=1e-5)
  # Rows 0 and 1 belong together; row 3 does not count, neither as a video nor as a text.
  same = np.eye(4, dtype=bool)
  same[0, 1] = same[1, 0] = True
  x3 = x[:3, :3]
  t = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
  wanted = -((t * log_softmax(x3)).sum() + (t * log_softmax(x3.T)).sum()) / 6
  found = losses.contrastive(x, same, np.array([1, 1, 1, 0], bool))
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_targets_of_several_labels_are_smoothed_like_those_of_one():
  one = np.array([2, 0])
  hot = np.eye(4, dtype=bool)[one]
  np.testing.assert_allclose(losses.multi_hot(hot, 0.1), losses.soft_targets(one, 4, 0.1))


# --- whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_learns_several_labels_and_is_evaluated_as_xclip_eval_does(root, tmp_path):
  run = config(root, 'multi-label', train__steps=60, eval__every_steps=60, optim__lr=2e-3,
               train__batch_size=24, checkpoint__every_steps=60, optim__warmup_steps=30)
  results = run_lib.run(run, tmp_path / 'run')
  rows = metrics_log.read_metrics(tmp_path / 'run/metrics.jsonl')
  loss = [row['loss'] for row in rows if 'loss' in row]
  # The bias starts where a model that knows only how many labels there are would be.
  entropy = 24 * -(np.log(2 / 24) * 2 / 24 + np.log(22 / 24) * 22 / 24)
  assert loss[0] < 1.2 * entropy and loss[-1] < 0.9 * loss[0]
  assert results['val/map'] > 1.5 * (2 / 24) and results['val/evaluated'] == 41
  saved = json.loads((tmp_path / 'run/config.json').read_text())
  assert saved['model']['fields']['logit_bias'] is True
  for name in ('report.md', 'per_class.png', 'curves.png'):
    assert (tmp_path / 'run/report' / name).exists()

  words = ['eval', 'multi-label', root / 'val_several.csv', '--weights', tmp_path / 'run',
           '--quiet', '-o', tmp_path / 'out']
  assert main.main(list(map(str, words))) == 0
  again = json.loads((tmp_path / 'out/results.json').read_text())['lists'][0]['metrics']
  assert again['map'] == pytest.approx(results['val/map'], abs=1e-6)
  mine, theirs = (scores.load(tmp_path / x) for x in ('run/predictions_val.npz', 'out'
                                                      '/predictions.npz'))
  np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-4)

  # What other formats cannot hold, they refuse.
  with pytest.raises(ValueError, match='logit_bias'):
    apply.to_state_dict(xclip_jax.load(tmp_path / 'run').params, 'official')


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['softmax', pytest.param('sigmoid', marks=pytest.mark.slow)])
def test_a_run_learns_from_captions(root, tmp_path, loss):
  run = config(root, 'captions', train__loss=loss, train__steps=40, eval__every_steps=40,
               optim__lr=3e-3, train__batch_size=24, log_steps=5, checkpoint__every_steps=20)
  results = run_lib.run(run, tmp_path / 'run')
  rows = metrics_log.read_metrics(tmp_path / 'run/metrics.jsonl')
  loss = [row['loss'] for row in rows if 'loss' in row]
  assert loss[-1] < 0.95 * loss[0]
  assert results['val/recall1'] == pytest.approx(
    (results['val/text_to_video/r1'] + results['val/video_to_text/r1']) / 2)
  assert results['val/captions'] == 41 and (tmp_path / 'run/report/recall.png').exists()
  assert (tmp_path / 'run/checkpoints/40').is_dir()


@pytest.mark.slow
def test_an_interrupted_run_of_several_labels_ends_as_one_that_was_not(root, tmp_path):
  changes = dict(train__steps=4, checkpoint__every_steps=2, eval__every_steps=4, log_steps=1,
                 report=False)
  run_lib.run(config(root, 'multi-label', **changes), tmp_path / 'whole')
  half = config(root, 'multi-label', **changes)
  run_lib.run(half, tmp_path / 'parts')
  shutil.rmtree(tmp_path / 'parts/checkpoints/4')
  run_lib.run(half, tmp_path / 'parts')
  one, other = ((tmp_path / x / 'metrics.jsonl').read_text() for x in ('whole', 'parts'))
  assert one == other


@pytest.mark.slow
def test_one_label_can_be_learnt_by_the_sigmoid_loss(root, tmp_path, monkeypatch):
  run = config(root, 'single-label', train__loss='sigmoid', train__steps=2, log_steps=1,
               report=False, **tiny.FAST)
  run_lib.run(run, tmp_path / 'run')
  loss = metrics_log.read_metrics(tmp_path / 'run/metrics.jsonl')[0]['loss']
  entropy = -np.log(1 / 24) - 23 * np.log(23 / 24)
  assert loss == pytest.approx(entropy, rel=0.2)            # not 24 log 2 = 16.6
  tiny.draw_with_numpy(monkeypatch)                         # from here on nothing is drawn to train
  # A run without the bias starts from it, and the other way round.
  bias = xclip_jax.load(tmp_path / 'run').params['logit_bias']
  assert start_of(root, 'sigmoid', tmp_path / 'run')['logit_bias'] == bias != 0
  without = start_of(root, 'softmax', tmp_path / 'run')
  assert 'logit_bias' not in without
  native.save(tmp_path / 'plain', native.Weights(job_lib.make_model(run).config, without))
  assert start_of(root, 'sigmoid', tmp_path / 'plain')['logit_bias'] == 0


def start_of(root, loss, source):
  c = job_lib.resolve_config(
    config(root, 'single-label', train__loss=loss, train__init_from=str(source),
           **tiny.FAST))
  model = job_lib.make_model(c)
  abstract = state_lib.abstract(model, job_lib.optax.identity())
  mesh = mesh_lib.make_mesh(c.mesh)
  return start_weights.load_params(c, model, mesh_lib.infer(abstract, c.sharding, mesh))


FOUR_DEVICES = (PROGRAMS / 'captions_on_four_devices.py').read_text()


@pytest.mark.slow
def test_captions_are_told_from_those_of_all_devices():
  done = subprocess.run(
    [sys.executable, '-c', FOUR_DEVICES], env=tiny.environment(4) | {
      'PYTHONPATH': f'{tiny.REPO}:{tiny.REPO / "tests"}'}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(('task', 'changes', 'message'), [
  ('multi-label', {'train__loss': 'softmax'}, 'makes classes compete'),
  ('single-label', {'train__loss': 'hinge'}, "config.train.loss='hinge' must be one of"),
  ('single-label', {'train__task': 'labels'}, "config.train.task='labels' must be one of"),
  ('captions', {'augment__mixup': 0.8, 'augment__cutmix': 1.0}, 'config.augment.mixup=0.8 mixes'),
  ('multi-label', {'augment__reverse': True}, 'set it to False'),
  ('captions', {'data__train': 'train_several.csv'}, 'caption'),
  ('single-label', {'data__train': 'train_several.csv'}, 'set config.train.task to multi-label'),
  ('single-label', {'data__train': 'train_captions.csv'}, 'set config.train.task to captions'),
  ('captions', {'data__name': 'folder'}, 'set config.data.name to files'),
  ('captions', {'data__zero_shot': 'zero_shot.csv'}, 'leave it empty'),
  ('captions', {'data__templates': ('a {}',)}, 'leave them empty'),
])
def test_what_cannot_be_is_said_before_anything_is_trained(root, tmp_path, task, changes, message):
  with pytest.raises(ValueError, match=message):
    run_lib.run(config(root, task, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run/metrics.jsonl').exists()


def test_a_caption_that_is_too_long_is_named_or_cut(root, tmp_path):
  (root / 'long.csv').write_text('path,caption\nvideos/val/00000.mp4,short\n'
                                 f'videos/val/00001.mp4,{"word " * 40}\n')
  for name in ('train', 'val'):
    with pytest.raises(ValueError, match=r'long\.csv, row 2: the caption .*truncate_captions=True'):
      run_lib.run(config(root, 'captions', **{f'data__{name}': 'long.csv'}), tmp_path / 'run')
  c = config(root, 'captions', data__train='long.csv')
  split = open_splits(c.data, 'captions')['train']
  assert captions.caption_ids(split, 16, truncate=True).shape == (2, 16)


def test_the_same_video_or_caption_twice_is_no_negative(root):
  split = open_splits(config(root, 'captions').data, 'captions')['train']
  rows = targets.build_targets(split, 'captions', 16, False)
  found = targets.select_targets(rows, np.array([0, 5, 0, -1]))
  assert found['file'].tolist()[0] == found['file'].tolist()[2] != found['file'].tolist()[1]
  assert found['token_ids'].shape[0] == 4


def test_a_run_with_one_label_computes_what_it_did(root):
  """The step of a softmax run has no bias and no look-up."""
  model = job_lib.make_model(job_lib.resolve_config(config(root, 'single-label')))
  assert not model.config.logit_bias
  params = jax.eval_shape(lambda: state_lib.init_params(model, jax.random.key(0)))
  assert 'logit_bias' not in params
  assert targets.select_targets({}, np.arange(3)) == {}
