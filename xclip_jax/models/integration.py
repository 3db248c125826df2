"""The multi-frame integration transformer: frame features to one video feature."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xclip_jax.models.layers import Block, small_init


class MultiframeTransformer(nn.Module):
  """mean_t(blocks(x + pos) + x), Eq. 6; the outer residual (not in the paper) is without pos.

  Its position table is the only place where X-CLIP learns the order of frames: everything before
  it treats them as a set.
  """

  layers: int
  heads: int
  mlp_width: int
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32
  positions: bool = True         # without them a video is a set of frames

  @nn.compact
  def __call__(self, frames: jax.Array) -> jax.Array:
    """Args: frames [B, T, E]. Returns float32 [B, E], not normalised."""
    T, E = frames.shape[1:]
    x = frames
    if self.positions:
      x += self.param('pos_embed', nn.initializers.normal(0.02), (T, E), jnp.float32)
    for i in range(self.layers):
      x = Block(
        self.heads, self.mlp_width, small_init(E), self.activation, dtype=self.dtype,
        name=f'blocks_{i}',
      )(x)
    return jnp.mean(x + frames, axis=1)
