"""The graphs of whole models give in onnxruntime what they give in JAX."""

import dataclasses
import functools

import conversion
import jax
import numpy as np
import pytest

import xclip_jax
from xclip_jax.export.graphs import pixels
from xclip_jax.export.onnx.convert import save, to_model
from xclip_jax.export.onnx.values import Value
from xclip_jax.models.xclip import XCLIP, VideoFeatures, class_probabilities
from xclip_jax.weights.native import Preprocess

RNG = np.random.default_rng(0)


def graphs(config, params) -> dict:
  """Returns function, inputs and outputs of each graph of a model."""
  c = config
  apply = lambda method, *arrays: XCLIP(c).apply({'params': params}, *arrays, method=method)
  features = lambda name: Value(name, ('B', c.embed_dim), 'float32')
  patches = Value('patches', ('B', (c.image_size // c.patch_size)**2, c.embed_dim), 'float32')
  frames = Value('x', ('B', c.num_frames, c.image_size, c.image_size, 3), 'float32')

  def video(x):
    encoded = apply('encode_video', x)
    return encoded.video_features, encoded.patch_features

  def score(v, p, t):
    encoded = VideoFeatures(v, v[:, None], p)
    return (class_probabilities(apply('classify', encoded, t).logits),)

  ids = Value('ids', ('K', c.context_length), 'int32')
  texts = Value('texts', ('K', c.embed_dim), 'float32')
  return {
    'video': (video, [frames], ['video', 'patches']),
    'text': (lambda ids: (apply('encode_text', ids),), [ids], ['texts']),
    'score': (score, [features('video'), patches, texts], ['scores'])}


def draw(inputs, config, B: int, K: int) -> list[np.ndarray]:
  shapes = [[dict(B=B, K=K).get(size, size) for size in value.shape] for value in inputs]
  return [RNG.integers(0, config.vocab_size, shape).astype(np.int32) if value.dtype == 'int32'
          else RNG.standard_normal(shape).astype(np.float32)
          for value, shape in zip(inputs, shapes, strict=True)]


@functools.cache
def toy():
  weights = xclip_jax.load('toy')
  return weights.config, jax.tree.map(np.asarray, weights.params)


@functools.cache
def converted(name: str):
  return to_model(*graphs(*toy())[name])


@functools.cache
def compiled(name: str):
  """Compiles a graph of the toy model; parameters are arguments, which XLA need not fold."""
  config, params = toy()
  function = jax.jit(lambda params, *arrays: graphs(config, params)[name][0](*arrays))
  return lambda *arrays: function(params, *arrays)


@pytest.mark.parametrize('name', ['video', 'text'])
def test_the_towers_of_the_toy_model_are_jax_s_for_every_number_of_videos_and_texts(name):
  config, params = toy()
  loaded = conversion.session(converted(name))
  array, = draw(graphs(config, params)[name][1], config, 8, 40)
  expected = compiled(name)(array)
  for count in (1, 3, 8) if name == 'video' else (1, 5, 40):     # each one is computed alone
    for result, want in zip(conversion.run(loaded, array[:count]), expected, strict=True):
      np.testing.assert_allclose(result, want[:count], atol=1e-5 * float(abs(want).max()))


def test_the_scores_of_the_toy_model_are_jax_s_for_every_number_of_videos_and_texts():
  loaded = conversion.session(converted('score'))
  for B, K in ((1, 1), (3, 5), (8, 40)):
    arrays = draw(graphs(*toy())['score'][1], toy()[0], B, K)
    expected, = compiled('score')(*arrays)
    result, = conversion.run(loaded, *arrays)
    np.testing.assert_allclose(result, expected, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize(('resize', 'share'), [('opencv', 0.0), ('pillow', 0.002)])
def test_frames_of_any_size_are_resized_to_the_same_pixels(resize, share):
  # Pillow's weights are quotients of float32 numbers, which compilers round in their own ways.
  function = lambda x: (pixels.resize_and_crop(x, Preprocess(filter=resize), 16),)
  loaded = conversion.session(to_model(
    function, [Value('frames', ('B', 'T', 'H', 'W', 3), 'uint8')], ['pixels']))
  for shape in ((2, 1, 37, 90), (1, 3, 40, 20)):
    frames = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    result, expected = conversion.run(loaded, frames)[0], jax.jit(function)(frames)[0]
    difference = np.abs(result - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= share


def test_layers_become_the_operators_that_runtimes_know():
  operators = [node.op_type for node in converted('video').graph.node]
  assert operators.count('LayerNormalization') == 14
  assert operators.count('Softmax') == 7
  assert not {'Exp', 'Reciprocal', 'ReduceSum', 'ReduceMax'}.intersection(operators)


def test_a_bfloat16_model_becomes_a_float16_file_of_half_the_size():
  config, params = toy()
  half = to_model(*graphs(dataclasses.replace(config, dtype='bfloat16'), params)['video'])
  assert half.ByteSize() < 0.55 * converted('video').ByteSize()
  arrays = draw(graphs(config, params)['video'][1], config, 8, 1)
  results = conversion.run(conversion.session(half), *arrays)
  for result, want in zip(results, compiled('video')(*arrays), strict=True):
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, want, atol=0.02 * float(abs(want).max()))


def test_constants_have_the_names_that_the_caller_gives():
  kernel = jax.numpy.ones((3, 2))
  equal = jax.numpy.ones((3, 2))             # is stored once
  model = to_model(lambda x: (x @ kernel, -x @ equal), [Value('x', ('B', 3), 'float32')],
                   ['y', 'z'], names={id(kernel): 'dense/kernel'})
  assert [constant.name for constant in model.graph.initializer] == ['dense/kernel']


def test_a_model_of_many_bytes_keeps_its_constants_in_a_second_file(tmp_path, monkeypatch):
  monkeypatch.setattr('xclip_jax.export.onnx.convert._ONE_FILE', 100_000)
  arrays = draw(graphs(*toy())['score'][1], toy()[0], 2, 3)
  expected = conversion.run(conversion.session(converted('score')), *arrays)
  save(to_model(*graphs(*toy())['score']), tmp_path / 'score.onnx')
  assert (tmp_path / 'score.onnx').stat().st_size < 100_000
  assert (tmp_path / 'score.onnx.data').stat().st_size > 300_000
  session = conversion.onnxruntime.InferenceSession(str(tmp_path / 'score.onnx'))
  np.testing.assert_array_equal(conversion.run(session, *arrays)[0], expected[0])
