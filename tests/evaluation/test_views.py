"""Several views of a video: the mean of their probabilities counts, once a video."""

import json

import jax
import numpy as np
import optax
import pytest

import tiny
from xclip_jax.data import open_splits
from xclip_jax.data.clips import augment, sampling
from xclip_jax.data.video import decode
from xclip_jax.evaluation import scores
from xclip_jax.models import vision
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.training import evaluate_run as evaluation_lib
from xclip_jax.training import job as job_lib
from xclip_jax.training import run as run_lib
from xclip_jax.weights import apply


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def evaluation(config):
  mesh = mesh_lib.make_mesh(config.mesh)
  splits = open_splits(config.data, config.train.task)
  return evaluation_lib.Evaluation(config, job_lib.make_model(config), mesh, splits)


def random_params(evaluation):
  return draw_params(evaluation.model.config, 0)


def draw_params(config, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
                      apply.abstract_params(config))


def evaluate_run(config, workdir, seed=0):
  """Leaves the folder of a run with random parameters in place of trained ones; its results."""
  params = draw_params(job_lib.make_model(config).config, seed)
  workdir.mkdir()
  (workdir / 'config.json').write_text(config.to_json_best_effort())
  with Checkpoints(workdir) as checkpoints:
    checkpoints.save(2, state.create(params, optax.identity()), {}, 0.5)
  return run_lib.run(config, workdir, 'eval')


def test_probabilities_are_the_mean_over_crops_and_clips(root):
  several = evaluation(tiny.config(root, eval__clips=2, eval__crops=3))
  params = random_params(several)
  got = several.score_splits(params)[0]['val']
  assert got.index.tolist() == list(range(41)) and got.expected == 41
  np.testing.assert_allclose(got.averaged.sum(1), 1, atol=1e-5)
  config, model = several.config, several.model
  text = several.encode_text(params, 'val')
  normalize = lambda x: vision.normalize(x, config.data.mean, config.data.std)
  transform = augment.EvalTransform(32, config.data.eval_resize, crops=3)
  rows, choose = (0, 17, 40), lambda n: sampling.view_indices(n, 3, 2).ravel()
  paths = [several.splits['val'].videos[row]['path'] for row in rows]
  views = np.stack([transform(decode.read_video(path, choose)) for path in paths])
  views = normalize(views.reshape(18, 3, 32, 32, 3))           # 3 videos x 3 crops x 2 clips
  logits = jax.jit(lambda params, x: model.apply(
    {'params': params}, x, text, method='classify').logits)
  each = np.array(jax.nn.softmax(logits(params, views))).reshape(3, 6, -1)
  np.testing.assert_allclose(got.averaged[list(rows)], each.mean(1), atol=1e-6)
  assert np.ptp(each, axis=1).max() > 1e-5


@pytest.mark.parametrize('run', [
  evaluate_run, pytest.param(run_lib.run, marks=pytest.mark.slow)])
def test_a_run_takes_every_option_and_its_report_shows_one_clip_a_video(root, tmp_path, run):
  config = tiny.config(
    root, train__steps=2, report=False, data__zero_shot='', eval__clips=2, eval__crops=3,
    eval__views='reference', data__sampling='dense', data__stride=2, augment__rand_augment=2,
    augment__erase=0.5, augment__repeats=2,
  )
  results = run(config, tmp_path / 'run')
  assert np.isfinite(results['val/top1'])
  saved = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert saved['val/evaluated'] == saved['val/expected'] == 41
  clips = evaluation(config).sample_clips(scores.load(tmp_path / 'run' / 'predictions_val.npz'))
  assert {clip.frames.shape for clip in clips} == {(3, 32, 32, 3)}
