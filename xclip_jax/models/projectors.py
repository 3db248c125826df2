"""What stands between a student's features and its teacher's in distillation (regularize.py)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xclip_jax.models.layers import Dense

PROJECTORS = 'distill'        # where their parameters lie, beside those of the model
_SHARE = 0.1                  # of the projector's output in what is compared


class Projector(nn.Module):
  """z + 0.1 * MLP(z), [N, E] to the same; at first z, as the last layer starts at 0."""

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    E = z.shape[-1]
    y = nn.gelu(Dense(E, name='fc')(z), approximate=False)
    return z + _SHARE * Dense(E, kernel_init=nn.initializers.zeros, name='proj')(y)


class Projectors(nn.Module):
  """One for features of videos and one for features of texts; they exist in training only."""

  def setup(self):
    self.video, self.text = Projector(), Projector()

  def __call__(self, video: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self.video(video), self.text(text)


def init_projectors(embed_dim: int, key: jax.Array) -> Any:
  """Draws the parameters of `Projectors`."""
  none = jnp.zeros((1, embed_dim))
  return Projectors().init(key, none, none)['params']
