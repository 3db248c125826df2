"""Networks that map a student's features onto its teacher's in distillation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from xclip_jax.models.layers import Dense
from xclip_jax.models.matmul import AnyArray
from xclip_jax.models.xclip import l2_normalize

PROJECTORS = 'distill'        # key of their parameters, beside those of the model
_SHARE = 0.1                  # weight of the MLP's output


class Projector(nn.Module):
  """Computes u + 0.1 * MLP(u) of u = z / |z|; initially u, since the last layer is 0.

  FROSTER's residual network (Huang et al., ICLR 2024, and its authors' code): the exact GELU, no
  biases, and a first layer drawn with a standard deviation of sqrt(2 / E) (He et al., 2015).
  """

  @nn.compact
  def __call__(self, z: Float[AnyArray, '*batch E']) -> Float[AnyArray, '*batch E']:
    z = l2_normalize(z)
    E = z.shape[-1]
    first = nn.initializers.normal((2 / E) ** 0.5)
    y = Dense(E, use_bias=False, kernel_init=first, name='fc')(z)
    y = Dense(E, use_bias=False, kernel_init=nn.initializers.zeros, name='proj')(
      nn.gelu(y, approximate=False))
    return z + _SHARE * y


class Projectors(nn.Module):
  """Projects video features and text features, each by a network that exists in training only."""

  def setup(self):
    self.video, self.text = Projector(), Projector()

  def __call__(
    self, video: Float[AnyArray, '*videos E'], text: Float[AnyArray, '*texts E']
  ) -> tuple[Float[AnyArray, '*videos E'], Float[AnyArray, '*texts E']]:
    """Projects both features; they keep their shapes."""
    return self.video(video), self.text(text)


def init_projectors(embed_dim: int, key: jax.Array) -> Any:
  """Draws the parameters of `Projectors`."""
  ones = jnp.ones((1, embed_dim))
  return Projectors().init(key, ones, ones)['params']
