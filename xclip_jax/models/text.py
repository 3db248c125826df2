"""CLIP's text encoder."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xclip_jax.models.layers import REMAT_POLICIES, Block, Dense, LayerNorm, text_init


class TextEncoder(nn.Module):
  """Causal transformer whose feature is read at the end-of-text token.

  End of text is the largest id of CLIP's vocabulary, and its first occurrence counts. Causality
  makes a padding mask unnecessary: what follows that token, and how much of it, changes nothing.
  """

  vocab_size: int
  context_length: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  embed_dim: int
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32
  residual_dtype: Any = jnp.float32
  remat: str | None = None

  @nn.compact
  def __call__(self, token_ids: jax.Array) -> jax.Array:
    """Args: token_ids int [K, S], S <= context_length. Returns float32 [K, E], not normalised."""
    K, S = token_ids.shape
    D = self.width
    normal = nn.initializers.normal
    x = nn.Embed(self.vocab_size, D, embedding_init=normal(0.02), name='token_embed')(token_ids)
    x += self.param('pos_embed', normal(0.01), (self.context_length, D), jnp.float32)[:S]
    x = x.astype(self.residual_dtype)
    block = nn.remat(Block, policy=REMAT_POLICIES[self.remat]) if self.remat else Block
    for i in range(self.layers):
      x = block(
        self.heads, self.mlp_width, text_init(D, self.mlp_width, self.layers), self.activation,
        causal=True, dtype=self.dtype, name=f'blocks_{i}',
      )(x)                                                                 # [K, S, D]
    x = LayerNorm(name='ln_final')(x)[jnp.arange(K), jnp.argmax(token_ids, axis=1)]
    return Dense(
      self.embed_dim, self.dtype, use_bias=False, kernel_init=normal(D**-0.5), name='proj'
    )(x)
