"""Prompts of classes: several templates, and descriptions of what a class looks like."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from xclip_jax import files
from xclip_jax.data.datasets import annotations
from xclip_jax.errors import UserError
from xclip_jax.models.xclip import l2_normalize
from xclip_jax.text.tokenizer import write_prompts


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """Holds the texts of K classes, N texts in total."""

  texts: tuple[str, ...]
  token_ids: np.ndarray      # int32 [N, S]
  rows: np.ndarray           # int32 [K, P], texts of each class, padded by repeating the last
  counts: np.ndarray         # int32 [K], number of texts without padding

  def average(self, features: jax.Array) -> jax.Array:
    """Averages the features of all texts, [N, E], to class features, float32 [K, E]."""
    mask = np.arange(self.rows.shape[1]) < self.counts[:, None]
    return average(features[self.rows], mask)

  def draw(self, key: jax.Array) -> jax.Array:
    """Draws one text of each class with equal probability: int32 [K], rows of token_ids."""
    which = jax.random.randint(key, self.counts.shape, 0, jnp.asarray(self.counts))
    return jnp.asarray(self.rows)[jnp.arange(len(self.rows)), which]


def average(features: jax.Array, mask: Any = True) -> jax.Array:
  """Averages features of several texts for the same thing: [K, P, E] to float32 [K, E].

  The direction is that of CLIP's ensembles: the mean of the normalised features. The norm is the
  mean of the norms: X-CLIP adds a video-dependent prompt to the text features, so their scale must
  stay what it was in training. `mask`, bool [K, P], excludes padding.
  """
  mask = jnp.broadcast_to(jnp.asarray(mask), features.shape[:2])[..., None]
  length = jnp.linalg.norm(features, axis=-1, keepdims=True)
  mean = lambda x: jnp.sum(jnp.where(mask, x, 0), axis=1) / jnp.sum(mask, axis=1)
  return l2_normalize(mean(features / length)) * mean(length)


def write(names: Sequence[str], data: Any, context_length: int) -> Prompts | None:
  """Writes the texts that `config.data` asks for; None if each class has one text.

  The texts are every template of `templates` (or the one `template`) around every description of a
  class, or around its name if it has no description.

  Raises:
    UserError: the file of descriptions is malformed, a template has no {} for the name, or a text
      is too long.
  """
  if not data.templates and not data.descriptions:
    return None
  templates = tuple(data.templates) or (data.template,)
  described = read_descriptions(data) if data.descriptions else {}
  for template in templates:
    if '{}' not in template:
      raise UserError(f'config.data.templates: {template!r} must hold {{}} for the class name')
  of_class = [
    [t.replace('{}', text) for text in described.get(name, (name,)) for t in templates]
    for name in names
  ]
  texts = [text for group in of_class for text in group]
  counts = np.array([len(group) for group in of_class], np.int32)
  first = np.cumsum(counts) - counts
  rows = first[:, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)
  token_ids = write_prompts(texts, '{}', context_length)
  return Prompts(tuple(texts), token_ids, rows.astype(np.int32), counts)


def check_descriptions(data: Any, names: Sequence[str]) -> None:
  """Raises UserError if the file describes a class of no class list: a misspelt name."""
  unknown = sorted(read_descriptions(data).keys() - set(names)) if data.descriptions else []
  if unknown:
    raise UserError(f'{place(data)}: {unknown[0]!r} is the name of no class ({len(unknown)} such)')


def read_descriptions(data: Any) -> Mapping[str, tuple[str, ...]]:
  """Reads `data.descriptions`, a CSV with header `name,description`: class name -> its texts."""
  descriptions: dict[str, tuple[str, ...]] = {}
  _, rows = annotations.read_rows(place(data), ('name', 'description'))
  for line, row in rows:
    if not row['name'] or not row['description']:
      raise UserError(f'{place(data)}, line {line}: name or description is empty')
    descriptions[row['name']] = (*descriptions.get(row['name'], ()), row['description'])
  return descriptions


def fingerprint(data: Any) -> dict[str, str]:
  """Returns the hash by which a run recognises its file of descriptions; empty without one."""
  if not data.descriptions:
    return {}
  return {'descriptions': hashlib.sha256(annotations.read_content(place(data))).hexdigest()[:16]}


def place(data: Any) -> Path | epath.Path:
  """Returns the path of the file of descriptions."""
  return files.join(data.root, data.descriptions, 'config.data.descriptions')
