"""Symbolic sizes as arrays of the graph that contains them."""

import ast
from typing import TYPE_CHECKING, Any

import numpy as np

from xclip_jax.export.onnx.values import Tensor

if TYPE_CHECKING:
  from xclip_jax.export.onnx.graph import Graph


class Sizes:
  """Computes symbolic sizes, such as 4*B or floordiv(H, 2), from the shapes of the inputs."""

  def __init__(self, graph: 'Graph', origins: dict[str, tuple[Tensor, int]]):
    """Takes where each free size is found.

    Args:
      graph: gets the nodes that compute sizes.
      origins: input and axis by the name of the size.
    """
    self._graph, self._origins = graph, origins

  def vector(self, size: Any) -> Tensor:
    """Returns a size as int64 [1]."""
    return self._array(self._evaluate(self._parse(size)))

  def scalar(self, size: Any, dtype: Any) -> Tensor:
    """Returns a size as a scalar."""
    return self._graph.reshape(self._graph.cast(self.vector(size), np.dtype(dtype)), ())

  def shape(self, shape: tuple) -> Tensor:
    """Returns sizes as an int64 vector."""
    parts: list[Any] = []
    for size in shape:
      value = self._evaluate(self._parse(size))
      if isinstance(value, int) and parts and isinstance(parts[-1], list):
        parts[-1].append(value)
      else:
        parts.append([value] if isinstance(value, int) else value)
    arrays = [self._graph.constant(np.array(part, np.int64)) if isinstance(part, list) else part
              for part in parts] or [self._graph.constant(np.zeros(0, np.int64))]
    if len(arrays) == 1:
      return arrays[0]
    return self._graph.node('Concat', arrays, (len(shape),), np.int64, axis=0)

  def _parse(self, size: Any) -> ast.expr:
    # jax.export prints sizes in the grammar that its symbolic_shape reads, which is Python's but
    # for powers.
    return ast.parse(str(size).replace('^', '**'), mode='eval').body

  def _evaluate(self, tree: ast.expr) -> int | Tensor:
    match tree:
      case ast.Constant(int(value)):
        return value
      case ast.Name(name):
        array, axis = self._origins[name]
        return self._graph.node('Shape', [array], (1,), np.int64, start=axis, end=axis + 1)
      case ast.UnaryOp(ast.USub(), operand):
        return self._apply('Mul', -1, self._evaluate(operand))
      case ast.BinOp(left, ast.Pow(), ast.Constant(int(power))):
        value = result = self._evaluate(left)
        for _ in range(power - 1):
          result = self._apply('Mul', result, value)
        return result
      case ast.BinOp(left, (ast.Add() | ast.Sub() | ast.Mult()) as operator, right):
        name = {ast.Add: 'Add', ast.Sub: 'Sub', ast.Mult: 'Mul'}[type(operator)]
        return self._apply(name, self._evaluate(left), self._evaluate(right))
      case ast.Call(ast.Name(function), arguments):
        return self._call(function, *map(self._evaluate, arguments))
    raise NotImplementedError(f'the size {ast.unparse(tree)} has no conversion to ONNX')

  def _call(self, function: str, a: int | Tensor, b: int | Tensor) -> int | Tensor:
    if function in ('max', 'min'):
      return self._apply(function.capitalize(), a, b)
    if function == 'mod':
      return self._apply('Mod', a, b)
    if function == 'floordiv':              # ONNX's Div truncates
      return self._apply('Div', self._apply('Sub', a, self._apply('Mod', a, b)), b)
    raise NotImplementedError(f'{function} of sizes has no conversion to ONNX')

  def _apply(self, op: str, a: int | Tensor, b: int | Tensor) -> int | Tensor:
    if isinstance(a, int) and isinstance(b, int):
      return {'Add': a + b, 'Sub': a - b, 'Mul': a * b, 'Max': max(a, b), 'Min': min(a, b),
              'Mod': a % b if b else 0, 'Div': a // b if b else 0}[op]
    return self._graph.node(op, [self._array(a), self._array(b)], (1,), np.int64)

  def _array(self, value: int | Tensor) -> Tensor:
    if isinstance(value, int):
      return self._graph.constant(np.array([value], np.int64))
    return value
