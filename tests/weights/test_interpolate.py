"""Tests of interpolated weights: the formula's values, and only between models of one shape."""

import dataclasses

import jax
import numpy as np
import pytest

import xclip_jax
from xclip_jax.cli import main
from xclip_jax.models.config import FRAME_MEAN, XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply, hub, interpolate, native
from xclip_jax.weights.files import archive

CONFIG = XCLIPConfig(
  image_size=32, patch_size=16, num_frames=3, embed_dim=64, vision_width=64, vision_layers=1,
  vision_heads=1, vision_mlp=96, text_width=64, text_layers=1, text_heads=1, text_mlp=96,
  context_length=16, mit_heads=1, mit_mlp=256, prompt_layers=1, prompt_heads=1,
)


def weights(seed, config=CONFIG, **fields):
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.standard_normal(x.shape, np.float32)
  params = jax.tree.map(draw, apply.abstract_params(config))
  return native.Weights(config, params, source=f'model {seed}', **fields)


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_every_parameter_is_that_share_of_the_way(alpha):
  first, second = weights(0, licence='MIT'), weights(1, template='a video of {}', licence='mine')
  mixed = interpolate.interpolate(first, second, alpha)
  left, right = tree_names.flatten(first.params), tree_names.flatten(second.params)
  for name, x in tree_names.flatten(mixed.params).items():
    assert x.dtype == np.float32
    want = left[name] + np.float64(alpha) * (right[name].astype(np.float64) - left[name])
    np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-7, err_msg=name)
    if alpha in (0.0, 1.0):                                  # the ends are exact
      np.testing.assert_array_equal(x, (left, right)[int(alpha)][name], err_msg=name)
  assert mixed.template == 'a video of {}' and mixed.licence == 'MIT; and mine'
  assert 'model 0' in mixed.source and 'model 1' in mixed.source


def test_between_models_that_differ_is_nothing():
  other = weights(1, dataclasses.replace(CONFIG, vision_mlp=128, mit=False))
  differences = r'(?s)not the same model.*vision_mlp: 96 and 128.*mit: True'
  with pytest.raises(ValueError, match=differences):
    interpolate.interpolate(weights(0), other, 0.5)
  same = weights(1, dataclasses.replace(CONFIG, dtype='bfloat16', drop_path=0.1))
  assert interpolate.interpolate(weights(0), same, 0.5).config == same.config


@pytest.mark.parametrize('alpha', [-0.1, 1.1, float('nan')])
def test_alpha_is_a_share(alpha):
  with pytest.raises(ValueError, match=r'alpha must lie in \[0, 1\]'):
    interpolate.interpolate(weights(0), weights(1), alpha)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_writes_weights_that_load(tmp_path, capsys):
  first, second = (native.save(tmp_path / f'{i}', weights(i)) for i in (0, 1))
  command = ['weights', 'interpolate', str(first), str(second), '-o', str(tmp_path / 'mixed')]
  assert main.main([*command, '--alpha', '0.25']) == 0
  assert '0.75 x' in capsys.readouterr().out
  loaded = xclip_jax.load(tmp_path / 'mixed')
  want = interpolate.interpolate(weights(0), weights(1), 0.25)
  for name, x in tree_names.flatten(want.params).items():
    np.testing.assert_array_equal(tree_names.flatten(loaded.params)[name], x, err_msg=name)
  assert main.main(command) == 2                              # it is there
  assert 'exists' in capsys.readouterr().err
  assert main.main([*command, '--overwrite']) == 0


@pytest.mark.parametrize('parts', [
  pytest.param(FRAME_MEAN, marks=pytest.mark.slow),
  pytest.param({}, marks=pytest.mark.slow)], ids=['frame mean', 'all parts'])
def test_a_clip_is_completed_as_the_run_completed_it(tmp_path, parts):
  config = dataclasses.replace(CONFIG, **parts)
  clip = apply.to_state_dict(weights(0, config).params, 'openai')
  archive.write_torch(tmp_path / 'clip.pth', clip)
  tuned = native.save(tmp_path / 'tuned', weights(1, config))
  command = ['weights', 'interpolate', str(tmp_path / 'clip.pth'), str(tuned), '--alpha', '0']
  assert main.main([*command, '--seed', '3', '-o', str(tmp_path / 'start')]) == 0
  start = hub.read(tmp_path / 'clip.pth', seed=3, num_frames=3, new_modules=config)
  found = tree_names.flatten(hub.read(tmp_path / 'start').params)
  for name, x in tree_names.flatten(start.params).items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_the_command_says_what_it_cannot_do(tmp_path, capsys):
  first = native.save(tmp_path / 'first', weights(0))
  other = native.save(tmp_path / 'other', weights(1, dataclasses.replace(CONFIG, mit=False)))
  command = ['weights', 'interpolate', str(first), str(other), '-o', str(tmp_path / 'out')]
  assert main.main(command) == 2
  assert 'mit: True and False' in capsys.readouterr().err
  assert main.main([*command[:3], '/no/where', *command[4:]]) == 2
  assert main.main([*command, '--alpha', '2']) == 2
  assert not (tmp_path / 'out').exists()
