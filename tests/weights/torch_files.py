"""Make the files PyTorch writes, good and bad, without PyTorch."""

import dataclasses
import io
import json
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

STORAGES = {
  'float32': 'FloatStorage', 'float16': 'HalfStorage', 'float64': 'DoubleStorage',
  'int64': 'LongStorage', 'int32': 'IntStorage', 'int16': 'ShortStorage', 'int8': 'CharStorage',
  'uint8': 'ByteStorage', 'bool': 'BoolStorage', 'complex64': 'ComplexFloatStorage',
  'complex128': 'ComplexDoubleStorage',
}


@dataclasses.dataclass(frozen=True)
class Global:
  module: str
  name: str


@dataclasses.dataclass
class Call:
  """An object as pickles see it: what makes it, and what is then done to it."""
  function: Global
  args: tuple = ()
  items: dict | None = None
  values: list | None = None
  state: Any = None
  new: bool = False


@dataclasses.dataclass
class Storage:
  data: bytes
  cls: Global
  numel: int
  location: str = 'cpu'
  key: str | None = None             # by default numbered in order of use
  view: tuple | None = None          # legacy only
  six: bool = False                  # whether the id ends in a view, as legacy ones do


class Pickler(pickle._Pickler):
  """Write pickles that name classes which are not there."""

  def __init__(self, file: io.BytesIO, protocol: int = 2):
    super().__init__(file, protocol)
    self.storages: dict[str, Storage] = {}
    self.numbers: dict[int, str] = {}

  def persistent_id(self, value):
    if not isinstance(value, Storage):
      return None
    # Not kept in the storage, which may be in other files too, under other keys.
    number = self.numbers.setdefault(id(value), str(len(self.storages)))
    key = number if value.key is None else value.key
    self.storages[key] = value
    view = (value.view,) if value.six else ()
    return ('storage', value.cls, key, value.location, value.numel, *view)

  def save(self, value, save_persistent_id=True):
    if isinstance(value, Global):
      self.write(pickle.GLOBAL + f'{value.module}\n{value.name}\n'.encode())
    elif isinstance(value, Call):
      if id(value) in self.memo:
        return self.write(self.get(self.memo[id(value)][0]))
      self.save(value.function)
      self.save(value.args)
      self.write(pickle.NEWOBJ if value.new else pickle.REDUCE)
      self.memoize(value)
      if value.values is not None:
        self._batch_appends(value.values)
      if value.items is not None:
        self._batch_setitems(value.items.items())
      if value.state is not None:
        self.save(value.state)
        self.write(pickle.BUILD)
    else:
      super().save(value, save_persistent_id)


def dumps(tree: Any, protocol: int = 2) -> tuple[bytes, dict[str, Storage]]:
  file = io.BytesIO()
  pickler = Pickler(file, protocol)
  pickler.dump(tree)
  return file.getvalue(), pickler.storages


def storage(array: np.ndarray, cls: str | None = None, **fields: Any) -> Storage:
  cls = cls or STORAGES[array.dtype.name]
  return Storage(array.tobytes(), Global('torch', cls), array.size, **fields)


def tensor(
  source: np.ndarray | Storage, size: Any = None, stride: Any = None, offset: Any = 0,
  function: str = '_rebuild_tensor_v2',
) -> Call:
  """An array as a contiguous tensor, or any view of a storage."""
  if isinstance(source, np.ndarray):
    size = source.shape if size is None else size
    if stride is None:
      stride = tuple(int(np.prod(size[i + 1:])) for i in range(len(size)))
    source = storage(np.ascontiguousarray(source))
  hooks = Call(Global('collections', 'OrderedDict'))
  args = (source, offset, size, stride, False, hooks)
  return Call(Global('torch._utils', function), args[:4] if function == '_rebuild_tensor' else args)


def parameter(array: np.ndarray) -> Call:
  hooks = Call(Global('collections', 'OrderedDict'))
  return Call(Global('torch._utils', '_rebuild_parameter'), (tensor(array), True, hooks))


def ordered(items: dict) -> Call:
  """A state dict, with the attribute that PyTorch hangs on it."""
  metadata = Call(Global('collections', 'OrderedDict'), items={'': {'version': 1}})
  return Call(Global('collections', 'OrderedDict'), items=items, state={'_metadata': metadata})


def module(name: str, /, **attributes: Any) -> Call:
  """An object of a TorchScript class."""
  cls = Global(f'__torch__.clip.model.___torch_mangle_{len(name)}', name)
  return Call(cls, state={'training': True, **attributes}, new=True)


def write_zip(
  path: pathlib.Path, tree: Any, *, folder: str = 'archive', order: str | None = 'little',
  script: bool = False, compression: int = zipfile.ZIP_STORED, protocol: int = 2,
  pickled: bytes | None = None, members: dict[str, bytes] | None = None,
) -> pathlib.Path:
  """Writes the zip of torch.save (with `script`, of torch.jit.save), with `pickled` if given."""
  data, storages = dumps(tree, protocol)
  files = {'data.pkl': data if pickled is None else pickled}
  if order is not None:
    files['byteorder'] = order.encode()
  files |= {f'data/{key}': value.data for key, value in storages.items()}
  files['version'] = b'3\n'
  if script:
    files |= {'code/__torch__/clip/model.py': b'raise SystemExit("never run")\n',
              'constants.pkl': b'\x80\x02).'}
  files |= members or {}
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for name, content in files.items():
      archive.writestr(f'{folder}/{name}', content)
  return path


def write_legacy(path: pathlib.Path, tree: Any, pickled: bytes | None = None) -> pathlib.Path:
  """Writes the file that torch.save wrote before PyTorch 1.6."""
  data, storages = dumps(tree)
  info = {'protocol_version': 1001, 'little_endian': True,
          'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
  head = [pickle.dumps(x, 2) for x in (0x1950a86a20f9469cfc6c, 1001, info)]
  tail = [pickle.dumps(list(storages), 2)]
  for value in storages.values():
    tail.append(struct.pack('<q', value.numel) + value.data)
  path.write_bytes(b''.join([*head, data if pickled is None else pickled, *tail]))
  return path


def write_safetensors(path: pathlib.Path, header: dict | bytes, data: bytes) -> pathlib.Path:
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(raw)) + raw + data)
  return path


# A tensor of every dtype.

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(4, 6)).astype(np.float32)
PLAIN = {
  'weight': MATRIX,
  'half': RANDOM.normal(size=(3, 2)).astype(np.float16),
  'double': RANDOM.normal(size=5),
  'long': np.array([[-(2**60), 2**60]]),
  'int': np.arange(3, dtype=np.int32), 'short': np.arange(3, dtype=np.int16),
  'char': np.arange(-2, 3, dtype=np.int8), 'byte': np.arange(250, 256, dtype=np.uint8),
  'bool': np.array([True, False, True]),
  'complex': np.array([1 + 2j, -3j], np.complex64),
  'scalar': np.array(224),
  'empty': np.zeros((0, 7), np.float32),
}
TENSORS = {name: tensor(array) for name, array in PLAIN.items()}
