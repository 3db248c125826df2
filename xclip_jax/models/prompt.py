"""The video-specific prompt generator: text features that have looked at the video."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xclip_jax.models.layers import Attention, Dense, LayerNorm, Mlp, small_init
from xclip_jax.parallel.mesh import shard_batch


class PromptBlock(nn.Module):
  """Texts attend to the patches of a video; no self-attention, no norm2."""

  heads: int
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: jax.Array, patches: jax.Array) -> jax.Array:
    """Args: text [B, K, E], patches [B, M, E]. Returns float32 [B, K, E]."""
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
  """alpha * decoder(text, patches), to be added to the text features (Sec. 3.3, Eq. 9 and 10)."""

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

  def encode_patches(self, patches: jax.Array) -> jax.Array:
    """Maps raw patch tokens [B, T, M, D] to float32 [B, M, E], their mean over time.

    The mean is taken before the projection, which is linear: the same value for 1/T of the work.
    """
    return self.visual_proj(jnp.mean(self.visual_ln(patches), axis=1))

  def encode_each(self, patches: jax.Array) -> jax.Array:
    """Maps raw patch tokens [B, T, M, D] to float32 [B, T, M, E], of which the mean is taken."""
    return self.visual_proj(self.visual_ln(patches))

  def __call__(self, text: jax.Array, patches: jax.Array) -> jax.Array:
    """Args: text [K, E], patches [B, M, E]. Returns float32 [B, K, E].

    What alpha scales is the whole residual stream, the text itself included.
    """
    visual = self.norm(patches)
    x = jnp.broadcast_to(text, (visual.shape[0], *text.shape))
    for block in self.blocks:
      x = block(x, visual)
    return self.scale * x
