"""Tests of the model beyond its numbers, which test_parity.py compares."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goldens_io import Case
from xclip_jax.models.config import VARIANTS, XCLIPConfig, make_config
from xclip_jax.models.vision import DropPath
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.weights.apply import abstract_params

TINY = dict(
  image_size=32, patch_size=16, num_frames=4, embed_dim=128, vision_width=64, vision_layers=2,
  vision_heads=2, vision_mlp=256, text_width=64, text_layers=2, text_heads=2, text_mlp=256,
  vocab_size=128, context_length=16, mit_heads=2, mit_mlp=512, prompt_heads=2,
)

@pytest.fixture(scope='module')
def case():
  return Case('A_T4')     # every parameter random, so no mechanism hides behind a zero


@pytest.fixture(scope='module')
def forward(case):
  model = XCLIP(case.config)
  run = jax.jit(lambda params, video, ids: model.apply({'params': params}, video, ids))
  return lambda video, ids, params=case.params: run(params, video, ids)


@pytest.fixture(scope='module')
def encode_text(case):
  model = XCLIP(case.config)
  run = jax.jit(lambda params, ids: model.apply({'params': params}, ids, method='encode_text'))
  return lambda ids: run(case.params, ids)


def close(got, want, atol=1e-5):
  np.testing.assert_allclose(got, want, atol=atol, rtol=1e-5)


# --- what is refused, and how ------------------------------------------------------------------


@functools.cache
def shapes_of(video=(2, 4, 32, 32, 3), ids=(5, 16), video_dtype='float32', ids_dtype='int32'):
  """Traces the forward pass without running any of it."""
  config = XCLIPConfig(**TINY)
  return jax.eval_shape(
    XCLIP(config).apply, {'params': abstract_params(config)},
    jax.ShapeDtypeStruct(video, video_dtype), jax.ShapeDtypeStruct(ids, ids_dtype),
  )


@pytest.mark.parametrize(('arguments', 'words'), [
  (dict(video=(2, 8, 32, 32, 3)), r'\[B, 4, 32, 32, 3\].*\[2, 8, 32, 32, 3\].*sample 4 frames'),
  (dict(video=(2, 4, 48, 48, 3)), r'\[2, 4, 48, 48, 3\].*crop to 32 pixels'),
  (dict(video=(2, 4, 3, 32, 32)), r'\[2, 4, 3, 32, 32\]'),
  (dict(video=(4, 32, 32, 3)), r'\[4, 32, 32, 3\]'),
  (dict(video_dtype='uint8'), r'floating point and normalised.*uint8'),
  (dict(ids=(5, 17)), r'context length 16.*\[5, 17\]'),
  (dict(ids=(5, 0)), r'\[5, 0\]'),
  (dict(ids=(16,)), r'token_ids must be \[K, S\].*\[16\]'),
  (dict(ids_dtype='float32'), r'token_ids must be integers, got float32'),
])
def test_inputs_that_do_not_fit_are_refused_before_any_compute(arguments, words):
  assert shapes_of().logits.shape == (2, 5)
  with pytest.raises(ValueError, match=words):
    shapes_of(**arguments)


@pytest.mark.parametrize(('method', 'shape'), [('encode_video', (1, 8, 32, 32, 3)),
                                               ('encode_text', (5, 17))])
def test_each_encoder_checks_its_own_input(method, shape):
  config = XCLIPConfig(**TINY)
  dtype = jnp.float32 if method == 'encode_video' else jnp.int32
  with pytest.raises(ValueError, match=str(list(shape)).replace('[', r'\[')):
    jax.eval_shape(
      lambda params, x: XCLIP(config).apply({'params': params}, x, method=method),
      abstract_params(config), jax.ShapeDtypeStruct(shape, dtype),
    )


@pytest.mark.parametrize('shape', [(5, 64), (128,), (2, 5, 128)])
def test_text_features_of_another_model_are_refused(shape):
  config = XCLIPConfig(**TINY)
  with pytest.raises(ValueError, match=r'\[K, 128\] as encode_text gives them'):
    jax.eval_shape(
      lambda params, video, text: XCLIP(config).apply(
        {'params': params}, video, text, method='classify'),
      abstract_params(config), jax.ShapeDtypeStruct((2, 4, 32, 32, 3), jnp.float32),
      jax.ShapeDtypeStruct(shape, jnp.float32),
    )


@pytest.mark.parametrize(('fields', 'words'), [
  (dict(vision_heads=5), r'vision_heads=5 does not divide vision_width=64'),
  (dict(text_heads=3), r'text_heads=3 does not divide text_width=64'),
  (dict(mit_heads=3), r'mit_heads=3 does not divide embed_dim=128'),
  (dict(prompt_heads=7), r'prompt_heads=7 does not divide embed_dim=128'),
  (dict(image_size=40), r'image_size=40 is not a multiple of patch_size=16'),
  (dict(num_frames=0), r'num_frames must be a positive integer, got 0'),
  (dict(vision_layers=2.0), r'vision_layers must be a positive integer, got 2.0'),
  (dict(remat='all'), r"remat='all' is unknown.*dots"),
  (dict(dtype='float16'), r"dtype='float16' is unknown.*bfloat16"),
  (dict(residual_dtype='half'), r"residual_dtype='half' is unknown"),
  (dict(attention='flash'), r"attention='flash' is unknown.*cudnn"),
  (dict(vision_activation='relu'), r"vision_activation='relu' is unknown"),
  (dict(text_activation='relu'), r"text_activation='relu' is unknown"),
  (dict(drop_path=1.0), r'drop_path must lie in \[0, 1\), got 1.0'),
])
def test_an_architecture_that_cannot_be_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    XCLIPConfig(**(TINY | fields))


def test_unknown_variants_and_fields_are_named():
  with pytest.raises(ValueError, match=r"'B/64'.*'B/32'"):
    make_config('B/64')
  with pytest.raises(ValueError, match=r"no field.*'frames'"):
    make_config('B/32', frames=8)
  assert make_config('B/16', num_frames=32).num_frames == 32


def test_cudnn_attention_is_a_choice():
  assert XCLIPConfig(**TINY, attention='cudnn').attention == 'cudnn'


# --- sizes and initial values ------------------------------------------------------------------


@pytest.mark.parametrize(('variant', 'frames', 'count'), [
  ('B/32', 8, 196_585_729),
  ('B/16', 8, 194_929_153),
  ('B/16', 32, 194_941_441),
  ('L/14', 8, 575_673_601),
  ('L/14@336', 16, 576_007_425),
])
def test_variants_have_the_published_number_of_parameters(variant, frames, count):
  params = abstract_params(make_config(variant, num_frames=frames))
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count


def test_variants_have_the_published_frame_counts():
  assert {name: config.num_frames for name, config in VARIANTS.items()} == {
    'B/32': 8, 'B/16': 8, 'L/14': 8, 'L/14@336': 16,
  }


@pytest.fixture(scope='module')
def initial():
  model = XCLIP(XCLIPConfig(**TINY))
  video, ids = jnp.zeros((1, 4, 32, 32, 3)), jnp.zeros((1, 16), jnp.int32)
  key = jax.random.key(0, impl='rbg')      # compiles several times faster than the default
  return tree_names.flatten(jax.jit(model.init)(key, video, ids)['params'])


D, E, W, LAYERS = 64, 128, 64, 2


@pytest.mark.parametrize(('name', 'bound'), [
  ('vision/blocks_1/message_fc/kernel', D**-0.5),
  ('vision/blocks_1/message_fc/bias', D**-0.5),
  ('vision/blocks_1/message_attn/query/kernel', (6 / (4 * D)) ** 0.5),
  ('vision/blocks_1/message_attn/value/kernel', (6 / (4 * D)) ** 0.5),
  ('vision/blocks_1/message_attn/out/kernel', D**-0.5),
  ('mit/blocks_0/attn/key/kernel', (6 / (4 * E)) ** 0.5),
  ('vision/patch_embed/kernel', (3 * 16 * 16) ** -0.5),
])
def test_uniform_initial_values_fill_the_reference_bounds(initial, name, bound):
  x = np.asarray(initial[name])
  assert np.abs(x).max() <= bound
  assert np.abs(x).max() > 0.9 * bound
  np.testing.assert_allclose(x.std(), bound / 3**0.5, rtol=0.15)


@pytest.mark.parametrize(('name', 'std'), [
  ('mit/pos_embed', 0.02),
  ('mit/blocks_0/attn/out/kernel', 0.02),
  ('mit/blocks_0/mlp/c_fc/kernel', 0.02),
  ('prompt/visual_proj/kernel', 1.0),
  ('prompt/blocks_1/cross_attn/query/kernel', 0.02),
  ('prompt/blocks_1/mlp/c_proj/kernel', 0.02),
  ('text/token_embed/embedding', 0.02),
  ('text/pos_embed', 0.01),
  ('text/blocks_0/attn/query/kernel', W**-0.5),
  ('text/blocks_0/attn/out/kernel', W**-0.5 * (2 * LAYERS) ** -0.5),
  ('text/blocks_0/mlp/c_fc/kernel', (2 * W) ** -0.5),
  ('text/proj/kernel', W**-0.5),
  ('vision/proj/kernel', D**-0.5),
])
def test_normal_initial_values_have_the_reference_spread(initial, name, std):
  x = np.asarray(initial[name])
  np.testing.assert_allclose(x.std(), std, rtol=0.12)     # 512 values and more: 3 % is one sigma
  assert abs(x.mean()) < 0.2 * std
  assert np.abs(x).max() > 2.5 * std                      # not cut at two sigma


def test_constant_initial_values_are_those_of_the_reference(initial):
  np.testing.assert_array_equal(initial['prompt/alpha'], np.full(E, 0.1, np.float32))
  np.testing.assert_allclose(initial['logit_scale'], math.log(1 / 0.07), rtol=1e-6)
  norms = [k.removesuffix('/scale') for k in initial if k.endswith('/scale')]
  assert len(norms) == 2 * 3 + 2 + 2 * 2 + 1 + 2 + 2 + 2 * 2  # blocks, ends; by towers
  for norm in norms:
    np.testing.assert_array_equal(initial[f'{norm}/scale'], 1)
    np.testing.assert_array_equal(initial[f'{norm}/bias'], 0)
  for name, x in initial.items():
    if name.endswith('bias') and ('attn' in name or name.startswith(('mit', 'prompt/blocks'))):
      np.testing.assert_array_equal(x, 0, err_msg=name)


def test_parameters_stay_float32_when_compute_is_bfloat16():
  config = XCLIPConfig(**TINY, dtype='bfloat16', residual_dtype='bfloat16')
  params = abstract_params(config)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  out = jax.eval_shape(
    XCLIP(config).apply, {'params': params},
    jax.ShapeDtypeStruct((2, 4, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((5, 16), jnp.int32),
  )
  assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype('float32')}


# --- what changes nothing, and what must change something --------------------------------------


def test_padding_changes_no_text_feature(case, encode_text):
  c, rng = case.config, np.random.default_rng(0)
  eos = c.vocab_size - 1
  lengths = np.arange(2, c.context_length + 1)      # one text for every place of its last token
  ids = rng.integers(1, eos, (len(lengths), c.context_length), dtype=np.int32)
  ids[np.arange(len(ids)), lengths - 1] = eos
  after = np.arange(c.context_length) >= lengths[:, None]
  with_zeros, with_eos = np.where(after, 0, ids), np.where(after, eos, ids)
  want = encode_text(with_zeros)
  close(encode_text(with_eos), want)
  for longest in (5, 11):
    close(encode_text(with_zeros[lengths <= longest, :longest]), want[lengths <= longest])


def test_classify_with_cached_features_is_the_forward_pass(case, forward, encode_text):
  model, variables = XCLIP(case.config), {'params': case.params}
  call = lambda method, *inputs: jax.jit(
    lambda variables, *inputs: model.apply(variables, *inputs, method=method))(variables, *inputs)
  want = forward(case.video, case.token_ids)
  text = encode_text(case.token_ids)
  for video in (case.video, call('encode_video', case.video)):
    jax.tree.map(close, call('classify', video, text), want)


def test_order_of_videos_and_classes_is_the_callers(case, forward):
  rng = np.random.default_rng(1)
  want = forward(case.video, case.token_ids)
  videos, texts = np.array([1, 0]), rng.permutation(len(case.token_ids))
  got = forward(case.video[videos], case.token_ids[texts])
  close(got.logits, np.asarray(want.logits)[videos][:, texts])
  close(got.conditioned_text_features, np.asarray(want.conditioned_text_features)[videos][:, texts])
  close(got.frame_features, np.asarray(want.frame_features)[videos])
  close(got.text_features, np.asarray(want.text_features)[texts])


def test_videos_of_a_batch_do_not_see_each_other(case, forward):
  other = case.video.copy()
  other[1] = np.random.default_rng(2).normal(size=other[1].shape)
  before, after = forward(case.video, case.token_ids), forward(other, case.token_ids)
  close(after.logits[0], before.logits[0], atol=1e-6)
  close(after.frame_features[0], before.frame_features[0], atol=1e-6)
  assert np.abs(after.logits[1] - before.logits[1]).max() > 1e-2


def test_frames_of_a_video_see_each_other(case, forward):
  other = case.video.copy()
  other[:, -1] = np.random.default_rng(3).normal(size=other[:, -1].shape)
  before, after = forward(case.video, case.token_ids), forward(other, case.token_ids)
  assert np.abs(after.frame_features[:, 0] - before.frame_features[:, 0]).max() > 1e-3


def test_only_the_position_table_of_mit_knows_the_order_of_frames(case, forward):
  shuffled = case.video[:, [2, 0, 3, 1]]
  before, after = forward(case.video, case.token_ids), forward(shuffled, case.token_ids)
  assert np.abs(after.logits - before.logits).max() > 1e-3
  mit = case.params['mit'] | {'pos_embed': np.zeros_like(case.params['mit']['pos_embed'])}
  params = case.params | {'mit': mit}
  before = forward(case.video, case.token_ids, params)
  close(forward(shuffled, case.token_ids, params).logits, before.logits)


# --- stochastic depth --------------------------------------------------------------------------


def drop(rate, x, num_videos, deterministic=False, seed=0):
  rngs = {'drop_path': jax.random.key(seed)}
  return DropPath(rate).apply({}, x, num_videos, deterministic, rngs=rngs)


@pytest.mark.parametrize(('rate', 'deterministic'), [(0.0, False), (0.9, True)])
def test_drop_path_that_is_off_is_exact(rate, deterministic):
  x = np.random.default_rng(0).normal(size=(6, 5, 8)).astype(np.float32)
  np.testing.assert_array_equal(drop(rate, x, 3, deterministic), x)


@pytest.mark.parametrize('rate', [0.5, 0.95])
@pytest.mark.parametrize('shape', [(64 * 3, 5, 8), (64, 3, 8)])
def test_drop_path_drops_whole_videos_and_scales_the_others(rate, shape):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  got = np.asarray(drop(rate, x, 64)).reshape(64, -1)
  dropped = (got == 0).all(axis=1)
  assert 0 < dropped.sum() < 64
  want = x.reshape(64, -1)[~dropped] / (1 - rate)
  np.testing.assert_allclose(got[~dropped], want, rtol=1e-6)


def test_drop_path_keeps_the_expected_value():
  got = drop(0.3, np.ones((4000, 2), np.float32), 4000)
  np.testing.assert_allclose(got.mean(), 1, atol=0.05)     # 5 sigma: 5 * sqrt(.3 / .7 / 4000)


@pytest.mark.slow
def test_stochastic_depth_acts_in_training_only(case):
  config = dataclasses.replace(case.config, drop_path=0.9)
  model = XCLIP(config)

  def run(model, deterministic):
    apply = jax.jit(lambda params, seed: model.apply(
      {'params': params}, case.video, case.token_ids, deterministic,
      rngs={'drop_path': jax.random.key(seed)}).logits)
    return lambda seed: apply(case.params, seed)

  off = run(XCLIP(case.config), False)(0)
  np.testing.assert_array_equal(run(model, True)(0), off)
  train = run(model, False)
  draws = np.stack([train(seed) for seed in range(4)])
  assert np.abs(draws - np.asarray(off)).max() > 1e-2
  np.testing.assert_array_equal(draws[0], train(0))
