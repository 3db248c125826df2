"""Attention on CPU, GPU and TPU, and the layer that projects into it."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from xclip_jax.models.matmul import AnyArray, custom_vjp, einsum, softmax
from xclip_jax.parallel import platforms
from xclip_jax.parallel.mesh import is_single_device


def dot_product_attention(
  query: Float[AnyArray, 'X L N F'],
  key: Float[AnyArray, 'X M N F'],
  value: Float[AnyArray, 'X M N F'],
  causal: bool = False,
  implementation: str = 'xla',
  bias: Float[AnyArray, 'X M'] | None = None,
) -> Float[AnyArray, 'X L N F']:
  """Computes softmax(q k / sqrt(F) + bias) v in float32, from X sequences of L queries and M keys.

  Args:
    query, key, value: of one dtype, which both products take; the softmax is float32.
    causal: position l attends to keys 0..l only.
    implementation: 'xla' on every device; 'cudnn' (bfloat16 on CUDA devices) never materialises the
      scores [L, M]; 'chunked' computes the scores again in the backward pass.
    bias: float32, added to the scores of each key; not with 'cudnn'.
  """
  query, key, value = (checkpoint_name(x, 'dense') for x in (query, key, value))
  if implementation == 'cudnn':
    return _attend_cudnn(query, key, value, causal)
  attend = _attend_single_device if is_single_device() else _attend_generic
  if implementation == 'chunked':
    attend = jax.checkpoint(attend, static_argnums=(4,))
  return attend(query, key, value, bias, causal)


def _attend_cudnn(query: AnyArray, key: AnyArray, value: AnyArray, causal: bool) -> AnyArray:
  """Attends by cuDNN, padded to even lengths: with odd lengths JAX has no backward pass."""
  (X, L), M = query.shape[:2], key.shape[1]
  query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
                       for x in (query, key, value))
  key_lengths = jnp.full(X, M, jnp.int32) if M % 2 else None
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=causal, key_value_seq_lengths=key_lengths, implementation='cudnn',
  )[:, :L].astype(jnp.float32)


def _attend_generic(
  query: AnyArray, key: AnyArray, value: AnyArray, bias: AnyArray | None, causal: bool
) -> AnyArray:
  # Heads move beside the batch, the layout of a plain batched product: XLA:CPU runs other layouts
  # many times slower, and does not run them in bfloat16.
  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))            # [X, N, L, F]
  bias = None if bias is None else bias[:, None, None]
  return _attention_core('XN', query, key, value, bias, causal).swapaxes(1, 2)


def _attention_core(
  axes: str, query: AnyArray, key: AnyArray, value: AnyArray, bias: AnyArray | None,
  causal: bool,
) -> AnyArray:
  """Attends over the last two axes, [L, F] and [M, F]; `axes` are letters of the axes before."""
  scores = einsum(f'{axes}LF,{axes}MF->{axes}LM', query * query.shape[-1] ** -0.5, key)
  if bias is not None:
    scores += bias
  if causal:
    L, M = scores.shape[-2:]
    scores = jnp.where(jnp.tri(L, M, dtype=bool), scores, -jnp.inf)
  return einsum(f'{axes}LM,{axes}MF->{axes}LF', softmax(scores, query.dtype), value)


@functools.partial(custom_vjp, nondiff_argnums=(4,))
def _attend_single_device(
  query: AnyArray, key: AnyArray, value: AnyArray, bias: AnyArray | None, causal: bool
) -> AnyArray:
  """Attends as `_attend_generic`; one device may flatten the axes that a mesh would split."""
  return platforms.by_platform(
    query, key, value, bias, cpu=functools.partial(_attend_on_cpu, causal=causal),
    default=functools.partial(_attend_generic, causal=causal))


# The backward pass is the generic one: with the shapes of `_attend_on_cpu` bfloat16 training was
# slower.
_attend_single_device.defvjp(
  lambda *args: jax.vjp(functools.partial(_attend_generic, causal=args[4]), *args[:4]),
  lambda causal, backwards, g: backwards(g))


def _attend_on_cpu(
  query: AnyArray, key: AnyArray, value: AnyArray, bias: AnyArray | None, causal: bool
) -> AnyArray:
  """Attends as `_attend_generic`, in the shapes that XLA:CPU runs fastest.

  XLA:CPU fuses the whole attention and is fastest with one batch axis. Score buffers above malloc's
  mmap threshold (32 MiB) are page-faulted on every call, which takes longer than the products, so
  the batch is cut into parts: the scores of two parts stay below the threshold.
  """
  X, L, N, F = query.shape
  rows = X * N
  query, key, value = (x.swapaxes(1, 2).reshape(rows, -1, F) for x in (query, key, value))
  if bias is not None:
    bias = jnp.repeat(bias, N, axis=0)[:, None]                                  # [X*N, 1, M]
  parts = max(-(-rows * L * key.shape[1] * 4 // (15 * 2**20)), 1)
  step = -(-rows // parts)
  cut = lambda x, i: None if x is None else x[i:i + step]
  y = [_attention_core('X', query[i:i + step], key[i:i + step], value[i:i + step], cut(bias, i),
                       causal) for i in range(0, rows, step)]
  return jnp.concatenate(y).reshape(X, N, L, F).swapaxes(1, 2)
