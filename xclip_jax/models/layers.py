"""The layers that every tower is made of: products, attention, MLP, residual blocks.

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

from xclip_jax.sharding import batch_shards, shard_batch, single_device

# PyTorch's epsilon, and its two-pass variance: the fast one cancels when mean >> std.
LayerNorm = functools.partial(
  nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32
)

REMAT_POLICIES = {
  'dots': jax.checkpoint_policies.save_only_these_names('dense'),
  'nothing': jax.checkpoint_policies.nothing_saveable,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """Multiplies two arrays of one dtype and accumulates in float32.

  Unlike `jnp.einsum` under autodiff, the backward products have operands of the forward dtype too:
  a float32 cotangent would otherwise turn every bfloat16 backward product into a float32 one.
  float32 operands are multiplied as float32 on every platform (no TF32, no bfloat16 passes).

  Args:
    spec: two operands, single letters; every letter stands in at least two of the three terms.

  Returns:
    float32 array.
  """
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def _einsum_fwd(spec, a, b):
  return einsum(spec, a, b), (_kept(a), b)


def _kept(x: jax.Array) -> jax.Array:
  """Marks what waits for the backward pass: on a GPU XLA then keeps that, and in its dtype.

  Left to itself it keeps a float32 product, twice as large, and rounds it again. On a TPU and on a
  CPU it does better without.
  """
  barrier = jax.lax.optimization_barrier
  if x.dtype == jnp.float32:
    return x
  return jax.lax.platform_dependent(x, cuda=barrier, rocm=barrier, default=lambda x: x)


def _einsum_bwd(spec, operands, g):
  a, b = operands
  lhs, rhs, out = spec.replace('->', ',').split(',')
  g = g.astype(a.dtype)
  da = einsum(f'{out},{rhs}->{lhs}', g, b)
  db = jax.lax.platform_dependent(
    a, g, cpu=functools.partial(_kernel_gradient_on_cpu, lhs, rhs, out),
    default=functools.partial(einsum, f'{lhs},{out}->{rhs}'))
  return da.astype(a.dtype), db.astype(b.dtype)


def _kernel_gradient_on_cpu(lhs: str, rhs: str, out: str, a: jax.Array, g: jax.Array) -> jax.Array:
  # XLA:CPU has no fast kernel for a product whose left operand is transposed in place, so a barrier
  # makes a loop of its own of that. The loop that transposes the hidden layer of an MLP would
  # activate it again, and take longer than the product: there g, narrower, is transposed instead.
  barrier = jax.lax.optimization_barrier
  if len(rhs) == 2 and g.shape[-1] < a.shape[-1] and a.dtype == jnp.float32:
    return einsum(f'{out},{lhs}->{rhs[::-1]}', barrier(g), a).T  # bfloat16: XLA:CPU cannot
  return einsum(f'{lhs},{out}->{rhs}', barrier(a), g)


einsum.defvjp(_einsum_fwd, _einsum_bwd)


def quick_gelu(x: jax.Array) -> jax.Array:
  """OpenAI CLIP's activation, x * sigmoid(1.702 x)."""
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {'quick_gelu': quick_gelu, 'gelu': functools.partial(nn.gelu, approximate=False)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def activated_einsum(activation: str, spec: str, x: jax.Array, b: jax.Array) -> jax.Array:
  """`einsum` of an activated float32 x, and b; only x waits for its gradient, in the dtype of b.

  Hidden layers of MLPs are the largest of all arrays that wait for the backward pass, so they are
  activated again there. Gradients are those at the rounded x.

  Args:
    activation: one of ACTIVATIONS.
  """
  return einsum(spec, ACTIVATIONS[activation](x).astype(b.dtype), b)


def _activated_fwd(activation, spec, x, b):
  return activated_einsum(activation, spec, x, b), (
    _kept(checkpoint_name(x.astype(b.dtype), 'dense')), b)


def _activated_bwd(activation, spec, operands, g):
  x, b = operands
  y, backwards = jax.vjp(ACTIVATIONS[activation], x.astype(jnp.float32))
  dy, db = _einsum_bwd(spec, (y.astype(b.dtype), b), g)
  return (*backwards(dy.astype(jnp.float32)), db)


activated_einsum.defvjp(_activated_fwd, _activated_bwd)


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


class Dense(nn.Module):
  """Affine map of the last axis, [..., D] -> float32 [..., features].

  activation: one of ACTIVATIONS, applied to the input first, or None.
  """

  features: int
  dtype: Any = jnp.float32
  use_bias: bool = True
  activation: str | None = None
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    D = x.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (D, self.features), jnp.float32)
    rows = 'XLMN'[:x.ndim - 1]              # not flattened: on TPU that would move every value
    spec, operand = f'{rows}D,DE->{rows}E', kernel.astype(self.dtype)
    if self.activation is None:
      y = einsum(spec, x.astype(self.dtype), operand)
    else:
      y = activated_einsum(self.activation, spec, x, operand)
    if kernel.dtype == jnp.int8:            # see xclip.at_rest
      y *= self.param('kernel_scale', nn.initializers.ones, (self.features,), jnp.float32)
    if self.use_bias:
      y += self.param('bias', self.bias_init, (self.features,), jnp.float32)
    return y


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
      takes a few sequences at a time, forwards and again backwards, so that their scores stay in
      the memory of a TPU core.
    bias: float32 [X, M], added to the scores of each key; not with 'cudnn'.

  Returns:
    float32 [X, L, N, F].
  """
  query, key, value = (checkpoint_name(x.astype(dtype), 'dense') for x in (query, key, value))
  if implementation == 'cudnn':
    return _cudnn(query, key, value, causal)
  attend = functools.partial(_attend, causal=causal)
  parts = _chunks(query, key) if implementation == 'chunked' else 1
  if parts == 1:
    return (_attend_alone if single_device() else _attend)(query, key, value, bias, causal)
  # Row c of every group of `parts` rows: each device splits the rows that it has.
  cut = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
  half = jax.checkpoint(lambda part: attend(*part).astype(dtype))
  y = jax.lax.map(half, jax.tree.map(cut, (query, key, value, bias)))
  return y.swapaxes(0, 1).reshape(query.shape).astype(jnp.float32)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
  """Pads to even lengths: with odd ones JAX has no backward pass."""
  (X, L), M = query.shape[:2], key.shape[1]
  query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
                       for x in (query, key, value))
  seen = jnp.full(X, M, jnp.int32) if M % 2 else None
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=causal, key_value_seq_lengths=seen, implementation='cudnn',
  )[:, :L].astype(jnp.float32)


def _attend(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, causal: bool
) -> jax.Array:
  # Heads beside the batch: the layout of a plain batched product. XLA:CPU runs others many times
  # slower, and bfloat16 ones not at all.
  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))            # [X, N, L, F]
  bias = None if bias is None else bias[:, None, None]
  return _attend_batched('XN', query, key, value, bias, causal).swapaxes(1, 2)


def _attend_batched(
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
  weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
  return einsum(f'{axes}LM,{axes}MF->{axes}LF', weights, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend_alone(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, causal: bool
) -> jax.Array:
  """`_attend` on one device, which may flatten axes that a mesh would split."""
  return jax.lax.platform_dependent(
    query, key, value, bias, cpu=functools.partial(_attend_on_cpu, causal=causal),
    default=functools.partial(_attend, causal=causal))


# Backwards the shapes of `_attend_on_cpu` gain nothing: bfloat16 training was slower with them.
_attend_alone.defvjp(
  lambda *args: jax.vjp(functools.partial(_attend, causal=args[4]), *args[:4]),
  lambda causal, backwards, g: backwards(g))


def _attend_on_cpu(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, causal: bool
) -> jax.Array:
  """`_attend` in the shapes that XLA:CPU runs fastest.

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
  y = [_attend_batched('X', *cut(i), causal) for i in range(0, rows, step)]
  return jnp.concatenate(y).reshape(X, N, L, F).swapaxes(1, 2)


def _chunks(query: jax.Array, key: jax.Array) -> int:
  """The fewest parts of the rows of a device whose float32 scores take 10 MiB or less."""
  X, L, N = query.shape[:3]
  rows = X // batch_shards() if X % batch_shards() == 0 else 1
  tiled = N * (-(-L // 8) * 8) * (-(-key.shape[1] // 128) * 128) * 4             # as a TPU pads
  return next(n for n in range(1, rows + 1)
              if rows % n == 0 and (rows // n * tiled <= 10 * 2**20 or n == rows))


class Attention(nn.Module):
  """Multi-head attention with separate query, key and value maps."""

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
    project = functools.partial(
      Dense, D, self.dtype, use_bias=self.qkv_bias, kernel_init=self.qkv_init
    )
    split = lambda y: shard_batch(y.reshape(*y.shape[:-1], self.heads, D // self.heads), 2)
    query = split(project(name='query')(x))
    key = split(project(name='key')(memory))
    value = split(project(name='value')(memory))
    y = dot_product_attention(
      query, key, value, self.causal, self.dtype, self.implementation, bias)
    y = shard_batch(y, 2).reshape(x.shape)
    y = checkpoint_name(Dense(D, self.dtype, kernel_init=self.out_init, name='out')(y), 'dense')
    return (y, key.mean(axis=2)) if return_keys else y


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
