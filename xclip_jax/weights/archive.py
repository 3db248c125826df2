"""Weight files of PyTorch and safetensors, read and written with numpy alone.

Every kind `torch.save` and `torch.jit.save` ever wrote since PyTorch 0.2 is read without PyTorch,
and no code in a file is run (see `unpickle`). Arrays are read-only views of the mapped file where
its bytes can be used as they are, so reading costs neither time nor memory until they are touched.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from xclip_jax.weights import unpickle

Inert = unpickle.Inert

# Names: torch storage, torch dtype, safetensors, and numpy's. `bfloat16` is widened when read.
_TYPES = (
  ('Float', 'float32', 'F32'), ('Half', 'float16', 'F16'), ('Double', 'float64', 'F64'),
  ('BFloat16', 'bfloat16', 'BF16'), ('Long', 'int64', 'I64'), ('Int', 'int32', 'I32'),
  ('Short', 'int16', 'I16'), ('Char', 'int8', 'I8'), ('Byte', 'uint8', 'U8'),
  ('Bool', 'bool', 'BOOL'), ('ComplexFloat', 'complex64', 'C64'),
  ('ComplexDouble', 'complex128', None), (None, 'uint16', 'U16'), (None, 'uint32', 'U32'),
  (None, 'uint64', 'U64'),
)
_OF_STORAGE = {
  f'{place}.{storage}Storage': dtype for storage, dtype, _ in _TYPES if storage
  for place in ('torch', 'torch.cuda')
} | {'torch.storage.UntypedStorage': 'uint8', 'torch.UntypedStorage': 'uint8'}
_OF_SAFETENSORS = {name: dtype for _, dtype, name in _TYPES if name}
_RAW = {dtype: np.dtype('uint16' if dtype == 'bfloat16' else dtype) for _, dtype, _ in _TYPES}
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950a86a20f9469cfc6c, 1001
_MAX_HEADER = 100_000_000           # safetensors' own bound
_MAX_UNPACKED = 64 << 30
_WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'module')
_COMPRESSED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'(\xb5/\xfd': 'zstd',
               b'7z\xbc\xaf': '7z', b'Rar!': 'rar'}
_CHUNK = 16 << 20


class ArchiveError(ValueError):
  """Name a weight file that cannot be used, and say why and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
  """What a weight file holds.

  `kind` is 'torchscript', 'torch zip', 'torch legacy' or 'safetensors'; `tree` is nested dict /
  list / tuple of arrays, plain values and `Inert`; `files` are all files it came from.
  """
  kind: str
  tree: Any = dataclasses.field(repr=False)
  files: tuple[pathlib.Path, ...]


def read(path: str | os.PathLike) -> Contents:
  """Read a weight file, or all shards that an `*.index.json` lists.

  What the file is shows in its first bytes; its ending is not looked at.

  Returns:
    Its contents. Arrays keep their dtype, but bfloat16 becomes float32; they are read-only.

  Raises:
    ArchiveError: missing, damaged, dangerous or something else.
  """
  path = pathlib.Path(path)
  with _naming(path):
    data = _map(path)
    if _sniff(data) == 'index':
      return _read_index(path, data)
    return _read_file(path, data)


def state_dict(contents: Contents) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Split what was read into parameters by name, and everything else.

  Parameters are the tensors under 'model', 'state_dict', 'model_state_dict' or 'module', else those
  at the top; of a TorchScript file those of the module tree, as 'visual.conv1.weight'. A 'module.'
  that all names begin with (distributed training) is removed.

  Returns:
    name -> array; name -> anything else in the file, such as 'epoch', 'optimizer' or 'config'.

  Raises:
    ArchiveError: there are no tensors in any of these places.
  """
  tree, rest = contents.tree, {}
  if isinstance(tree, unpickle.Module):
    found = {}
    with _naming(contents.files[0]):
      for name, value in _leaves(tree):
        (found if isinstance(value, np.ndarray) else rest)[name] = value
  else:
    if not isinstance(tree, dict):
      raise ArchiveError(f'{contents.files[0]}: holds a {_describe(tree)}, not parameters by name; '
                         'save model.state_dict() instead')
    key = next((key for key in _WRAPPERS if _holds_tensors(tree.get(key))), None)
    source = tree if key is None else tree[key]
    found = {k: v for k, v in source.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
    rest = {k: v for k, v in source.items() if k not in found}
    if key is not None:
      inner = {f'{key}.{k}': v for k, v in rest.items()}
      rest = {k: v for k, v in tree.items() if k != key} | inner
  if not found:
    kinds = ', '.join(f'{k!r:.60} ({_describe(v)})' for k, v in [*tree.items()][:12]) or 'nothing'
    raise ArchiveError(
      f'{contents.files[0]}: has no tensors at the top or under {", ".join(_WRAPPERS)}; it holds '
      f'{kinds}. Save model.state_dict() instead')
  if all(name.startswith('module.') for name in found):
    found = {name.removeprefix('module.'): array for name, array in found.items()}
  return found, rest


def _describe(value: Any) -> str:
  return value.name[:80] if isinstance(value, Inert) else type(value).__name__


def _holds_tensors(value: Any) -> bool:
  return isinstance(value, dict) and any(
    isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())


def _leaves(module: unpickle.Module) -> Iterator[tuple[str, Any]]:
  """Yield the dotted names of a module tree; bounded, as a file can nest a module in itself."""
  pending, count = [('', module, 0)], 0
  while pending:
    prefix, module, depth = pending.pop()
    for name, value in module.items():
      count += 1
      if depth > 64 or count > 1_000_000 or not isinstance(name, str):
        raise ArchiveError('its modules nest without end')
      if isinstance(value, unpickle.Module):
        pending.append((f'{prefix}{name}.', value, depth + 1))
      elif name not in ('training', '_is_full_backward_hook'):  # flags that every module has
        yield prefix + name, value


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
  """Turn whatever goes wrong with a file into an ArchiveError that names it."""
  try:
    yield
  except (ArchiveError, unpickle.PickleError) as error:
    raise ArchiveError(f'{path}: {error}') from error
  except OSError as error:
    raise ArchiveError(f'{path}: cannot be read ({error.strerror or error})') from error
  except (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, MemoryError,
    RecursionError, NotImplementedError, struct.error, zlib.error, zipfile.BadZipFile,
  ) as error:
    reason = f'{type(error).__name__}: {error}'[:300]
    raise ArchiveError(f'{path}: is damaged ({reason}); download it again') from error


def _map(path: pathlib.Path) -> mmap.mmap:
  if path.is_dir():
    raise ArchiveError('is a folder; name the weight file (or the index.json) inside it')
  if not path.exists():
    raise ArchiveError('there is no such file')
  if not path.is_file():
    raise ArchiveError('is not a regular file')
  with path.open('rb') as file:
    if not os.fstat(file.fileno()).st_size:
      raise ArchiveError('is empty; its download has failed, fetch it again')
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _sniff(data: mmap.mmap) -> str:
  """Tell by the first bytes what a file is: 'zip', 'pickle', 'index' or 'safetensors'."""
  head = data[:512]
  text = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
  if head[8:9] == b'{' and head[6:8] == b'\0\0':  # first: the length before it may look like any
    return 'safetensors'
  if head.startswith((b'PK\x03\x04', b'PK\x05\x06')):
    return 'zip'
  if head[:1] == b'\x80' and head[1:2] in b'\x01\x02\x03\x04\x05':
    return 'pickle'
  if head.startswith(b'version https://git-lfs'):
    raise ArchiveError('is a git-lfs pointer, not the weights; run `git lfs pull` or download the '
                       'file itself')
  if text.startswith(b'{'):
    return 'index'
  if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
    raise ArchiveError('is a web page, not the weights (a login or an error page?); download the '
                       'file itself')
  if head[257:262] == b'ustar':
    raise ArchiveError('is a tar file; unpack it if weights are inside. If PyTorch before 0.2 '
                       'wrote it, load and save it with PyTorch 1.x first')
  for magic, tool in _COMPRESSED.items():
    if head.startswith(magic):
      raise ArchiveError(f'is compressed with {tool}; unpack it first')
  raise ArchiveError(f'is not a PyTorch or safetensors file (starts with {head[:16]!r})')


def _read_file(path: pathlib.Path, data: mmap.mmap) -> Contents:
  kind = _sniff(data)
  if kind == 'zip':
    kind, tree = _read_zip(path, data)
  elif kind == 'pickle':
    kind, tree = 'torch legacy', _read_legacy(data)
  elif kind == 'safetensors':
    tree = _read_safetensors(data)
  else:
    raise ArchiveError('is an index, where weights were expected')
  return Contents(kind, tree, (path,))


def _read_index(path: pathlib.Path, data: mmap.mmap) -> Contents:
  """Read every shard of an index and hold it to the index."""
  index = _json(data[:_MAX_HEADER + 1])
  places = index.get('weight_map')
  if not isinstance(places, dict) or not places:
    raise ArchiveError('is JSON without a "weight_map"; name the weights, or the index of shards')
  for shard in places.values():
    if not isinstance(shard, str) or not shard.strip('.') or set(shard) & set('/\\:\0'):
      raise ArchiveError(f'lists the shard {shard!r:.200}, which is not a plain file name')
  kinds, tree, files = set(), {}, [path]
  for shard in sorted(set(places.values())):
    file = path.parent / shard
    with _naming(file):
      contents = _read_file(file, _map(file))
      whole = contents.tree if isinstance(contents.tree, dict) else {}
      found = {name for name, value in whole.items() if isinstance(value, np.ndarray)}
      wanted = {name for name, place in places.items() if place == shard}
      if missing := sorted(wanted - found):
        raise ArchiveError(f'lacks {len(missing)} tensors of the index, first {missing[0]!r:.200}')
      if extra := sorted(found - wanted, key=str):
        raise ArchiveError(f'has {len(extra)} tensors that the index does not place there, first '
                           f'{extra[0]!r:.200} (of {places.get(extra[0]) or "no shard"})')
    kinds.add(contents.kind)
    tree |= whole
    files.append(file)
  if len(kinds) > 1:
    raise ArchiveError(f'lists shards of different kinds: {sorted(kinds)}')
  return Contents(kinds.pop(), tree, tuple(files))


# Tensors in pickles.

class _Storage:
  """Bytes that tensors share, typed and widened once."""

  def __init__(self, raw: np.ndarray, dtype: str, order: str):
    self.raw, self.dtype, self.order = raw, dtype, order
    self.arrays: dict[str, np.ndarray] = {}

  def typed(self, dtype: str) -> np.ndarray:
    if dtype not in self.arrays:
      self.arrays[dtype] = _typed(self.raw, dtype, self.order)
    return self.arrays[dtype]


def _typed(raw: np.ndarray, dtype: str, order: str = '<') -> np.ndarray:
  """View uint8 [bytes] as its elements; bfloat16 becomes float32, without loss."""
  values = raw.view(_RAW[dtype].newbyteorder(order))
  if dtype == 'bool':  # bytes other than 0 and 1 would make invalid numpy bools
    values = raw != 0
  elif dtype == 'bfloat16':
    values = values.astype(np.uint32)
    values <<= 16
    values = values.view(np.float32)
  elif order == '>':
    values = values.astype(_RAW[dtype])
  values.flags.writeable = False
  return values


class _Reference(NamedTuple):
  """A storage as a pickle refers to it; `view` is (name, first element, elements) of it."""
  key: str
  dtype: str
  numel: int
  view: tuple[str, int, int] | None


def _parse_reference(pid: Any) -> _Reference:
  kind, cls, key, _, numel, *view = pid
  dtype = _OF_STORAGE.get(cls.name)
  if kind != 'storage' or dtype is None:
    raise ArchiveError(f'has elements of type {cls.name[:80]}, which is not read; convert it to '
                       'float32 and save again')
  if not _is_count(numel) or not isinstance(key, str | int):
    raise ArchiveError(f'lies in storage {key!r:.80} of {numel!r:.80} elements')
  view = view[0] if view else None
  if view is not None and not (_is_count(*view[1:]) and view[1] + view[2] <= numel):
    raise ArchiveError(f'lies outside its storage {key!r:.80}')
  return _Reference(str(key), dtype, numel, view)


def _is_count(*values: Any) -> bool:
  return all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _storages(find: Callable[[str], np.ndarray], order: str = '<') -> Callable[[Any], Any]:
  """Make the loader of persistent ids: each storage is found, checked and converted once."""
  raws, storages = {}, {}

  def load(pid: Any) -> Any:
    if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == 'module':
      return pid[1]  # a class with its source code, which is ignored
    reference = _parse_reference(pid)
    if reference not in storages:
      key, dtype, numel, view = reference
      if key not in raws:
        raws[key] = find(key)
      raw, itemsize = raws[key], _RAW[dtype].itemsize
      if len(raw) != numel * itemsize:
        raise ArchiveError(f'its storage {key!r:.80} has {len(raw)} bytes of {numel} x {itemsize}')
      if view is not None:
        raw = raw[view[1] * itemsize:(view[1] + view[2]) * itemsize]
      storages[reference] = _Storage(raw, dtype, order)
    return storages[reference]

  return load


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> np.ndarray:
  """View a storage as a tensor; nothing about it is believed."""
  if not isinstance(storage, _Storage):
    raise ArchiveError('has no storage')
  dtype = storage.dtype if dtype is None else dtype.name.removeprefix('torch.')
  if dtype not in _RAW:
    raise ArchiveError(f'has dtype {dtype[:80]}, which is not read; convert it and save again')
  values = storage.typed(dtype)
  if not isinstance(size, tuple | list) or not isinstance(stride, tuple | list):
    raise ArchiveError('has no shape')
  if len(size) != len(stride) or len(size) > 32 or not _is_count(offset, *size, *stride):
    raise ArchiveError(f'has offset {offset!r:.40}, shape {size!r:.80}, strides {stride!r:.80}')
  count = math.prod(size)
  if not count:
    return _typed(np.empty(0, np.uint8), dtype).reshape(size)
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if last >= len(values):
    raise ArchiveError(f'of shape {size!r:.80} reaches element {last} of {len(values)}')
  if count > max(1_000_000, 64 * len(values)):
    raise ArchiveError(f'of shape {size!r:.80} repeats {len(values)} elements {count} times')
  steps = [step * values.itemsize if n > 1 else values.itemsize
           for n, step in zip(size, stride, strict=True)]
  return np.ndarray(size, values.dtype, values, offset * values.itemsize, steps)


def _read_legacy(data: mmap.mmap) -> Any:
  """Read what `torch.save` wrote before 1.6: pickles one after another, then the storages."""
  magic, at = unpickle.load(data)
  if magic != _LEGACY_MAGIC or not isinstance(magic, int):
    raise ArchiveError('is a pickle, but not one of torch.save; save the weights with torch.save '
                       'or as safetensors')
  version, at = unpickle.load(data, at)
  if version != _LEGACY_VERSION:
    raise ArchiveError(f'has version {version!r:.40} of the legacy format; only 1001 is known')
  _, start = unpickle.load(data, at)  # sizes of C types; the data do not depend on them
  # Where the storages begin shows only after the pickle that needs them: it is read twice.
  wanted: dict[str, _Reference] = {}

  def note(pid: Any) -> None:
    if not (isinstance(pid, tuple) and len(pid) == 4 and pid[0] == 'module'):
      reference = _parse_reference(pid)._replace(view=None)
      if wanted.setdefault(reference.key, reference) != reference:
        raise ArchiveError(f'its storage {reference.key!r:.80} is described in two ways')

  _, at = unpickle.load(data, start, note, lambda *_: None)
  keys, at = unpickle.load(data, at)
  if not isinstance(keys, list) or len(keys) != len(wanted) or set(map(str, keys)) != wanted.keys():
    raise ArchiveError('lists other storages than its tensors use')
  buffer, found = np.frombuffer(data, np.uint8), {}
  for key in map(str, keys):
    numel, size = struct.unpack_from('<q', data, at)[0], wanted[key].numel
    end = at + 8 + size * _RAW[wanted[key].dtype].itemsize
    if numel != size or end > len(buffer):
      raise ArchiveError(f'ends inside storage {key!r:.80}, or its sizes disagree ({numel}, '
                         f'{size}); download it again')
    found[key], at = buffer[at + 8:end], end
  return unpickle.load(data, start, _storages(found.__getitem__), _tensor)[0]


# Zip files.

class _Member(NamedTuple):
  """Where the data of a zip member lie in the file."""
  info: zipfile.ZipInfo
  begin: int
  end: int


def _members(path: pathlib.Path, data: mmap.mmap) -> dict[str, _Member]:
  """List a zip file by its directory, and hold the directory to the members' own headers."""
  try:
    with zipfile.ZipFile(path) as archive:
      infos, limit = archive.infolist(), archive.start_dir
  except zipfile.BadZipFile as error:
    raise ArchiveError(f'is a damaged or cut off zip file ({error}); download it again') from error
  members, at = {}, 0
  if sum(info.file_size for info in infos) > _MAX_UNPACKED:
    raise ArchiveError(f'would unpack to more than {_MAX_UNPACKED >> 30} GiB')
  for info in sorted(infos, key=lambda info: info.header_offset):
    name, start = info.filename, info.header_offset
    if name in members:
      raise ArchiveError(f'has two members {name!r:.200}')
    if name.startswith('/') or '\\' in name or '..' in name.split('/'):
      raise ArchiveError(f'has a member with the unsafe name {name!r:.200}')
    if info.flag_bits & 0x41:
      raise ArchiveError(f'is encrypted (member {name!r:.200}); unpack it with its password first')
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise ArchiveError(f'packs {name!r:.200} with method {info.compress_type}; unpack it first')
    if info.file_size > 100_000_000 and info.file_size > 1000 * info.compress_size:
      raise ArchiveError(f'unpacks {name!r:.200} to more than 1000 times its size')
    # Padding differs between the two headers, so where the data begin is read from the local one.
    signature, method, name_size, extra_size = struct.unpack_from('<4s4xH16xHH', data, start)
    begin = start + 30 + name_size + extra_size
    raw_name = info.orig_filename.encode('utf-8' if info.flag_bits & 0x800 else 'cp437')
    if (
      signature != b'PK\x03\x04' or method != info.compress_type or start < at
      or data[start + 30:start + 30 + name_size] != raw_name or begin + info.compress_size > limit
      or (method == zipfile.ZIP_STORED and info.compress_size != info.file_size)
    ):
      raise ArchiveError(f'has a damaged member {name!r:.200}; download it again')
    at = begin + info.compress_size
    members[name] = _Member(info, begin, at)
  return members


def _unpack(member: _Member, data: mmap.mmap) -> np.ndarray:
  """Give a member's bytes as uint8 [size]: a view of the file where they are stored."""
  info, begin, end = member
  if info.compress_type == zipfile.ZIP_STORED:
    # Its checksum is left alone: that would read gigabytes, and torch.save can omit it.
    return np.frombuffer(data, np.uint8)[begin:end]
  stream = zlib.decompressobj(-15)
  raw = stream.decompress(memoryview(data)[begin:end], info.file_size + 1)
  if len(raw) != info.file_size or not stream.eof or zlib.crc32(raw) != info.CRC:
    raise ArchiveError(f'has a damaged member {info.filename!r:.200}; download it again')
  return np.frombuffer(raw, np.uint8)


def _read_zip(path: pathlib.Path, data: mmap.mmap) -> tuple[str, Any]:
  members = _members(path, data)
  names = [n for n in members if n.count('/') == 1 and n.endswith('/data.pkl')]
  if len(names) != 1:
    raise ArchiveError(_explain_zip(members, data, len(names)))
  folder = names[0].removesuffix('data.pkl')
  member = members[names[0]]
  if member.info.file_size > unpickle.MAX_BYTES:
    raise ArchiveError(f'has a pickle of more than {unpickle.MAX_BYTES >> 20} MiB')
  order = 'little'
  if f'{folder}byteorder' in members:
    order = _unpack(members[f'{folder}byteorder'], data).tobytes()[:20].decode()
    if order not in ('little', 'big'):
      raise ArchiveError(f'has byte order {order!r}, not little or big')

  def find(key: str) -> np.ndarray:
    if f'{folder}data/{key}' not in members:
      raise ArchiveError(f'its data {key!r:.80} are not in the file; download it again')
    return _unpack(members[f'{folder}data/{key}'], data)

  load = _storages(find, '<' if order == 'little' else '>')
  tree, _ = unpickle.load(_unpack(member, data).tobytes(), 0, load, _tensor)
  script = any(n == f'{folder}constants.pkl' or n.startswith(f'{folder}code/') for n in members)
  return 'torchscript' if script else 'torch zip', tree


def _explain_zip(members: dict[str, _Member], data: mmap.mmap, count: int) -> str:
  """Say what a zip file is that is not a torch.save file."""
  if count:
    return f'has {count} folders with a data.pkl; torch.save writes one'
  files = {name: m for name, m in members.items() if not name.endswith('/')}
  if any(name.endswith('/model.json') for name in files):
    return 'is TorchScript of PyTorch before 1.4; load and save it with PyTorch 1.4 to 1.13 first'
  if files and all(name.endswith('.npy') for name in files):
    return 'is a numpy .npz file, not a PyTorch or safetensors file'
  for name, member in files.items():
    if name.endswith(('.pt', '.pth', '.bin', '.zip', '.safetensors', '.tar')):
      return f'is a zip around {name!r:.200} ({member.info.file_size} bytes); unpack it first'
  shown = ', '.join(repr(name)[:80] for name in [*files][:4]) or 'nothing'
  return f'is a zip file, but not of torch.save: it holds {shown}, and no <folder>/data.pkl'


# Safetensors.

def _json(raw: bytes) -> dict[str, Any]:
  """Parse a JSON object; a key that comes twice is an error."""
  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != len(result := dict(pairs)):
      raise ArchiveError('has JSON with a key twice')
    return result

  if len(raw) > _MAX_HEADER:
    raise ArchiveError(f'has more than {_MAX_HEADER // 10**6} MB of JSON')
  parsed = json.loads(raw.decode(), object_pairs_hook=unique)
  if not isinstance(parsed, dict):
    raise ArchiveError('has JSON that is not an object')
  return parsed


def _read_safetensors(data: mmap.mmap) -> dict[str, Any]:
  size = int.from_bytes(data[:8], 'little')
  if size > _MAX_HEADER or 8 + size > len(data):
    raise ArchiveError(f'has a safetensors header of {size} bytes in a file of {len(data)}; '
                       'download it again')
  header = _json(data[8:8 + size])
  buffer = np.frombuffer(data, np.uint8)[8 + size:]
  tree: dict[str, Any] = {}
  metadata = header.pop('__metadata__', None)
  if metadata is not None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
      raise ArchiveError('has metadata other than text')
    tree['__metadata__'] = metadata
  spans = []
  for name, entry in header.items():
    with _naming_tensor(name):
      dtype, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
      if dtype not in _OF_SAFETENSORS:
        raise ArchiveError(f'has dtype {dtype!r:.40}, which is not read; convert it to F32')
      if not isinstance(shape, list) or len(shape) > 32 or not _is_count(begin, end, *shape):
        raise ArchiveError(f'has shape {shape!r:.80} at {begin!r:.40} to {end!r:.40}')
      dtype = _OF_SAFETENSORS[dtype]
      want = math.prod(shape) * _RAW[dtype].itemsize
      if end - begin != want or end > len(buffer):
        raise ArchiveError(f'of shape {shape!r:.80} needs {want} bytes, but has {begin} to {end} '
                           f'of {len(buffer)}; download it again')
      tree[name] = _typed(buffer[begin:end], dtype).reshape(shape)
      spans.append((begin, end))
  at = 0
  for begin, end in sorted(spans):
    if begin != at:
      raise ArchiveError(f'has tensors that overlap or leave a gap at byte {min(at, begin)}')
    at = end
  if at != len(buffer):
    raise ArchiveError(f'has {len(buffer) - at} bytes after its last tensor')
  return tree


@contextlib.contextmanager
def _naming_tensor(name: str) -> Iterator[None]:
  try:
    yield
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    raise ArchiveError(f'tensor {name!r:.200}: {error}') from error


# Writers.

def write_torch(
  path: str | os.PathLike, tensors: Mapping[str, np.ndarray], wrap: str | None = None
) -> None:
  """Write a file that `torch.load(path, weights_only=True)` reads as name -> tensor.

  Args:
    path: replaced at once when the whole file is written.
    tensors: name -> array, of any dtype that PyTorch has.
    wrap: gives {wrap: name -> tensor} instead.
  """
  path = pathlib.Path(path)
  storage_of = {dtype: storage for storage, dtype, _ in _TYPES if storage}
  body = b'ccollections\nOrderedDict\n)R('
  for key, (name, array) in enumerate(tensors.items()):
    if array.dtype.name not in storage_of:
      raise ArchiveError(f'{path}: PyTorch has no storage for {name!r} of dtype {array.dtype}')
    steps = [math.prod(array.shape[axis + 1:]) for axis in range(array.ndim)]
    body += b''.join((
      _text(name), b'ctorch._utils\n_rebuild_tensor_v2\n((', _text('storage'),
      f'ctorch\n{storage_of[array.dtype.name]}Storage\n'.encode(), _text(str(key)), _text('cpu'),
      _number(array.size), b'tQK\0(', *map(_number, array.shape), b't(', *map(_number, steps),
      b't\x89ccollections\nOrderedDict\n)RtR'))
  body += b'u'
  if wrap is not None:
    body = b'}' + _text(wrap) + body + b's'
  with _replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
    _add(archive, file, 'data.pkl', [b'\x80\x02', body, b'.'])
    _add(archive, file, 'byteorder', [b'little'])
    for key, array in enumerate(tensors.values()):
      _add(archive, file, f'data/{key}', _chunks(array), array.nbytes)
    _add(archive, file, 'version', [b'3\n'])


def write_safetensors(
  path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
  """Write a safetensors file; `path` is replaced at once when the whole file is written."""
  path = pathlib.Path(path)
  type_of = {dtype: name for _, dtype, name in _TYPES if name}
  header: dict[str, Any] = {} if metadata is None else {'__metadata__': metadata}
  order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # keeps alignment
  at = 0
  for name in order:
    array = tensors[name]
    if array.dtype.name not in type_of or name == '__metadata__':
      raise ArchiveError(f'{path}: safetensors cannot hold {name!r} of dtype {array.dtype}')
    header[name] = {'dtype': type_of[array.dtype.name], 'shape': list(array.shape),
                    'data_offsets': [at, at + array.nbytes]}
    at += array.nbytes
  raw = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  raw += b' ' * (-len(raw) % 8)
  with _replacing(path) as file:
    file.write(struct.pack('<Q', len(raw)) + raw)
    for name in order:
      for chunk in _chunks(tensors[name]):
        file.write(chunk)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Open a file that takes the place of `path` only if all goes well."""
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    with partial.open('wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
  """Cut an array's bytes, little-endian and row by row, into pieces."""
  if array.dtype.byteorder == '>':
    array = array.astype(array.dtype.newbyteorder('<'))
  flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  for at in range(0, flat.size, _CHUNK):
    yield flat[at:at + _CHUNK].data


def _add(
  archive: zipfile.ZipFile, file: BinaryIO, name: str, pieces: Any, size: int = 0
) -> None:
  """Add an uncompressed member whose data begin at a multiple of 64."""
  info, large = zipfile.ZipInfo(f'archive/{name}'), size > 1 << 30
  begin = file.tell() + 30 + len(info.filename) + 4 + (20 if large else 0)
  padding = -begin % 64
  info.extra = struct.pack('<2sH', b'FB', padding) + b'Z' * padding   # as torch.save pads
  with archive.open(info, 'w', force_zip64=large) as member:
    for piece in pieces:
      member.write(piece)


def _text(value: str) -> bytes:
  raw = value.encode()
  return pickle.BINUNICODE + struct.pack('<I', len(raw)) + raw


def _number(value: int) -> bytes:
  if value < 1 << 31:
    return pickle.BININT + struct.pack('<i', value)
  return pickle.LONG1 + b'\x08' + struct.pack('<q', value)
