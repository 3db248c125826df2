"""The architecture that open_clip_config.json gives, compared with the weights' shapes."""

from collections.abc import Mapping
from typing import Any

from xclip_jax.weights.configs.section import Section, contradiction, is_number, show

FILE = 'open_clip_config.json'
_HEAD_WIDTH, _TEXT_HEADS, _EPSILON = 64, 8, 1e-5       # open_clip's defaults

# field of XCLIPConfig -> (section, key).
_SHAPES = {
  'embed_dim': ('', 'embed_dim'),
  'vision_width': ('vision_cfg', 'width'),
  'vision_layers': ('vision_cfg', 'layers'),
  'image_size': ('vision_cfg', 'image_size'),
  'patch_size': ('vision_cfg', 'patch_size'),
  'text_width': ('text_cfg', 'width'),
  'text_layers': ('text_cfg', 'layers'),
  'vocab_size': ('text_cfg', 'vocab_size'),
  'context_length': ('text_cfg', 'context_length'),
}
# Fields of training, initialisation, and outputs; what they were is in the weights.
_WITHOUT_EFFECT = {
  '': ('custom_text', 'init_logit_scale', 'init_logit_bias', 'cast_dtype', 'output_dict'),
  'vision_cfg': (
    'patch_dropout', 'output_tokens', 'attn_pooler_queries', 'attn_pooler_heads',
    'final_ln_after_pool', 'pos_embed_type', 'timm_model_pretrained', 'timm_pool', 'timm_proj',
    'timm_proj_bias', 'timm_drop', 'timm_drop_path'),
  'text_cfg': (
    'output_tokens', 'pad_id', 'eos_id', 'final_ln_after_pool', 'hf_model_pretrained',
    'hf_proj_type', 'hf_pooler_type'),
}
_NORMS = 'its norms and scales are not those of CLIP\'s ViT'
# Fields that change the computation unless they are off, and what they would change.
_OFF = {
  '': {
    'multimodal_cfg': 'a CoCa, which has a decoder', 'nonscalar_logit_scale': 'a scale per class'},
  'vision_cfg': {
    'timm_model_name': 'a tower that is not a CLIP ViT', 'attentional_pool': 'another pooling',
    'no_ln_pre': _NORMS, 'input_patchnorm': _NORMS, 'ls_init_value': _NORMS, 'qk_norm': _NORMS,
    'scaled_cosine_attn': _NORMS, 'scale_heads': _NORMS, 'scale_attn_inner': _NORMS,
    'scale_attn': _NORMS, 'scale_fc': _NORMS, 'block_type': 'another kind of block',
    'global_average_pool': 'it reads the mean of the patches, not the class token',
    'act_kwargs': 'another activation'},
  'text_cfg': {
    'hf_model_name': 'a tower that is not a CLIP ViT', 'ls_init_value': _NORMS, 'qk_norm': _NORMS,
    'scaled_cosine_attn': _NORMS, 'scale_heads': _NORMS, 'scale_attn_inner': _NORMS,
    'scale_attn': _NORMS, 'scale_fc': _NORMS, 'block_type': 'another kind of block',
    'hf_tokenizer_name': 'texts are written with CLIP\'s tokenizer',
    'tokenizer_kwargs': 'texts are cleaned as OpenAI\'s CLIP does it',
    'tokenizer_mode': 'texts are cleaned as OpenAI\'s CLIP does it',
    'no_causal_mask': 'the text tower is causal: each token sees those before it',
    'embed_cls': 'the text feature is read at the end token', 'act_kwargs': 'another activation',
    'proj_bias': 'the projection of texts has no bias'},
}


def looks_like_one(content: Mapping[str, Any]) -> bool:
  """Tells whether an object is a config of open_clip's."""
  return 'model_cfg' in content


def read(source: str, content: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
  """Reads head counts and activations, and compares the sizes with the weights.

  `preprocess_cfg` is not followed: CLIP's weights become an X-CLIP, which has its own.

  Args:
    source: name of the file, for messages.
    content: open_clip_config.json.
    fields: of XCLIPConfig, as shapes tell them.

  Returns:
    Fields of XCLIPConfig that shapes do not tell.

  Raises:
    UserError: lists every size that differs, or names a field that cannot be followed.
  """
  top = Section(source, content)
  model = top.section('model_cfg')
  if top.value('model_cfg') is None:
    raise top.refuse('model_cfg', 'it must describe the model')
  top.ignore(('preprocess_cfg',))
  vision, text = model.section('vision_cfg'), model.section('text_cfg')
  sections = {'': model, 'vision_cfg': vision, 'text_cfg': text}
  if isinstance(vision.value('layers'), list):
    raise vision.refuse('layers', 'several numbers are a ResNet\'s, and only CLIP ViTs fit')
  for name, section in sections.items():
    for key, why in _OFF[name].items():
      section.off(key, why)
    section.ignore(_WITHOUT_EFFECT[name])
    norms = section.section('norm_kwargs')
    norms.choice('eps', (_EPSILON,), _EPSILON, 'as in every LayerNorm of CLIP')
    norms.close()
  vision.choice('pool_type', ('tok', ''), 'tok', 'the image feature is read at the class token')
  text.choice('pool_type', ('argmax', ''), 'argmax', 'the text feature is read at the end token')
  text.choice('proj_type', ('linear',), 'linear', 'texts are projected by one matrix')
  _check_sizes(sections, fields)
  told = dict(
    vision_heads=_heads(vision, fields['vision_width']),
    text_heads=text.integer('heads', _TEXT_HEADS),
  )
  activation = 'quick_gelu' if model.boolean('quick_gelu', False) else 'gelu'
  for section in (top, *sections.values()):
    section.close()
  return told | dict(vision_activation=activation, text_activation=activation)


def _heads(vision: Section, width: int) -> int:
  """Returns the head count of the image tower, which open_clip gives as the width of a head."""
  head_width = vision.integer('head_width', _HEAD_WIDTH)
  if width % head_width:
    raise vision.refuse('head_width', f'it must divide the width of the tower, {width}')
  return width // head_width


def _check_sizes(sections: Mapping[str, Section], fields: Mapping[str, Any]) -> None:
  """Raises UserError with every size that is not that of the weights."""
  wrong = []
  for ours, (name, key) in _SHAPES.items():
    section = sections[name]
    value = section.value(key)
    if isinstance(value, list) and len(value) == 2 and key == 'image_size':
      value = value[0] if value[0] == value[1] else value             # open_clip takes both forms
    if key in section and value != fields[ours]:
      wrong.append(f'{section.path(key)}: {show(value)}, {fields[ours]} in the weights')
  for tower in ('vision', 'text'):
    section, width, mlp = (
      sections[f'{tower}_cfg'], fields[f'{tower}_width'], fields[f'{tower}_mlp'])
    ratio = section.value('mlp_ratio')
    if 'mlp_ratio' in section and not (is_number(ratio) and abs(ratio * width - mlp) < 1):
      wrong.append(f'{section.path("mlp_ratio")}: {show(ratio)}, {mlp} / {width} in the weights')
  if wrong:
    raise contradiction(sections[''].source, wrong)
