"""A run starts from weights of any kind, or says why it cannot."""

import jax
import numpy as np
import pytest

import tiny
from xclip_jax.models.config import make_config
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state as state_lib
from xclip_jax.training import job as job_lib
from xclip_jax.training import run as run_lib
from xclip_jax.training import start_weights
from xclip_jax.weights import apply
from xclip_jax.weights.files import archive


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def official_file(folder, fields, num_frames=3):
  """Random weights of a tiny model in an official .pth file, and the weights themselves."""
  config = make_config('B/32', num_frames=num_frames, **fields)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32), apply.abstract_params(config))
  archive.write_torch(
    folder / 'official.pth', apply.to_state_dict(params, 'official'), wrap='model')
  return str(folder / 'official.pth'), params


def loaded(config):
  model = job_lib.make_model(config)
  abstract = state_lib.abstract(model, job_lib.optax.identity())
  mesh = mesh_lib.make_mesh(config.mesh)
  return start_weights.load_params(
    config, model, mesh_lib.infer(abstract, config.sharding, mesh))


WIDE = tiny.FIELDS | dict(        # official files have a head every 64
  embed_dim=64, vision_width=64, text_width=64, mit_heads=1, vision_heads=1, text_heads=1,
  prompt_heads=1, vocab_size=49408,
)


def test_a_run_starts_from_official_weights(root, tmp_path):
  file, params = official_file(tmp_path, WIDE)
  config = tiny.config(root, train__init_from=file)
  with config.unlocked():
    config.model.fields = WIDE
  jax.tree.map(np.testing.assert_array_equal, loaded(config), params)
  with config.unlocked():
    config.model.fields = WIDE | dict(text_layers=2)
    config.model.num_frames = 4
  with pytest.raises(ValueError) as error:
    loaded(config)
  assert 'num_frames: 3 there, 4 here' in str(error.value)
  assert 'text_layers: 1 there, 2 here' in str(error.value)
  with config.unlocked():
    config.model.fields = WIDE
    config.train.init_resample = True
  assert loaded(config)['mit']['pos_embed'].shape == (4, 64)


@pytest.mark.slow
def test_a_run_starts_from_clip_with_new_modules_of_its_own_size(root, tmp_path):
  _, params = official_file(tmp_path, WIDE)
  clip = tmp_path / 'clip.pt'
  archive.write_torch(clip, apply.to_state_dict(params, 'openai'))
  config = tiny.config(root, train__init_from=str(clip), train__steps=2, report=False)
  with config.unlocked():
    config.model.fields = WIDE | dict(mit_layers=2, mit_heads=4)
  found = loaded(config)
  jax.tree.map(np.testing.assert_array_equal, found['text'], params['text'])
  assert 'blocks_1' in found['mit']
  with config.unlocked():
    config.seed = 1
  other = loaded(config)
  assert np.abs(other['mit']['pos_embed'] - found['mit']['pos_embed']).max() > 0
  assert run_lib.run(config, tmp_path / 'run')['val/evaluated'] == 41


@pytest.mark.slow
def test_weights_that_are_not_there_are_told_by_the_field(root, tmp_path):
  config = tiny.config(root, train__init_from=str(tmp_path / 'nothing'))
  with pytest.raises(ValueError, match=r'config\.train\.init_from: .*nothing.*is not there'):
    run_lib.run(config, tmp_path / 'run')
