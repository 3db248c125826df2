"""CLIP's text tower: from token ids to text features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from xclip_jax.models.layers import REMAT_POLICIES, Block, Dense, LayerNorm, text_init
from xclip_jax.models.matmul import AnyArray


class TextEncoder(nn.Module):
  """Encodes texts by a causal transformer, read at the end-of-text token.

  The end-of-text token has the largest id of CLIP's vocabulary; its first occurrence counts. A
  padding mask is unnecessary: attention is causal, so tokens after the first end of text change
  nothing.
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
  def __call__(self, token_ids: Int[AnyArray, 'K S']) -> Float[AnyArray, 'K E']:
    """Encodes K texts of S <= context_length tokens to float32 features, not normalised."""
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
