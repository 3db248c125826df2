"""Tests of one update: micro-batches, frozen parameters, random numbers, rows that do not count."""

import jax
import numpy as np
import optax
import pytest

import tiny
from xclip_jax.data.datasets import annotations
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state as state_lib
from xclip_jax.training import job as job_lib
from xclip_jax.training import optimizer
from xclip_jax.training import step as step_lib
from xclip_jax.training.objectives import losses as losses_lib


@pytest.fixture(scope='module')
def params():
  """Parameters of the tiny model."""
  return tiny.draw_params(job_lib.make_model(tiny.config('.')).config)


def make_step(config, params, tx=None):
  """Returns a model, its jitted step with the run's optimizer or `tx`, and what the step takes."""
  model = job_lib.make_model(config)
  if tx is None:
    tx, _ = optimizer.make(
      config.optim, params, 10, 1, config.train.accumulation, config.train.freeze_text)
  classes = annotations.ClassList(tuple('abcde'), (1, 0, 3, 2, 4))
  step = jax.jit(step_lib.make_train_step(step_lib.StepParts(model, tx, config, classes)))
  state = state_lib.create(params, tx)
  rng = np.random.default_rng(0)
  batch = {
    'video': rng.integers(0, 256, (8, 3, 32, 32, 3)).astype(np.uint8),
    'label': rng.integers(0, 5, 8).astype(np.int32), 'mask': np.ones(8, bool),
  }
  token_ids = rng.integers(1, 100, (5, 8)).astype(np.int32)
  return model, step, state, batch, token_ids


@pytest.fixture(scope='module')
def frozen():
  """A step with frozen text and blended clips, compiled once for two tests."""
  config = tiny.config('.', augment__mixup=0.8, augment__cutmix=1.0, **tiny.FAST)
  params = tiny.draw_params(job_lib.make_model(config).config)
  model, step, state, batch, token_ids = make_step(config, params)
  text = jax.jit(lambda params: model.apply({'params': params}, token_ids, method='encode_text'))
  return step, state, batch, text(params)


@pytest.mark.slow
def test_accumulation_equals_one_large_batch(params):
  plain = make_step(tiny.config('.'), params)
  split = make_step(tiny.config('.', train__accumulation=4), params)
  key = jax.random.key(0)
  _, left = plain[1](*plain[2:4], plain[4], key)
  _, right = split[1](*split[2:4], split[4], key)
  np.testing.assert_allclose(left['loss'], right['loss'], rtol=1e-5)
  np.testing.assert_allclose(left['grad_norm'], right['grad_norm'], rtol=1e-4)
  np.testing.assert_allclose(left['accuracy'], right['accuracy'], rtol=1e-5)


def test_frozen_text_does_not_move_and_the_step_compiles_once(frozen):
  step, state, batch, text = frozen
  first = tree_names.flatten(state.params)
  for _ in range(3):
    state, _ = step(state, batch, text, jax.random.key(0))
  for name, value in tree_names.flatten(state.params).items():
    moved = bool(np.any(value != first[name]))
    frozen = name.startswith('text/') or name == 'logit_scale'
    assert not (moved and frozen), name
  assert np.any(state.params['mit']['pos_embed'] != first['mit/pos_embed'])
  assert step._cache_size() == 1


def test_blending_is_drawn_anew_each_step_and_again_the_same(frozen):
  step, state, batch, text = frozen
  key = jax.random.key(3)
  one = step(state, batch, text, key)[1]['loss']
  again = step(state, batch, text, key)[1]['loss']
  later = step(state.replace(step=state.step + 1), batch, text, key)[1]['loss']
  assert one == again and one != later


@pytest.mark.slow
def test_patches_are_dropped_anew_each_step_and_only_then(params):
  key = jax.random.key(3)
  losses = {}
  for rate in (0.0, 0.5):
    config = tiny.config('.', model__patch_dropout=rate)
    _, step, state, batch, token_ids = make_step(config, params)
    later = state.replace(step=state.step + 1)
    losses[rate] = [float(step(s, batch, token_ids, key)[1]['loss']) for s in (state, later, state)]
  assert losses[0.0][0] == losses[0.0][1]
  first, second, again = losses[0.5]
  assert first == again != second and first != losses[0.0][0]


def test_reversed_clips_are_of_the_partner_class():
  video = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1)
  batch = {'video': video, 'label': np.array([0, 2]), 'mask': np.array([True, False])}
  both = losses_lib.add_reversed(batch, (1, 0, 3, 2))
  np.testing.assert_array_equal(both['video'][::2], video)
  np.testing.assert_array_equal(both['video'][1::2], video[:, ::-1])
  assert both['label'].tolist() == [0, 1, 2, 3]
  assert both['mask'].tolist() == [True, True, False, False]


@pytest.mark.slow
def test_a_masked_row_teaches_nothing(params):
  # Loss and gradients are compared, so the optimizer is the one that compiles fastest.
  _, step, state, batch, token_ids = make_step(tiny.config('.'), params, optax.sgd(1.0))
  batch['mask'] = np.arange(8) != 3
  other = batch | {'video': batch['video'].copy()}
  other['video'][3] = 0
  key = jax.random.key(0)
  assert step(state, batch, token_ids, key)[1] == step(state, other, token_ids, key)[1]
