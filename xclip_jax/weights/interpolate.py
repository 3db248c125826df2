"""Weights between those of two models (WiSE-FT)."""

import dataclasses

import jax
import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.models.config import COMPUTE_FIELDS
from xclip_jax.parallel import tree_names
from xclip_jax.weights.native import Weights


def interpolate(first: Weights, second: Weights, alpha: float) -> Weights:
  """Mixes parameters, (1 - alpha) * first + alpha * second; other fields are the second's.

  WiSE-FT (Wortsman et al., CVPR 2022): `first` is the model before fine-tuning, `second` the model
  after. alpha 0 gives exactly the first, alpha 1 exactly the second.

  Raises:
    UserError: alpha is outside [0, 1], or the models differ; lists how.
  """
  if not 0 <= alpha <= 1:
    raise UserError(f'alpha must lie in [0, 1], got {alpha}')
  check_alike(first, second)

  def mix(a, b):
    mixed = (1 - alpha) * np.asarray(a, np.float64) + alpha * np.asarray(b, np.float64)
    return mixed.astype(np.float32)

  return dataclasses.replace(
    second, params=jax.tree.map(mix, first.params, second.params),
    source=f'{1 - alpha:g} x {first.source} + {alpha:g} x {second.source}',
    licence='; and '.join(dict.fromkeys((first.licence, second.licence))),
    notes=tuple(dict.fromkeys(first.notes + second.notes)),
  )


def check_alike(first: Weights, second: Weights) -> None:
  """Raises UserError unless both models have one architecture."""
  left, right = vars(first.config), vars(second.config)
  differ = [f'{k}: {v} and {right[k]}' for k, v in left.items()
            if v != right[k] and k not in COMPUTE_FIELDS]
  shapes_of = lambda weights: {
    name: np.shape(x) for name, x in tree_names.flatten(weights.params).items()}
  differ += ['their parameters'] if shapes_of(first) != shapes_of(second) and not differ else []
  if differ:
    raise UserError(
      f'{first.source} and {second.source} are not the same model, so nothing lies between them:'
      '\n  ' + '\n  '.join(differ)
    )
