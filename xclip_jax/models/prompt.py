"""Video-specific prompt generator: text features conditioned on the patches of a video."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from xclip_jax.models.layers import Attention, Dense, LayerNorm, Mlp, small_init
from xclip_jax.models.matmul import AnyArray
from xclip_jax.parallel.mesh import shard_batch


class PromptBlock(nn.Module):
  """Lets texts attend to the patches of a video; without self-attention and norm2."""

  heads: int
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, text: Float[AnyArray, 'B K E'], patches: Float[AnyArray, 'B M E']
  ) -> Float[AnyArray, 'B K E']:
    """Adds cross-attention to the patches and an MLP to the text features, in float32."""
    init = small_init(text.shape[-1])
    attn = Attention(
      self.heads, self.dtype, qkv_bias=False, qkv_init=init.fc, out_init=init.out,
      name='cross_attn',
    )
    mlp = Mlp(4 * text.shape[-1], init, self.activation, self.dtype, name='mlp')
    text = shard_batch(text)
    text += attn(LayerNorm(name='norm1')(text), patches)
    return shard_batch(text + mlp(LayerNorm(name='norm3')(text)))


class VideoPrompt(nn.Module):
  """Computes alpha * decoder(text, patches), the addend of text features (Eq. 9 and 10)."""

  layers: int
  heads: int
  embed_dim: int
  alpha: float = 0.1
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32

  def setup(self):
    self.visual_ln = LayerNorm()
    self.visual_proj = Dense(
      self.embed_dim, self.dtype, use_bias=False, kernel_init=nn.initializers.normal(1.0)
    )
    self.norm = LayerNorm()
    self.blocks = [
      PromptBlock(self.heads, self.activation, self.dtype) for _ in range(self.layers)
    ]
    self.scale = self.param(
      'alpha', nn.initializers.constant(self.alpha), (self.embed_dim,), jnp.float32
    )

  def encode_patches(self, patches: Float[AnyArray, 'B T M D']) -> Float[AnyArray, 'B M E']:
    """Maps raw patch tokens to their float32 mean over time.

    The mean is taken before the projection, which is linear: the same value for 1/T of the work.
    """
    return self.visual_proj(jnp.mean(self.visual_ln(patches), axis=1))

  def encode_each(self, patches: Float[AnyArray, 'B T M D']) -> Float[AnyArray, 'B T M E']:
    """Maps the raw patch tokens of every frame to float32; `encode_patches` is the mean over T."""
    return self.visual_proj(self.visual_ln(patches))

  def __call__(
    self, text: Float[AnyArray, 'K E'], patches: Float[AnyArray, 'B M E']
  ) -> Float[AnyArray, 'B K E']:
    """Generates the float32 prompt of every text for every video.

    alpha scales the whole residual stream, the text itself included.
    """
    visual = self.norm(patches)
    x = jnp.broadcast_to(text, (visual.shape[0], *text.shape))
    for block in self.blocks:
      x = block(x, visual)
    return self.scale * x
