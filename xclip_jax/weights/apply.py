"""Weights across frameworks by the tables of rules.py: strict, both ways."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xclip_jax import paths
from xclip_jax.models.xclip import XCLIP, XCLIPConfig
from xclip_jax.weights import rules


def abstract_params(config: XCLIPConfig) -> Any:
  """Gives names, shapes and dtypes of all parameters; allocates nothing."""
  size = config.image_size
  video = jax.ShapeDtypeStruct((1, config.num_frames, size, size, 3), jnp.float32)
  token_ids = jax.ShapeDtypeStruct((1, config.context_length), jnp.int32)
  return jax.eval_shape(XCLIP(config).init, jax.random.key(0), video, token_ids)['params']


def detect_dialect(names: Any) -> str:
  """Tells 'official' from 'huggingface' by the keys of a state dict.

  Raises:
    ValueError: neither.
  """
  names = set(names)
  for dialect, mark in (
    ('official', 'visual.conv1.weight'),
    ('huggingface', 'vision_model.embeddings.patch_embedding.weight'),
  ):
    if mark in names and any('message_fc' in name for name in names):
      return dialect
  raise ValueError(
    f'not the names of an X-CLIP state dict (official or Hugging Face): {sorted(names)[:5]} ...'
  )


def to_params(state: Mapping[str, np.ndarray], dialect: str, config: XCLIPConfig) -> Any:
  """Turns a foreign state dict into our float32 parameters.

  Args:
    state: their names -> arrays.
    dialect: a key of rules.DIALECTS.
    config: the architecture the weights must fit.

  Raises:
    ValueError: listing every key that is unknown, every leaf not filled, every shape that differs.
  """
  flat, unknown = {}, []
  table = [(_pattern(rule.theirs), rule) for rule in rules.DIALECTS[dialect]]
  for key, array in state.items():
    if any(re.fullmatch(pattern, key) for pattern in rules.IGNORED):
      continue
    for pattern, rule in table:
      found = pattern.fullmatch(key)
      if found:
        parts = rules.inward(rule, np.asarray(array, np.float32))
        flat |= {_numbered(n, found): x for n, x in zip(rule.ours, parts, strict=True)}
        break
    else:
      unknown.append(key)
  want = paths.flatten(abstract_params(config))
  problems = [f'unknown key {key!r}' for key in unknown]
  problems += [f'missing {key!r}' for key in want.keys() - flat.keys()]
  problems += [f'no place for {key!r}' for key in flat.keys() - want.keys()]
  problems += [
    f'{key!r} is {list(flat[key].shape)}, the model wants {list(want[key].shape)}'
    for key in want.keys() & flat.keys() if flat[key].shape != want[key].shape
  ]
  if problems:
    raise ValueError(
      f'these weights do not fit the model ({len(problems)} differences):\n  '
      + '\n  '.join(sorted(problems))
    )
  return paths.unflatten(flat)


def to_state_dict(params: Any, dialect: str) -> dict[str, np.ndarray]:
  """Turns our parameters into a foreign state dict; the inverse of `to_params`."""
  flat = paths.flatten(params)
  state = {}
  for rule in rules.DIALECTS[dialect]:
    pattern = _pattern(rule.ours[0])
    for key in flat:
      found = pattern.fullmatch(key)
      if found:
        arrays = [flat[_numbered(name, found)] for name in rule.ours]
        state[_numbered(rule.theirs, found)] = rules.outward(rule, arrays)
  return state


def infer_config(
  state: Mapping[str, np.ndarray], dialect: str, hf_config: Mapping[str, Any] | None = None
) -> XCLIPConfig:
  """Reads the architecture off a state dict.

  Args:
    state: their names -> arrays.
    dialect: a key of rules.DIALECTS.
    hf_config: the content of Hugging Face's config.json, the only place that has head counts;
      without it heads are width // 64, as the reference has it.
  """
  shape = {}
  for rule in rules.DIALECTS[dialect]:
    for i in ('0', None) if '{i}' in rule.theirs else (None,):
      key = rule.theirs.format(i=i) if i else rule.theirs
      if key in state:
        parts = rules.inward(rule, np.asarray(state[key]))
        shape |= {n.format(i=i) if i else n: x.shape for n, x in zip(rule.ours, parts, strict=True)}

  def depth(ours: str) -> int:
    theirs = next(r.theirs for r in rules.DIALECTS[dialect] if r.ours == (f'{ours}/scale',))
    return sum(_pattern(theirs).fullmatch(key) is not None for key in state)

  patch, _, _, vision_width = shape['vision/patch_embed/kernel']
  grid = int((shape['vision/pos_embed'][0] - 1) ** 0.5)
  vocab_size, text_width = shape['text/token_embed/embedding']
  T, E = shape['mit/pos_embed']
  hf = hf_config or {}
  text, vision = hf.get('text_config', {}), hf.get('vision_config', {})
  return XCLIPConfig(
    image_size=patch * grid,
    patch_size=patch,
    num_frames=T,
    embed_dim=E,
    vision_width=vision_width,
    vision_layers=depth('vision/blocks_{i}/ln_1'),
    vision_heads=vision.get('num_attention_heads', vision_width // 64),
    vision_mlp=shape['vision/blocks_0/mlp/c_fc/kernel'][1],
    text_width=text_width,
    text_layers=depth('text/blocks_{i}/ln_1'),
    text_heads=text.get('num_attention_heads', text_width // 64),
    text_mlp=shape['text/blocks_0/mlp/c_fc/kernel'][1],
    vocab_size=vocab_size,
    context_length=shape['text/pos_embed'][0],
    mit_layers=depth('mit/blocks_{i}/ln_1'),
    mit_heads=vision.get('mit_num_attention_heads', E // 64),
    mit_mlp=shape['mit/blocks_0/mlp/c_fc/kernel'][1],
    prompt_layers=depth('prompt/blocks_{i}/norm1'),
    prompt_heads=hf.get('prompt_num_attention_heads', E // 64),
    activation=vision.get('hidden_act', 'quick_gelu'),
  )


def _pattern(name: str) -> re.Pattern:
  return re.compile(re.escape(name).replace(r'\{i\}', r'(?P<i>\d+)'))


def _numbered(name: str, found: re.Match) -> str:
  return name.replace('{i}', found.groupdict().get('i') or '')
