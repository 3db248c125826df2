"""Token merging: similar patches become one token, so that later blocks compute less.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023; for inference with weights that were
trained without it. Here every frame is merged by itself, and after the last block each patch gets
the token that it was merged into, so that the prompts find a token for every patch of every frame.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from xclip_jax.models.matmul import AnyArray


class Merged(NamedTuple):
  """Sizes of the tokens of X frames, the class token first, and the token of every patch."""

  size: jax.Array          # float32 [X, L], number of patches in each token
  index: jax.Array         # int32 [X, M], token of each patch, counted after the class token

  @property
  def log_size(self) -> jax.Array:
    """Returns the addend of a token's attention scores: a key that stands for `size` patches."""
    return jnp.log(self.size)


def start(X: int, M: int) -> Merged:
  """Returns the state before merging: M patches and a class token in each of X frames."""
  return Merged(jnp.ones((X, 1 + M)), jnp.broadcast_to(jnp.arange(M), (X, M)))


def merge(
  x: Float[AnyArray, 'X L D'], keys: Float[AnyArray, 'X L F'], merged: Merged, count: int
) -> tuple[Float[AnyArray, 'X kept D'], Merged]:
  """Merges `count` pairs of tokens, at most half of all; never the class token.

  Every second token is matched with the most similar one of the others; the most similar pairs
  become their mean, weighted by size.

  Args:
    x: tokens, the class token first.
    keys: their cosine is the similarity of tokens.
    merged: the state before.
    count: pairs to merge.

  Returns:
    x [X, L - count, D] in its dtype, and the state after.
  """
  size, index = merged
  count = min(count, (x.shape[1] - 1) // 2)
  if not count:
    return x, merged
  frames = jnp.arange(x.shape[0])[:, None]
  unit = keys[:, 1:].astype(jnp.float32)
  unit /= jnp.linalg.norm(unit, axis=-1, keepdims=True) + 1e-6
  similar = jnp.einsum('XAF,XBF->XAB', unit[:, ::2], unit[:, 1::2])
  best, partner = similar.max(-1), similar.argmax(-1)                              # [X, A]
  order = jnp.argsort(-best, axis=-1, stable=True)
  gone, kept = order[:, :count], jnp.sort(order[:, count:], axis=-1)
  into = jnp.take_along_axis(partner, gone, axis=-1)                               # [X, count]

  weighted = x[:, 1:].astype(jnp.float32) * size[:, 1:, None]
  odd = weighted[:, 1::2].at[frames, into].add(weighted[:, ::2][frames, gone])
  odd_size = size[:, 2::2].at[frames, into].add(size[:, 1::2][frames, gone])
  tokens = [x[:, :1], x[:, 1::2][frames, kept], (odd / odd_size[..., None]).astype(x.dtype)]
  sizes = [size[:, :1], size[:, 1::2][frames, kept], odd_size]

  # New index of each old token, the class token not counted.
  moved = jnp.zeros((x.shape[0], x.shape[1] - 1), index.dtype)
  moved = moved.at[frames, 2 * kept].set(jnp.arange(kept.shape[1], dtype=index.dtype))
  moved = moved.at[frames, 2 * gone].set((kept.shape[1] + into).astype(index.dtype))
  moved = moved.at[:, 1::2].set(kept.shape[1] + jnp.arange(odd.shape[1], dtype=index.dtype))
  index = jnp.take_along_axis(moved, index, axis=1)
  return jnp.concatenate(tokens, axis=1), Merged(jnp.concatenate(sizes, axis=1), index)


def spread(x: Float[AnyArray, 'X L D'], merged: Merged) -> Float[AnyArray, 'X M D']:
  """Gives every patch the token that it was merged into; drops the class token."""
  return jnp.take_along_axis(x[:, 1:], merged.index[..., None], axis=1)
