"""The layers that every tower is made of: affine maps, attention, MLP, residual blocks.

Numbers: operands of matrix products are in `dtype`; products accumulate in float32; LayerNorm
statistics, softmax and biases are in float32; parameters always are.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from xclip_jax.models.attention import dot_product_attention
from xclip_jax.models.matmul import activated_einsum, split_einsum
from xclip_jax.parallel.mesh import shard_batch, splits_heads

REMAT_POLICIES = {
  'dots': jax.checkpoint_policies.save_only_these_names('dense'),
  'nothing': jax.checkpoint_policies.nothing_saveable,
}

# --- initial values: PyTorch's, since the reference is initialised by it -----------------------
def uniform(bound: float) -> Callable:
  """Uniform in [-bound, bound]; torch.nn.Linear's is fan_in ** -0.5, for kernel and bias."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class BlockInit(NamedTuple):
  """Initialisers of one residual block."""

  qkv: Callable
  out: Callable
  fc: Callable
  proj: Callable
  fc_bias: Callable = nn.initializers.zeros
  proj_bias: Callable = nn.initializers.zeros


def torch_init(width: int, mlp_width: int) -> BlockInit:
  """MultiheadAttention's packed Xavier-uniform and Linear's defaults: vision blocks."""
  fc, proj = uniform(width**-0.5), uniform(mlp_width**-0.5)
  return BlockInit(uniform((6 / (4 * width)) ** 0.5), uniform(width**-0.5), fc, proj, fc, proj)


def text_init(width: int, mlp_width: int, layers: int) -> BlockInit:
  """CLIP's text tower: normal, the residual branches scaled down with depth."""
  normal = nn.initializers.normal
  out = normal(width**-0.5 * (2 * layers) ** -0.5)
  return BlockInit(
    normal(width**-0.5), out, normal((2 * width) ** -0.5), out,
    uniform(width**-0.5), uniform(mlp_width**-0.5),
  )


def small_init(width: int) -> BlockInit:
  """X-CLIP's new blocks: normal .02, except PyTorch's packed attention input (MIT)."""
  small = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
  return BlockInit(uniform((6 / (4 * width)) ** 0.5), small, small, small)


# --- layers ------------------------------------------------------------------------------------
class LayerNorm(nn.Module):
  """Flax's, with PyTorch's epsilon: [..., D] -> float32 [..., D].

  The variance is PyTorch's, of what is left without the mean: it takes a pass of its own. That of
  bfloat16 is E[x^2] - E[x]^2, whose sums are taken where x is made. It cancels where mean >> std,
  but there rounding x has lost more: mean / std * 2^-9, against (mean / std)^2 * 2^-24.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    norm = nn.LayerNorm(
      epsilon=1e-5, dtype=jnp.float32, use_fast_variance=x.dtype == jnp.bfloat16)
    nn.share_scope(self, norm)                                # parameters are named as before
    return norm(x)


class Dense(nn.Module):
  """Affine map of the last axis, [..., D] -> float32 [..., features].

  activation: one of ACTIVATIONS, applied to the input first, or None.
  parts: if not None, the result is a tuple of that many arrays, features / parts of each.
  """

  features: int
  dtype: Any = jnp.float32
  use_bias: bool = True
  activation: str | None = None
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  parts: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
    D = x.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (D, self.features), jnp.float32)
    rows = 'XLMN'[:x.ndim - 1]              # not flattened: on TPU that would move every value
    spec, operand = f'{rows}D,DE->{rows}E', kernel.astype(self.dtype)
    if self.activation is not None:
      ys = [activated_einsum(self.activation, spec, x, operand)]
    else:
      ys = split_einsum(spec, self.parts or 1, x.astype(self.dtype), operand)
    if kernel.dtype == jnp.int8:            # see quantisation.cast_for_inference
      scale = self.param('kernel_scale', nn.initializers.ones, (self.features,), jnp.float32)
      ys = [y * part for y, part in zip(ys, jnp.split(scale, len(ys)), strict=True)]
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
      ys = [y + part for y, part in zip(ys, jnp.split(bias, len(ys)), strict=True)]
    return ys[0] if self.parts is None else tuple(ys)


class Mlp(nn.Module):
  """Two affine maps with the activation between, [..., D] -> float32 [..., D]."""

  mlp_width: int
  inits: BlockInit
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(Dense, dtype=self.dtype)
    y = dense(
      self.mlp_width, kernel_init=self.inits.fc, bias_init=self.inits.fc_bias, name='c_fc'
    )(x)
    return dense(
      x.shape[-1], activation=self.activation, kernel_init=self.inits.proj,
      bias_init=self.inits.proj_bias, name='c_proj',
    )(shard_batch(y, -1))


class Block(nn.Module):
  """Pre-norm residual block: x + attn(ln_1(x)), then x + mlp(ln_2(x)). [X, L, D] -> same."""

  heads: int
  mlp_width: int
  inits: BlockInit
  activation: str = 'quick_gelu'
  causal: bool = False
  dtype: Any = jnp.float32
  implementation: str = 'xla'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    attn = Attention(
      self.heads, self.dtype, causal=self.causal, qkv_init=self.inits.qkv, out_init=self.inits.out,
      implementation=self.implementation, name='attn',
    )
    mlp = Mlp(self.mlp_width, self.inits, self.activation, self.dtype, name='mlp')
    x = shard_batch(x)
    x += attn(LayerNorm(name='ln_1')(x)).astype(x.dtype)
    return shard_batch(x + mlp(LayerNorm(name='ln_2')(x)).astype(x.dtype))


class Attention(nn.Module):
  """Multi-head attention with separate query, key and value maps.

  With implementation 'chunked' heads are taken a few at a time, from their maps to what they read,
  so that scores stay in the memory of a TPU core. A few are those that fill its 128 lanes.
  """

  heads: int
  dtype: Any = jnp.float32
  qkv_bias: bool = True
  causal: bool = False
  qkv_init: Callable = nn.initializers.xavier_uniform()
  out_init: Callable = nn.initializers.xavier_uniform()
  implementation: str = 'xla'

  @nn.compact
  def __call__(
    self, x: jax.Array, memory: jax.Array | None = None, bias: jax.Array | None = None,
    return_keys: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Lets x attend to memory.

    Args:
      x: [X, L, D].
      memory: [X, M, D]; default: x itself.
      bias: float32 [X, M], added to the scores of each key.
      return_keys: their mean over heads too, [X, M, D // heads].

    Returns:
      float32 [X, L, D].
    """
    memory = x if memory is None else memory
    D = x.shape[-1]
    F = D // self.heads
    few = max(128 // F, 1)
    chunked = self.implementation == 'chunked' and not splits_heads() and self.heads % few == 0
    project = functools.partial(
      Dense, D, self.dtype, use_bias=self.qkv_bias, kernel_init=self.qkv_init,
      parts=self.heads // few if chunked else 1)
    split = lambda y: shard_batch(y.reshape(*y.shape[:-1], -1, F), 2)
    queries, keys, values = (
      [split(y) for y in project(name=name)(of)]
      for name, of in (('query', x), ('key', memory), ('value', memory)))
    y = [dot_product_attention(*qkv, self.causal, self.dtype, self.implementation, bias)
         for qkv in zip(queries, keys, values, strict=True)]
    y = shard_batch(jnp.concatenate(y, axis=2), 2).reshape(x.shape)
    y = checkpoint_name(Dense(D, self.dtype, kernel_init=self.out_init, name='out')(y), 'dense')
    return (y, jnp.concatenate(keys, axis=2).mean(axis=2)) if return_keys else y
