"""Primitives of JAX that work element by element, as ONNX operators."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from xclip_jax.export.onnx import fusions
from xclip_jax.export.onnx.graph import Graph
from xclip_jax.export.onnx.values import Tensor


def _direct(op: str, graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
  return graph.elementwise(op, *inputs)


def _in_arithmetic_dtype(handler: Callable) -> Callable:
  """Wraps a handler, so that its inputs have a dtype that runtimes compute in."""
  def wrapped(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    dtype = inputs[0].dtype
    inputs = tuple(graph.cast(x, x.arithmetic_dtype) for x in inputs)
    result = handler(graph, eqn, *inputs)
    return result if result.dtype == np.bool_ else graph.cast(result, dtype)
  return wrapped


def _is_float(x: Tensor) -> bool:
  return np.issubdtype(x.dtype, np.floating)


def _like(graph: Graph, x: Tensor, value: Any) -> Tensor:
  return graph.constant(np.asarray(value, x.dtype))


# --- arithmetic ---------------------------------------------------------------------------------
def _add(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
  return fusions.layer_norm(graph, x, y) or graph.elementwise('Add', x, y)


def _div(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
  return (fusions.mean(graph, x, y) or fusions.softmax(graph, x, y)
          or graph.elementwise('Div', x, y))                 # integers: both round towards zero


def _max(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
  for limit, other in ((x, y), (y, x)):      # jax.nn.softmax takes a maximum with -inf
    if limit.scalar is not None and _is_float(limit) and limit.scalar == -np.inf:
      return other
  return graph.elementwise('Max', x, y)


def _remainder(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
  return graph.elementwise('Mod', x, y, fmod=1)              # has the sign of x, as in C


def _integer_pow(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  power = eqn.params['y']
  if abs(power) > 4:
    return graph.elementwise('Pow', x, _like(graph, x, power))
  result = x if power else _like(graph, x, 1)
  for _ in range(abs(power) - 1):
    result = graph.elementwise('Mul', result, x)
  return graph.elementwise('Reciprocal', result) if power < 0 else result


def _exp2(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.elementwise('Pow', _like(graph, x, 2), x)


def _rsqrt(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.elementwise('Reciprocal', graph.elementwise('Sqrt', x))


def _erfc(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  # erfc(-z) = 1 + erf(z): the GELU of the runtimes, which they recognise.
  negated = graph.producer(x, 'Neg')
  if negated:
    erf = graph.elementwise('Erf', negated.inputs[0])
    return graph.elementwise('Add', erf, _like(graph, x, 1))
  return graph.elementwise('Sub', _like(graph, x, 1), graph.elementwise('Erf', x))


def _log1p(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.elementwise('Log', graph.elementwise('Add', x, _like(graph, x, 1)))


def _expm1(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.elementwise('Sub', graph.elementwise('Exp', x), _like(graph, x, 1))


def _log2(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return graph.elementwise('Mul', graph.elementwise('Log', x), _like(graph, x, 1 / math.log(2)))


def _round(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  if eqn.params['rounding_method'] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
    return graph.elementwise('Round', x)
  size = graph.elementwise('Abs', x)          # size + 1/2 would be rounded: it is no exact number
  whole = graph.elementwise('Floor', size)
  is_half = _compare('GreaterOrEqual', graph, eqn, graph.elementwise('Sub', size, whole),
                     _like(graph, x, 0.5))
  size = graph.elementwise('Add', whole, graph.cast(is_half, x.dtype))
  return graph.elementwise('Mul', graph.elementwise('Sign', x), size)


def _clamp(graph: Graph, eqn: Any, low: Tensor, x: Tensor, high: Tensor) -> Tensor:
  return graph.elementwise('Min', graph.elementwise('Max', x, low), high)


# --- bits ---------------------------------------------------------------------------------------
def _floor_div(graph: Graph, x: Tensor, divisor: int) -> Tensor:
  by = _like(graph, x, divisor)
  rest = graph.elementwise('Mod', x, by)                     # without fmod: never negative
  return graph.elementwise('Div', graph.elementwise('Sub', x, rest), by)


def _shift_amount(eqn: Any, amount: Tensor) -> int:
  if amount.scalar is None or not 0 <= int(amount.scalar) < 31:
    raise unsupported(eqn, 'has a shift that is no constant in 0..30')
  return int(amount.scalar)


def _shift_left(graph: Graph, eqn: Any, x: Tensor, amount: Tensor) -> Tensor:
  return graph.elementwise('Mul', x, _like(graph, x, 1 << _shift_amount(eqn, amount)))


def _shift_right(graph: Graph, eqn: Any, x: Tensor, amount: Tensor) -> Tensor:
  return _floor_div(graph, x, 1 << _shift_amount(eqn, amount))


def _shift_right_logical(graph: Graph, eqn: Any, x: Tensor, amount: Tensor) -> Tensor:
  bits, width = _shift_amount(eqn, amount), 8 * eqn.invars[0].aval.dtype.itemsize
  if not bits:
    return x
  wide = graph.cast(x, np.int64)             # where the sign can become an ordinary bit
  unsigned = graph.elementwise('Mod', wide, graph.constant(np.int64(1 << width)))
  shifted = graph.elementwise('Div', unsigned, graph.constant(np.int64(1 << bits)))
  return graph.cast(shifted, x.dtype)


def _bitwise(op: str, graph: Graph, eqn: Any, x: Tensor, *other: Tensor) -> Tensor:
  if x.dtype == np.bool_:
    return graph.elementwise(op, x, *other)
  for mask, number in ((x, *other), (*other, x)) if op == 'And' else ():
    low_bits = mask.scalar
    if low_bits is not None and low_bits > 0 and not low_bits & low_bits + 1:
      wide = graph.cast(number, number.arithmetic_dtype)
      rest = graph.elementwise('Mod', wide, _like(graph, wide, int(low_bits) + 1))
      return graph.cast(rest, x.dtype)
  # Opset 18 has operators for bits, which fewer runtimes know.
  raise unsupported(eqn, 'works on bits of integers, other than by a mask of low bits')


# --- comparison and choice ----------------------------------------------------------------------
def _compare(op: str, graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
  return graph.elementwise(op, x, y, dtype=np.bool_)


def _not_equal(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
  return graph.elementwise('Not', _compare('Equal', graph, eqn, x, y))


def _is_finite(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  return _compare('Less', graph, eqn, graph.elementwise('Abs', x), _like(graph, x, np.inf))


def _select(graph: Graph, eqn: Any, which: Tensor, *cases: Tensor) -> Tensor:
  if len(cases) == 1:
    return cases[0]
  if which.dtype != np.bool_ or len(cases) != 2:
    raise unsupported(eqn, 'chooses among more than two')
  no, yes = cases
  if no.dtype == np.bool_:                   # few runtimes choose between booleans
    yes = graph.elementwise('And', which, yes)
    no = graph.elementwise('And', graph.elementwise('Not', which), no)
    return graph.elementwise('Or', yes, no)
  return graph.elementwise('Where', which, yes, no, dtype=no.dtype)


def _convert(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
  dtype = graph.dtype(eqn.params['new_dtype'])
  if _is_float(x) and np.issubdtype(dtype, np.integer) and dtype.itemsize == 1:
    x = graph.cast(x, np.int32)
  return graph.cast(x, dtype)


def unsupported(eqn: Any, why: str) -> NotImplementedError:
  """Returns the error for a primitive in a form that has no conversion."""
  return NotImplementedError(f'{eqn.primitive.name} {why}: it has no conversion to ONNX')


_UNARY = {
  'neg': 'Neg', 'exp': 'Exp', 'log': 'Log', 'sqrt': 'Sqrt', 'tanh': 'Tanh', 'logistic': 'Sigmoid',
  'erf': 'Erf', 'abs': 'Abs', 'sign': 'Sign', 'floor': 'Floor', 'ceil': 'Ceil', 'sin': 'Sin',
  'cos': 'Cos',
}
_BINARY = {'sub': 'Sub', 'mul': 'Mul', 'pow': 'Pow', 'min': 'Min'}
_COMPARISONS = {'eq': 'Equal', 'lt': 'Less', 'le': 'LessOrEqual', 'gt': 'Greater',
                'ge': 'GreaterOrEqual'}
_ARITHMETIC: dict[str, Callable] = {
  **{name: functools.partial(_direct, op) for name, op in (_UNARY | _BINARY).items()},
  **{name: functools.partial(_compare, op) for name, op in _COMPARISONS.items()},
  'ne': _not_equal, 'add': _add, 'div': _div, 'max': _max, 'rem': _remainder,
  'integer_pow': _integer_pow, 'exp2': _exp2, 'rsqrt': _rsqrt, 'erfc': _erfc, 'log1p': _log1p,
  'expm1': _expm1, 'log2': _log2,
  'round': _round, 'clamp': _clamp, 'is_finite': _is_finite, 'shift_left': _shift_left,
  'shift_right_arithmetic': _shift_right, 'shift_right_logical': _shift_right_logical,
  'square': lambda graph, eqn, x: graph.elementwise('Mul', x, x),
}
HANDLERS: dict[str, Callable] = {
  **{name: _in_arithmetic_dtype(handler) for name, handler in _ARITHMETIC.items()},
  **{name: functools.partial(_bitwise, op)
     for name, op in {'and': 'And', 'or': 'Or', 'xor': 'Xor', 'not': 'Not'}.items()},
  'select_n': _select,
  'convert_element_type': _convert,
}
