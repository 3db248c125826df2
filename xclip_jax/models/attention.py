"""Attention on CPU, GPU and TPU, and the layer that projects into it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from xclip_jax.models.matmul import einsum, softmax
from xclip_jax.parallel.mesh import is_single_device


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  causal: bool = False,
  dtype: Any = jnp.float32,
  implementation: str = 'xla',
  bias: jax.Array | None = None,
) -> jax.Array:
  """Computes softmax(q k / sqrt(F) + bias) v.

  Args:
    query: [X, L, N, F].
    key: [X, M, N, F].
    value: [X, M, N, F].
    causal: position l sees keys 0..l only.
    dtype: of the operands of both products; the softmax is float32.
    implementation: 'xla' anywhere; 'cudnn' (bfloat16 on CUDA devices) never forms [L, M]; 'chunked'
      forms it again backwards.
    bias: float32 [X, M], added to the scores of each key; not with 'cudnn'.

  Returns:
    float32 [X, L, N, F].
  """
  query, key, value = (checkpoint_name(x.astype(dtype), 'dense') for x in (query, key, value))
  if implementation == 'cudnn':
    return _attend_cudnn(query, key, value, causal)
  attend = _attend_single_device if is_single_device() else _attend_generic
  if implementation == 'chunked':
    attend = jax.checkpoint(attend, static_argnums=(4,))
  return attend(query, key, value, bias, causal)


def _attend_cudnn(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
  """Pads to even lengths: with odd ones JAX has no backward pass."""
  (X, L), M = query.shape[:2], key.shape[1]
  query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
                       for x in (query, key, value))
  seen = jnp.full(X, M, jnp.int32) if M % 2 else None
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=causal, key_value_seq_lengths=seen, implementation='cudnn',
  )[:, :L].astype(jnp.float32)


def _attend_generic(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, causal: bool
) -> jax.Array:
  # Heads beside the batch: the layout of a plain batched product. XLA:CPU runs others many times
  # slower, and bfloat16 ones not at all.
  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))            # [X, N, L, F]
  bias = None if bias is None else bias[:, None, None]
  return _attention_core('XN', query, key, value, bias, causal).swapaxes(1, 2)


def _attention_core(
  axes: str, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None,
  causal: bool,
) -> jax.Array:
  """Attention over the last two axes, [L, F] and [M, F]; `axes` are letters of those before."""
  scores = einsum(f'{axes}LF,{axes}MF->{axes}LM', query * query.shape[-1] ** -0.5, key)
  if bias is not None:
    scores += bias
  if causal:
    L, M = scores.shape[-2:]
    scores = jnp.where(jnp.tri(L, M, dtype=bool), scores, -jnp.inf)
  return einsum(f'{axes}LM,{axes}MF->{axes}LF', softmax(scores, query.dtype), value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend_single_device(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, causal: bool
) -> jax.Array:
  """`_attend_generic` on one device, which may flatten axes that a mesh would split."""
  return jax.lax.platform_dependent(
    query, key, value, bias, cpu=functools.partial(_attend_on_cpu, causal=causal),
    default=functools.partial(_attend_generic, causal=causal))


# Backwards the shapes of `_attend_on_cpu` gain nothing: bfloat16 training was slower with them.
_attend_single_device.defvjp(
  lambda *args: jax.vjp(functools.partial(_attend_generic, causal=args[4]), *args[:4]),
  lambda causal, backwards, g: backwards(g))


def _attend_on_cpu(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, causal: bool
) -> jax.Array:
  """`_attend_generic` in the shapes that XLA:CPU runs fastest.

  It fuses all of attention. Inside, one axis of sequences is faster than two; and where the scores
  take more than malloc keeps (32 MiB), every one of their pages is fetched and cleared anew each
  time, which takes longer than the products. So the sequences are cut in parts: twice the scores
  of one fit.
  """
  X, L, N, F = query.shape
  rows = X * N
  query, key, value = (x.swapaxes(1, 2).reshape(rows, -1, F) for x in (query, key, value))
  if bias is not None:
    bias = jnp.repeat(bias, N, axis=0)[:, None]                                  # [X*N, 1, M]
  parts = max(-(-rows * L * key.shape[1] * 4 // (15 * 2**20)), 1)
  step = -(-rows // parts)
  cut = lambda i: jax.tree.map(lambda x: x[i:i + step], (query, key, value, bias))
  y = [_attention_core('X', *cut(i), causal) for i in range(0, rows, step)]
  return jnp.concatenate(y).reshape(X, N, L, F).swapaxes(1, 2)
