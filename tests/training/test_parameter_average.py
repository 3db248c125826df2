"""Averages of parameters are what they say, survive a restart, and are what is used."""

import contextlib

import jax
import numpy as np
import pytest

import tiny
from xclip_jax.inference import classifier as classifier_lib
from xclip_jax.parallel import tree_names
from xclip_jax.storage import metrics_log
from xclip_jax.storage import state as state_lib
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.training import job as job_lib
from xclip_jax.training import loop as loop_lib
from xclip_jax.training import optimizer, start_weights
from xclip_jax.training import run as run_lib

STEPS = 6
KINDS = {'ema': dict(train__ema=0.7), 'swa': dict(train__average_from=0.5)}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def config(root, **changes):
  """Every step is saved, so that averages can be worked out from what was saved."""
  return tiny.config(root, **dict(
    train__steps=STEPS, checkpoint__every_steps=1, checkpoint__keep_latest=STEPS,
    eval__every_steps=3, log_steps=1, report=False, data__zero_shot='') | changes)


@pytest.fixture(scope='module')
def finished(root, tmp_path_factory):
  """A run of each kind: its config, its folder, its results."""
  runs = {}
  for kind, fields in KINDS.items():
    c, workdir = config(root, **fields), tmp_path_factory.mktemp(kind)
    runs[kind] = c, workdir, run_lib.run(c, workdir)
  return runs


def restored(c, workdir, step):
  """(parameters, average) as they were saved, by name."""
  abstract = state_lib.abstract(job_lib.make_model(c), job_lib.optax.identity()).params
  with Checkpoints(workdir) as ckpt:
    return tuple(
      tree_names.flatten(read(step, abstract))
      for read in (ckpt.restore_params, ckpt.restore_weights))


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_the_average_is_that_of_the_parameters_that_were_saved(finished, kind):
  c, workdir, _ = finished[kind]
  tx = job_lib.optax.identity()
  model = job_lib.make_model(c)
  one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  places = jax.tree.map(lambda _: one_device, state_lib.abstract(model, tx))
  first = state_lib.init(model, tx, c.seed, places, c.train.init_scale).params
  mean = {k: np.asarray(x, np.float64) for k, x in tree_names.flatten(first).items()}
  seen = []
  for step in range(1, STEPS + 1):
    params, average = restored(c, workdir, step)
    if kind == 'ema':
      mean = {k: 0.7 * mean[k] + 0.3 * np.asarray(x, np.float64) for k, x in params.items()}
    else:
      seen = [*seen, params] if step - 1 > STEPS / 2 else [params]     # of 4, 5 and 6
      mean = {k: np.mean([np.asarray(x[k], np.float64) for x in seen], 0) for k in params}
    for name, x in average.items():
      np.testing.assert_allclose(x, mean[name], rtol=1e-5, atol=1e-6, err_msg=f'{name}, {step}')
  moved = [k for k in params if np.any(np.asarray(params[k]) != np.asarray(average[k]))]
  assert len(moved) > len(params) / 2


@pytest.mark.slow
def test_the_average_is_what_is_evaluated_and_used(finished):
  c, workdir, results = finished['ema']
  again = run_lib.run(c, workdir, mode='eval')
  assert again == pytest.approx(results, nan_ok=True)
  classifier = classifier_lib.load(workdir)
  with Checkpoints(workdir) as ckpt:
    _, best = restored(c, workdir, ckpt.best_step())
  for name, x in tree_names.flatten(classifier.params).items():
    np.testing.assert_array_equal(x, best[name], err_msg=name)
  from_it = start_weights.read_params(config('', train__init_from=str(workdir)), classifier.model)
  for name, x in tree_names.flatten(from_it).items():
    np.testing.assert_array_equal(x, best[name], err_msg=name)


@pytest.mark.slow
def test_an_interrupted_average_goes_on_exactly(finished, root, tmp_path, monkeypatch):
  c, workdir, _ = finished['swa']
  asked = iter([False] * 9)          # so it stops somewhere in the middle
  with monkeypatch.context() as patch:
    stop = lambda: next(asked, True)
    patch.setattr(loop_lib, 'stop_signal', lambda: contextlib.nullcontext(stop))
    assert run_lib.run(c, tmp_path) == {}
  with Checkpoints(tmp_path) as ckpt:
    assert 0 < ckpt.latest_step() < STEPS
  run_lib.run(c, tmp_path)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == (workdir / 'metrics.jsonl').read_bytes()
  for left, right in zip(restored(c, tmp_path, STEPS), restored(c, workdir, STEPS), strict=True):
    for name in left:
      np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.slow
def test_training_itself_is_not_touched(finished, root, tmp_path):
  plain = config(root, eval__every_steps=STEPS)
  run_lib.run(plain, tmp_path)
  losses = lambda folder: [
    row['loss'] for row in metrics_log.read_metrics(folder / 'metrics.jsonl') if 'loss' in row]
  params, weights = restored(plain, tmp_path, STEPS)
  for c, workdir, _ in finished.values():
    assert losses(tmp_path) == losses(workdir)
    for name, x in restored(c, workdir, STEPS)[0].items():
      np.testing.assert_array_equal(x, params[name], err_msg=name)
      np.testing.assert_array_equal(weights[name], params[name], err_msg=name)


def test_no_average_takes_no_memory(root):
  model = job_lib.make_model(config(root))
  assert optimizer.make_average(config(root).train, STEPS) is None
  assert state_lib.abstract(model, job_lib.optax.identity()).average is None


@pytest.mark.slow
def test_an_average_is_split_over_devices_like_its_parameters(finished, root, tmp_path):
  c, workdir, _ = finished['ema']
  done = tiny.finish(
    tmp_path, root, devices=8, mesh__fsdp=4, train__steps=1, report=False, data__zero_shot='',
    train__init_from=str(workdir), optim__lr=0.0, **KINDS['ema'])
  assert done.returncode == 0, done.stdout
  with Checkpoints(workdir) as ckpt:
    _, start = restored(c, workdir, ckpt.best_step())
  for found in restored(c, tmp_path, 1):
    for name, x in found.items():
      np.testing.assert_array_equal(x, start[name], err_msg=name)


@pytest.mark.parametrize('changes, message', [
  ({'train__ema': 1.0}, r'config.train.ema=1.0 must lie in \[0, 1\)'),
  ({'train__average_from': -0.1}, r'config.train.average_from=-0.1 must lie in'),
  ({'train__ema': 0.9, 'train__average_from': 0.5}, 'two ways to average'),
])
def test_a_wrong_average_is_named(root, changes, message):
  with pytest.raises(ValueError, match=message):
    job_lib.check_config(config(root, **changes))
