"""Weights of both dialects arrive whole, leave whole, and nothing is guessed."""

import dataclasses
import json
import re

import cv2
import jax
import numpy as np
import pytest

from goldens_io import CASES, GOLDENS, Case
from xclip_jax.models.config import make_config
from xclip_jax.models.xclip import XCLIP, init_params
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply, architecture, rules

ARCHITECTURES = json.loads((GOLDENS / 'reference/ref_state_dict_shapes.json').read_text())
VARIANT = {
  'ViT-B/32': 'B/32', 'ViT-B/16': 'B/16', 'ViT-L/14': 'L/14', 'ViT-L/14@336px': 'L/14@336',
}


@pytest.fixture(scope='module', params=CASES)
def case(request):
  return Case(request.param)


def rules_for(key, dialect):
  pattern = lambda rule: re.escape(rule.theirs).replace(r'\{i\}', r'\d+')
  return [rule for rule in rules.DIALECTS[dialect] if re.fullmatch(pattern(rule), key)]


def same_state(got, want):
  assert got.keys() == want.keys()
  for key, array in want.items():
    np.testing.assert_array_equal(got[key], np.asarray(array, np.float32), err_msg=key)
    assert got[key].dtype == np.float32


def test_every_key_is_used_once_and_every_leaf_is_filled(case):
  foreign = [k for k in case.state if not any(re.fullmatch(p, k) for p in rules.IGNORED)]
  for key in foreign:
    assert len(rules_for(key, case.dialect)) == 1, key
  leaves = [rules_for(key, case.dialect)[0].ours for key in foreign]
  got = tree_names.flatten(case.params)
  want = tree_names.flatten(apply.abstract_params(case.config))
  assert {k: x.shape for k, x in got.items()} == {k: x.shape for k, x in want.items()}
  assert sum(map(len, leaves)) == len(want)
  assert {x.dtype for x in got.values()} == {np.dtype('float32')}


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_every_published_size_fits_its_variant(arch):
  size, frames = arch.split('|T=')
  config = make_config(VARIANT[size], num_frames=int(frames))
  # One number seen through every shape: no memory, however large the model.
  state = {
    key: np.broadcast_to(np.float32(0), shape)
    for key, shape in ARCHITECTURES[arch]['shapes'].items()
  }
  assert len(state) == (443 if '/14' not in arch else 683)
  assert all(len(rules_for(key, 'official')) == 1 for key in state)
  apply.to_params(state, 'official', config)       # strict: raises at any name or shape
  assert architecture.infer_config(state, 'official') == config


def test_all_differences_are_told_at_once(case):
  state = dict(case.state)
  missing = next(k for k in state if k.endswith('ln_post.weight') or 'post_layernorm.weight' in k)
  wrong = next(k for k in state if k.endswith(('ln_pre.bias', 'pre_layernorm.bias')))
  width = len(state.pop(missing))
  state[wrong] = np.zeros(width + 1, np.float32)
  state['visual.extra.weight'] = np.zeros(3, np.float32)
  state['module.logit_scale'] = state['logit_scale']
  with pytest.raises(ValueError) as error:
    apply.to_params(state, case.dialect, case.config)
  lines = [line.strip() for line in str(error.value).splitlines()]
  assert '4 differences' in lines[0]
  assert lines[1:] == sorted([
    "unknown key 'visual.extra.weight'",
    "unknown key 'module.logit_scale'",
    "missing 'vision/ln_post/scale'",
    f"'vision/ln_pre/bias' is [{width + 1}], the model wants [{width}]",
  ])


def test_a_block_too_many_or_too_few_is_told(case):
  block = 'transformer.resblocks.1.' if not case.is_hf else 'text_model.encoder.layers.1.'
  renamed = {
    key.replace('.1.', '.2.', 1) if key.startswith(block) else key: x
    for key, x in case.state.items()
  }
  assert renamed.keys() != case.state.keys()
  words = r"(?s)missing 'text/blocks_1/.*no place for 'text/blocks_2/"
  with pytest.raises(ValueError, match=words):
    apply.to_params(renamed, case.dialect, case.config)


def test_position_id_buffers_are_ignored(case):
  state = dict(case.state)
  for tower in ('text', 'vision'):
    state[f'{tower}_model.embeddings.position_ids'] = np.arange(5)[None]
  params = apply.to_params(state, case.dialect, case.config)
  jax.tree.map(np.testing.assert_array_equal, params, case.params)


def test_dialects_are_told_apart(case):
  assert apply.detect_dialect(case.state) == case.dialect
  clip = {'official': 'openai', 'huggingface': 'huggingface_clip'}[case.dialect]
  plain = apply.to_state_dict(case.params, clip)
  assert apply.detect_dialect(plain) == clip
  with pytest.raises(ValueError, match='not the names of a CLIP or X-CLIP state dict'):
    apply.detect_dialect([f'encoder.{key}' for key in case.state])
  with pytest.raises(ValueError, match='ResNet'):
    apply.detect_dialect(['visual.conv1.weight', 'visual.layer1.0.conv1.weight'])


def test_round_trips_are_bit_identical(case):
  same_state(apply.to_state_dict(case.params, case.dialect), {
    k: x for k, x in case.state.items() if not any(re.fullmatch(p, k) for p in rules.IGNORED)
  })


def test_weights_pass_through_the_other_dialect_unchanged(case):
  other = {'official': 'huggingface', 'huggingface': 'official'}[case.dialect]
  foreign = apply.to_state_dict(case.params, other)
  assert apply.detect_dialect(foreign) == other
  params = apply.to_params(foreign, other, case.config)
  assert tree_names.flatten(params).keys() == tree_names.flatten(case.params).keys()
  jax.tree.map(np.testing.assert_array_equal, params, case.params)
  same_state(apply.to_state_dict(params, case.dialect),
             apply.to_state_dict(case.params, case.dialect))


@pytest.mark.parametrize('name', ['A_T4', 'B_T8'])
def test_the_architecture_is_read_off_official_weights(name):
  c = Case(name).config
  want = json.loads((GOLDENS / f'reference/ref_tiny_{name}_config.json').read_text())
  E, D, W = want['embed_dim'], want['vision_width'], want['transformer_width']
  assert (c.embed_dim, c.vision_width, c.text_width) == (E, D, W)
  assert (c.image_size, c.patch_size) == (want['image_resolution'], want['vision_patch_size'])
  assert (c.num_frames, c.context_length, c.vocab_size) == (
    want['T'], want['context_length'], want['vocab_size'])
  assert (c.vision_layers, c.text_layers, c.mit_layers, c.prompt_layers) == (
    want['vision_layers'], want['transformer_layers'], want['mit_layers'], want['prompts_layers'])
  assert (c.vision_heads, c.text_heads) == (D // 64, want['transformer_heads'])
  assert (c.mit_heads, c.prompt_heads) == (E // 64, E // 64)
  assert (c.vision_mlp, c.text_mlp, c.mit_mlp) == (4 * D, 4 * W, 4 * E)
  assert {c.vision_activation, c.text_activation, c.mit_activation, c.prompt_activation} == {
    'quick_gelu'}


def test_the_architecture_is_read_off_hugging_face_weights():
  c = Case('hf_tiny_a').config
  want = json.loads((GOLDENS / 'hf_tiny_a/config.json').read_text())
  text, vision = want['text_config'], want['vision_config']
  for ours, theirs in (('width', 'hidden_size'), ('layers', 'num_hidden_layers'),
                       ('heads', 'num_attention_heads'), ('mlp', 'intermediate_size')):
    assert getattr(c, f'text_{ours}') == text[theirs]
    assert getattr(c, f'vision_{ours}') == vision[theirs]
  assert (c.image_size, c.patch_size) == (vision['image_size'], vision['patch_size'])
  assert (c.vocab_size, c.context_length) == (
    text['vocab_size'], text['max_position_embeddings'])
  assert (c.num_frames, c.embed_dim) == (vision['num_frames'], want['projection_dim'])
  assert (c.mit_layers, c.mit_heads, c.mit_mlp) == (
    vision['mit_num_hidden_layers'], vision['mit_num_attention_heads'],
    vision['mit_intermediate_size'])
  assert (c.prompt_layers, c.prompt_heads) == (
    want['prompt_layers'], want['prompt_num_attention_heads'])
  assert (c.vision_activation, c.mit_activation) == (vision['hidden_act'],) * 2
  assert (c.text_activation, c.prompt_activation) == (
    text['hidden_act'], want['prompt_hidden_act'])


@pytest.mark.parametrize('fields', [{}, dict(mit_layers=2, prompt_layers=1, text_layers=3)])
def test_abstract_parameters_are_those_of_the_model(fields):
  config = dataclasses.replace(Case('A_T4').config, vision_layers=3, **fields)
  want = jax.eval_shape(lambda: init_params(XCLIP(config), jax.random.key(0)))
  assert apply.abstract_params(config) == want


# --- CLIP to X-CLIP, and other inputs -------------------------------------------------------------


def test_clip_s_towers_arrive_whole_and_the_rest_is_drawn_from_the_seed():
  case = Case('B_T8')
  clip = apply.to_state_dict(case.params, 'openai')
  config = architecture.infer_config(clip, 'openai')
  one, again, other = (
    tree_names.flatten(apply.to_params(clip, 'openai', config, seed)) for seed in (0, 0, 1))
  given = tree_names.flatten(case.params)
  for name, array in one.items():
    new = tree_names.matches(rules.NEW_PARAMETERS, name)
    if not new:
      np.testing.assert_array_equal(array, given[name], err_msg=name)
    np.testing.assert_array_equal(array, again[name], err_msg=name)
    if new and np.ptp(array):
      assert np.abs(array - other[name]).max() > 0, name


def test_new_modules_have_the_references_distributions():
  case = Case('B_T8')
  clip = apply.to_state_dict(case.params, 'openai')
  config = architecture.infer_config(clip, 'openai', num_frames=8)
  flat = tree_names.flatten(apply.to_params(clip, 'openai', config))
  D, E = config.vision_width, config.embed_dim
  uniform = lambda bound: bound / 3**0.5
  block = 'vision/blocks_0/message_'
  for name, deviation in {
    f'{block}fc/kernel': uniform(D**-0.5), f'{block}attn/query/kernel': uniform((6 / (4 * D))**0.5),
    f'{block}attn/out/kernel': uniform(D**-0.5), 'mit/pos_embed': 0.02,
    'mit/blocks_0/attn/key/kernel': uniform((6 / (4 * E)) ** 0.5),
    'mit/blocks_0/mlp/c_fc/kernel': 0.02, 'prompt/blocks_1/cross_attn/value/kernel': 0.02,
    'prompt/blocks_0/mlp/c_proj/kernel': 0.02, 'prompt/visual_proj/kernel': 1.0,
  }.items():
    assert flat[name].std() == pytest.approx(deviation, rel=0.1), name
    assert abs(flat[name].mean()) < 0.1 * deviation, name
  assert np.abs(flat[f'{block}fc/bias']).max() <= D**-0.5 and flat[f'{block}fc/bias'].std() > 0
  for name in (f'{block}attn/query/bias', f'{block}attn/out/bias', 'mit/blocks_0/mlp/c_fc/bias',
               'prompt/blocks_0/cross_attn/out/bias', f'{block}ln/bias'):
    np.testing.assert_array_equal(flat[name], 0, err_msg=name)
  np.testing.assert_array_equal(flat[f'{block}ln/scale'], 1)
  np.testing.assert_allclose(flat['prompt/alpha'], 0.1)


@pytest.mark.slow
def test_an_open_clip_file_with_a_text_tower_of_its_own_is_the_same_clip():
  case = Case('A_T4')
  a, b = (apply.to_state_dict(case.params, dialect) for dialect in ('openai', 'open_clip'))
  assert apply.detect_dialect(b) == 'open_clip' and 'text.ln_final.weight' in b
  config = architecture.infer_config(b, 'open_clip')
  assert config == architecture.infer_config(a, 'openai')
  jax.tree.map(np.testing.assert_array_equal, apply.to_params(b, 'open_clip', config),
               apply.to_params(a, 'openai', config))


def test_other_frame_counts_interpolate_linearly_between_frames():
  case = Case('A_T4')
  params, config = apply.resample(case.params, case.config, num_frames=8)
  old, new = case.params['mit']['pos_embed'], params['mit']['pos_embed']
  assert config.num_frames == 8 and new.shape == (8, config.embed_dim)
  np.testing.assert_allclose(new[0], old[0], atol=1e-6)             # the outermost is repeated
  np.testing.assert_allclose(new[1], 0.75 * old[0] + 0.25 * old[1], atol=1e-6)
  np.testing.assert_allclose(new[2], 0.25 * old[0] + 0.75 * old[1], atol=1e-6)
  same, _ = apply.resample(case.params, case.config, num_frames=4)
  np.testing.assert_array_equal(same['mit']['pos_embed'], old)


def test_other_picture_sizes_interpolate_bicubically_and_leave_the_class_token():
  case = Case('B_T8')
  params, config = apply.resample(case.params, case.config, image_size=80)
  old, new = case.params['vision']['pos_embed'], params['vision']['pos_embed']
  np.testing.assert_array_equal(new[0], old[0])
  grid = np.ascontiguousarray(old[1:].reshape(3, 3, -1)[..., :4], np.float32)
  want = cv2.resize(grid, (5, 5), interpolation=cv2.INTER_CUBIC)    # a = -0.75, as PyTorch's
  np.testing.assert_allclose(new[1:].reshape(5, 5, -1)[..., :4], want, atol=1e-5)
  video = np.zeros((1, config.num_frames, 80, 80, 3), np.float32)
  out = jax.jit(XCLIP(config).apply)({'params': params}, video, case.token_ids)
  assert np.isfinite(out.logits).all()
  with pytest.raises(ValueError, match='image_size=81 is not a multiple'):
    apply.resample(case.params, case.config, image_size=81)
