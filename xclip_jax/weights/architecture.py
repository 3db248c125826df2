"""Architecture of foreign weights, inferred from their shapes and the config beside them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.weights import rules
from xclip_jax.weights.configs import huggingface, open_clip

HEAD_WIDTH = 64     # width of a head in every tower of CLIP and of the reference
WIDTHS = {'vision': 'vision_width', 'text': 'text_width', 'mit': 'embed_dim', 'prompt': 'embed_dim'}


def infer_config(
  state: Mapping[str, np.ndarray], dialect: str, file_config: Mapping[str, Any] | None = None,
  num_frames: int = 8, config_name: str = '',
) -> XCLIPConfig:
  """Infers the architecture from a state dict.

  Args:
    state: foreign names -> arrays.
    dialect: a key of rules.DIALECTS.
    file_config: content of the config beside the weights: Hugging Face's config.json, or
      open_clip_config.json. Head counts and activations are known from such files alone; without
      one, heads are width // 64 and activations QuickGELU, as in OpenAI's files and the reference.
    num_frames: T of the model to be made from CLIP weights, which have none.
    config_name: name of the file of `file_config`, for messages.

  Raises:
    UserError: a key that every such file has is missing, or the config contradicts the shapes.
  """
  fields: dict[str, Any] = _infer_sizes(state, dialect, num_frames)
  fields['logit_bias'] = 'logit_bias' in state
  fields |= reference_heads(fields)
  if dialect in rules.CLIP_DIALECTS:     # the new modules are in no file, so any head count fits
    fields |= {k: max(fields[k], 1) for k in ('mit_heads', 'prompt_heads')}
  if file_config is not None:
    fields |= _read_config(file_config, config_name, dialect, fields)
  for tower, width in WIDTHS.items():
    if not fields[f'{tower}_heads']:
      raise UserError(
        f'{width}={fields[width]} is less than one head of {HEAD_WIDTH}, so the number of heads of '
        f'the {tower} tower cannot be told from the weights; it takes a config.json beside them'
      )
  return XCLIPConfig(**fields)


# Number of axes of the parameters whose shapes tell the sizes.
_CLIP_AXES = {
  'vision/patch_embed/kernel': 4, 'vision/pos_embed': 2, 'vision/blocks_0/mlp/c_fc/kernel': 2,
  'text/token_embed/embedding': 2, 'text/pos_embed': 2, 'text/blocks_0/mlp/c_fc/kernel': 2,
  'text/proj/kernel': 2,
}
_NEW_AXES = {'mit/pos_embed': 2, 'mit/blocks_0/mlp/c_fc/kernel': 2}


def _infer_sizes(
  state: Mapping[str, np.ndarray], dialect: str, num_frames: int
) -> dict[str, Any]:
  """Returns the fields of XCLIPConfig that the shapes determine."""
  shape = _shapes(state, dialect)
  is_clip = dialect in rules.CLIP_DIALECTS
  for name, axes in (_CLIP_AXES if is_clip else _CLIP_AXES | _NEW_AXES).items():
    if len(shape.get(name, ())) != axes:
      raise UserError(
        f'weights with {dialect} names have no {name!r}, or its shape is none that it can have; '
        'the file is incomplete or of another kind of model')
  patch, patch_width, channels, vision_width = shape['vision/patch_embed/kernel']
  tokens = shape['vision/pos_embed'][0]
  vocab_size, text_width = shape['text/token_embed/embedding']
  E = shape['text/proj/kernel'][1]
  T = num_frames if is_clip else shape['mit/pos_embed'][0]
  fields = dict(
    patch_size=patch, num_frames=T, embed_dim=E, vision_width=vision_width,
    vision_layers=_depth(state, dialect, 'vision/blocks_{i}/ln_1'),
    vision_mlp=shape['vision/blocks_0/mlp/c_fc/kernel'][1],
    text_width=text_width, text_layers=_depth(state, dialect, 'text/blocks_{i}/ln_1'),
    text_mlp=shape['text/blocks_0/mlp/c_fc/kernel'][1],
    vocab_size=vocab_size, context_length=shape['text/pos_embed'][0],
    mit_mlp=4 * E if is_clip else shape['mit/blocks_0/mlp/c_fc/kernel'][1],
  )
  if not is_clip:
    fields['mit_layers'] = _depth(state, dialect, 'mit/blocks_{i}/ln_1')
    fields['prompt_layers'] = _depth(state, dialect, 'prompt/blocks_{i}/norm1')
  grid = round((tokens - 1) ** 0.5)
  if grid * grid != tokens - 1 or (patch, channels) != (patch_width, 3):
    raise UserError(
      f'only square frames, square patches and 3 channels are supported; the patch kernel is '
      f'{patch} x {patch_width} of {channels} channels, and there are {tokens - 1} patches'
    )
  return fields | {'image_size': patch * grid}


def reference_heads(fields: Mapping[str, int]) -> dict[str, int]:
  """Returns head counts by the reference's rule of width // 64; 0 for a tower below 64."""
  return {f'{tower}_heads': fields[width] // HEAD_WIDTH for tower, width in WIDTHS.items()}


def _shapes(state: Mapping[str, np.ndarray], dialect: str) -> dict[str, tuple[int, ...]]:
  """Maps our names to shapes, for parameters outside of blocks and those of block 0."""
  shape = {}
  for rule in rules.DIALECTS[dialect]:
    key = rule.theirs.replace('{i}', '0')
    if key in state:
      try:
        parts = rules.inward(rule, np.broadcast_to(np.float32(0), np.shape(state[key])))
      except (ValueError, IndexError) as error:
        raise UserError(
          f'{key!r} is {list(np.shape(state[key]))}, which does not suit its place: {error}'
        ) from error
      shape |= {n.replace('{i}', '0'): x.shape for n, x in zip(rule.ours, parts, strict=True)}
  return shape


def _depth(state: Mapping[str, np.ndarray], dialect: str, ours: str) -> int:
  theirs = next(r.theirs for r in rules.DIALECTS[dialect] if r.ours == (f'{ours}/scale',))
  pattern = re.compile(re.escape(theirs).replace(r'\{i\}', r'\d+'))
  return sum(pattern.fullmatch(key) is not None for key in state)


def _read_config(
  content: Mapping[str, Any], name: str, dialect: str, fields: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads heads and activations from the config beside the weights; checks it against shapes."""
  if name == open_clip.FILE or open_clip.looks_like_one(content):
    return open_clip.read(name or open_clip.FILE, content, fields)
  is_clip = dialect in rules.CLIP_DIALECTS
  return huggingface.read(name or 'config.json', content, fields, is_clip)
