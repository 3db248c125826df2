"""Primitives of JAX that move, join and cut arrays, as ONNX operators."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xclip_jax.export.onnx.elementwise import unsupported
from xclip_jax.export.onnx.graph import Graph
from xclip_jax.export.onnx.values import Tensor, is_static


def _reshape(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  if eqn.params.get('dimensions') is not None:
    raise unsupported(eqn, 'permutes axes')
  old, new = eqn.invars[0].aval.shape, eqn.params['new_sizes']
  # Broadcast axes stay so where the axes before or after them do not change.
  target = list(new)
  front = _common(old, new)
  back = _common(old[::-1], new[::-1])
  for axis, size in enumerate(x.shape):
    if size is old[axis] or size == old[axis]:
      continue
    if axis < front:
      target[axis] = 1
    elif len(old) - axis <= back:
      target[len(new) - len(old) + axis] = 1
    else:
      return graph.reshape(graph.expand(x, old), new)
  return graph.reshape(x, tuple(target))


def _common(a: tuple, b: tuple) -> int:
  """Returns how many sizes two shapes have in common at their start."""
  same = [x == y for x, y in zip(a, b, strict=False)]
  return same.index(False) if False in same else len(same)


def _broadcast_in_dim(graph: Graph, eqn: Any, x: Tensor, *sizes: Tensor) -> Tensor:
  kept = eqn.params['broadcast_dimensions']
  rank = len(eqn.outvars[0].aval.shape)
  # Operators broadcast sizes of 1; those that do not ask for the full array.
  return graph.unsqueeze(x, [axis for axis in range(rank) if axis not in kept])


def _transpose(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.transpose(x, eqn.params['permutation'])


def _squeeze(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.squeeze(x, [int(axis) for axis in eqn.params['dimensions']])


def _expand_dims(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.unsqueeze(x, [int(axis) for axis in eqn.params['dimensions']])


def _concatenate(graph: Graph, eqn: Any, *parts: Tensor) -> Tensor:
  shape, axis = eqn.outvars[0].aval.shape, eqn.params['dimension']
  parts = tuple(graph.expand(part, var.aval.shape)
                for part, var in zip(parts, eqn.invars, strict=True))
  return graph.node('Concat', parts, shape, parts[0].dtype, axis=axis)


def _stack(graph: Graph, eqn: Any, *parts: Tensor) -> Tensor:
  axis, full = eqn.params['axis'], eqn.invars[0].aval.shape
  parts = tuple(graph.unsqueeze(graph.expand(part, full), [axis]) for part in parts)
  return graph.node('Concat', parts, eqn.outvars[0].aval.shape, parts[0].dtype, axis=axis)


def _split(graph: Graph, eqn: Any, x: Tensor) -> list[Tensor]:
  axis, sizes = eqn.params['axis'], [int(size) for size in eqn.params['sizes']]
  x = _full_along(graph, x, eqn, [axis])
  shapes = [(*x.shape[:axis], size, *x.shape[axis + 1:]) for size in sizes]
  if len(sizes) == 1:
    return [x]
  if x.value is not None:
    parts = np.split(x.value, np.cumsum(sizes)[:-1], axis)
    return [graph.constant(part, x.label and f'{x.label}/{i}') for i, part in enumerate(parts)]
  vector = graph.constant(np.array(sizes, np.int64))
  return list(graph.nodes('Split', [x, vector], shapes, x.dtype, axis=axis))


def _unstack(graph: Graph, eqn: Any, x: Tensor) -> list[Tensor]:
  axis, count = eqn.params['axis'], len(eqn.outvars)
  x = graph.expand(x, eqn.invars[0].aval.shape)
  if x.value is not None:
    return [graph.constant(part) for part in np.moveaxis(x.value, axis, 0)]
  vector = graph.constant(np.ones(count, np.int64))
  shape = (*x.shape[:axis], 1, *x.shape[axis + 1:])
  parts = graph.nodes('Split', [x, vector], [shape] * count, x.dtype, axis=axis)
  return [graph.squeeze(part, [axis]) for part in parts]


def _tile(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  x = graph.expand(x, eqn.invars[0].aval.shape)
  repeats = graph.sizes.shape(tuple(eqn.params['reps']))
  return graph.node('Tile', [x, repeats], eqn.outvars[0].aval.shape, x.dtype)


def _full_along(graph: Graph, x: Tensor, eqn: Any, axes: Any) -> Tensor:
  """Stores an array in its full size, if it is broadcast along one of these axes."""
  full = eqn.invars[0].aval.shape
  return x if all(x.shape[axis] == full[axis] for axis in axes) else graph.expand(x, full)


def _slice(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  starts, ends = eqn.params['start_indices'], eqn.params['limit_indices']
  steps = tuple(map(int, eqn.params['strides'] or (1,) * len(starts)))
  x = graph.expand(x, eqn.invars[0].aval.shape)
  return graph.slice(x, eqn.outvars[0].aval.shape, tuple(starts), tuple(ends), steps)


def _reverse(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  axes = tuple(map(int, eqn.params['dimensions']))
  x = _full_along(graph, x, eqn, axes)
  vector = lambda value: graph.constant(np.full(len(axes), value, np.int64))
  inputs = [x, vector(-1), vector(np.iinfo(np.int64).min + 1), graph.constant(
    np.array(axes, np.int64)), vector(-1)]
  return graph.node('Slice', inputs, x.shape, x.dtype)


def _pad(graph: Graph, eqn: Any, x: Tensor, value: Tensor) -> Tensor:
  config = eqn.params['padding_config']
  sizes = [size for low, high, _ in config for size in (low, high)]
  if any(interior for *_, interior in config) or any(
      is_static((size,)) and size < 0 for size in sizes):
    raise unsupported(eqn, 'removes elements or puts some between others')
  dtype = x.dtype
  x = graph.expand(x, eqn.invars[0].aval.shape)
  if dtype == np.bool_:                                      # Pad takes numbers
    x, value = graph.cast(x, np.int32), graph.cast(value, np.int32)
  pads = graph.sizes.shape((*(low for low, *_ in config), *(high for _, high, _ in config)))
  padded = graph.node('Pad', [x, pads, value], eqn.outvars[0].aval.shape, x.dtype)
  return graph.cast(padded, dtype)


def _iota(graph: Graph, eqn: Any, *sizes: Tensor) -> Tensor:
  shape, axis = eqn.params['shape'], eqn.params['dimension']
  dtype = graph.dtype(eqn.params['dtype'])
  if is_static((shape[axis],)):
    numbers = graph.constant(np.arange(shape[axis]).astype(dtype))
  else:
    zero, one = (graph.constant(np.int64(n)) for n in (0, 1))
    limit = graph.sizes.scalar(shape[axis], np.int64)
    numbers = graph.cast(
      graph.node('Range', [zero, limit, one], (shape[axis],), np.int64), dtype)
  return graph.unsqueeze(numbers, [other for other in range(len(shape)) if other != axis])


def _dim_as_value(graph: Graph, eqn: Any) -> Tensor:
  return graph.sizes.scalar(eqn.params['dim'], eqn.outvars[0].aval.dtype)


def _dimension_size(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  size = eqn.invars[0].aval.shape[eqn.params['dimension']]
  return graph.sizes.scalar(size, eqn.outvars[0].aval.dtype)


def _same(graph: Graph, eqn: Any, *arrays: Tensor) -> list[Tensor]:
  return list(arrays)


HANDLERS: dict[str, Callable] = {
  'reshape': _reshape, 'broadcast_in_dim': _broadcast_in_dim, 'transpose': _transpose,
  'squeeze': _squeeze, 'expand_dims': _expand_dims, 'concatenate': _concatenate, 'stack': _stack,
  'unstack': _unstack, 'tile': _tile, 'split': _split, 'slice': _slice, 'rev': _reverse,
  'pad': _pad, 'iota': _iota, 'dim_as_value': _dim_as_value, 'dimension_size': _dimension_size,
  **dict.fromkeys(('copy', 'copy_p', 'name', 'stop_gradient', 'optimization_barrier'), _same),
}
