"""Matrix products that accumulate in float32 and save low-precision arrays for their gradients.

Autodiff would save float32 arrays and multiply float32 cotangents. Here the arrays saved for the
backward pass, and the operands of its products, are in the dtype of the forward product.
"""

import functools
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from xclip_jax.parallel import platforms

if TYPE_CHECKING:
  AnyArray = jax.Array
else:
  AnyArray = jax.Array | np.ndarray        # the tests, which check annotations, pass both

custom_vjp: Any = jax.custom_vjp           # type checkers lose the results of decorated functions


@functools.partial(custom_vjp, nondiff_argnums=(0,))
def einsum(spec: str, a: AnyArray, b: AnyArray) -> AnyArray:
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
  return einsum(spec, a, b), (_save_in_low_precision(a), b)


def _save_in_low_precision(x: AnyArray) -> AnyArray:
  """Forces XLA:GPU to save this low-precision value for the backward pass.

  Without a barrier XLA:GPU saves a float32 product, twice as large, and rounds it again. XLA on TPU
  and CPU does better without the barrier.
  """
  barrier = jax.lax.optimization_barrier
  if x.dtype == jnp.float32:
    return x
  return platforms.by_platform(x, cuda=barrier, rocm=barrier, default=lambda x: x)


def _einsum_bwd(spec, operands, g):
  a, b = operands
  lhs, rhs, out = spec.replace('->', ',').split(',')
  g = g.astype(a.dtype)
  da = einsum(f'{out},{rhs}->{lhs}', g, b)
  db = platforms.by_platform(
    a, g, cpu=functools.partial(_kernel_gradient_on_cpu, lhs, rhs, out),
    default=functools.partial(einsum, f'{lhs},{out}->{rhs}'))
  return da.astype(a.dtype), db.astype(b.dtype)


def _kernel_gradient_on_cpu(lhs: str, rhs: str, out: str, a: AnyArray, g: AnyArray) -> AnyArray:
  # XLA:CPU has no fast kernel for a product whose left operand is transposed in place, so a barrier
  # puts the transposition into a separate loop. For the hidden layer of an MLP that loop would also
  # compute the activation again and take longer than the product: there g, which is narrower, is
  # transposed instead.
  barrier = jax.lax.optimization_barrier
  if len(rhs) == 2 and g.shape[-1] < a.shape[-1] and a.dtype == jnp.float32:
    return einsum(f'{out},{lhs}->{rhs[::-1]}', barrier(g), a).T  # bfloat16: XLA:CPU cannot
  return einsum(f'{lhs},{out}->{rhs}', barrier(a), g)


einsum.defvjp(_einsum_fwd, _einsum_bwd)


@functools.partial(custom_vjp, nondiff_argnums=(0, 1))
def split_einsum(spec: str, parts: int, a: AnyArray, b: AnyArray) -> tuple[AnyArray, ...]:
  """Multiplies a by each part of b's last axis; the backward pass is one product."""
  return tuple(einsum(spec, a, part) for part in jnp.split(b, parts, axis=-1))


split_einsum.defvjp(
  lambda spec, parts, a, b: (split_einsum(spec, parts, a, b), (_save_in_low_precision(a), b)),
  lambda spec, parts, operands, g: _einsum_bwd(spec, operands, jnp.concatenate(g, axis=-1)))


def quick_gelu(x: AnyArray) -> AnyArray:
  """Computes OpenAI CLIP's activation, x * sigmoid(1.702 x)."""
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {'quick_gelu': quick_gelu, 'gelu': functools.partial(nn.gelu, approximate=False)}


@functools.partial(custom_vjp, nondiff_argnums=(0, 1))
def activated_einsum(activation: str, spec: str, x: AnyArray, b: AnyArray) -> AnyArray:
  """Multiplies the activation of float32 x by b; saves x, in the dtype of b, for the gradient.

  Hidden layers of MLPs are the largest arrays that the backward pass needs, so their activation is
  computed again there. Gradients are those at the rounded x.

  Args:
    activation: one of ACTIVATIONS.
  """
  return einsum(spec, ACTIVATIONS[activation](x).astype(b.dtype), b)


def _activated_fwd(activation, spec, x, b):
  return activated_einsum(activation, spec, x, b), (
    _save_in_low_precision(checkpoint_name(x.astype(b.dtype), 'dense')), b)


def _activated_bwd(activation, spec, operands, g):
  x, b = operands
  y, backwards = jax.vjp(ACTIVATIONS[activation], x.astype(jnp.float32))
  dy, db = _einsum_bwd(spec, (y.astype(b.dtype), b), g)
  return (*backwards(dy.astype(jnp.float32)), db)


activated_einsum.defvjp(_activated_fwd, _activated_bwd)


@functools.partial(custom_vjp, nondiff_argnums=(1,))
def softmax(x: AnyArray, dtype: Any) -> AnyArray:
  """Computes the softmax of float32 x, rounded to dtype; saves only the result for the gradient."""
  return jax.nn.softmax(x, axis=-1).astype(dtype)


def _softmax_fwd(x, dtype):
  y = _save_in_low_precision(softmax(x, dtype))
  return y, y


def _softmax_bwd(dtype, y, g):
  y, g = y.astype(jnp.float32), g.astype(jnp.float32)
  return (y * (g - jnp.sum(y * g, axis=-1, keepdims=True)),)


softmax.defvjp(_softmax_fwd, _softmax_bwd)
