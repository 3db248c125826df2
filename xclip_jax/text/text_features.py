"""Text features on a mesh: each text is encoded by one device only."""

from typing import Any

import jax
import jax.numpy as jnp

from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib


def encode(model: XCLIP, params: Any, token_ids: jax.Array) -> jax.Array:
  """Returns the features of K texts on every device of the mesh around this code.

  The compiler divides rows over devices only if their number is divisible; with 401 texts on 8
  devices, every device would encode all of them. So the rows are padded, encoded and cut off again.

  Args:
    model: the module.
    params: its parameters.
    token_ids: int [K, S].

  Returns:
    float32 [K, E], not normalised.
  """
  K = len(token_ids)
  padded = jnp.pad(token_ids, ((0, -K % mesh_lib.batch_shards()), (0, 0)), mode='edge')
  features: Any = model.apply(
    {'params': params}, mesh_lib.shard_batch(padded), method='encode_text')
  # The features are sharded before they are gathered, so that their gradient is sharded, too.
  return mesh_lib.gather_batch(mesh_lib.shard_batch(features))[:K]
