"""Parts of the model can be left out: then it is the simpler model that this names, no other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xclip_jax.models.config import FRAME_MEAN, make_config
from xclip_jax.models.vision import PatchDropout
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply, hub, native
from xclip_jax.weights.files import archive

TINY = dict(
  image_size=32, patch_size=16, num_frames=3, embed_dim=64, vision_width=128, vision_layers=2,
  vision_heads=2, vision_mlp=256, text_width=64, text_layers=2, text_heads=1, text_mlp=256,
  vocab_size=300, context_length=16, mit_heads=2, mit_mlp=96, prompt_heads=2,
)
ALL = make_config('B/32', **TINY)
MEAN = dataclasses.replace(ALL, **FRAME_MEAN)
IDS = np.array([[298, 5, 7, 299] + [0] * 12, [298, 9, 299] + [0] * 13], np.int32)


@functools.cache
def random_params(config):
  rng = np.random.default_rng(0)
  draw = lambda x: np.asarray(0.3 * rng.standard_normal(x.shape), np.float32)
  return jax.tree.map(draw, apply.abstract_params(config))


def random_video(seed=0, B=2):
  return np.random.default_rng(seed).standard_normal((B, 3, 32, 32, 3)).astype(np.float32)


@functools.cache
def compiled(config):
  return jax.jit(XCLIP(config).apply)


def forward(config, params, video):
  return compiled(config)({'params': params}, video, IDS)


# --- CLIP, written down once more, in numpy ------------------------------------------------------


def norm(x, state, name):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * state[f'{name}.weight'] + state[f'{name}.bias']


def clip_image(state, frames, heads=2):
  """OpenAI's VisionTransformer on frames [X, H, W, 3], from its own state dict: [X, E]."""
  state = {k: np.asarray(x, np.float64) for k, x in state.items()}
  P, X = 16, len(frames)
  patches = frames.reshape(X, 2, P, 2, P, 3).transpose(0, 1, 3, 5, 2, 4).reshape(X, 4, -1)
  x = patches @ state['visual.conv1.weight'].reshape(128, -1).T
  first = np.broadcast_to(state['visual.class_embedding'], (X, 1, 128))
  x = np.concatenate([first, x], 1) + state['visual.positional_embedding']
  x = norm(x, state, 'visual.ln_pre')
  for i in range(2):
    block = f'visual.transformer.resblocks.{i}'
    y = norm(x, state, f'{block}.ln_1')
    qkv = y @ state[f'{block}.attn.in_proj_weight'].T + state[f'{block}.attn.in_proj_bias']
    q, k, v = (z.reshape(X, 5, heads, -1).transpose(0, 2, 1, 3) for z in np.split(qkv, 3, -1))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    y = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(X, 5, -1)
    x = x + y @ state[f'{block}.attn.out_proj.weight'].T + state[f'{block}.attn.out_proj.bias']
    y = norm(x, state, f'{block}.ln_2')
    y = y @ state[f'{block}.mlp.c_fc.weight'].T + state[f'{block}.mlp.c_fc.bias']
    y = y / (1 + np.exp(-1.702 * y))
    x = x + y @ state[f'{block}.mlp.c_proj.weight'].T + state[f'{block}.mlp.c_proj.bias']
  return norm(x[:, 0], state, 'visual.ln_post') @ state['visual.proj']


@pytest.fixture(scope='module')
def clip_file(tmp_path_factory):
  """Weights of a CLIP in a file of OpenAI's names; its state dict."""
  state = apply.to_state_dict(random_params(MEAN), 'openai')
  path = tmp_path_factory.mktemp('clip') / 'clip.pth'
  archive.write_torch(path, state)
  return path, state


def test_the_frame_mean_model_is_clip_on_every_frame(clip_file):
  path, state = clip_file
  weights = hub.read(path, num_frames=3, new_modules=MEAN)
  assert weights.config == MEAN
  assert not any('new' in note for note in weights.notes)
  video = random_video()
  out = forward(MEAN, weights.params, video)
  frames = clip_image(state, video.reshape(-1, 32, 32, 3)).reshape(2, 3, -1)
  scale = np.abs(frames).max()
  np.testing.assert_allclose(out.frame_features, frames, atol=2e-5 * scale)
  np.testing.assert_allclose(out.video_features, frames.mean(1), atol=2e-5 * scale)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  text = np.asarray(out.text_features)
  logits = np.exp(state['logit_scale']) * unit(frames.mean(1)) @ unit(text).T
  np.testing.assert_allclose(out.logits, logits, atol=1e-4)


# --- what is left out is gone, and nothing else --------------------------------------------------


PARTS = {
  'messages': r'vision/blocks_\d+/message_.*', 'mit': 'mit/.*', 'mit_positions': 'mit/pos_embed',
  'prompt': 'prompt/.*',
}


@pytest.mark.parametrize('part', PARTS)
def test_a_part_that_is_left_out_has_no_parameters(part):
  everything = tree_names.flatten(apply.abstract_params(ALL))
  without = tree_names.flatten(apply.abstract_params(dataclasses.replace(ALL, **{part: False})))
  gone = {k for k in everything if tree_names.matches(PARTS[part], k)}
  assert gone and without.keys() == everything.keys() - gone
  assert all(without[k].shape == everything[k].shape for k in without)


def without(*parts):
  config = dataclasses.replace(ALL, **dict.fromkeys(parts, False))
  params = tree_names.flatten(random_params(ALL))
  kept = tree_names.flatten(apply.abstract_params(config))
  return config, tree_names.unflatten({k: params[k] for k in kept})


@pytest.mark.slow
def test_without_messages_frames_do_not_see_each_other():
  video, other = random_video(), random_video()
  other[:, 0] = 0
  for parts, apart in (((), False), (('messages',), True)):
    left, right = (forward(*without(*parts), x).frame_features[:, 1:] for x in (video, other))
    assert np.array_equal(left, right) == apart


@pytest.mark.slow
def test_without_positions_the_order_of_frames_does_not_count():
  video = random_video()
  for parts, same in ((('prompt',), False), (('prompt', 'mit_positions'), True),
                      (('prompt', 'mit'), True)):
    left, right = (
      np.asarray(forward(*without(*parts), x).video_features) for x in (video, video[:, ::-1]))
    assert np.allclose(left, right, atol=1e-4 * np.abs(left).max()) == same


def test_without_prompts_texts_do_not_see_the_video():
  config, params = without('prompt')
  out, full = forward(config, params, random_video()), forward(*without(), random_video())
  for texts in out.conditioned_text_features:
    np.testing.assert_array_equal(texts, out.text_features)
  np.testing.assert_allclose(out.video_features, full.video_features, rtol=1e-5, atol=1e-4)
  assert np.any(np.abs(full.conditioned_text_features - full.text_features) > 1e-3)


def test_a_switch_is_true_or_false():
  with pytest.raises(ValueError, match=r"XCLIPConfig.mit must be True or False, got 'mean'"):
    make_config('B/32', mit='mean')


# --- weights in and out --------------------------------------------------------------------------


@pytest.mark.parametrize('parts', [('messages', 'mit', 'prompt'), ('mit_positions',)])
def test_our_format_keeps_a_model_without_some_parts(parts, tmp_path):
  config, params = without(*parts)
  back = hub.read(native.save(tmp_path / 'weights', native.Weights(config, params)))
  assert back.config == config
  for name, x in tree_names.flatten(params).items():
    np.testing.assert_array_equal(tree_names.flatten(back.params)[name], x, err_msg=name)


def test_a_frame_mean_model_is_written_as_the_clip_that_it_is(clip_file):
  params = hub.read(clip_file[0], num_frames=3, new_modules=MEAN).params
  for dialect in ('openai', 'open_clip', 'huggingface_clip'):
    state = apply.to_state_dict(params, dialect)
    back = tree_names.flatten(apply.to_params(state, dialect, MEAN))
    for name, x in tree_names.flatten(params).items():
      np.testing.assert_array_equal(back[name], x, err_msg=name)


@pytest.mark.parametrize('dialect', ['official', 'huggingface'])
@pytest.mark.parametrize('parts', [('messages', 'mit', 'prompt'), ('mit_positions',), ('prompt',)])
def test_formats_of_xclip_refuse_a_model_without_some_parts(dialect, parts):
  _, params = without(*parts)
  with pytest.raises(ValueError, match=r'the model has no .*keep them in our own format'):
    apply.to_state_dict(params, dialect)


@pytest.mark.slow
def test_weights_of_clip_are_completed_by_the_parts_that_are_wanted(clip_file):
  config = dataclasses.replace(ALL, mit=False)
  weights = hub.read(clip_file[0], num_frames=3, new_modules=config)
  assert weights.config == config and 'mit' not in weights.params
  assert any('message and prompt modules are new' in note for note in weights.notes)
  full = hub.read(clip_file[0], num_frames=3, new_modules=ALL)
  assert any('message, integration and prompt modules are new' in note for note in full.notes)


def test_frames_of_a_model_without_positions_can_be_changed():
  config, params = without('mit_positions')
  same, new = apply.resample(params, config, num_frames=5)
  assert new.num_frames == 5
  assert tree_names.flatten(same).keys() == tree_names.flatten(params).keys()


# --- patch dropout -------------------------------------------------------------------------------


def dropped(rate, B=64, T=3, M=12, deterministic=False):
  """Returns the indices of the tokens that patch dropout keeps: [B, T, 1 + m]."""
  x = jnp.broadcast_to(jnp.arange(1.0 + M)[None, :, None], (B * T, 1 + M, 1))
  out = PatchDropout(rate).apply(
    {}, x, B, deterministic, rngs={'patch_dropout': jax.random.key(0)})
  return np.asarray(out).reshape(B, T, -1)


@pytest.mark.parametrize(('rate', 'kept'), [(0.5, 6), (0.9, 1), (0.99, 1), (0.1, 11)])
def test_patches_are_left_out_at_random_but_never_the_class_token(rate, kept):
  left = dropped(rate)
  assert left.shape[-1] == 1 + kept
  assert np.all(left[..., 0] == 0) and np.all(np.diff(left, axis=-1) > 0)
  np.testing.assert_array_equal(left, np.repeat(left[:, :1], 3, axis=1))      # tubes
  counts = np.bincount(left[:, 0, 1:].astype(int).ravel(), minlength=13)[1:]
  expected = 64 * kept / 12
  assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)
  assert len({tuple(row) for row in left[:, 0]}) > 5 or kept in (1, 11)


@pytest.mark.slow
def test_no_patch_is_left_out_of_an_evaluation():
  np.testing.assert_array_equal(dropped(0.5, deterministic=True), dropped(0.0))
  config = dataclasses.replace(ALL, patch_dropout=0.5)
  params, video = random_params(ALL), random_video()
  left, right = forward(config, params, video), forward(ALL, params, video)
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.slow
def test_training_sees_the_patches_that_are_left_and_no_others():
  """Changes the pixels of all dropped patches and expects the same numbers."""
  config = dataclasses.replace(ALL, patch_dropout=0.5)
  model, params = XCLIP(config), random_params(ALL)

  train = jax.jit(lambda params, video: model.apply(
    {'params': params}, video, IDS, False, rngs={'patch_dropout': jax.random.key(1)}).logits)
  run = lambda video: train(params, video)

  video = random_video(B=1)
  base, changes = np.asarray(run(video)), []
  for y in (0, 16):
    for x in (0, 16):
      other = video.copy()
      other[:, :, y:y + 16, x:x + 16] += 1
      changes.append(bool(np.any(np.asarray(run(other)) != base)))
  assert sorted(changes) == [False, False, True, True]


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_a_share_outside_its_range_is_an_error(rate):
  with pytest.raises(ValueError, match=r'patch_dropout must lie in \[0, 1\)'):
    make_config('B/32', patch_dropout=rate)
