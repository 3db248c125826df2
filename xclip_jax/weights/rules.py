"""Tables of parameter names: our name, the foreign name, and the layout of the foreign array.

A row is (our name, their name, layout). `{i}` is a block number. Read from right to left it brings
weights in, from left to right it takes them out.

Layouts, theirs -> ours:
  same     unchanged
  linear   torch Linear [out, in] -> [in, out]
  conv     torch Conv2d [D, 3, P, P] -> [P, P, 3, D]
  batched  [1, ...] -> [...]
and `packed`, for rows with three of our names: their array holds query, key and value stacked on
axis 0; each third is then laid out as `same` (bias) or `linear` (weight).
"""

from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
  """Maps one foreign array to one of our parameters, or to three."""

  ours: tuple[str, ...]      # one name, or three for a packed array
  theirs: str
  layout: str


def _same(ours: str, theirs: str) -> list[Rule]:
  return [Rule((ours,), theirs, 'same')]


def _matrix(ours: str, theirs: str) -> list[Rule]:
  """Returns the rule of a bare [in, out] matrix."""
  return [Rule((f'{ours}/kernel',), theirs, 'same')]


def _norm(ours: str, theirs: str) -> list[Rule]:
  return [
    Rule((f'{ours}/scale',), f'{theirs}.weight', 'same'),
    Rule((f'{ours}/bias',), f'{theirs}.bias', 'same'),
  ]


def _linear(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
  rows = [Rule((f'{ours}/kernel',), f'{theirs}.weight', 'linear')]
  return rows + ([Rule((f'{ours}/bias',), f'{theirs}.bias', 'same')] if bias else [])


_QKV = ('query', 'key', 'value')


def _packed_attention(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of torch.nn.MultiheadAttention."""
  return [
    Rule(tuple(f'{ours}/{x}/kernel' for x in _QKV), f'{theirs}.in_proj_weight', 'linear'),
    Rule(tuple(f'{ours}/{x}/bias' for x in _QKV), f'{theirs}.in_proj_bias', 'same'),
    *_linear(f'{ours}/out', f'{theirs}.out_proj'),
  ]


def _split_attention(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of Hugging Face's attention, with three projections."""
  return [
    row for x in _QKV for row in _linear(f'{ours}/{x}', f'{theirs}.{x[0]}_proj')
  ] + _linear(f'{ours}/out', f'{theirs}.out_proj')


def _prompt_block(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of a prompt block, which both dialects share."""
  return [
    *(row for x in _QKV for row in _linear(
      f'{ours}/cross_attn/{x}', f'{theirs}.cross_attn.{x[0]}_proj', bias=False)),
    *_linear(f'{ours}/cross_attn/out', f'{theirs}.cross_attn.proj'),
    *_norm(f'{ours}/norm1', f'{theirs}.norm1'),
    *_norm(f'{ours}/norm3', f'{theirs}.norm3'),
    *_linear(f'{ours}/mlp/c_fc', f'{theirs}.mlp.0'),
    *_linear(f'{ours}/mlp/c_proj', f'{theirs}.mlp.3'),
  ]


def _official_block(ours: str, theirs: str) -> list[Rule]:
  return [
    *_packed_attention(f'{ours}/attn', f'{theirs}.attn'),
    *_norm(f'{ours}/ln_1', f'{theirs}.ln_1'),
    *_norm(f'{ours}/ln_2', f'{theirs}.ln_2'),
    *_linear(f'{ours}/mlp/c_fc', f'{theirs}.mlp.c_fc'),
    *_linear(f'{ours}/mlp/c_proj', f'{theirs}.mlp.c_proj'),
  ]


def _hf_block(ours: str, theirs: str) -> list[Rule]:
  return [
    *_split_attention(f'{ours}/attn', f'{theirs}.self_attn'),
    *_norm(f'{ours}/ln_1', f'{theirs}.layer_norm1'),
    *_norm(f'{ours}/ln_2', f'{theirs}.layer_norm2'),
    *_linear(f'{ours}/mlp/c_fc', f'{theirs}.mlp.fc1'),
    *_linear(f'{ours}/mlp/c_proj', f'{theirs}.mlp.fc2'),
  ]


_VISUAL = 'visual.transformer.resblocks.{i}'


def _openai_vision() -> list[Rule]:
  return [
    *_same('logit_scale', 'logit_scale'),
    Rule(('vision/patch_embed/kernel',), 'visual.conv1.weight', 'conv'),
    *_same('vision/class_embed', 'visual.class_embedding'),
    *_same('vision/pos_embed', 'visual.positional_embedding'),
    *_norm('vision/ln_pre', 'visual.ln_pre'),
    *_official_block('vision/blocks_{i}', _VISUAL),
    *_norm('vision/ln_post', 'visual.ln_post'),
    *_matrix('vision/proj', 'visual.proj'),
  ]


def _openai_text(prefix: str = '') -> list[Rule]:
  return [
    *_same('text/token_embed/embedding', f'{prefix}token_embedding.weight'),
    *_same('text/pos_embed', f'{prefix}positional_embedding'),
    *_official_block('text/blocks_{i}', prefix + 'transformer.resblocks.{i}'),
    *_norm('text/ln_final', f'{prefix}ln_final'),
    *_matrix('text/proj', f'{prefix}text_projection'),
  ]


# openai/CLIP, and most ViTs of open_clip.
OPENAI = (*_openai_vision(), *_openai_text())
# open_clip's models with a text tower of its own.
OPEN_CLIP = (*_openai_vision(), *_openai_text('text.'))
# microsoft/VideoX.
OFFICIAL = (
  *OPENAI,
  *_linear('vision/blocks_{i}/message_fc', f'{_VISUAL}.message_fc'),
  *_norm('vision/blocks_{i}/message_ln', f'{_VISUAL}.message_ln'),
  *_packed_attention('vision/blocks_{i}/message_attn', f'{_VISUAL}.message_attn'),
  Rule(('mit/pos_embed',), 'mit.positional_embedding', 'batched'),
  *_official_block('mit/blocks_{i}', 'mit.resblocks.{i}'),
  *_norm('prompt/visual_ln', 'prompts_visual_ln'),
  *_matrix('prompt/visual_proj', 'prompts_visual_proj'),
  *_norm('prompt/norm', 'prompts_generator.norm'),
  *_prompt_block('prompt/blocks_{i}', 'prompts_generator.decoder.{i}'),
  *_same('prompt/alpha', 'prompts_generator.alpha'),
)

_EMBEDDINGS, _LAYERS = 'vision_model.embeddings', 'vision_model.encoder.layers.{i}'


def _hf_towers(pre_norm: str) -> list[Rule]:
  return [
    *_same('logit_scale', 'logit_scale'),
    Rule(('vision/patch_embed/kernel',), f'{_EMBEDDINGS}.patch_embedding.weight', 'conv'),
    *_same('vision/class_embed', f'{_EMBEDDINGS}.class_embedding'),
    *_same('vision/pos_embed', f'{_EMBEDDINGS}.position_embedding.weight'),
    *_norm('vision/ln_pre', f'vision_model.{pre_norm}'),
    *_hf_block('vision/blocks_{i}', _LAYERS),
    *_norm('vision/ln_post', 'vision_model.post_layernorm'),
    *_linear('vision/proj', 'visual_projection', bias=False),
    *_same('text/token_embed/embedding', 'text_model.embeddings.token_embedding.weight'),
    *_same('text/pos_embed', 'text_model.embeddings.position_embedding.weight'),
    *_hf_block('text/blocks_{i}', 'text_model.encoder.layers.{i}'),
    *_norm('text/ln_final', 'text_model.final_layer_norm'),
    *_linear('text/proj', 'text_projection', bias=False),
  ]


# transformers.CLIPModel; its name for the first norm is misspelt.
HUGGING_FACE_CLIP = tuple(_hf_towers('pre_layrnorm'))
# transformers.XCLIPModel
HUGGING_FACE = (
  *_hf_towers('pre_layernorm'),
  *_linear('vision/blocks_{i}/message_fc', f'{_LAYERS}.message_fc'),
  *_norm('vision/blocks_{i}/message_ln', f'{_LAYERS}.message_ln'),
  *_split_attention('vision/blocks_{i}/message_attn', f'{_LAYERS}.message_attn'),
  Rule(('mit/pos_embed',), 'mit.position_embedding', 'batched'),
  *_hf_block('mit/blocks_{i}', 'mit.encoder.layers.{i}'),
  *_norm('prompt/visual_ln', 'prompts_visual_layernorm'),
  *_matrix('prompt/visual_proj', 'prompts_visual_projection'),
  *_norm('prompt/norm', 'prompts_generator.layernorm'),
  *_prompt_block('prompt/blocks_{i}', 'prompts_generator.decoder.{i}'),
  *_same('prompt/alpha', 'prompts_generator.alpha'),
)

DIALECTS = {
  'official': OFFICIAL, 'huggingface': HUGGING_FACE,
  'openai': OPENAI, 'open_clip': OPEN_CLIP, 'huggingface_clip': HUGGING_FACE_CLIP,
}
# Parameters that a state dict of any dialect may have.
OPTIONAL = tuple(_same('logit_bias', 'logit_bias'))
CLIP_DIALECTS = ('openai', 'open_clip', 'huggingface_clip')
# Parameters that X-CLIP has and CLIP lacks.
NEW_PARAMETERS = r'vision/blocks_\d+/message_.*|mit/.*|prompt/.*|logit_bias'

# Not parameters: buffers of old files, the three scalars in OpenAI's archives, and the number of
# weights in an average.
IGNORED = (
  r'(text|vision)_model\.embeddings\.position_ids',
  r'(text\.)?attn_mask',
  r'input_resolution|context_length|vocab_size',
  r'n_averaged',
)

_INWARD = {
  'same': lambda x: x,
  'linear': np.transpose,
  'conv': lambda x: np.transpose(x, (2, 3, 1, 0)),
  'batched': lambda x: x[0],
}
_OUTWARD = {
  'same': lambda x: x,
  'linear': np.transpose,
  'conv': lambda x: np.transpose(x, (3, 2, 0, 1)),
  'batched': lambda x: x[None],
}


def inward(rule: Rule, array: np.ndarray) -> list[np.ndarray]:
  """Converts a foreign array to ours: one array for each name of rule.ours."""
  parts = np.split(array, len(rule.ours)) if len(rule.ours) > 1 else [array]
  return [_INWARD[rule.layout](part) for part in parts]


def outward(rule: Rule, arrays: list[np.ndarray]) -> np.ndarray:
  """Converts our arrays, one for each name of rule.ours, to the foreign array."""
  parts = [_OUTWARD[rule.layout](np.asarray(x)) for x in arrays]
  return np.concatenate(parts) if len(parts) > 1 else parts[0]
