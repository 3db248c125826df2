"""Text features of any number of texts, each encoded by one device only."""

from typing import Any

import jax
import jax.numpy as jnp

from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib


def encode(model: XCLIP, params: Any, token_ids: jax.Array) -> jax.Array:
  """Returns the features of K texts on every device of the mesh around this code.

  The compiler divides rows over devices only where their number divides; of 401 rows on 8 devices
  it would give all to each. So rows are added, encoded and cut off again.

  Args:
    model: the module.
    params: its parameters.
    token_ids: int [K, S].

  Returns:
    float32 [K, E], not normalised.
  """
  K = len(token_ids)
  padded = jnp.pad(token_ids, ((0, -K % mesh_lib.batch_shards()), (0, 0)), mode='edge')
  features = model.apply({'params': params}, mesh_lib.shard_batch(padded), method='encode_text')
  # Pinned before they are gathered, so that their gradient is divided in the same way.
  return mesh_lib.gather_batch(mesh_lib.shard_batch(features))[:K]
