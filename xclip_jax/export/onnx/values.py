"""Arrays of an ONNX graph: its inputs, and what the converter knows about each array."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

Shape = tuple[Any, ...]          # sizes: int, or a symbolic size of jax.export

DTYPES = ('bool', 'uint8', 'int32', 'int64', 'float16', 'float32')
# Runtimes have no arithmetic of these dtypes: what is computed in instead.
_ARITHMETIC = {**dict.fromkeys(('bool', 'int8', 'int16', 'uint8', 'uint16'), np.dtype(np.int32)),
               'uint32': np.dtype(np.int64)}


@dataclasses.dataclass(frozen=True)
class Value:
  """An input of a graph.

  Attributes:
    name: what the caller of the graph names the array.
    shape: sizes of the axes; a str is a free size, the same wherever it has the same name.
    dtype: one of DTYPES.
  """

  name: str
  shape: tuple[int | str, ...]
  dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """An array while its graph is built.

  Attributes:
    name: its name in the graph; '' for a constant that no node has used.
    shape: its sizes. A size can be 1 where the traced array has another one: ONNX operators
      broadcast, so a broadcast array is stored only for operators that need its full size.
    dtype: its NumPy dtype in ONNX.
    value: what it contains, if that is known before the graph runs.
    label: the name of the parameter that a constant comes from.
  """

  name: str
  shape: Shape
  dtype: np.dtype
  value: np.ndarray | None = None
  label: str = ''

  @property
  def scalar(self) -> Any:
    """The one number that a constant contains; None for others."""
    return None if self.value is None or self.value.size != 1 else self.value.reshape(())[()]

  @property
  def arithmetic_dtype(self) -> np.dtype:
    """The dtype in which runtimes can compute with it."""
    return _ARITHMETIC.get(self.dtype.name, self.dtype)


def onnx_dtype(dtype: Any, half: str) -> np.dtype:
  """Returns the NumPy dtype in which ONNX has a JAX dtype.

  Args:
    half: what bfloat16 becomes.
  """
  dtype = np.dtype(half) if dtype == jnp.bfloat16 else np.dtype(dtype)
  if dtype.name not in DTYPES and not np.issubdtype(dtype, np.integer):
    raise NotImplementedError(f'arrays of {dtype.name} have no conversion to ONNX')
  return dtype


def broadcast_shape(*shapes: Shape) -> Shape:
  """Returns the shape of an elementwise result; sizes are equal or 1."""
  rank = max(map(len, shapes))
  columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
  return tuple(next((size for size in column if not is_one(size)), 1) for column in columns)


def is_one(size: Any) -> bool:
  """Tells whether a size is the number 1; a symbolic size is not."""
  return isinstance(size, (int, np.integer)) and size == 1


def is_static(shape: Shape) -> bool:
  """Tells whether all sizes are numbers."""
  return all(isinstance(size, (int, np.integer)) for size in shape)
