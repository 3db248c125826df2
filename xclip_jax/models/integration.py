"""Multi-frame integration transformer: from frame features to one video feature."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from xclip_jax.models.layers import Block, small_init
from xclip_jax.models.matmul import AnyArray


class MultiframeTransformer(nn.Module):
  """Computes mean_t(blocks(x + pos) + x), Eq. 6; the outer residual is not in the paper.

  The position table is the only place where X-CLIP learns the order of frames: every layer before
  it treats the frames of a video as a set.
  """

  layers: int
  heads: int
  mlp_width: int
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32
  positions: bool = True         # False: a video is a set of frames

  @nn.compact
  def __call__(self, frames: Float[AnyArray, 'B T E']) -> Float[AnyArray, 'B E']:
    """Integrates the features of T frames into a float32 video feature, not normalised."""
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
