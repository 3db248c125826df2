"""Layers of every tower: affine maps, attention, MLP, residual blocks.

Operands of matrix products are in `dtype`; products accumulate in float32; LayerNorm statistics,
softmax and biases are in float32; parameters are always in float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from xclip_jax.models.attention import dot_product_attention
from xclip_jax.models.matmul import AnyArray, activated_einsum, split_einsum
from xclip_jax.parallel.mesh import shard_batch, splits_heads

REMAT_POLICIES = {
  'dots': jax.checkpoint_policies.save_only_these_names('dense'),
  'nothing': jax.checkpoint_policies.nothing_saveable,
}

# --- initial values: PyTorch's, as in the reference ---------------------------------------------
def uniform(bound: float) -> Callable:
  """Draws uniformly from [-bound, bound]; torch.nn.Linear's bound is fan_in ** -0.5."""
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
  """Returns vision blocks' initialisers: packed Xavier-uniform attention, PyTorch's Linear."""
  fc, proj = uniform(width**-0.5), uniform(mlp_width**-0.5)
  return BlockInit(uniform((6 / (4 * width)) ** 0.5), uniform(width**-0.5), fc, proj, fc, proj)


def text_init(width: int, mlp_width: int, layers: int) -> BlockInit:
  """Returns the text tower's initialisers: normal, residual branches scaled down with depth."""
  normal = nn.initializers.normal
  out = normal(width**-0.5 * (2 * layers) ** -0.5)
  return BlockInit(
    normal(width**-0.5), out, normal((2 * width) ** -0.5), out,
    uniform(width**-0.5), uniform(mlp_width**-0.5),
  )


def small_init(width: int) -> BlockInit:
  """Returns the initialisers of X-CLIP's new blocks: normal 0.02, but Xavier-uniform q, k, v."""
  small = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
  return BlockInit(uniform((6 / (4 * width)) ** 0.5), small, small, small)


# --- layers ------------------------------------------------------------------------------------
class LayerNorm(nn.Module):
  """Normalises the last axis in float32, with PyTorch's epsilon.

  float32 input: variance of x - mean (two passes, as PyTorch). bfloat16 input: E[x^2] - E[x]^2, one
  pass that fuses with the producer. Its cancellation error, (mean / std)^2 * 2^-24, is below
  bfloat16's own rounding, mean / std * 2^-9.
  """

  @nn.compact
  def __call__(self, x: Float[AnyArray, '*batch D']) -> Float[AnyArray, '*batch D']:
    norm = nn.LayerNorm(
      epsilon=1e-5, dtype=jnp.float32, use_fast_variance=x.dtype == jnp.bfloat16)
    nn.share_scope(self, norm)                                # parameters keep this name
    return norm(x)


class Dense(nn.Module):
  """Maps the last axis affinely, [..., D] -> float32 [..., features].

  Fields:
    features: width of the output.
    dtype: operands of the product.
    activation: one of ACTIVATIONS, applied to the input first, or None.
    parts: if not None, the result is a tuple of so many arrays of features / parts columns.
  """

  features: int
  dtype: Any = jnp.float32
  use_bias: bool = True
  activation: str | None = None
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  parts: int | None = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, '*batch D']) -> Any:
    D = x.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (D, self.features), jnp.float32)
    rows = 'XLMN'[:x.ndim - 1]              # flattening the batch would move every value on TPU
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
  """Applies an affine map, the activation and a second affine map; float32."""

  mlp_width: int
  inits: BlockInit
  activation: str = 'quick_gelu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[AnyArray, '*batch D']) -> Float[AnyArray, '*batch D']:
    dense = functools.partial(Dense, dtype=self.dtype)
    y = dense(
      self.mlp_width, kernel_init=self.inits.fc, bias_init=self.inits.fc_bias, name='c_fc'
    )(x)
    return dense(
      x.shape[-1], activation=self.activation, kernel_init=self.inits.proj,
      bias_init=self.inits.proj_bias, name='c_proj',
    )(shard_batch(y, -1))


class Block(nn.Module):
  """Adds attention, then an MLP, each after its LayerNorm; keeps the dtype of x."""

  heads: int
  mlp_width: int
  inits: BlockInit
  activation: str = 'quick_gelu'
  causal: bool = False
  dtype: Any = jnp.float32
  implementation: str = 'xla'

  @nn.compact
  def __call__(self, x: Float[AnyArray, 'X L D']) -> Float[AnyArray, 'X L D']:
    attn = Attention(
      self.heads, self.dtype, causal=self.causal, qkv_init=self.inits.qkv, out_init=self.inits.out,
      implementation=self.implementation, name='attn',
    )
    mlp = Mlp(self.mlp_width, self.inits, self.activation, self.dtype, name='mlp')
    x = shard_batch(x)
    x += attn(LayerNorm(name='ln_1')(x)).astype(x.dtype)
    return shard_batch(x + mlp(LayerNorm(name='ln_2')(x)).astype(x.dtype))


class Attention(nn.Module):
  """Attends with several heads and separate query, key and value maps.

  With implementation 'chunked' the heads are computed in groups, each from its maps to its output,
  so that the scores of a group stay in the memory of a TPU core. A group fills its 128 lanes.
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
    self, x: Float[AnyArray, 'X L D'], memory: Float[AnyArray, 'X M _'] | None = None,
    bias: Float[AnyArray, 'X M'] | None = None, return_keys: bool = False,
  ) -> Any:
    """Lets x attend to memory.

    Args:
      x: the queries.
      memory: the keys and values; default: x itself.
      bias: float32, added to the scores of each key.
      return_keys: also return the mean of the keys over heads, [X, M, D // heads].

    Returns:
      float32 [X, L, D]; with return_keys a pair.
    """
    memory = x if memory is None else memory
    D = x.shape[-1]
    F = D // self.heads
    group = max(128 // F, 1)
    chunked = self.implementation == 'chunked' and not splits_heads() and self.heads % group == 0
    project = functools.partial(
      Dense, D, self.dtype, use_bias=self.qkv_bias, kernel_init=self.qkv_init,
      parts=self.heads // group if chunked else 1)
    split = lambda y: shard_batch(y.reshape(*y.shape[:-1], -1, F), 2)
    queries, keys, values = (
      [split(y) for y in project(name=name)(source)]
      for name, source in (('query', x), ('key', memory), ('value', memory)))
    cast = lambda x: x.astype(self.dtype)
    y = [dot_product_attention(cast(q), cast(k), cast(v), self.causal, self.implementation, bias)
         for q, k, v in zip(queries, keys, values, strict=True)]
    y = shard_batch(jnp.concatenate(y, axis=2), 2).reshape(x.shape)
    y = checkpoint_name(Dense(D, self.dtype, kernel_init=self.out_init, name='out')(y), 'dense')
    return (y, jnp.concatenate(keys, axis=2).mean(axis=2)) if return_keys else y
