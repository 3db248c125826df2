"""Objects that a pickle may ask for, and the few functions that build them."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from xclip_jax.errors import UserError

MAX_NAME = 1024


class PickleError(UserError):
  """Raised for a pickle that cannot be read; the message does not name its file."""


@dataclasses.dataclass(frozen=True)
class Inert:
  """Stands for an object or class that is not rebuilt; two of the same name are equal."""
  name: str                                                    # 'yacs.config.CfgNode'
  items: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)
  values: list = dataclasses.field(default_factory=list, compare=False, repr=False)
  # items: what was set by key or as an attribute; values: what it was called with, then appended.


class Machine(Protocol):
  """Defines the attributes of the pickle machine that builders use."""
  tensor: Callable[..., Any]

  def spend(self, amount: int) -> None: ...
  def where(self) -> str: ...
  def call(self, function: Any, args: Any) -> Any: ...
  def named(self, function: Callable, *args: Any) -> Any: ...


def as_key(key: Any) -> Any:
  """Returns a key that hashes in bounded time and stack; other values become an `Inert`."""
  if isinstance(key, str | bytes | bool | float | Inert) or key is None:
    return key
  if isinstance(key, int) and key.bit_length() <= 64:
    return key
  if isinstance(key, tuple) and len(key) <= 8 and not any(isinstance(x, tuple) for x in key):
    return tuple(map(as_key, key))
  return Inert(f'{type(key).__module__}.{type(key).__qualname__}')


# Builders: the only calls there are. Each is (machine, *args of the file) -> value; NotImplemented
# makes an `Inert` of the call; wrong arguments raise, which `load` reports as damage.
def _mapping(machine: Machine, items: Any = ()) -> dict:
  machine.spend(len(items))
  pairs = items.items() if isinstance(items, dict) else items
  return {as_key(key): value for key, value in pairs}


def _members(machine: Machine, items: list | tuple = ()) -> set:
  machine.spend(len(items))
  return {as_key(item) for item in items}


def _size(machine: Machine, items: list | tuple = ()) -> tuple:
  machine.spend(len(items))
  return tuple(items)


def _encode(machine: Machine, text: str, encoding: str = '') -> Any:
  """Builds the bytes that Python 3 writes as text in protocol 2."""
  if encoding not in ('latin1', 'latin-1') or not isinstance(text, str):
    return NotImplemented
  machine.spend(len(text) // 64)
  return text.encode('latin-1')


def _raw(machine: Machine, raw: Any) -> Any:
  """Returns the bytes that protocol 2 of Python 2 writes as text; anything else as it is."""
  if isinstance(raw, str | bytes | bytearray):
    machine.spend(len(raw) // 64)
  return raw.encode('latin-1') if isinstance(raw, str) else raw


def _complex(machine: Machine, real: Any, imaginary: Any) -> Any:
  if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
    raise PickleError('its pickle has a complex number that is not made of two numbers')
  return complex(real, imaginary)


def _device(machine: Machine, kind: Any, *index: Any) -> Any:
  """Builds the name of a device, such as 'cuda:0'."""
  if not isinstance(kind, str) or not all(type(x) is int for x in index):
    return NotImplemented
  return ':'.join([kind[:32], *(str(x)[:32] for x in index[:1])])


def _bytearray(machine: Machine, value: Any = b'', encoding: str = 'latin-1') -> Any:
  value = _encode(machine, value, encoding) if isinstance(value, str) else value
  if not isinstance(value, bytes | bytearray):  # a number would reserve that many bytes
    return NotImplemented
  machine.spend(len(value) // 64)
  return bytearray(value)


def _tensor(
  machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> Any:
  _grad, _hooks, metadata = (*rest, *(None,) * 3)[:max(len(rest), 3)]
  return machine.named(machine.tensor, storage, offset, size, stride, None, metadata)


def _tensor_of_dtype(
  machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> Any:
  _grad, _hooks, dtype, metadata = (*rest, None)[:max(len(rest), 4)]
  return machine.named(machine.tensor, storage, offset, size, stride, dtype, metadata)


def _of_type(machine: Machine, function: Any, cls: Any, args: tuple, *rest: Any) -> Any:
  if not isinstance(cls, Inert) or cls.name not in _PLAIN:
    raise PickleError(f'tensor {machine.where()} is of class {getattr(cls, "name", "?")!r}; '
                      'convert it to a plain tensor and save again')
  return machine.call(function, args)


def _dtype(machine: Machine, code: str, *rest: Any) -> Any:
  if not isinstance(code, str) or not re.fullmatch('[biufcSU][1-9][0-9]{0,6}', code):
    return NotImplemented
  return np.dtype(code, False, True)  # a copy, as BUILD sets its byte order


def set_dtype(dtype: np.dtype, state: Any) -> None:
  """Sets the byte order of a pickled dtype; PickleError if its state changes anything else."""
  sizes = (dtype.itemsize, dtype.alignment) if dtype.kind in 'SU' else (-1, -1)
  if (
    not isinstance(state, tuple) or len(state) != 8 or state[1] not in ('<', '>', '|', '=')
    or state[0] != 3 or state[2:5] != (None, None, None) or state[5:7] != sizes
    or state[7] != dtype.flags
  ):
    raise PickleError('its pickle has a numpy dtype that is not read')
  rebuilt: Any = dtype
  rebuilt.__setstate__(state)


def _scalar(machine: Machine, dtype: Any, raw: Any = b'') -> Any:
  if not isinstance(dtype, np.dtype):
    return NotImplemented
  raw = _raw(machine, raw)
  if len(raw) != dtype.itemsize:
    raise PickleError(f'its pickle has a {dtype} of {len(raw)} bytes')
  return np.ndarray((), dtype, raw)[()]


def _empty_array(machine: Machine, cls: Any, *rest: Any) -> Any:
  return np.empty(0, np.uint8) if cls == Inert('numpy.ndarray') else NotImplemented


def _check_array(
  machine: Machine, shape: Any, dtype: Any, raw: Any
) -> tuple[tuple[int, ...], bytes]:
  raw = _raw(machine, raw)
  shape = (shape,) if isinstance(shape, int) else shape
  if not isinstance(dtype, np.dtype) or not isinstance(raw, bytes | bytearray):
    raise PickleError('its pickle has a numpy array of objects, which is not read')
  if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
    raise PickleError('its pickle has a numpy array of an impossible shape')
  if math.prod(shape) * dtype.itemsize != len(raw):
    raise PickleError(f'its pickle has a numpy array {shape} {dtype} of {len(raw)} bytes')
  return tuple(shape), bytes(raw)


def set_array(machine: Machine, array: np.ndarray, state: Any) -> None:
  """Fills an array that NumPy pickled with the shape, dtype and bytes of its state."""
  # Only what `_empty_array` made: a tensor is a view of the file and has no state.
  if array.shape != (0,) or not array.flags.owndata or not isinstance(state, tuple):
    raise PickleError('its pickle sets the state of a tensor')
  _, shape, dtype, fortran, raw = state
  shape, raw = _check_array(machine, shape, dtype, raw)
  rebuilt: Any = array
  rebuilt.__setstate__((1, shape, dtype, bool(fortran), raw))
  array.flags.writeable = False


def _from_buffer(machine: Machine, raw: Any, dtype: Any, shape: Any, order: str = 'C') -> Any:
  shape, raw = _check_array(machine, shape, dtype, raw)
  return np.ndarray(shape, dtype, raw, order='F' if order == 'F' else 'C')


_first = lambda machine, value, *rest: value
_PLAIN = (
  'torch.Tensor', 'torch._tensor.Tensor', 'torch.nn.parameter.Parameter',
  'torch.nn.parameter.Buffer',
)
BUILDERS: dict[str, Callable] = {
  'collections.OrderedDict': _mapping,
  'collections.Counter': _mapping,
  'collections.defaultdict': lambda machine, factory=None, items=(): _mapping(machine, items),
  'builtins.set': _members,
  'builtins.frozenset': lambda machine, items=(): frozenset(_members(machine, items)),
  'builtins.complex': _complex,
  'builtins.slice': lambda machine, start, stop, step: slice(start, stop, step),
  'builtins.bytearray': _bytearray,
  'builtins.bytes': lambda machine, *args: NotImplemented if args else b'',
  '_codecs.encode': _encode,
  'torch.Size': _size,
  'torch.device': _device,
  'torch._utils._rebuild_tensor': _tensor,
  'torch._utils._rebuild_tensor_v2': _tensor,
  'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
  'torch._utils._rebuild_parameter': _first,
  'torch._utils._rebuild_parameter_with_state': _first,
  'torch._tensor._rebuild_from_type_v2': _of_type,
  'torch.jit._pickle.restore_type_tag': _first,
  **{f'torch.jit._pickle.build_{x}list': _first for x in ('int', 'double', 'bool', 'tensor')},
  'numpy.dtype': _dtype,
  **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
  **{f'numpy.{core}.multiarray._reconstruct': _empty_array for core in ('core', '_core')},
  **{f'numpy.{core}.numeric._frombuffer': _from_buffer for core in ('core', '_core')},
}
