"""The architecture that Hugging Face's config.json gives, compared with the weights' shapes."""

from collections.abc import Mapping
from typing import Any

from xclip_jax.text import vocabulary
from xclip_jax.weights.configs import tokenizer_files
from xclip_jax.weights.configs.section import Section, contradiction, is_number, show

# field of XCLIPConfig -> (section, key, default) in config.json. The defaults are transformers':
# files that it saves leave out what equals them.
_HEADS = {
  'vision_heads': ('vision_config', 'num_attention_heads', 12),
  'text_heads': ('text_config', 'num_attention_heads', 8),
}
_NEW_HEADS = {
  'mit_heads': ('vision_config', 'mit_num_attention_heads', 8),
  'prompt_heads': ('', 'prompt_num_attention_heads', 8),
}
_ACTIVATIONS = {
  'vision_activation': ('vision_config', 'hidden_act'),
  'text_activation': ('text_config', 'hidden_act'),
}
_NEW_ACTIVATIONS = {
  'mit_activation': ('vision_config', 'hidden_act'),
  'prompt_activation': ('', 'prompt_hidden_act'),
}
# The same for fields that shapes determine; a config that differs from the shapes is refused.
_SHAPES = {
  'embed_dim': ('', 'projection_dim'),
  'vision_width': ('vision_config', 'hidden_size'),
  'vision_layers': ('vision_config', 'num_hidden_layers'),
  'vision_mlp': ('vision_config', 'intermediate_size'),
  'image_size': ('vision_config', 'image_size'),
  'patch_size': ('vision_config', 'patch_size'),
  'text_width': ('text_config', 'hidden_size'),
  'text_layers': ('text_config', 'num_hidden_layers'),
  'text_mlp': ('text_config', 'intermediate_size'),
  'vocab_size': ('text_config', 'vocab_size'),
  'context_length': ('text_config', 'max_position_embeddings'),
}
_NEW_SHAPES = {
  'prompt_layers': ('', 'prompt_layers'),
  'num_frames': ('vision_config', 'num_frames'),
  'mit_layers': ('vision_config', 'mit_num_hidden_layers'),
  'mit_mlp': ('vision_config', 'mit_intermediate_size'),
  'embed_dim': ('vision_config', 'mit_hidden_size'),
}
_EPSILON = 1e-5        # epsilon of every LayerNorm
_GELUS = {'quick_gelu': 'quick_gelu', 'gelu': 'gelu', 'gelu_python': 'gelu'}
_MODEL_TYPES = {
  '': ('xclip', 'clip'),
  'text_config': ('xclip_text_model', 'clip_text_model'),
  'vision_config': ('xclip_vision_model', 'clip_vision_model'),
}

_OF_NEW_MODULES = frozenset(
  key for table in (_NEW_HEADS, _NEW_SHAPES) for _, key, *_ in table.values()) | {
  'prompt_hidden_act'}
# Fields that every config of transformers has or had, and that inference with CLIP never reads:
# of generation, training, labels of other heads, outputs, and the dtype, which the tensors tell.
_WITHOUT_EFFECT = frozenset("""
add_cross_attention architectures attention_dropout attn_implementation bad_words_ids
base_model_ep_plan base_model_fsdp_plan base_model_pp_plan base_model_tp_plan
begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
decoder_start_token_id diversity_penalty do_sample drop_path_rate dropout dtype early_stopping
encoder_no_repeat_ngram_size experts_implementation exponential_decay_length_penalty
finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label
initializer_factor initializer_range is_composition is_decoder is_encoder_decoder label2id
length_penalty logit_scale_init_value max_length min_length no_repeat_ngram_size num_beam_groups
num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores
pad_token_id prefix problem_type projection_dim prompt_alpha prompt_attention_dropout
prompt_projection_dropout pruned_heads remove_invalid_values repetition_penalty return_dict
return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
tf_legacy_loss tie_encoder_decoder tie_word_embeddings top_k top_p torch_dtype torchscript
transformers.js_config transformers_version typical_p use_bfloat16 use_cache
""".split())


def looks_like_one(content: Mapping[str, Any]) -> bool:
  """Tells whether an object is a config of transformers, and not another program's config.json."""
  return bool(content.keys() & {
    'model_type', 'architectures', 'text_config', 'vision_config', 'text_config_dict',
    'vision_config_dict', 'transformers_version'})


def read(
  source: str, content: Mapping[str, Any], fields: Mapping[str, Any], is_clip: bool
) -> dict[str, Any]:
  """Reads head counts and activations, and compares the sizes with the weights.

  Args:
    source: name of the file, for messages.
    content: config.json of transformers.CLIPModel or XCLIPModel.
    fields: of XCLIPConfig, as shapes tell them.
    is_clip: the weights are CLIP's, so that their config has no fields of X-CLIP's modules.

  Returns:
    Fields of XCLIPConfig that shapes do not tell.

  Raises:
    UserError: lists every size that differs, or names a field that cannot be followed.
  """
  top = Section(source, content)
  sections = {
    '': top, 'text_config': top.merged('text_config'), 'vision_config': top.merged('vision_config')}
  _check_sizes(sections, fields, is_clip)
  heads, activations = _HEADS, _ACTIVATIONS
  if not is_clip:
    heads, activations = heads | _NEW_HEADS, activations | _NEW_ACTIVATIONS
  told: dict[str, Any] = {
    ours: sections[section].integer(key, default)
    for ours, (section, key, default) in heads.items()}
  told |= {
    ours: _GELUS[sections[section].choice(
      key, _GELUS, 'quick_gelu', 'the MLPs of the model have one of these activations')]
    for ours, (section, key) in activations.items()}
  _check_rest(sections, fields, is_clip)
  for section in sections.values():
    section.close()
  return told


def _check_sizes(
  sections: Mapping[str, Section], fields: Mapping[str, Any], is_clip: bool
) -> None:
  """Raises UserError with every size and epsilon that is not that of the weights."""
  wrong = []
  for table in (_SHAPES, {} if is_clip else _NEW_SHAPES):
    for ours, (section, key) in table.items():
      if key not in sections[section]:
        continue
      value = sections[section].value(key)
      if isinstance(value, list) and len(value) == 2 and key in ('image_size', 'patch_size'):
        value = value[0] if value[0] == value[1] else value       # transformers takes both forms
      if value != fields[ours]:
        wrong.append(f'{ours}: {show(value)} in {sections[""].source}, {fields[ours]} in the '
                     f'weights ({sections[section].path(key)})')
  for name in ('text_config', 'vision_config'):
    epsilon = sections[name].value('layer_norm_eps')
    if 'layer_norm_eps' in sections[name] and (not is_number(epsilon) or epsilon != _EPSILON):
      wrong.append(f'{name}.layer_norm_eps: {show(epsilon)}, only {_EPSILON} is supported')
  if wrong:
    raise contradiction(sections[''].source, wrong)


def _check_rest(
  sections: Mapping[str, Section], fields: Mapping[str, Any], is_clip: bool
) -> None:
  """Raises UserError for values that describe another model, tokenizer or code."""
  vision, text = sections['vision_config'], sections['text_config']
  vision.choice('num_channels', (3,), 3, 'frames have red, green and blue')
  # transformers' X-CLIP reads the text feature at the largest id whatever the field says, and so
  # does its CLIP with 2; with CLIP's end token both do the same.
  if is_clip and vocabulary.is_clips(fields['vocab_size']):
    text.choice('eos_token_id', (2, 49407, None), 49407,
                'texts are written with CLIP\'s tokenizer, whose end token is 49407')
  for name, section in sections.items():
    section.ignore(_WITHOUT_EFFECT)
    section.ignore(('eos_token_id',))
    if is_clip:
      section.ignore(_OF_NEW_MODULES)
    section.choice('model_type', _MODEL_TYPES[name], '', 'the weights are of another kind of model')
    section.choice('tokenizer_class', tokenizer_files.CLASSES, None,
                   'texts are written with CLIP\'s tokenizer')
    section.off('quantization_config', 'load the model with its own library and save it in float32')
    section.off('auto_map', 'the model has code of its own, which is never run')
