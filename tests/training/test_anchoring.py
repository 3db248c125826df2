"""Tests of distillation and anchoring: the papers' losses, and nothing left in the weights."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import xclip_jax
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.models import vision
from xclip_jax.models.config import FRAME_MEAN
from xclip_jax.models.training_options.projectors import PROJECTORS, Projectors, init_projectors
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.storage import metrics_log
from xclip_jax.storage import state as state_lib
from xclip_jax.storage.checkpoints import CheckpointError, Checkpoints
from xclip_jax.training import job as job_lib
from xclip_jax.training import optimizer, start_weights
from xclip_jax.training import run as run_lib
from xclip_jax.training import step as step_lib
from xclip_jax.training.objectives import anchoring, objective
from xclip_jax.weights import native

CLASSES = ClassList(('a', 'b', 'c', 'd'), (None,) * 4)
PLAIN = {'augment__mixup': 0.0, 'augment__cutmix': 0.0, 'train__freeze_text': False,
         'data__zero_shot': ''}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def config(root='.', **changes):
  return tiny.config(root, **(PLAIN | {'train__init_from': 'w'} | changes))


def setting(c):
  """A model, two sets of parameters, and a batch."""
  model = job_lib.make_model(c)
  draw = lambda seed: state_lib.draw_params(
    model, jax.random.key(seed), bool(c.train.distill))
  params, anchor = draw(0), start_weights.drop_projectors(draw(1))
  rng = np.random.default_rng(0)
  batch = {'video': rng.integers(0, 256, (6, 3, 32, 32, 3), np.uint8),
           'label': np.array([0, 1, 2, 3, 0, 1], np.int32), 'mask': np.arange(6) != 4}
  ids = np.array([[49406, 300 + k, 49407] for k in range(4)], np.int32)
  return model, params, anchor, batch, ids


def losses(c):
  model, params, anchor, batch, ids = setting(c)
  forward = objective.make_forward(model, c, CLASSES)
  plain = lambda params, key: forward(params, batch, ids, key)[0]
  whole = lambda params, key: anchoring.wrap(forward, model, c)(params, batch, ids, key, anchor)
  return model, params, anchor, batch, ids, plain, whole


@pytest.mark.slow
def test_interpolated_weights_add_the_loss_in_between_with_a_gradient_of_constant_weight():
  c = config(train__interpolate_up_to=0.6, train__interpolate_weight=0.5)
  _, params, anchor, _, _, plain, whole = losses(c)
  key = jax.random.key(3)
  r = jax.random.uniform(jax.random.fold_in(key, 1), (), maxval=0.6)
  assert 0 < r < 0.6
  between = jax.tree.map(lambda a, p: r * a + (1 - r) * p, anchor, params)
  (loss, row), grads = jax.jit(jax.value_and_grad(whole, has_aux=True))(params, key)
  by_itself = jax.jit(jax.value_and_grad(plain))
  one, other = by_itself(params, key), by_itself(between, key)
  np.testing.assert_allclose(loss, one[0] + 0.5 / (1 - r) * other[0], rtol=1e-5)
  np.testing.assert_allclose([row['task_loss'], row['between_loss']], [one[0], other[0]], rtol=1e-5)
  wanted = jax.tree.map(lambda a, b: a + 0.5 * b, one[1], other[1])         # whatever r is
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
    x, y, atol=2e-5 * max(np.abs(y).max(), 0.1)), grads, wanted)


@pytest.mark.slow
def test_distillation_adds_the_cosine_distance_of_every_frame_as_froster_computes_it():
  c = config(train__distill=2.0)
  model, params, anchor, batch, ids, plain, whole = losses(c)
  for name in ('video', 'text'):                                # the last layer is 0 at first
    draw = jax.random.normal(jax.random.key(len(name)), (16, 16))
    params[PROJECTORS][name]['proj']['kernel'] += 0.3 * draw
  key = jax.random.key(3)
  loss, row = jax.jit(whole)(params, key)
  # By hand: CLIP on every frame; the student's frames, normalised, through u + 0.1 W2 gelu(W1 u).
  video = vision.normalize(batch['video'], c.data.mean, c.data.std)
  frames = []
  for t in range(3):
    clip = XCLIP(dataclasses.replace(model.config, num_frames=1, **FRAME_MEAN))
    part = {'params': {k: anchor[k] for k in ('vision', 'text', 'logit_scale')}}
    frames.append(clip.apply(part, video[:, t:t + 1], method='encode_video').video_features)
  out = model.apply({'params': params}, video, ids)
  words = model.apply({'params': anchor}, ids, method='encode_text')
  unit = lambda x: np.asarray(x, np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)
  phi = np.vectorize(lambda x: (1 + math.erf(x / 2 ** 0.5)) / 2)

  def apart(student, teacher, name):
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params[PROJECTORS][name])
    assert {k: x.keys() for k, x in w.items()} == {'fc': {'kernel'}, 'proj': {'kernel'}}
    u = unit(student)
    hidden = u @ w['fc']['kernel']
    z = u + 0.1 * (hidden * phi(hidden)) @ w['proj']['kernel']
    return 1 - (unit(z) * unit(teacher)).sum(-1)

  of_frames = apart(out.frame_features, np.stack(frames, axis=1), 'video')        # [B, T]
  assert of_frames.shape == (6, 3)
  distance = of_frames[batch['mask']].mean() + apart(out.text_features, words, 'text').mean()
  np.testing.assert_allclose(row['distance'], distance, rtol=2e-4)
  np.testing.assert_allclose(loss, plain(params, key) + 2 * distance, rtol=2e-4)


def test_projectors_normalise_and_change_nothing_else_at_first():
  z = jnp.arange(1.0, 7.0).reshape(2, 3)
  found = Projectors().apply({'params': init_projectors(3, jax.random.key(0))}, z, z)
  for x in found:
    np.testing.assert_allclose(x, z / np.linalg.norm(z, axis=-1, keepdims=True), rtol=1e-6)


def test_projectors_start_as_frosters():
  params = init_projectors(512, jax.random.key(0))
  for w in (params['video'], params['text']):
    assert tree_names.flatten(w).keys() == {'fc/kernel', 'proj/kernel'}                # no biases
    np.testing.assert_allclose(w['fc']['kernel'].std(), (2 / 512) ** 0.5, rtol=0.01)
    assert abs(float(w['fc']['kernel'].mean())) < 1e-3 and not w['proj']['kernel'].any()


@pytest.mark.slow
def test_the_teacher_and_the_anchor_are_constants():
  c = config(train__distill=1.0)
  model, params, anchor, batch, ids, _, _ = losses(c)
  wrapped = anchoring.wrap(objective.make_forward(model, c, CLASSES), model, c)
  loss = lambda anchor: wrapped(params, batch, ids, jax.random.key(0), anchor)[0]
  grads = jax.jit(jax.grad(loss))(anchor)
  assert all(not np.any(x) for x in jax.tree.leaves(grads))


@pytest.mark.slow
def test_a_run_without_these_options_is_the_run_it_was(root):
  c = config(root, train__init_from='')
  assert not anchoring.is_on(c.train)
  model, params, _, batch, ids = setting(c)
  tx, _ = optimizer.make(c.optim, params, 10, 1)
  state = jax.eval_shape(lambda: state_lib.create(params, tx))
  assert PROJECTORS not in state.params
  step = step_lib.make_train_step(step_lib.StepParts(model, tx, c, CLASSES))
  _, row = jax.eval_shape(step, state, batch, ids, jax.random.key(0))
  assert row.keys() == {'loss', 'accuracy', 'grad_norm'}


def near_start(root, tmp_path):
  """A config with both, and weights to start from."""
  model = job_lib.make_model(tiny.config(root, **PLAIN))
  params = state_lib.draw_params(model, jax.random.key(5))
  native.save(tmp_path / 'start', native.Weights(model.config, jax.device_get(params)))
  return config(root, train__init_from=str(tmp_path / 'start'), train__interpolate_up_to=0.6,
                train__distill=2.0, train__accumulation=2, train__ema=0.5, train__steps=4,
                log_steps=1, checkpoint__every_steps=2, eval__every_steps=4, report=False)


@pytest.mark.slow
def test_a_run_stays_near_its_start_and_leaves_no_projector_behind(root, tmp_path):
  c = near_start(root, tmp_path)
  run_lib.run(c, tmp_path / 'run')
  rows = [x for x in metrics_log.read_metrics(tmp_path / 'run/metrics.jsonl') if 'loss' in x]
  assert {'task_loss', 'between_loss', 'distance'} <= rows[0].keys()
  assert rows[0]['distance'] > 0 and rows[-1]['loss'] != rows[0]['loss']
  found = xclip_jax.load(tmp_path / 'run')
  assert not [x for x in tree_names.flatten(found.params) if PROJECTORS in x]
  saved = json.loads((tmp_path / 'run/config.json').read_text())
  anchor = start_weights.read_params(c, job_lib.make_model(c))
  assert saved['anchor_sha256'] == native.fingerprint(anchor)

  # From another start, it does not go on.
  params = jax.tree.map(lambda x: x + 1, anchor)
  native.save(tmp_path / 'start', native.Weights(job_lib.make_model(c).config, params), True)
  with pytest.raises(ValueError, match='anchor_sha256'):
    run_lib.run(c, tmp_path / 'run')


@pytest.mark.slow
def test_an_interrupted_run_near_its_start_goes_on_exactly(root, tmp_path):
  c = near_start(root, tmp_path)
  run_lib.run(c, tmp_path / 'run')
  whole = (tmp_path / 'run/metrics.jsonl').read_text()
  shutil.rmtree(tmp_path / 'run/checkpoints/4')
  run_lib.run(c, tmp_path / 'run')
  assert (tmp_path / 'run/metrics.jsonl').read_text() == whole


def test_a_checkpoint_whose_projectors_have_biases_is_refused_with_the_reason(root, tmp_path):
  c = config(root, train__distill=2.0)
  model, tx = job_lib.make_model(c), job_lib.optax.identity()
  state = state_lib.create(state_lib.draw_params(model, jax.random.key(0), True), tx)
  old = jax.tree.map(lambda x: x, state.params)
  for w in old[PROJECTORS].values():
    for layer in w.values():
      layer['bias'] = jnp.zeros(16)
  with Checkpoints(tmp_path) as ckpt:
    ckpt.save(1, state.replace(params=old), {})
    ckpt.wait()
    abstract = state_lib.abstract(model, tx, projectors=True)
    places = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract)
    with pytest.raises(CheckpointError, match=r'(?s)4 parameters differ.*older version.*FROSTER'):
      ckpt.restore_latest(abstract, places)


@pytest.mark.parametrize(('changes', 'message'), [
  ({'train__distill': 2.0, 'train__init_from': ''}, 'config.train.distill=2.0 keeps a run near'),
  ({'train__interpolate_up_to': 0.6, 'train__init_from': ''}, 'set config.train.init_from'),
  ({'train__interpolate_up_to': 1.0}, r'interpolate_up_to=1.0 must lie in \[0, 1\)'),
  ({'train__distill': -1.0}, 'config.train.distill=-1.0 must be 0 or more'),
])
def test_what_cannot_be_is_said_at_the_start(root, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run_lib.run(config(root, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run/metrics.jsonl').exists()
