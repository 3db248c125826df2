"""Pickle machine that can build plain data only.

Python's own unpickler runs whatever a file names. Even with its imports restricted, a few bytes
make it reserve gigabytes (a memo slot of 2**32) or overflow the C stack (a dictionary key of nested
tuples). So the opcodes are interpreted here: nothing is imported, nothing outside
`rebuild.BUILDERS` is called, and the work is counted. An object of any other class becomes an
`Inert` that records what the file did to it.
"""

import codecs
import mmap
import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from xclip_jax.weights.files import rebuild

Inert = rebuild.Inert
PickleError = rebuild.PickleError

MAX_BYTES = 256 << 20    # of one pickle; those of real checkpoints hold names and settings: < 10 MB
MAX_WORK = 4_000_000     # opcodes, elements copied and 64-byte units of copied text
_FREE_WORK = 600_000     # of a small file: half a second; more needs 4 bytes of the file each
_WRONG = (
  ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error, EOFError,
  MemoryError, RecursionError, AssertionError, BufferError,
)


class Module(dict):
  """Holds the attributes of an object of a TorchScript class."""


def load(
  data: bytes | mmap.mmap,
  start: int = 0,
  persistent: Callable[[Any], Any] | None = None,
  tensor: Callable[..., Any] | None = None,
  file_size: int = 0,
) -> tuple[Any, int]:
  """Reads the one pickle that begins at `start`.

  Args:
    data: the bytes that hold it.
    persistent: maps a persistent id to the object it stands for.
    tensor: maps (storage, offset, size, stride, dtype or None, metadata or None) to an array. What
      it gets is as the file has it, unchecked.
    file_size: size in bytes of the whole file, if `data` is a part of it.

  Returns:
    Nested dict / list / tuple of plain values, arrays and `Inert`; the position after the pickle.

  Raises:
    PickleError: damaged, refused, or too much work.
  """
  most_work = min(MAX_WORK, max(_FREE_WORK, max(file_size, len(data)) // 4))
  machine = _Machine(data, start, persistent, tensor, most_work)
  try:
    return machine.run(), machine.at
  except PickleError:
    raise
  except _WRONG as error:
    reason = f'{type(error).__name__}: {error}'[:200]
    raise PickleError(f'its pickle is damaged near byte {machine.at} ({reason})') from error


class _Machine:
  """Runs over one pickle, with a stack, the stacks below its marks, and a memo."""

  def __init__(
    self, data: Any, start: int, persistent: Callable[[Any], Any] | None,
    tensor: Callable[..., Any] | None, most_work: int,
  ):
    self.data, self.start, self.at = data, start, start
    self.persistent, self.tensor = persistent, tensor or _refuse_tensor
    self.stack: list = []
    self.below: list[list] = []
    self.memo: dict[int, Any] = {}
    self.work, self.most_work = 0, most_work

  def run(self) -> Any:
    while True:
      if self.at - self.start > MAX_BYTES:
        raise PickleError(f'its pickle is longer than {MAX_BYTES >> 20} MiB')
      op = self.take(1)
      self.spend(1)
      if op == pickle.STOP:
        return self.pop()
      if op not in _STEPS:
        raise PickleError(f'its pickle has opcode {op!r} near byte {self.at}, which is not read')
      _STEPS[op](self)

  def spend(self, amount: int) -> None:
    """Counts work that a few bytes could otherwise ask for again and again."""
    self.work += amount
    if self.work > self.most_work:
      raise PickleError(f'its pickle makes more than {self.most_work:,} objects, which no file of '
                        'its size with weights does')

  def take(self, count: int) -> bytes:
    if count < 0 or self.at + count > len(self.data) or count > MAX_BYTES:
      raise PickleError(f'its pickle ends early: {count} bytes wanted at byte {self.at}')
    self.at += count
    return self.data[self.at - count:self.at]

  def number(self, code: str) -> Any:
    return struct.unpack('<' + code, self.take(struct.calcsize('<' + code)))[0]

  def line(self) -> str:
    end = self.data.find(b'\n', self.at, self.at + 65536)
    if end < 0:
      raise PickleError(f'its pickle has no end of line after byte {self.at}')
    return self.take(end + 1 - self.at)[:-1].decode('latin-1')

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    return self.stack.pop()

  def pop_mark(self) -> list:
    items = self.stack
    self.stack = self.below.pop()
    return items

  def where(self) -> str:
    """Names the object being built: the nearest key that waits for its value."""
    for stack in (self.stack, *reversed(self.below)):
      for value in reversed(stack[-4:]):
        if isinstance(value, str) and value != 'storage':
          return repr(value[:200])
    return 'without a name'

  def call(self, function: Any, args: Any) -> Any:
    """Makes the call that REDUCE, NEWOBJ, INST and OBJ ask for, if it is known to be harmless."""
    if not isinstance(function, Inert) or not isinstance(args, tuple):
      raise PickleError(f'its pickle calls a {type(function).__name__} near byte {self.at}')
    self.spend(len(args))
    name = function.name
    if name in rebuild.BUILDERS:
      value = rebuild.BUILDERS[name](self, *args)
      if value is not NotImplemented:
        return value
    elif name.startswith('__torch__.'):
      return Module()
    elif name.startswith('torch._utils._rebuild_'):
      raise PickleError(
        f'tensor {self.where()} is made by {name} (quantized, sparse or of another device); '
        'convert it to a plain CPU tensor and save again')
    if name in ('copyreg.__newobj__', 'copyreg._reconstructor') and isinstance(args[0], Inert):
      name, args = args[0].name, args[1:]
    return Inert(name, values=list(args))

  def build(self) -> None:
    state, target = self.pop(), self.stack[-1]
    if isinstance(target, Module):
      self.set_items(target, state if isinstance(state, dict) else {'__getstate__': state})
    elif isinstance(target, Inert):
      slots = state if isinstance(state, tuple) and len(state) == 2 else (state,)
      if all(part is None or isinstance(part, dict) for part in slots):
        for part in slots:
          self.set_items(target, part if isinstance(part, dict) else {})
      else:
        target.values.append(state)
    elif isinstance(target, np.dtype):
      rebuild.set_dtype(target, state)
    elif isinstance(target, np.ndarray):
      rebuild.set_array(self, target, state)
    elif not isinstance(target, dict):  # attributes of an OrderedDict (`_metadata`) are dropped
      raise PickleError(f'its pickle sets the state of a {type(target).__name__}')

  def set_items(self, target: Any, items: dict) -> None:
    self.spend(len(items))
    target = target.items if isinstance(target, Inert) else target
    for key, value in items.items():
      target[rebuild.as_key(key)] = value

  def add_pairs(self, flat: list) -> None:
    target = self.stack[-1]
    items = target.items if isinstance(target, Inert) else target
    if not isinstance(items, dict) or len(flat) % 2:
      raise PickleError(f'its pickle sets items of a {type(target).__name__} near byte {self.at}')
    for key, value in zip(flat[::2], flat[1::2], strict=True):
      items[rebuild.as_key(key)] = value

  def extend(self, values: list) -> None:
    target = self.stack[-1]
    target = target.values if isinstance(target, Inert) else target
    if not isinstance(target, list):
      raise PickleError(f'its pickle appends to a {type(target).__name__} near byte {self.at}')
    target.extend(values)

  def add_members(self, values: list) -> None:
    target = self.stack[-1]
    if isinstance(target, Inert):
      target.values.extend(values)
    elif isinstance(target, set):
      target.update(map(rebuild.as_key, values))
    else:
      raise PickleError(f'its pickle adds members to a {type(target).__name__}')

  def global_(self, module: str, name: str) -> Inert:
    module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
    if len(module) + len(name) > rebuild.MAX_NAME:
      raise PickleError('its pickle names a class of more than a thousand letters')
    return Inert(f'{module}.{name}')

  def stack_global(self) -> Inert:
    name, module = self.pop(), self.pop()
    if not isinstance(name, str) or not isinstance(module, str):
      raise PickleError(f'its pickle names a class by a {type(name).__name__}')
    return self.global_(module, name)

  def find_persistent(self, pid: Any) -> Any:
    if self.persistent is None:
      raise PickleError('its pickle refers to data outside itself where there is none')
    return self.named(self.persistent, pid)

  def named(self, function: Callable, *args: Any) -> Any:
    """Calls a function and names the tensor in its errors."""
    try:
      return function(*args)
    except _WRONG as error:
      raise PickleError(f'tensor {self.where()}: {str(error)[:300]}') from error


def _refuse_tensor(*_: Any) -> Any:
  raise PickleError('its pickle has a tensor where there is none')


def _int_line(text: str) -> int | bool:
  return {'00': False, '01': True}[text] if text in ('00', '01') else int(text)


def _bytes_text(raw: bytes) -> str:
  """Decodes a string of Python 2, which may as well be raw data: reversible by latin-1."""
  try:
    return raw.decode()
  except UnicodeDecodeError:
    return raw.decode('latin-1')


def _quoted(text: str) -> str:
  if len(text) < 2 or text[0] != text[-1] or text[0] not in '"\'':
    raise PickleError('its pickle has a string without quotes')
  return _bytes_text(codecs.escape_decode(text[1:-1].encode('latin-1'))[0])


def _long(machine: _Machine, count: int) -> int:
  if count > 1024:
    raise PickleError(f'its pickle has an integer of {count} bytes')
  return int.from_bytes(machine.take(count), 'little', signed=True)


_Step = Callable[[_Machine], Any]


def _pushes(make: _Step) -> _Step:
  return lambda m: m.push(make(m))


def _put(m: _Machine, index: int) -> None:
  m.memo[index] = m.stack[-1]


def _obj(m: _Machine) -> Any:
  function, *args = m.pop_mark()
  return m.call(function, tuple(args))


def _reduce(m: _Machine) -> Any:
  args, function = m.pop(), m.pop()
  return m.call(function, args)


def _newobj_ex(m: _Machine) -> Any:
  keywords, args, function = m.pop(), m.pop(), m.pop()
  return m.call(function, (*args, keywords) if keywords else args)


def _tuple_of(count: int) -> _Step:
  return lambda m: m.push(tuple([m.pop() for _ in range(count)][::-1]))


def _dict_of_mark(m: _Machine) -> None:
  flat = m.pop_mark()
  m.push({})
  m.add_pairs(flat)


def _pair(m: _Machine) -> None:
  value, key = m.pop(), m.pop()
  m.add_pairs([key, value])


def _one(m: _Machine) -> None:
  value = m.pop()
  m.extend([value])


def _mark(m: _Machine) -> None:
  m.below.append(m.stack)
  m.stack = []


_STEPS: dict[bytes, _Step] = {
  pickle.PROTO: lambda m: m.take(1),
  pickle.FRAME: lambda m: m.take(8),
  pickle.MARK: _mark,
  pickle.POP: lambda m: m.pop() if m.stack else m.pop_mark(),
  pickle.POP_MARK: lambda m: m.pop_mark(),
  pickle.DUP: lambda m: m.push(m.stack[-1]),
  pickle.NONE: lambda m: m.push(None),
  pickle.NEWTRUE: lambda m: m.push(True),
  pickle.NEWFALSE: lambda m: m.push(False),
  pickle.EMPTY_TUPLE: lambda m: m.push(()),
  pickle.EMPTY_LIST: lambda m: m.push([]),
  pickle.EMPTY_DICT: lambda m: m.push({}),
  pickle.EMPTY_SET: lambda m: m.push(set()),
  pickle.INT: _pushes(lambda m: _int_line(m.line())),
  pickle.LONG: _pushes(lambda m: int(m.line().removesuffix('L'))),
  pickle.FLOAT: _pushes(lambda m: float(m.line())),
  pickle.BININT: _pushes(lambda m: m.number('i')),
  pickle.BININT1: _pushes(lambda m: m.number('B')),
  pickle.BININT2: _pushes(lambda m: m.number('H')),
  pickle.LONG1: _pushes(lambda m: _long(m, m.number('B'))),
  pickle.LONG4: _pushes(lambda m: _long(m, m.number('i'))),
  pickle.BINFLOAT: _pushes(lambda m: struct.unpack('>d', m.take(8))[0]),
  pickle.STRING: _pushes(lambda m: _quoted(m.line())),
  pickle.BINSTRING: _pushes(lambda m: _bytes_text(m.take(m.number('i')))),
  pickle.SHORT_BINSTRING: _pushes(lambda m: _bytes_text(m.take(m.number('B')))),
  pickle.UNICODE: _pushes(lambda m: m.line().encode('latin-1').decode('raw-unicode-escape')),
  pickle.BINUNICODE: _pushes(lambda m: m.take(m.number('I')).decode()),
  pickle.SHORT_BINUNICODE: _pushes(lambda m: m.take(m.number('B')).decode()),
  pickle.BINUNICODE8: _pushes(lambda m: m.take(m.number('Q')).decode()),
  pickle.BINBYTES: _pushes(lambda m: m.take(m.number('I'))),
  pickle.SHORT_BINBYTES: _pushes(lambda m: m.take(m.number('B'))),
  pickle.BINBYTES8: _pushes(lambda m: m.take(m.number('Q'))),
  pickle.BYTEARRAY8: _pushes(lambda m: bytearray(m.take(m.number('Q')))),
  pickle.GET: _pushes(lambda m: m.memo[int(m.line())]),
  pickle.BINGET: _pushes(lambda m: m.memo[m.number('B')]),
  pickle.LONG_BINGET: _pushes(lambda m: m.memo[m.number('I')]),
  pickle.PUT: lambda m: _put(m, int(m.line())),
  pickle.BINPUT: lambda m: _put(m, m.number('B')),
  pickle.LONG_BINPUT: lambda m: _put(m, m.number('I')),
  pickle.MEMOIZE: lambda m: _put(m, len(m.memo)),
  pickle.TUPLE: _pushes(lambda m: tuple(m.pop_mark())),
  pickle.TUPLE1: _tuple_of(1),
  pickle.TUPLE2: _tuple_of(2),
  pickle.TUPLE3: _tuple_of(3),
  pickle.LIST: _pushes(lambda m: m.pop_mark()),
  pickle.DICT: _dict_of_mark,
  pickle.FROZENSET: _pushes(lambda m: frozenset(map(rebuild.as_key, m.pop_mark()))),
  pickle.APPEND: _one,
  pickle.APPENDS: lambda m: m.extend(m.pop_mark()),
  pickle.SETITEM: _pair,
  pickle.SETITEMS: lambda m: m.add_pairs(m.pop_mark()),
  pickle.ADDITEMS: lambda m: m.add_members(m.pop_mark()),
  pickle.GLOBAL: _pushes(lambda m: m.global_(m.line(), m.line())),
  pickle.STACK_GLOBAL: _pushes(lambda m: m.stack_global()),
  pickle.INST: _pushes(lambda m: m.call(m.global_(m.line(), m.line()), tuple(m.pop_mark()))),
  pickle.OBJ: _pushes(_obj),
  pickle.NEWOBJ: _pushes(_reduce),
  pickle.NEWOBJ_EX: _pushes(_newobj_ex),
  pickle.REDUCE: _pushes(_reduce),
  pickle.BUILD: lambda m: m.build(),
  pickle.PERSID: _pushes(lambda m: m.find_persistent(m.line())),
  pickle.BINPERSID: _pushes(lambda m: m.find_persistent(m.pop())),
}
