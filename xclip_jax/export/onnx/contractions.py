"""Products of arrays and reductions over axes, as ONNX operators."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xclip_jax.export.onnx.graph import Graph
from xclip_jax.export.onnx.values import Shape, Tensor, broadcast_shape


def _dot_general(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
  """Becomes a MatMul, in the dtype of its operands.

  Where JAX accumulates and returns float32 from float16 operands, MatMul returns float16, which a
  Cast follows: runtimes accumulate in float32 inside of the product, and round once.
  """
  dtype = graph.dtype(eqn.outvars[0].aval.dtype)
  (x_contracted, y_contracted), (x_batch, y_batch) = eqn.params['dimension_numbers']
  x = _full_along(graph, x, eqn.invars[0].aval.shape, x_contracted)
  y = _full_along(graph, y, eqn.invars[1].aval.shape, y_contracted)
  if x.dtype != x.arithmetic_dtype or x.dtype != y.dtype:
    x, y = graph.cast(x, dtype), graph.cast(y, dtype)
  x_free, y_free = _others(x, x_batch, x_contracted), _others(y, y_batch, y_contracted)
  batch = broadcast_shape(_sizes(x, x_batch), _sizes(y, y_batch))
  # MatMul [.., M, D] x [D, E] keeps all free axes of the left operand.
  plain = not x_batch and len(x_contracted) == 1 and len(x_free) > 0
  left = graph.transpose(x, (*x_batch, *x_free, *x_contracted))
  right = graph.transpose(y, (*y_batch, *y_contracted, *y_free))
  if not plain:
    left = _merged(graph, left, len(x_batch), len(x_free))
  right = _merged(graph, right, len(y_batch), len(y_contracted))
  shape = (*batch, *(left.shape[len(x_batch):-1]), right.shape[-1])
  product = graph.cast(graph.node('MatMul', [left, right], shape, left.dtype), dtype)
  return graph.reshape(product, (*batch, *_sizes(x, x_free), *_sizes(y, y_free)))


def _others(x: Tensor, *known: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(axis for axis in range(len(x.shape)) if not any(axis in axes for axes in known))


def _sizes(x: Tensor, axes: Sequence[int]) -> Shape:
  return tuple(x.shape[axis] for axis in axes)


def _full_along(graph: Graph, x: Tensor, full: Shape, axes: tuple[int, ...]) -> Tensor:
  """Stores an array in its full size, if it is broadcast along one of these axes."""
  return x if all(x.shape[axis] == full[axis] for axis in axes) else graph.expand(x, full)


def _merged(graph: Graph, x: Tensor, batch: int, first: int) -> Tensor:
  """Makes a matrix of the axes after the batch: of the first ones its rows, of others columns."""
  groups = x.shape[batch:batch + first], x.shape[batch + first:]
  sizes = tuple(functools.reduce(lambda a, b: a * b, group, 1) for group in groups)
  return graph.reshape(x, (*x.shape[:batch], *sizes))


# --- reductions ---------------------------------------------------------------------------------
def _reduce(op: str, graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  axes = tuple(int(axis) for axis in eqn.params['axes'])
  if not axes:
    return x
  dtype = x.dtype
  # A sum counts the elements of broadcast axes; a maximum is the same without them.
  x = _full_along(graph, x, eqn.invars[0].aval.shape, axes if op == 'ReduceSum' else ())
  x = graph.cast(x, x.arithmetic_dtype)
  shape = _sizes(x, _others(x, axes))
  if op == 'ReduceSum':                      # its axes are an input since opset 13
    result = graph.node(op, [x, graph.constant(np.array(axes, np.int64))], shape, x.dtype,
                        keepdims=0)
  else:
    result = graph.node(op, [x], shape, x.dtype, axes=axes, keepdims=0)
  return graph.cast(result, dtype)


def _arg_max(op: str, graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  axis, = eqn.params['axes']
  x = _full_along(graph, x, eqn.invars[0].aval.shape, (axis,))
  x = graph.cast(x, x.arithmetic_dtype)
  shape = _sizes(x, _others(x, (axis,)))
  result = graph.node(op, [x], shape, np.int64, axis=int(axis), keepdims=0)
  return graph.cast(result, eqn.params['index_dtype'])       # of equal ones the first, as in JAX


def _cumsum(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  axis = eqn.params['axis']
  x = _full_along(graph, x, eqn.invars[0].aval.shape, (axis,))
  wide = graph.cast(x, x.arithmetic_dtype)
  result = graph.node('CumSum', [wide, graph.constant(np.int64(axis))], x.shape, wide.dtype,
                      reverse=int(eqn.params['reverse']))
  return graph.cast(result, x.dtype)


HANDLERS: dict[str, Callable] = {
  'dot_general': _dot_general,
  **{name: functools.partial(_reduce, op) for name, op in {
    'reduce_sum': 'ReduceSum', 'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin',
    'reduce_prod': 'ReduceProd', 'reduce_and': 'ReduceMin', 'reduce_or': 'ReduceMax'}.items()},
  'argmax': functools.partial(_arg_max, 'ArgMax'), 'argmin': functools.partial(_arg_max, 'ArgMin'),
  'cumsum': _cumsum,
}
