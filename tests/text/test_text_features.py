"""Texts are encoded once: by one device each, and once an update."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import tiny
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state as state_lib
from xclip_jax.text import prompts, text_features
from xclip_jax.training import job as job_lib
from xclip_jax.training import start_weights
from xclip_jax.training import step as step_lib
from xclip_jax.training.objectives import anchoring, objective

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'

FLOPS = (PROGRAMS / 'text_feature_flops.py').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('where', [
  ('training',), pytest.param(('training, two texts a class', 'evaluation'),
                              marks=pytest.mark.slow)])
def test_one_text_more_than_divides_costs_each_of_eight_devices_no_more_than_a_text(where):
  done = subprocess.run([sys.executable, '-c', FLOPS, *where], env=tiny.environment(8) | {
    'PYTHONPATH': f'{tiny.REPO}:{tiny.REPO / "tests"}'}, text=True, capture_output=True,
    timeout=500, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  lines = done.stdout.splitlines()[-len(where):]
  for name, (even, odd) in zip(where, map(json.loads, lines), strict=True):
    assert 1 <= odd / even < 1.05, (name, even, odd)       # 401 rows are padded to 408: 1.02


# --- once an update ------------------------------------------------------------------------------

K, B = 6, 8
NAMES = ClassList(tuple(f'class {k}' for k in range(K)), (None,) * K)
PLAIN = {'augment__mixup': 0.0, 'augment__cutmix': 0.0, 'train__freeze_text': False,
         'model__fields': tiny.FIELDS | {'drop_path': 0.0}}
IDS = np.array([[49406, 300 + k, 320 + k, 49407] for k in range(2 * K)], np.int32)
SEVERAL = prompts.Prompts(('x',) * 2 * K, IDS, np.arange(2 * K, dtype=np.int32).reshape(K, 2),
                          np.full(K, 2, np.int32))


@functools.cache
def params_of(model):
  return jax.jit(lambda key: state_lib.draw_params(model, key))(jax.random.key(0))


def setting(accumulation, **changes):
  c = tiny.config('.', **(PLAIN | {'train__accumulation': accumulation} | changes))
  model = job_lib.make_model(c)
  rng = np.random.default_rng(0)
  batch = {'video': rng.integers(0, 256, (B, 3, 32, 32, 3), np.uint8),
           'label': rng.integers(0, K, B).astype(np.int32), 'mask': np.ones(B, bool)}
  return c, model, params_of(model), batch


def state_of(params, tx):
  return state_lib.TrainState(np.int32(3), params, tx.init(params), None)


def update(accumulation, ids, several=None, **changes):
  """The gradient that the optimizer of one step gets, and the step's metrics."""
  c, model, params, batch = setting(accumulation, **changes)
  tx = optax.trace(1.0)                                    # remembers it
  step = jax.jit(step_lib.make_train_step(
    step_lib.StepParts(model, tx, c, NAMES, class_prompts=several)))
  new, metrics = step(state_of(params, tx), batch, ids, jax.random.key(1))
  return new.opt_state.trace, metrics


def assert_alike(found, wanted):
  names = tree_names.flatten(found)
  for name, a, b in zip(names, jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if name.endswith('key/bias'):                          # softmax does not see it: rounding alone
      assert max(np.abs(a).max(), np.abs(b).max()) < 1e-6, name
    else:
      assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


@pytest.mark.slow
@pytest.mark.parametrize('several', [None, SEVERAL], ids=['one text', 'two texts'])
def test_micro_batches_that_share_texts_have_the_gradient_of_those_that_encode_their_own(several):
  ids = IDS[:K] if several is None else IDS
  found, metrics = update(4, ids, several)
  c, model, params, batch = setting(4)
  key = jax.random.fold_in(jax.random.key(1), 3)
  shown = ids
  if several is not None:                                  # the draw of the update
    shown = ids[several.draw(jax.random.fold_in(jax.random.split(key)[1], 2))]
    assert 0 < (np.asarray(shown) != IDS[::2]).any(1).sum() < K
  grad = jax.jit(jax.grad(objective.make(model, c, NAMES), has_aux=True))
  parts = [
    grad(params, {name: x[a::4] for name, x in batch.items()}, shown, part)
    for a, part in enumerate(jax.random.split(key, 4))]
  mean = lambda *x: sum(x) / 4
  wanted = jax.tree.map(mean, *[g for g, _ in parts])
  assert max(np.abs(x).max() for x in jax.tree.leaves(wanted['text'])) > 1e-3
  assert_alike(found, wanted)
  loss = float(np.mean([m['loss'] for _, m in parts]))
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)


@pytest.mark.slow
def test_distillation_shares_the_trained_texts_of_micro_batches():
  c, model, _, batch = setting(4, train__distill=2.0, train__init_from='w')
  draw = lambda seed: state_lib.draw_params(model, jax.random.key(seed), True)
  params, anchor = draw(0), start_weights.drop_projectors(draw(1))
  key = jax.random.key(1)
  loss_fn = anchoring.wrap(objective.make_forward(model, c, NAMES), model, c)
  found, wanted = (
    jax.jit(lambda *x, encode=encode: step_lib.accumulate_gradients(
      step_lib.MicroBatches(4, loss_fn, encode), *x))(
      params, batch, IDS[:K], key, anchor)
    for encode in (objective.make_text_encoder(model), None))
  assert wanted[1]['distance'] > 0
  assert_alike(*(jax.device_get(x[0]) for x in (found, wanted)))
  np.testing.assert_allclose(found[1]['loss'], wanted[1]['loss'], rtol=1e-5)


@pytest.mark.slow
def test_four_micro_batches_encode_texts_as_often_as_one(monkeypatch):
  def flops(accumulation, **changes):
    c, model, params, batch = setting(accumulation, **changes)
    state = state_of(params, optax.sgd(1.0))
    step = step_lib.make_train_step(step_lib.StepParts(model, optax.sgd(1.0), c, NAMES))
    many = np.tile(IDS[:K], (1, 4))                        # texts of 16 tokens: most of the work
    key = jax.random.key(1)
    return jax.jit(step).lower(state, batch, many, key).cost_analysis()['flops']

  # The analysis counts the body of a loop once, so there must be none.
  monkeypatch.setattr(jax.lax, 'scan', functools.partial(jax.lax.scan, unroll=True))
  fields = {'model__fields': tiny.FIELDS | {'text_layers': 4}}
  once, four = flops(1, **fields), flops(4, **fields)
  assert 0.95 < four / once < 1.1, (once, four)


@pytest.mark.slow
def test_rows_added_to_divide_are_gone():
  _, model, params, _ = setting(1)
  got = jax.jit(lambda params, ids: text_features.encode(model, params, ids))(params, IDS[:5])
  encode = jax.jit(lambda params, ids: model.apply({'params': params}, ids, method='encode_text'))
  wanted = encode(params, IDS[:5])
  assert got.shape == wanted.shape
  np.testing.assert_allclose(got, wanted, atol=1e-6)
