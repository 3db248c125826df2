"""Primitives of JAX that read at computed positions, as ONNX operators."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from xclip_jax.export.onnx.elementwise import unsupported
from xclip_jax.export.onnx.graph import Graph
from xclip_jax.export.onnx.values import Tensor, is_one, is_static

_MODES = jax.lax.GatherScatterMode


def _dynamic_slice(graph: Graph, eqn: Any, x: Tensor, *starts: Tensor) -> Tensor:
  x = graph.expand(x, eqn.invars[0].aval.shape)
  sizes = eqn.params['slice_sizes']
  vectors = [graph.unsqueeze(graph.cast(start, np.int64), [0]) for start in starts[:len(sizes)]]
  start = (graph.constant(np.concatenate([vector.value for vector in vectors]))
           if all(vector.value is not None for vector in vectors) else
           graph.node('Concat', vectors, (len(vectors),), np.int64, axis=0))
  return _cut(graph, x, start, sizes)


def _cut(graph: Graph, x: Tensor, start: Tensor, sizes: Sequence) -> Tensor:
  """Takes a block that begins at an int64 vector, moved inside of x as by XLA."""
  highest = tuple(full - size for full, size in zip(x.shape, sizes, strict=True))
  if start.value is not None and is_static(highest):
    begin = np.clip(start.value, 0, highest).tolist()
    ends = tuple(first + size for first, size in zip(begin, sizes, strict=True))
    return graph.slice(x, tuple(sizes), tuple(begin), ends)
  start = graph.elementwise('Max', start, graph.constant(np.int64(0)))
  start = graph.elementwise('Min', start, graph.sizes.shape(highest))
  end = graph.elementwise('Add', start, graph.sizes.shape(tuple(sizes)))
  return graph.slice(x, tuple(sizes), start, end)


def _gather(graph: Graph, eqn: Any, x: Tensor, indices: Tensor) -> Tensor:
  """Becomes Slice, Gather or GatherND, by what the indices select."""
  numbers, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
  shapes = [var.aval.shape for var in eqn.invars]
  indexed, batching = numbers.start_index_map, numbers.operand_batching_dims
  indices = graph.expand(graph.cast(indices, np.int64), shapes[1])
  x = graph.expand(x, shapes[0])
  if len(shapes[1]) == 1 and not batching:
    return _gather_block(graph, eqn, x, indices)
  if not all(is_one(sizes[axis]) for axis in (*indexed, *batching)):
    raise unsupported(eqn, 'reads blocks at several positions')
  indices, inside = _checked(graph, eqn, x, indices)
  if len(indexed) == 1 and not batching:
    axis, = indexed
    positions = graph.squeeze(indices, [len(indices.shape) - 1])
    shape = (*x.shape[:axis], *positions.shape, *x.shape[axis + 1:])
    result = graph.node('Gather', [x, positions], shape, x.dtype, axis=axis)
    batch = range(axis, axis + len(positions.shape))
  else:
    result, batch = _gather_nd(graph, x, indices, numbers)
  result = _arranged(graph, eqn, result, list(batch))
  if inside is None:
    return result
  offsets = numbers.offset_dims
  return graph.elementwise('Where', graph.unsqueeze(inside, offsets), result, _fill(graph, eqn, x),
                           dtype=x.dtype)


def _gather_block(graph: Graph, eqn: Any, x: Tensor, start: Tensor) -> Tensor:
  """Takes the block at one position."""
  numbers, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
  checked, inside = _checked(graph, eqn, x, start)
  rank, order = len(x.shape), numbers.start_index_map
  if checked.value is not None:
    full = np.zeros(rank, np.int64)
    full[list(order)] = checked.value
    start = graph.constant(full)
  else:                                                      # axes without an index begin at 0
    padded = graph.node('Concat', [checked, graph.constant(np.zeros(1, np.int64))],
                        (len(order) + 1,), np.int64, axis=0)
    places = [order.index(axis) if axis in order else len(order) for axis in range(rank)]
    start = graph.node('Gather', [padded, graph.constant(np.array(places, np.int64))], (rank,),
                       np.int64)
  block = graph.squeeze(_cut(graph, x, start, sizes), numbers.collapsed_slice_dims)
  if inside is None:
    return block
  return graph.elementwise('Where', inside, block, _fill(graph, eqn, x), dtype=x.dtype)


def _gather_nd(
  graph: Graph, x: Tensor, indices: Tensor, numbers: Any
) -> tuple[Tensor, range]:
  """Reads elements at indices of several axes; returns them, and the axes of their positions."""
  batching, indexed = numbers.operand_batching_dims, numbers.start_index_map
  others = [axis for axis in range(len(x.shape)) if axis not in (*batching, *indexed)]
  x = graph.transpose(x, (*batching, *indexed, *others))
  in_batch = numbers.start_indices_batching_dims
  last = len(indices.shape) - 1
  positions = [axis for axis in range(last) if axis not in in_batch]
  indices = graph.transpose(indices, (*in_batch, *positions, last))
  shape = (*indices.shape[:-1], *x.shape[len(batching) + len(indexed):])
  result = graph.node('GatherND', [x, indices], shape, x.dtype, batch_dims=len(batching))
  # Back to the order that the indices had.
  order = np.argsort((*in_batch, *positions)).tolist()
  return graph.transpose(result, (*order, *range(last, len(shape)))), range(last)


def _arranged(graph: Graph, eqn: Any, result: Tensor, batch: list[int]) -> Tensor:
  """Puts the axes of the indices, `batch`, and the others where JAX has them."""
  numbers, rank = eqn.params['dimension_numbers'], len(eqn.outvars[0].aval.shape)
  read = sorted((*numbers.start_index_map, *numbers.operand_batching_dims))
  dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  offsets = [axis for axis in range(len(result.shape)) if axis not in batch]
  kept = [axis for axis in read if axis not in dropped]
  if kept:                                                   # a read axis that stays, of size 1
    order = [axis for axis in range(len(eqn.invars[0].aval.shape)) if axis not in dropped]
    end = len(result.shape)
    result = graph.unsqueeze(result, list(range(end, end + len(kept))))
    remaining, added = iter(offsets), iter(range(end, end + len(kept)))
    offsets = [next(added) if axis in kept else next(remaining) for axis in order]
  sources = iter(offsets), iter(batch)
  permutation = [next(sources[0] if axis in numbers.offset_dims else sources[1])
                 for axis in range(rank)]
  return graph.transpose(result, permutation)


def _checked(
  graph: Graph, eqn: Any, x: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor | None]:
  """Returns indices inside of x, and which of them were; None if all of them have to be."""
  mode, sizes = eqn.params['mode'], eqn.params['slice_sizes']
  if mode == _MODES.PROMISE_IN_BOUNDS:
    return indices, None
  highest = tuple(x.shape[axis] - sizes[axis]
                  for axis in eqn.params['dimension_numbers'].start_index_map)
  if indices.value is not None and is_static(highest):
    valid = np.all((indices.value >= 0) & (indices.value <= highest), axis=-1)
    indices = graph.constant(np.clip(indices.value, 0, highest))
    return indices, None if mode == _MODES.CLIP or valid.all() else graph.constant(valid)
  zero, limit = graph.constant(np.int64(0)), graph.sizes.shape(highest)
  inside = graph.elementwise('Min', graph.elementwise('Max', indices, zero), limit)
  if mode == _MODES.CLIP:
    return inside, None
  same = graph.elementwise('Equal', inside, indices, dtype=np.bool_)
  if len(highest) == 1:
    return inside, graph.squeeze(same, [len(same.shape) - 1])
  number = graph.node('ReduceMin', [graph.cast(same, np.int32)], same.shape[:-1], np.int32,
                      axes=(len(same.shape) - 1,), keepdims=0)
  return inside, graph.cast(number, np.bool_)


def _fill(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  """Returns what JAX reads outside of an array."""
  value = eqn.params['fill_value']
  if value is None:
    value = (math.nan if np.issubdtype(x.dtype, np.floating) else True if x.dtype == np.bool_
             else np.iinfo(x.dtype).max if x.dtype.kind == 'u' else np.iinfo(x.dtype).min)
  return graph.constant(np.asarray(value, x.dtype))


def _scatter(
  reduction: str, graph: Graph, eqn: Any, x: Tensor, indices: Tensor, updates: Tensor
) -> Tensor:
  """Writes elements or rows at indices; the runtime refuses indices outside of x."""
  numbers, mode = eqn.params['dimension_numbers'], eqn.params['mode']
  indexed, windows = numbers.scatter_dims_to_operand_dims, numbers.update_window_dims
  if (tuple(sorted(indexed)) != tuple(numbers.inserted_window_dims) or mode == _MODES.CLIP
      or numbers.operand_batching_dims):
    raise unsupported(eqn, 'writes blocks, or clips indices')
  shapes = [var.aval.shape for var in eqn.invars]
  x, indices, updates = (graph.expand(array, shape) for array, shape in zip(
    (x, graph.cast(indices, np.int64), updates), shapes, strict=True))
  order = (*indexed, *(axis for axis in range(len(shapes[0])) if axis not in indexed))
  positions = [axis for axis in range(len(shapes[2])) if axis not in windows]
  x, updates = graph.transpose(x, order), graph.transpose(updates, (*positions, *windows))
  result = graph.node('ScatterND', [x, indices, updates], x.shape, x.dtype, reduction=reduction)
  return graph.transpose(result, np.argsort(order).tolist())


def _sort(graph: Graph, eqn: Any, *operands: Tensor) -> list[Tensor]:
  """Sorts by the first operand; TopK leaves equal elements in their order, as a stable sort."""
  if eqn.params['num_keys'] != 1:
    raise unsupported(eqn, 'has several keys')
  axis, shape = eqn.params['dimension'], eqn.invars[0].aval.shape
  operands = tuple(graph.expand(x, shape) for x in operands)
  keys = graph.cast(operands[0], operands[0].arithmetic_dtype)
  count = graph.sizes.shape((shape[axis],))
  # TopK has outputs of two dtypes; only its indices are used.
  _, order = graph.nodes('TopK', [keys, count], [shape, shape], np.int64, axis=axis, largest=0)
  return [graph.node('GatherElements', [x, order], shape, x.dtype, axis=axis) for x in operands]


HANDLERS: dict[str, Callable] = {'gather': _gather, 'dynamic_slice': _dynamic_slice,
                                'sort': _sort,
                                'scatter': functools.partial(_scatter, 'none'),
                                'scatter-add': functools.partial(_scatter, 'add')}
