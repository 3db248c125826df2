"""Ways to compute less or hold less in inference: what they change, and what they must not."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xclip_jax.models import attention as attention_lib
from xclip_jax.models import layers, matmul, vision
from xclip_jax.models import layers as layers_lib
from xclip_jax.models.config import XCLIPConfig, with_available_attention
from xclip_jax.models.inference_options import token_merging
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.models.xclip import XCLIP, init_params
from xclip_jax.parallel import mesh as mesh_lib

CONFIG = XCLIPConfig(
  image_size=64, patch_size=16, num_frames=4, embed_dim=32, vision_width=32, vision_layers=2,
  vision_heads=2, vision_mlp=64, text_width=32, text_layers=1, text_heads=2, text_mlp=64,
  vocab_size=64, context_length=8, mit_heads=2, mit_mlp=64, prompt_layers=1, prompt_heads=2,
)


@pytest.fixture(scope='module')
def params():
  shapes = jax.eval_shape(lambda: init_params(XCLIP(CONFIG), jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)


@functools.cache
def compiled(config, deterministic):
  return jax.jit(lambda params, video, ids: XCLIP(config).apply(
    {'params': params}, video, ids, deterministic).logits)


def logits(config, params, video, ids, deterministic=True):
  return compiled(config, deterministic)(params, video, ids)


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(2, 4, 64, 64, 3)).astype(np.float32),
          rng.integers(1, 64, (3, 8), dtype=np.int32))


def merged_by_hand(x, keys, size, place, count):
  """Merges the tokens of one frame in a loop, as the paper describes it."""
  tokens, sizes = list(x[1:]), list(size[1:])
  unit = keys[1:] / np.linalg.norm(keys[1:], axis=-1, keepdims=True)
  evens, odds = range(0, len(tokens), 2), range(1, len(tokens), 2)
  best = sorted(((max((unit[a] @ unit[b], -b) for b in odds), a) for a in evens),
                key=lambda found: -found[0][0])[:count]
  pairs = {a: -found[1] for found, a in best}
  total = {i: tokens[i] * sizes[i] for i in range(len(tokens))}
  for a, b in pairs.items():
    total[b] = total[b] + tokens[a] * sizes[a]
  new = {i: sizes[i] + sum(sizes[a] for a, b in pairs.items() if b == i) for i in odds}
  order = [i for i in evens if i not in pairs] + list(odds)
  values = [total[i] / new.get(i, sizes[i]) for i in order]
  where = {i: order.index(pairs.get(i, i)) for i in range(len(tokens))}
  return (np.stack([x[0], *values]), np.array([size[0], *(new.get(i, sizes[i]) for i in order)]),
          np.array([where[i] for i in place]))


def test_the_most_similar_pairs_are_merged_to_their_mean():
  rng = np.random.default_rng(0)
  X, M, D = 3, 9, 5
  x = rng.normal(size=(X, 1 + M, D)).astype(np.float32)
  state, merge = token_merging.start(X, M), jax.jit(token_merging.merge, static_argnums=3)
  want = [(x[i], np.ones(1 + M), np.arange(M)) for i in range(X)]
  for count in (3, 2, 9):                       # 9: more than there are
    keys = rng.normal(size=(X, x.shape[1], 4)).astype(np.float32)
    x, state = merge(x, keys, state, count)
    for i in range(X):
      want[i] = merged_by_hand(want[i][0], keys[i], want[i][1], want[i][2], count)
      np.testing.assert_allclose(x[i], want[i][0], atol=1e-5)
      np.testing.assert_allclose(state.size[i], want[i][1])
      np.testing.assert_array_equal(state.index[i], want[i][2])
    assert (state.size[:, 1:].sum(-1) == M).all()
  assert x.shape[1] == 1 + 2
  spread = token_merging.spread(x, state)
  assert spread.shape == (X, M, D)
  np.testing.assert_array_equal(spread[1, 4], x[1, 1 + state.index[1, 4]])


@pytest.mark.slow
@pytest.mark.parametrize(('attention', 'counts'), [
  pytest.param('xla', (1, 2, 5), marks=pytest.mark.slow),
  pytest.param('chunked', (1, 2, 5), marks=pytest.mark.slow),
  pytest.param('chunked', (2, 5), marks=pytest.mark.slow),
  pytest.param('chunked', (2,), marks=pytest.mark.slow), ('xla', (2,))])
def test_merging_what_is_equal_changes_nothing(params, attention, counts):
  """A token that stands for n equal ones draws n times the attention: the same numbers."""
  video, ids = inputs()
  flat = np.broadcast_to(video[:, :, :1, :1], video.shape)        # every patch of a frame alike
  same = params | {'vision': params['vision'] | {
    'pos_embed': np.zeros_like(params['vision']['pos_embed'])}}
  config = dataclasses.replace(CONFIG, attention=attention)
  want = logits(config, same, flat, ids)
  for count in counts:
    got = logits(dataclasses.replace(config, merge_tokens=count), same, flat, ids)
    np.testing.assert_allclose(got, want, atol=1e-5)
  assert abs(logits(dataclasses.replace(config, merge_tokens=2), params, video, ids)
             - logits(config, params, video, ids)).max() > 5e-5


def test_training_merges_nothing(params):
  video, ids = inputs()
  found, want = (logits(config, params, video, ids, deterministic=False) for config in (
    dataclasses.replace(CONFIG, merge_tokens=3), CONFIG))
  np.testing.assert_array_equal(found, want)


def test_float32_kernels_are_not_copied(params):
  cast = cast_for_inference(params, CONFIG)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(cast), strict=True):
    assert x is y


def test_cudnn_is_left_out_where_there_is_none():
  trained = dataclasses.replace(CONFIG, attention='cudnn', dtype='bfloat16')
  assert jax.default_backend() == 'cpu' and with_available_attention(trained).attention == 'xla'
  chunked = dataclasses.replace(CONFIG, attention='chunked')
  assert with_available_attention(chunked) == chunked


def test_merging_needs_attention_with_biases():
  with pytest.raises(ValueError, match=r'merge_tokens needs attention=xla or chunked'):
    dataclasses.replace(CONFIG, merge_tokens=2, attention='cudnn')
  with pytest.raises(ValueError, match=r'merge_tokens must be an integer of 0 or more, got -1'):
    dataclasses.replace(CONFIG, merge_tokens=-1)


def test_kernels_of_eight_bits_are_the_nearest(params):
  config = dataclasses.replace(CONFIG, int8_kernels=True)
  small = cast_for_inference(params, config)
  kernel = params['vision']['blocks_0']['mlp']['c_fc']['kernel']
  held = small['vision']['blocks_0']['mlp']['c_fc']
  assert held['kernel'].dtype == np.int8 and held['kernel_scale'].shape == (64,)
  apart = np.abs(held['kernel'] * held['kernel_scale'] - kernel)
  assert (apart <= held['kernel_scale'] / 2 + 1e-7).all()
  assert np.abs(held['kernel']).max(axis=0).min() == 127
  jax.tree.map(np.testing.assert_array_equal, cast_for_inference(small, config), small)    # once
  video, ids = inputs()
  rounded = jax.tree_util.tree_map_with_path(
    lambda path, x: _rounded(x) if path[-1].key == 'kernel' and x.ndim == 2 else x, params)
  got, want = logits(config, small, video, ids), logits(CONFIG, rounded, video, ids)
  np.testing.assert_allclose(got, want, atol=2e-4)                # the scale may come after
  assert abs(got - logits(CONFIG, params, video, ids)).max() > 0


def _rounded(kernel):
  scale = np.abs(kernel).max(axis=0) / 127
  return np.round(kernel / scale) * scale


@pytest.mark.parametrize(('causal', 'qkv_bias'), [
  (True, False), *(pytest.param(*x, marks=pytest.mark.slow) for x in (
    (False, False), (False, True), (True, True)))])
def test_heads_a_few_at_a_time_are_all_at_once(causal, qkv_bias):
  """Two heads of 64 fill the lanes of a TPU; four heads are two products for each map."""
  rng = np.random.default_rng(0)
  x, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 9, 256), (3, 9)))

  def run(implementation):
    layer = layers_lib.Attention(4, causal=causal, qkv_bias=qkv_bias, implementation=implementation)
    params = jax.jit(layer.init)(jax.random.key(0, impl='rbg'), x)
    apply = lambda params, x, bias: layer.apply(params, x, bias=bias, return_keys=True)

    def total(*args):
      found = apply(*args)
      return sum((y ** 2).sum() for y in found), found

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return grad(params, x, bias), str(jax.make_jaxpr(apply)(params, x, bias))

  (found, text), (want, whole) = run('chunked'), run('xla')
  assert [t.count(':f32[3,9,128] = dot_general') for t in (text, whole)] == [6, 0]
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, want)


def test_heads_that_chips_share_are_taken_all_at_once():
  mesh = jax.sharding.AbstractMesh(
    (1, 1, 1, 2), mesh_lib.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
  layer = layers_lib.Attention(4, implementation='chunked')
  x = jnp.ones((2, 5, 256))
  params = jax.eval_shape(layer.init, jax.random.key(0), x)
  with jax.sharding.use_abstract_mesh(mesh):
    text = str(jax.make_jaxpr(layer.apply)(params, x))
  assert ':f32[2,5,256] = dot_general' in text and ':f32[2,5,128] = dot_general' not in text


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_normalising_is_flax_s(dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(5, 64)) * 3 + 1, dtype)
  theirs = nn.LayerNorm(epsilon=1e-5, use_fast_variance=dtype == jnp.bfloat16, dtype=jnp.float32)
  params = {'params': {name: rng.normal(size=64).astype(np.float32) for name in ('scale', 'bias')}}
  found = layers.LayerNorm().apply(params, x)
  np.testing.assert_allclose(found, theirs.apply(params, x), rtol=1e-6, atol=1e-6)
  assert found.dtype == jnp.float32


@pytest.mark.parametrize('ratio', [1, 30, 1000])
def test_normalising_bfloat16_adds_less_error_than_rounding_did(ratio):
  """ratio: of mean to standard deviation, over the widths of a base model."""
  rng = np.random.default_rng(0)
  exact = rng.normal(size=(64, 768)) + ratio
  rounded = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64)
  want, ideal = (
    (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    for x in (exact, rounded))
  x = jnp.asarray(rounded, jnp.bfloat16)
  found = layers.LayerNorm().apply(layers.LayerNorm().init(jax.random.key(0), x), x)
  assert np.abs(found - ideal).max() < 0.3 * np.abs(ideal - want).max()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_patches_of_a_tpu_are_those_of_one_product(dtype):
  """A convolution, which a TPU gets, runs on a CPU too."""
  rng = np.random.default_rng(0)
  frames = jnp.asarray(rng.normal(size=(2, 32, 48, 3)), dtype)
  kernel = jnp.asarray(rng.normal(size=(16, 16, 3, 24)) * 0.05, dtype)
  found = vision._embed_by_convolution(frames, kernel)
  want, backwards = jax.vjp(vision.embed_patches, frames, kernel)
  assert found.shape == want.shape == (2, 6, 24) and found.dtype == want.dtype == jnp.float32
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
  assert [g.dtype for g in backwards(jnp.ones_like(want))] == [dtype, dtype]
  text = {p: jax.jit(vision.embed_patches).trace(frames, kernel).lower(
    lowering_platforms=(p,)).as_text() for p in ('tpu', 'cuda', 'cpu')}
  assert [p for p in text if 'convolution' in text[p]] == ['tpu']


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_the_softmax_is_jax_s_and_waits_in_the_dtype_of_the_product(dtype, tolerance):
  rng = np.random.default_rng(0)
  x, g = (jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32) for _ in range(2))
  y, backwards = jax.vjp(lambda x: matmul.softmax(x, dtype), x)
  want, want_backwards = jax.vjp(jax.nn.softmax, x)
  assert y.dtype == dtype and [z.dtype for z in jax.tree.leaves(backwards)] == [dtype]
  np.testing.assert_array_equal(y, want.astype(dtype))
  found = backwards(g.astype(dtype))[0]
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, want_backwards(g)[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('causal', [False, True])
def test_attention_on_one_device_is_that_on_many(causal):
  """A single CPU cuts the flattened sequences in parts; a mesh leaves the axes as they are."""
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(5, n, 13, 8)).astype(np.float32) for n in (250, 257, 257))
  bias = rng.normal(size=(5, 257)).astype(np.float32)
  parts, whole = (jax.jit(attend, static_argnums=4) for attend in (
    attention_lib._attend_single_device, attention_lib._attend_generic))
  found, want = (attend(q, k, v, bias, causal) for attend in (parts, whole))
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
  text = parts.lower(q, k, v, bias, causal).as_text()
  assert text.count('slice') >= 4                        # 15.9 MiB of scores: two parts


@pytest.mark.parametrize(('L', 'M', 'causal'), [(5, 6, False), (6, 7, False), (7, 7, True)])
def test_cudnn_gets_even_lengths_and_sees_no_padding(monkeypatch, L, M, causal):
  """cuDNN is not here: JAX's own attention stands in for it."""
  theirs = jax.nn.dot_product_attention

  def stand_in(query, key, value, *, implementation, **options):
    assert implementation == 'cudnn' and query.shape[1] % 2 == key.shape[1] % 2 == 0
    return theirs(query, key, value, implementation='xla', **options)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(2, n, 3, 8)).astype(np.float32) for n in (L, M, M))
  attend = lambda implementation, *x: attention_lib.dot_product_attention(
    *x, causal, implementation=implementation)
  run = lambda implementation: jax.jit(jax.value_and_grad(
    lambda *x: (attend(implementation, *x) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
               run('cudnn'), run('xla'))


@pytest.mark.parametrize('name', matmul.ACTIVATIONS)
def test_products_of_activated_layers_differ_by_rounding_in_their_gradient_alone(name):
  x, kernel, dtypes = *an_mlp(), (jnp.float32, jnp.bfloat16)
  for dtype, tolerance in zip(dtypes, (1e-6, 2e-2), strict=True):
    b = kernel.astype(dtype)
    plain = lambda x, b, dtype=dtype: matmul.einsum(
      'XD,DE->XE', matmul.ACTIVATIONS[name](x).astype(dtype), b)
    y, backwards = jax.vjp(lambda x, b: matmul.activated_einsum(name, 'XD,DE->XE', x, b), x, b)
    want, want_backwards = jax.vjp(plain, x, b)
    np.testing.assert_array_equal(y, want)
    for found, wanted in zip(backwards(jnp.ones_like(y)), want_backwards(jnp.ones_like(y)),
                             strict=True):
      assert found.dtype == wanted.dtype
      np.testing.assert_allclose(*(z.astype(np.float32) for z in (found, wanted)), rtol=tolerance,
                                 atol=tolerance)


def test_between_the_passes_an_activated_layer_waits_alone_and_in_bfloat16():
  x, kernel = an_mlp()
  backwards = jax.vjp(lambda x, b: matmul.activated_einsum('quick_gelu', 'XD,DE->XE', x, b), x,
                      kernel.astype(jnp.bfloat16))[1]
  kept = [z for z in jax.tree.leaves(backwards) if z.shape == x.shape]
  assert [z.dtype for z in kept] == [jnp.bfloat16]


@pytest.mark.parametrize(('platform', 'marked'), [('cuda', True), ('rocm', True), ('tpu', False)])
def test_what_waits_in_bfloat16_is_marked_for_gpus_alone(platform, marked):
  x, kernel = an_mlp()
  total = lambda x, b: matmul.activated_einsum('quick_gelu', 'XD,DE->XE', x, b).sum()
  grad = jax.jit(jax.grad(total, argnums=(0, 1))).trace(x, kernel.astype(jnp.bfloat16))
  text = grad.lower(lowering_platforms=(platform,)).as_text()
  assert ('optimization_barrier' in text) == marked


def an_mlp():
  rng = np.random.default_rng(0)
  return (jnp.asarray(rng.normal(size=(40, 24)) * 3, jnp.float32),
          jnp.asarray(rng.normal(size=(24, 7)) * 0.1, jnp.float32))


def test_remat_dots_computes_nothing_of_a_block_again_but_attention():
  """With 'nothing' all products but the last are: its result waits for nobody."""
  block = lambda remat: nn.remat(layers.Block, policy=layers.REMAT_POLICIES[remat]) if remat else (
    layers.Block)

  def count(remat):
    layer = block(remat)(heads=2, mlp_width=32, inits=layers.torch_init(16, 32))
    x = jnp.ones((3, 5, 16))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    grad = jax.grad(lambda p, x: layer.apply(p, x).sum(), argnums=(0, 1))
    return str(jax.make_jaxpr(grad)(params, x)).count('dot_general[')

  plain = count(None)
  assert [count(remat) - plain for remat in ('dots', 'nothing')] == [2, 7]
