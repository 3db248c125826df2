"""Token merging: patches that look alike become one token, so that later blocks have less to do.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023; for inference with weights that were
trained without it. Here every frame merges by itself, and after the last block each patch is given
the token that it went into, so that the prompts find a token at every place of every frame.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Merged(NamedTuple):
  """What is known of the tokens of X frames, of which the class token is the first."""

  size: jax.Array          # float32 [X, L], how many patches are in each token
  place: jax.Array         # int32 [X, M], where among the tokens after the first each patch went

  @property
  def log_size(self) -> jax.Array:
    """What is added to a token's scores as a key: it stands for so many."""
    return jnp.log(self.size)


def start(X: int, M: int) -> Merged:
  """M patches and a class token in each of X frames, nothing merged."""
  return Merged(jnp.ones((X, 1 + M)), jnp.broadcast_to(jnp.arange(M), (X, M)))


def merge(x: jax.Array, keys: jax.Array, merged: Merged, count: int) -> tuple[jax.Array, Merged]:
  """Merges `count` pairs of tokens, at most half of all; never the class token.

  Every second token is matched with the most similar one of the others; the most similar pairs are
  merged, to their mean by size.

  Args:
    x: [X, L, D], the class token first.
    keys: [X, L, F], whose cosine says how similar tokens are.
    merged: what was merged before.
    count: pairs.

  Returns:
    x [X, L - count, D] in its dtype, and what is then merged.
  """
  size, place = merged
  count = min(count, (x.shape[1] - 1) // 2)
  if not count:
    return x, merged
  X = jnp.arange(x.shape[0])[:, None]
  unit = keys[:, 1:].astype(jnp.float32)
  unit /= jnp.linalg.norm(unit, axis=-1, keepdims=True) + 1e-6
  similar = jnp.einsum('XAF,XBF->XAB', unit[:, ::2], unit[:, 1::2])
  best, partner = similar.max(-1), similar.argmax(-1)                              # [X, A]
  order = jnp.argsort(-best, axis=-1, stable=True)
  gone, kept = order[:, :count], jnp.sort(order[:, count:], axis=-1)
  into = jnp.take_along_axis(partner, gone, axis=-1)                               # [X, count]

  weighted = x[:, 1:].astype(jnp.float32) * size[:, 1:, None]
  odd = weighted[:, 1::2].at[X, into].add(weighted[:, ::2][X, gone])
  odd_size = size[:, 2::2].at[X, into].add(size[:, 1::2][X, gone])
  tokens = [x[:, :1], x[:, 1::2][X, kept], (odd / odd_size[..., None]).astype(x.dtype)]
  sizes = [size[:, :1], size[:, 1::2][X, kept], odd_size]

  # Where the token at each old place is now.
  moved = jnp.zeros((x.shape[0], x.shape[1] - 1), place.dtype)
  moved = moved.at[X, 2 * kept].set(jnp.arange(kept.shape[1], dtype=place.dtype))
  moved = moved.at[X, 2 * gone].set((kept.shape[1] + into).astype(place.dtype))
  moved = moved.at[:, 1::2].set(kept.shape[1] + jnp.arange(odd.shape[1], dtype=place.dtype))
  place = jnp.take_along_axis(moved, place, axis=1)
  return jnp.concatenate(tokens, axis=1), Merged(jnp.concatenate(sizes, axis=1), place)


def spread(x: jax.Array, merged: Merged) -> jax.Array:
  """Gives every patch the token that it went into: [X, L, D] -> [X, M, D], without the class."""
  return jnp.take_along_axis(x[:, 1:], merged.place[..., None], axis=1)
