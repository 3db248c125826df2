"""Conversion between foreign state dicts and our parameters by the tables of rules.py, strictly."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.xclip import XCLIP, init_params
from xclip_jax.parallel import tree_names
from xclip_jax.weights import rules

_DEPTHS = {
  'vision': 'vision_layers', 'text': 'text_layers', 'mit': 'mit_layers', 'prompt': 'prompt_layers',
}

_SCALARS = {'logit_scale', 'logit_bias'}
_MOST_PROBLEMS = 1000       # lines of one error


@functools.cache
def abstract_params(config: XCLIPConfig) -> Any:
  """Returns names, shapes and dtypes of all parameters without allocating; do not modify it."""
  # The blocks of a tower are alike, so one block of each is traced, in a tenth of the time.
  shallow = dataclasses.replace(config, **dict.fromkeys(_DEPTHS.values(), 1))
  shapes = jax.eval_shape(lambda: init_params(XCLIP(shallow), jax.random.key(0)))
  flat = {}
  for name, x in tree_names.flatten(shapes).items():
    block = re.fullmatch(r'(\w+)/blocks_0/(.*)', name)
    if block:
      depth = getattr(config, _DEPTHS[block[1]])
      flat |= {f'{block[1]}/blocks_{i}/{block[2]}': x for i in range(depth)}
    else:
      flat[name] = x
  return tree_names.unflatten(flat)


def detect_dialect(names: Iterable[str]) -> str:
  """Returns the key of rules.DIALECTS that the names of a state dict belong to.

  Raises:
    UserError: the names belong to none of the dialects.
  """
  names = set(names)
  is_xclip = any('message_fc' in name or name.startswith('mit.') for name in names)
  if 'visual.conv1.weight' in names and 'visual.class_embedding' in names:
    if is_xclip:
      return 'official'
    return 'open_clip' if 'text.token_embedding.weight' in names else 'openai'
  if 'vision_model.embeddings.patch_embedding.weight' in names:
    return 'huggingface' if is_xclip else 'huggingface_clip'
  if any(name.startswith('visual.layer1.') for name in names):
    raise UserError('these are weights of a CLIP ResNet; only its vision transformers (ViT-*) fit')
  raise UserError(explain_unknown_names(names))


def explain_unknown_names(names: Iterable[str]) -> str:
  """Returns what people are told about names that no dialect has."""
  names = sorted(names)
  return ('not the names of a CLIP or X-CLIP state dict (OpenAI, official X-CLIP, Hugging Face, '
          f'open_clip); {len(names)} names, such as {[x[:200] for x in names[:5]]}')


def to_params(
  state: Mapping[str, np.ndarray], dialect: str, config: XCLIPConfig, seed: int = 0
) -> Any:
  """Turns a foreign state dict into our float32 parameters.

  float32 arrays are not copied: the result holds views in another layout. Weights of CLIP are
  completed to an X-CLIP: new modules are drawn from the reference's initial distributions. A
  logit_bias is left out where the model has none: it changes no softmax over labels.

  Args:
    state: foreign names -> arrays of any float dtype.
    dialect: a key of rules.DIALECTS.
    config: the architecture that the weights must fit.
    seed: of the modules that CLIP lacks.

  Raises:
    UserError: lists every unknown key, every missing parameter and every shape that differs.
  """
  flat, problems = _lay_out(state, dialect)
  want = tree_names.flatten(abstract_params(config))
  for rule in rules.OPTIONAL:
    if rule.ours[0] not in want:
      flat.pop(rule.ours[0], None)
  for key in _SCALARS & flat.keys():        # open_clip may write them as [1]
    if flat[key].size == 1:
      flat[key] = flat[key].reshape(())
  is_new = lambda name: tree_names.matches(rules.NEW_PARAMETERS, name)
  is_clip = dialect in rules.CLIP_DIALECTS
  problems += [
    f'missing {key!r}' for key in want.keys() - flat.keys() if not (is_clip and is_new(key))
  ]
  problems += [f'no place for {key!r}' for key in flat.keys() - want.keys()]
  problems += [
    f'{key!r} is {list(flat[key].shape)}, the model wants {list(want[key].shape)}'
    for key in want.keys() & flat.keys() if flat[key].shape != want[key].shape
  ]
  if problems:
    raise UserError(
      f'these weights do not fit the model ({len(problems)} differences):\n  '
      + '\n  '.join(sorted(problems)[:_MOST_PROBLEMS])
    )
  if want.keys() - flat.keys():
    flat = _draw(config, is_new, seed) | flat
  return tree_names.unflatten({key: flat[key] for key in want})


def _lay_out(
  state: Mapping[str, np.ndarray], dialect: str
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns a state dict under our names and in our layouts, and what is not known of it."""
  flat, problems = {}, []
  table = [(_pattern(rule.theirs), rule) for rule in (*rules.DIALECTS[dialect], *rules.OPTIONAL)]
  for key, array in state.items():
    if any(re.fullmatch(pattern, key) for pattern in rules.IGNORED):
      continue
    rule, match = next(
      ((rule, match) for pattern, rule in table if (match := pattern.fullmatch(key))), (None, None)
    )
    if rule is None or match is None:
      problems.append(f'unknown key {key!r}')
      continue
    try:
      parts = rules.inward(rule, np.asarray(array, np.float32))
    except (ValueError, IndexError, TypeError):
      shape = list(np.shape(array))
      problems.append(f'{key!r} is {shape}, which cannot be laid out as {rule.ours}')
      parts = []
    flat |= {_numbered(n, match): x for n, x in zip(rule.ours, parts, strict=bool(parts))}
  return flat, problems


def _draw(config: XCLIPConfig, chosen: Any, seed: int) -> dict[str, np.ndarray]:
  """Draws the initial values of the chosen parameters and computes no others."""
  def draw(key):
    flat = tree_names.flatten(init_params(XCLIP(config), key))
    return {name: x for name, x in flat.items() if chosen(name)}

  return {name: np.asarray(x) for name, x in jax.jit(draw)(jax.random.key(seed)).items()}


def to_state_dict(params: Any, dialect: str) -> dict[str, np.ndarray]:
  """Turns our parameters into a foreign state dict; the inverse of `to_params`.

  A dialect of CLIP gets the two towers and the logit scale; CLIP has no other parameters.

  Raises:
    UserError: the dialect has no name for a parameter, or the model lacks one that the dialect
      needs.
  """
  flat = tree_names.flatten(params)
  if 'logit_bias' in flat:
    raise UserError(
      f'the model has a logit_bias, from training with a sigmoid loss; {dialect} has no place for '
      'it: keep these weights in our own format')
  state = {}
  lacking = [
    rule.ours[0] for rule in rules.DIALECTS[dialect]
    if not any(map(_pattern(rule.ours[0]).fullmatch, flat))
  ]
  if lacking:
    raise UserError(
      f'the model has no {lacking[0]} (and {len(lacking) - 1} more), so its weights are not those '
      f'of an X-CLIP, which {dialect} names; keep them in our own format'
      + ('' if any(map(re.compile(rules.NEW_PARAMETERS).fullmatch, flat)) else
         f', or write the CLIP that it is ({", ".join(rules.CLIP_DIALECTS)})')
    )
  for rule in rules.DIALECTS[dialect]:
    pattern = _pattern(rule.ours[0])
    for key in flat:
      match = pattern.fullmatch(key)
      if match:
        arrays = [flat[_numbered(name, match)] for name in rule.ours]
        state[_numbered(rule.theirs, match)] = rules.outward(rule, arrays)
  return state


def resample(
  params: Any, config: XCLIPConfig, num_frames: int | None = None, image_size: int | None = None
) -> tuple[Any, XCLIPConfig]:
  """Interpolates position tables for another number of frames or another image size.

  Frame positions are interpolated linearly; patch positions bicubically, as by Hugging Face's
  `interpolate_pos_encoding` (a = -0.75, no antialias), except the class token's. Positions are
  centres of frames or patches, and the outermost are repeated. Train the result further, or check
  its accuracy.
  """
  flat = dict(tree_names.flatten(params))
  if num_frames and num_frames != config.num_frames:
    if 'mit/pos_embed' in flat:
      table = np.asarray(flat['mit/pos_embed'], np.float32)
      flat['mit/pos_embed'] = _weights(config.num_frames, num_frames, _linear) @ table
    config = _replaced(config, num_frames=num_frames)
  if image_size and image_size != config.image_size:
    new = _replaced(config, image_size=image_size)
    old_side, side = (c.image_size // c.patch_size for c in (config, new))
    table = np.asarray(flat['vision/pos_embed'], np.float32)
    grid = table[1:].reshape(old_side, old_side, -1)
    weights = _weights(old_side, side, _cubic)
    grid = np.einsum('yY,xX,YXD->yxD', weights, weights, grid, optimize=True)
    flat['vision/pos_embed'] = np.concatenate([table[:1], grid.reshape(side * side, -1)])
    config = new
  return tree_names.unflatten(flat), config


def _replaced(config: XCLIPConfig, **fields: Any) -> XCLIPConfig:
  return XCLIPConfig(**(vars(config) | fields))


def _linear(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1 - np.abs(distance), 0)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
  x = np.abs(distance)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _weights(old: int, new: int, kernel: Any) -> np.ndarray:
  """Returns the matrix [new, old] that interpolates a row of values."""
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)            # [new, 4]
  values = kernel(centres[:, None] - taps)
  matrix = np.zeros((new, old), np.float32)
  np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1)), values)
  return matrix


def _pattern(name: str) -> re.Pattern:
  return re.compile(re.escape(name).replace(r'\{i\}', r'(?P<i>\d+)'))


def _numbered(name: str, match: re.Match) -> str:
  return name.replace('{i}', match.groupdict().get('i') or '')
