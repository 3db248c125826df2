"""An ONNX graph while it is built: nodes, constants, and the operators that change a layout."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from xclip_jax.export.onnx.sizes import Sizes
from xclip_jax.export.onnx.values import (
  Shape,
  Tensor,
  Value,
  broadcast_shape,
  is_static,
  onnx_dtype,
)

_FOLDED_AT_MOST = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
  """One operation: ONNX's operator, its arrays and attributes."""

  op: str
  inputs: tuple[Tensor, ...]
  outputs: tuple[str, ...]
  attributes: dict[str, Any]


class Graph:
  """Collects nodes and constants; equal ones are stored once."""

  def __init__(self, half: str):
    """Starts an empty graph.

    Args:
      half: the dtype that bfloat16 becomes.
    """
    self.half = half
    self.inputs: list[tuple[Tensor, Value]] = []
    self.callers: list[Any] = []             # equations whose inner functions are being converted
    self.constants: dict[str, np.ndarray] = {}
    self._nodes: list[Node] = []
    self._producers: dict[str, Node] = {}
    self._known: dict[Any, tuple[Tensor, ...]] = {}
    self._constant_names: dict[Any, str] = {}
    self._origins: dict[str, tuple[Tensor, int]] = {}
    self.sizes = Sizes(self, self._origins)

  # --- arrays -----------------------------------------------------------------------------------
  def input(self, value: Value, shape: Shape) -> Tensor:
    """Adds an input; shape has the symbolic sizes of value's names."""
    tensor = Tensor(value.name, tuple(shape), self.dtype(value.dtype))
    for axis, size in enumerate(value.shape):
      if isinstance(size, str):
        self._origins.setdefault(size, (tensor, axis))
    self.inputs.append((tensor, value))
    return tensor

  def dtype(self, dtype: Any) -> np.dtype:
    """Returns the dtype that a JAX dtype has in this graph."""
    return onnx_dtype(dtype, self.half)

  def constant(self, value: Any, label: str = '') -> Tensor:
    """Returns a constant array; it is stored when a node uses it."""
    value = np.asarray(value)
    dtype = self.dtype(value.dtype)
    if value.dtype != dtype:
      value = value.astype(dtype)
      if dtype == np.float16 and not np.isfinite(value).all():
        raise ValueError(f'float16 cannot hold the values of {label or "a constant"}')
    return Tensor('', value.shape, dtype, value, label)

  def producer(self, tensor: Tensor, op: str) -> Node | None:
    """Returns the node that computes an array, if it is of this operator."""
    node = self._producers.get(tensor.name)
    return node if node is not None and node.op == op else None

  def is_computed(self, tensor: Tensor) -> bool:
    """Tells whether a node computes an array; if not, it is an input or a constant."""
    return tensor.name in self._producers

  # --- nodes ------------------------------------------------------------------------------------
  def node(
    self, op: str, inputs: Sequence[Tensor], shape: Shape, dtype: Any, **attributes: Any
  ) -> Tensor:
    """Adds a node with one output, or finds the node that computes the same.

    Args:
      op: the operator of ONNX.
      inputs: its arrays.
      shape: the shape of its output.
      dtype: the dtype of its output.
      **attributes: of the operator.
    """
    return self.nodes(op, inputs, [shape], dtype, **attributes)[0]

  def nodes(
    self, op: str, inputs: Sequence[Tensor], shapes: Sequence[Shape], dtype: Any, **attributes: Any
  ) -> tuple[Tensor, ...]:
    """Adds a node with an output for each of the shapes."""
    inputs = tuple(self._stored(tensor) for tensor in inputs)
    key = (op, tuple(t.name for t in inputs), repr(sorted(attributes.items())), len(shapes))
    if key not in self._known:
      names = tuple(f'{op.lower()}_{len(self._nodes)}' + (f'_{i}' if i else '')
                    for i in range(len(shapes)))
      node = Node(op, inputs, names, attributes)
      self._nodes.append(node)
      self._producers.update(dict.fromkeys(names, node))
      self._known[key] = tuple(Tensor(name, tuple(shape), np.dtype(dtype))
                               for name, shape in zip(names, shapes, strict=True))
    return self._known[key]

  def _stored(self, tensor: Tensor) -> Tensor:
    if tensor.value is None or tensor.name:
      return tensor
    value = np.ascontiguousarray(tensor.value).reshape(tensor.shape)
    digest = hashlib.blake2b(memoryview(value.reshape(-1).view(np.uint8))).digest()
    key = (value.dtype.str, value.shape, digest)
    if key not in self._constant_names:
      name = tensor.label or f'constant_{len(self.constants)}'
      while name in self.constants:
        name += '_'
      self.constants[name] = value
      self._constant_names[key] = name
    return dataclasses.replace(tensor, name=self._constant_names[key])

  def elementwise(self, op: str, *inputs: Tensor, dtype: Any = None, **attributes: Any) -> Tensor:
    """Adds an operator that broadcasts its inputs; dtype is the first one's unless given."""
    shape = broadcast_shape(*(tensor.shape for tensor in inputs))
    return self.node(op, inputs, shape, inputs[0].dtype if dtype is None else dtype, **attributes)

  # --- layout -----------------------------------------------------------------------------------
  def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
    """Converts to a dtype of this graph."""
    dtype = self.dtype(dtype)
    if tensor.dtype == dtype:
      return tensor
    if tensor.value is not None:
      return self.constant(tensor.value.astype(dtype), tensor.label)
    return self.node('Cast', [tensor], tensor.shape, dtype,
                     to=onnx.helper.np_dtype_to_tensor_dtype(dtype))

  def transpose(self, tensor: Tensor, permutation: Sequence[int]) -> Tensor:
    """Permutes axes; two permutations in a row become one."""
    permutation = tuple(int(axis) for axis in permutation)
    before = self.producer(tensor, 'Transpose')
    if before is not None:
      first = before.attributes['perm']
      return self.transpose(before.inputs[0], [first[axis] for axis in permutation])
    if permutation == tuple(range(len(permutation))):
      return tensor
    if tensor.value is not None:
      return self.constant(tensor.value.transpose(permutation), tensor.label)
    return self.node('Transpose', [tensor], tuple(tensor.shape[axis] for axis in permutation),
                     tensor.dtype, perm=permutation)

  def reshape(self, tensor: Tensor, shape: Shape) -> Tensor:
    """Gives an array another shape; free sizes stay free."""
    shape = tuple(shape)
    if tensor.shape == shape:
      return tensor
    if tensor.value is not None and is_static(shape):
      return self.constant(tensor.value.reshape(shape), tensor.label)
    # 0 copies the size of the same axis, and one size can be left for the runtime to find.
    target = [size if is_static((size,)) else 0 if axis < len(tensor.shape)
              and tensor.shape[axis] == size else None for axis, size in enumerate(shape)]
    if target.count(None) <= 1 and not (None in target and 0 in shape):
      vector = self.constant(np.array([-1 if s is None else s for s in target], np.int64))
    else:
      vector = self.sizes.shape(shape)
    return self.node('Reshape', [tensor, vector], shape, tensor.dtype)

  def unsqueeze(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Inserts axes of size 1, at their positions in the result."""
    if not axes:
      return tensor
    sizes = iter(tensor.shape)
    shape = tuple(1 if axis in axes else next(sizes) for axis in range(
      len(tensor.shape) + len(axes)))
    if tensor.value is not None:
      return self.constant(tensor.value.reshape(shape), tensor.label)
    for op in ('ReduceSum', 'ReduceMean', 'ReduceMax', 'ReduceMin'):
      node = self.producer(tensor, op)
      if node and not node.attributes['keepdims'] and reduced_axes(node) == tuple(axes):
        return self.node(op, node.inputs, shape, tensor.dtype, **{**node.attributes, 'keepdims': 1})
    vector = self.constant(np.array(axes, np.int64))
    return self.node('Unsqueeze', [tensor, vector], shape, tensor.dtype)

  def squeeze(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Drops axes of size 1."""
    if not axes:
      return tensor
    shape = tuple(size for axis, size in enumerate(tensor.shape) if axis not in axes)
    if tensor.value is not None:
      return self.constant(tensor.value.reshape(shape), tensor.label)
    return self.node('Squeeze', [tensor, self.constant(np.array(axes, np.int64))], shape,
                     tensor.dtype)

  def expand(self, tensor: Tensor, shape: Shape) -> Tensor:
    """Stores an array in its full shape, if so far its operators broadcast it."""
    shape = tuple(shape)
    if tensor.shape == shape:
      return tensor
    if tensor.value is not None and is_static(shape) and np.prod(shape) <= _FOLDED_AT_MOST:
      return self.constant(np.broadcast_to(tensor.value, shape))
    return self.node('Expand', [tensor, self.sizes.shape(shape)], shape, tensor.dtype)

  def slice(
    self, tensor: Tensor, shape: Shape, starts: Tensor | Shape, ends: Tensor | Shape,
    steps: Sequence[int] = (),
  ) -> Tensor:
    """Takes a part of every axis.

    Args:
      tensor: the array.
      shape: the shape of the part.
      starts, ends: one for each axis: sizes, or an int64 vector.
      steps: 1 on every axis, unless given.
    """
    steps = tuple(steps) or (1,) * len(shape)
    # Axes that are kept whole are not named, so that their free sizes need not be computed.
    axes = [axis for axis, step in enumerate(steps)
            if step != 1 or shape[axis] != tensor.shape[axis]]
    if not axes:
      return tensor
    first, last = (self._chosen(limits, axes) for limits in (starts, ends))
    if tensor.value is not None and first.value is not None and last.value is not None:
      part = [slice(None)] * len(shape)
      for axis, start, end in zip(axes, first.value.tolist(), last.value.tolist(), strict=True):
        part[axis] = slice(start, end, steps[axis])
      return self.constant(tensor.value[tuple(part)], tensor.label)
    inputs = [tensor, first, last, self.constant(np.array(axes, np.int64))]
    if any(step != 1 for step in steps):
      inputs.append(self.constant(np.array([steps[axis] for axis in axes], np.int64)))
    return self.node('Slice', inputs, shape, tensor.dtype)

  def _chosen(self, limits: Tensor | Shape, axes: list[int]) -> Tensor:
    if not isinstance(limits, Tensor):
      return self.sizes.shape(tuple(limits[axis] for axis in axes))
    if limits.value is not None:
      return self.constant(limits.value[axes])
    chosen = self.constant(np.array(axes, np.int64))
    return self.node('Gather', [limits, chosen], (len(axes),), np.int64)

  # --- the result -------------------------------------------------------------------------------
  def used(self, outputs: Sequence[Tensor]) -> list[Node]:
    """Returns the nodes that the outputs depend on, in the order of computation."""
    needed = {tensor.name for tensor in outputs}
    nodes = []
    for node in reversed(self._nodes):
      if needed.intersection(node.outputs):
        nodes.append(node)
        needed.update(tensor.name for tensor in node.inputs)
    return nodes[::-1]


def reduced_axes(node: Node) -> tuple[int, ...]:
  """Returns the axes over which a node reduces."""
  axes = node.attributes.get('axes')
  return tuple(axes) if axes is not None else tuple(map(int, node.inputs[1].value))  # type: ignore
