"""Networks between a student's features and its teacher's in distillation (regularize.py)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xclip_jax.models.layers import Dense
from xclip_jax.models.xclip import l2_normalize

PROJECTORS = 'distill'        # where their parameters lie, beside those of the model
_SHARE = 0.1                  # of the MLP's output in what is compared


class Projector(nn.Module):
  """u + 0.1 * MLP(u) of u = z / |z|, [..., E] to the same; at first u, as the last layer is 0.

  FROSTER's residual network (Huang et al., ICLR 2024, and its authors' code): the exact GELU, no
  biases, and a first layer drawn with a standard deviation of sqrt(2 / E) (He et al., 2015).
  """

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    z = l2_normalize(z)
    E = z.shape[-1]
    first = nn.initializers.normal((2 / E) ** 0.5)
    y = Dense(E, use_bias=False, kernel_init=first, name='fc')(z)
    y = Dense(E, use_bias=False, kernel_init=nn.initializers.zeros, name='proj')(
      nn.gelu(y, approximate=False))
    return z + _SHARE * y


class Projectors(nn.Module):
  """A projector of video features and one of text features; they exist in training only."""

  def setup(self):
    self.video, self.text = Projector(), Projector()

  def __call__(self, video: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self.video(video), self.text(text)


def init_projectors(embed_dim: int, key: jax.Array) -> Any:
  """Draws the parameters of `Projectors`."""
  ones = jnp.ones((1, embed_dim))
  return Projectors().init(key, ones, ones)['params']
