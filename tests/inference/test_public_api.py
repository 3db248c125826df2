"""Tests of the public API for researchers: names, help, a model's arrays in and out."""

import dataclasses
import inspect
import pydoc
import typing

import jax
import numpy as np
import pytest

import tiny
import xclip_jax
from xclip_jax.data.clips import augment, sampling
from xclip_jax.data.video.decode import VideoError
from xclip_jax.models.xclip import init_params
from xclip_jax.weights import native

CONFIG = xclip_jax.XCLIPConfig(num_frames=4, **tiny.FIELDS)


@pytest.fixture(scope='module')
def weights():
  shapes = jax.eval_shape(lambda: init_params(xclip_jax.XCLIP(CONFIG), jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)
  preprocess = native.Preprocess((120.0, 115.0, 100.0), (60.0, 57.5, 55.25), 1.25, 'pillow')
  return native.Weights(
    CONFIG, params, preprocess, 'a video of {}', 'owner/name', 'huggingface', 'MIT',
    labels=('a dog running', 'a cat asleep'))


@pytest.fixture(scope='module')
def model(weights):
  return xclip_jax.Classifier(weights)


def some_frames(count=9, height=40, width=56):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_help_fits_on_a_screen_and_names_everything_public():
  text = pydoc.plain(pydoc.render_doc(xclip_jax))
  assert len(text.splitlines()) <= 60
  for name in dir(xclip_jax):
    assert name in xclip_jax.__doc__, name
    assert inspect.getmodule(getattr(xclip_jax, name)) is not xclip_jax     # defined in a folder


def test_every_public_name_is_known_to_type_checkers():
  source = inspect.getsource(xclip_jax)
  for name in dir(xclip_jax):
    assert f'import {name} as {name}\n' in source
  assert not typing.TYPE_CHECKING


@pytest.mark.slow
def test_the_example_of_the_help_runs():
  example = '\n'.join(
    line[2:] for line in xclip_jax.__doc__.splitlines() if line.startswith('  '))
  small = example.replace("['a.mp4', 'b.mp4']", "['sample:ring', 'sample:ring']").replace(
    "xclip_jax.init('B/16'", 'xclip_jax.init(CONFIG')
  assert small.count('sample:ring') == 4 and 'CONFIG' in small
  names = {'CONFIG': CONFIG}
  exec(small, names)
  assert names['video_features'].shape == (2, names['model'].config.embed_dim)
  assert names['clip'].dtype == np.float32 and names['out'].logits.shape == (1, 1)
  assert names['net'].config == xclip_jax.make_config('B/16', num_frames=16)


def test_preprocess_gives_the_clip_that_classify_looks_at(model, weights):
  frames = some_frames()
  clip = model.preprocess(frames)
  assert clip.shape == (4, 32, 32, 3) and clip.dtype == np.float32
  pixels = augment.EvalTransform(32, 1.25, 'pillow')(frames[sampling.test_indices(9, 4)])
  mean, std = (np.array(x, np.float32) for x in (weights.preprocess.mean, weights.preprocess.std))
  np.testing.assert_allclose(clip, (pixels.astype(np.float32) - mean) / std, rtol=1e-6)

  ids = xclip_jax.Tokenizer(16)([f'a video of {label}' for label in weights.labels])
  out = jax.jit(model.model.apply)({'params': model.params}, clip[None], ids)
  answer = model.classify(frames)
  np.testing.assert_allclose(jax.nn.softmax(out.logits[0]), answer.probabilities, atol=1e-5)
  np.testing.assert_allclose(out.video_features, model.embed_video(frames), rtol=1e-4, atol=1e-6)
  with pytest.raises(VideoError, match=r'missing\.mp4: cannot be read'):
    model.preprocess('missing.mp4')


@pytest.mark.parametrize('dtype', [
  'float32', pytest.param('bfloat16', marks=pytest.mark.slow), 'int8'])
def test_saved_weights_are_the_ones_that_were_opened_whatever_the_dtype(weights, tmp_path, dtype):
  folder = native.save(tmp_path / 'first', weights)
  opened = xclip_jax.load(folder, dtype=dtype)
  saved = opened.save(tmp_path / 'second')
  again = xclip_jax.load(saved)
  for field in dataclasses.fields(native.Weights):
    if field.name not in ('params', 'notes', 'config'):
      assert getattr(again.weights, field.name) == getattr(weights, field.name), field.name
  assert again.config == opened.config
  jax.tree.map(np.testing.assert_array_equal, again.weights.params, weights.params)
  assert 'MIT' in (saved / 'LICENSE').read_text()
  np.testing.assert_array_equal(
    again.classify(some_frames()).probabilities, opened.classify(some_frames()).probabilities)
  with pytest.raises(FileExistsError, match='exists; choose another name'):
    opened.save(saved)
  assert opened.save(saved, overwrite=True) == saved


def test_other_parameters_are_used_and_saved(model, weights, tmp_path):
  other = jax.tree.map(lambda x: x + np.float32(0.1), weights.params)
  changed = xclip_jax.Classifier(dataclasses.replace(weights, params=other))
  assert np.ptp(changed.embed_video(some_frames()) - model.embed_video(some_frames())) > 1e-3
  jax.tree.map(
    np.testing.assert_array_equal, native.read(changed.save(tmp_path / 'other')).params, other)
  with pytest.raises((TypeError, ValueError), match='params'):
    dataclasses.replace(model, params=other)        # would leave `weights` behind


def test_a_template_given_to_load_replaces_the_stored_one(weights, tmp_path):
  folder = native.save(tmp_path / 'weights', weights)
  bare, stored = xclip_jax.load(folder, template='{}'), xclip_jax.load(folder)
  assert (bare.template, stored.template) == ('{}', 'a video of {}')
  np.testing.assert_array_equal(
    bare.embed_text(['a video of a dog']), stored.embed_text(['a dog']))


@pytest.mark.slow
def test_init_builds_a_model_from_a_config_or_a_published_name(monkeypatch):
  net, params = xclip_jax.init(CONFIG, jax.random.key(0))
  assert net == xclip_jax.XCLIP(CONFIG)
  want = init_params(net, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, want)
  monkeypatch.setitem(xclip_jax.VARIANTS, 'B/16', CONFIG)         # the real one is large
  named, _ = xclip_jax.init('B/16', jax.random.key(0))
  assert named == net
  with pytest.raises(ValueError, match=r"unknown variant 'B/99'; one of \['B/32'"):
    xclip_jax.init('B/99', jax.random.key(0))
