"""The architecture of foreign weights is read, never guessed."""

import json

import numpy as np
import pytest

from goldens_io import GOLDENS, Case
from xclip_jax import errors
from xclip_jax.weights import apply, architecture


@pytest.fixture(scope='module')
def official():
  return Case('A_T4')


@pytest.fixture(scope='module')
def hf():
  return Case('hf_tiny_a')


def hf_config(**changes):
  content = json.loads((GOLDENS / 'hf_tiny_a/config.json').read_text())
  for key, value in changes.items():
    section, _, field = key.rpartition('__')
    target = content[section] if section else content
    if value is None:
      del target[field]
    else:
      target[field] = value
  return content


def test_without_a_config_heads_are_the_references(official):
  config = architecture.infer_config(official.state, 'official')
  assert (config.vision_heads, config.text_heads, config.mit_heads, config.prompt_heads) == (
    1, 1, 1, 1)


def test_a_tower_too_narrow_for_the_references_heads_needs_a_config(hf):
  with pytest.raises(ValueError, match=r'vision_width=48 is less than one head.*config\.json'):
    architecture.infer_config(hf.state, 'huggingface')


def test_what_a_hugging_face_config_leaves_out_has_transformers_defaults(hf):
  content = hf_config(prompt_num_attention_heads=None, vision_config__mit_num_attention_heads=None,
                      text_config__num_attention_heads=None, vision_config__hidden_act=None)
  config = architecture.infer_config(hf.state, 'huggingface', content)
  assert (config.prompt_heads, config.mit_heads, config.text_heads) == (8, 8, 8)
  assert config.vision_activation == config.mit_activation == 'quick_gelu'


def test_every_tower_has_the_activation_that_the_config_names(hf):
  content = hf_config(vision_config__hidden_act='gelu', prompt_hidden_act='gelu')
  config = architecture.infer_config(hf.state, 'huggingface', content)
  assert config.vision_activation == config.mit_activation == config.prompt_activation == 'gelu'
  assert config.text_activation == 'quick_gelu'
  content = hf_config(text_config__hidden_act='gelu_new')
  with pytest.raises(ValueError, match=r'config\.json: text_config\.hidden_act is "gelu_new"'):
    architecture.infer_config(hf.state, 'huggingface', content)


def test_the_older_sections_of_a_hugging_face_config_win(hf):
  content = hf_config() | {'vision_config_dict': {'mit_num_attention_heads': 4}}
  assert architecture.infer_config(hf.state, 'huggingface', content).mit_heads == 4


def test_a_config_that_contradicts_the_weights_is_refused_with_every_difference(hf):
  content = hf_config(vision_config__num_frames=8, text_config__hidden_size=64,
                      vision_config__layer_norm_eps=1e-6)
  with pytest.raises(ValueError) as error:
    architecture.infer_config(hf.state, 'huggingface', content)
  text = str(error.value)
  assert 'num_frames: 8 in config.json, 4 in the weights' in text
  assert 'text_width: 64 in config.json, 32 in the weights' in text
  assert 'vision_config.layer_norm_eps: 1e-06' in text


def test_clip_becomes_the_x_clip_that_the_reference_would_make(official):
  clip = apply.to_state_dict(official.params, 'openai')
  config = architecture.infer_config(clip, 'openai', num_frames=6)
  E = config.embed_dim
  assert (config.num_frames, config.mit_layers, config.mit_mlp, config.mit_heads) == (
    6, 1, 4 * E, E // 64)
  assert (config.prompt_layers, config.prompt_heads, config.prompt_alpha) == (2, E // 64, 0.1)


def test_open_clip_s_config_decides_heads_and_activation(official):
  clip = apply.to_state_dict(official.params, 'openai')
  content = {'model_cfg': {'vision_cfg': {'head_width': 32}, 'text_cfg': {'heads': 4}}}
  config = architecture.infer_config(clip, 'openai', content)
  assert (config.vision_heads, config.text_heads) == (2, 4)
  assert config.vision_activation == config.text_activation == 'gelu'
  assert config.mit_activation == config.prompt_activation == 'quick_gelu'
  content['model_cfg']['quick_gelu'] = True
  assert architecture.infer_config(clip, 'openai', content).text_activation == 'quick_gelu'
  content['model_cfg']['text_cfg']['hf_model_name'] = 'roberta-base'
  with pytest.raises(ValueError, match='not a CLIP ViT'):
    architecture.infer_config(clip, 'openai', content)


@pytest.mark.parametrize('key', ['visual.conv1.weight', 'mit.positional_embedding'])
def test_an_incomplete_file_is_told_by_the_name_that_is_missing(official, key):
  state = {k: x for k, x in official.state.items() if k != key}
  with pytest.raises(ValueError, match='incomplete or of another kind'):
    architecture.infer_config(state, 'official')
  state[key] = np.zeros(3)
  with pytest.raises(ValueError, match=r'does not suit its place|incomplete'):
    architecture.infer_config(state, 'official')


def test_a_bug_is_not_told_as_an_incomplete_file(official, monkeypatch):
  monkeypatch.setattr(architecture, '_depth', lambda *_: {}['a bug'])
  with pytest.raises(KeyError, match='a bug'):
    architecture.infer_config(official.state, 'official')


def test_a_section_of_the_config_that_is_no_object_is_named(official):
  clip = apply.to_state_dict(official.params, 'openai')
  with pytest.raises(errors.UserError, match='text_cfg must be an object'):
    architecture.infer_config(clip, 'openai', {'model_cfg': {'text_cfg': 'ViT'}})
