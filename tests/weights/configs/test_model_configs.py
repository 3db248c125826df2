"""A field of config.json or open_clip_config.json that is not followed is refused by name."""

import json

import pytest

from goldens_io import GOLDENS, Case
from xclip_jax.errors import UserError
from xclip_jax.text import tokenizer, vocabulary
from xclip_jax.weights import apply, architecture
from xclip_jax.weights.configs import huggingface, tokenizer_files


@pytest.fixture(scope='module')
def hf():
  return Case('hf_tiny_a')


@pytest.fixture(scope='module')
def clip():
  return apply.to_state_dict(Case('A_T4').params, 'openai')


def hf_config(path, value):
  content = json.loads((GOLDENS / 'hf_tiny_a/config.json').read_text())
  *outer, last = path.split('.')
  place = content
  for key in outer:
    place = place[key]
  place[last] = value
  return content


@pytest.mark.parametrize('path, value', [
  ('text_config.hidden_act', 'gelu_pytorch_tanh'), ('vision_config.hidden_act', 'gelu_new'),
  ('prompt_hidden_act', 'relu'), ('text_config.layer_norm_eps', 1e-6),
  ('vision_config.layer_norm_eps', None), ('vision_config.num_channels', 4),
  ('vision_config.mit_hidden_size', 64), ('model_type', 'siglip'), ('auto_map', {'AutoModel': 'x'}),
  ('quantization_config', {'bits': 8}), ('vision_config.num_attention_heads', 3.0),
  ('text_config.rope_theta', 1e4), ('tokenizer_class', 'BertTokenizer'),
])
def test_a_field_of_hugging_face_s_config_that_cannot_be_followed_is_named(hf, path, value):
  with pytest.raises(UserError, match=rf'config\.json(.|\n)*{path}'):
    architecture.infer_config(hf.state, 'huggingface', hf_config(path, value))


@pytest.mark.parametrize('path, value', [
  ('vision_config.image_size', [32, 32]), ('vision_config.patch_size', [16, 16]),
  ('text_config.hidden_act', 'quick_gelu'), ('torch_dtype', 'float16'), ('_commit_hash', 'abc'),
  ('text_config.num_beams', 1), ('text_config_dict', None),
  ('vision_config.attention_dropout', 0.1),
])
def test_a_field_of_hugging_face_s_config_that_does_not_matter_is_no_hindrance(hf, path, value):
  config = architecture.infer_config(hf.state, 'huggingface', hf_config(path, value))
  assert config == hf.config


def test_the_python_version_of_gelu_is_gelu(hf):
  content = hf_config('text_config.hidden_act', 'gelu_python')
  assert architecture.infer_config(hf.state, 'huggingface', content).text_activation == 'gelu'


@pytest.mark.parametrize('tower, field, value', [
  ('text_cfg', 'no_causal_mask', True), ('text_cfg', 'hf_tokenizer_name', 'bert-base-uncased'),
  ('text_cfg', 'pool_type', 'last'), ('text_cfg', 'embed_cls', True),
  ('text_cfg', 'proj_bias', True), ('text_cfg', 'proj_type', 'none'),
  ('text_cfg', 'tokenizer_kwargs', {'clean': 'canonicalize'}),
  ('text_cfg', 'act_kwargs', {'approximate': 'tanh'}), ('text_cfg', 'hf_model_name', 'roberta'),
  ('text_cfg', 'norm_kwargs', {'eps': 1e-6}), ('vision_cfg', 'norm_kwargs', {'eps': 1e-6}),
  ('vision_cfg', 'pool_type', 'avg'), ('vision_cfg', 'attentional_pool', True),
  ('vision_cfg', 'global_average_pool', True), ('vision_cfg', 'no_ln_pre', True),
  ('vision_cfg', 'ls_init_value', 0.1), ('vision_cfg', 'timm_model_name', 'vit_base'),
  ('vision_cfg', 'layers', [3, 4, 6, 3]), ('vision_cfg', 'head_width', 7),
  ('vision_cfg', 'new_option', 1),
])
def test_a_field_of_open_clip_s_config_that_cannot_be_followed_is_named(clip, tower, field, value):
  content = {'model_cfg': {tower: {field: value}}}
  with pytest.raises(UserError, match=rf'open_clip_config\.json: model_cfg\.{tower}\.{field}'):
    architecture.infer_config(clip, 'openai', content)


def test_an_open_clip_config_that_contradicts_the_weights_is_refused_with_every_field(clip):
  vision = {'width': 768, 'layers': 12, 'image_size': 224, 'mlp_ratio': 4.9231}
  content = {'model_cfg': {'embed_dim': 3, 'vision_cfg': vision, 'text_cfg': {'vocab_size': 49408}}}
  with pytest.raises(UserError, match='does not fit the weights') as error:
    architecture.infer_config(clip, 'openai', content)
  for field in ('embed_dim: 3', *(f'vision_cfg.{k}: {v}' for k, v in vision.items()),
                'text_cfg.vocab_size: 49408'):
    assert f'model_cfg.{field}, ' in str(error.value)


def test_open_clip_s_defaults_and_what_does_not_matter_load(clip):
  bare = {'model_cfg': {'vision_cfg': {}, 'text_cfg': {'heads': 1}}}
  full = {
    'model_cfg': {
      'custom_text': True, 'init_logit_scale': 2.6, 'vision_cfg': {
        'patch_dropout': 0.5, 'pool_type': 'tok', 'timm_model_name': None, 'output_tokens': False},
      'text_cfg': {'heads': 1, 'hf_tokenizer_name': '', 'pool_type': 'argmax', 'pad_id': 0}},
    'preprocess_cfg': {'mean': [0.5, 0.5, 0.5]}}
  configs = [architecture.infer_config(clip, 'openai', content) for content in (bare, full)]
  assert configs[0] == configs[1] and configs[0].text_activation == 'gelu'


# --- vocabularies ---------------------------------------------------------------------------------


def test_clip_s_vocabulary_with_a_few_tokens_added_is_clip_s():
  for size in (49408, 49409, 49411, 49664):
    vocabulary.check(size)
  for size in (100, 30522, 32000, 49407, 50257, 250002):
    with pytest.raises(UserError, match=rf'vocabulary of {size} tokens.*CLIP, 0\.\.49407'):
      vocabulary.check(size, 'the model')


def test_a_clip_of_another_end_token_is_refused():
  case = Case('hf_tiny_a')
  content = json.loads((GOLDENS / 'hf_tiny_a/config.json').read_text())
  content['text_config'] |= {'vocab_size': 49408, 'eos_token_id': 102}
  fields = vars(case.config) | {'vocab_size': 49408}
  with pytest.raises(UserError, match=r'text_config\.eos_token_id is 102'):
    huggingface.read('config.json', content, fields, is_clip=True)
  assert huggingface.read('config.json', content, fields, is_clip=False)['text_heads'] == 2


def test_tokenizer_files_of_another_tokenizer_are_refused(tmp_path):
  (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "BertTokenizer"}')
  with pytest.raises(UserError, match=r'tokenizer_config\.json: tokenizer_class is "Bert'):
    tokenizer_files.check(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "CLIPTokenizer"}')
  tokenizer_files.check(tmp_path)
  _, _, ids = tokenizer.vocabulary()
  (tmp_path / 'vocab.json').write_text(json.dumps({**ids, '<my-cat>': 49408}))
  tokenizer_files.check(tmp_path)
  (tmp_path / 'vocab.json').write_text(json.dumps({**ids, 'cat</w>': 7}))
  with pytest.raises(UserError, match=r"vocab\.json is not .* 'cat</w>' is 7, not"):
    tokenizer_files.check(tmp_path)
  (tmp_path / 'vocab.json').unlink()
  (tmp_path / 'tokenizer.json').write_text(json.dumps({'model': {'vocab': {'cat': 0}}}))
  with pytest.raises(UserError, match=r'tokenizer\.json is not the vocabulary .* holds 1 '):
    tokenizer_files.check(tmp_path)
