"""Reader of `torch.save` and `torch.jit.save` files without PyTorch: zip and legacy."""

import math
import mmap
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xclip_jax.weights.files import tensors, unpickle

ArchiveError = tensors.ArchiveError

_OF_STORAGE = {
  f'{module}.{storage}Storage': dtype for storage, dtype, _ in tensors.TYPES if storage
  for module in ('torch', 'torch.cuda')
} | {'torch.storage.UntypedStorage': 'uint8', 'torch.UntypedStorage': 'uint8'}
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950a86a20f9469cfc6c, 1001
_MAX_UNPACKED = 64 << 30


# Tensors in pickles.
class _Storage:
  """Holds the bytes that tensors share, and their typed arrays, made once."""

  def __init__(self, raw: np.ndarray, dtype: str, order: str):
    self.raw, self.dtype, self.order = raw, dtype, order
    self.arrays: dict[str, np.ndarray] = {}

  def typed(self, dtype: str) -> np.ndarray:
    if dtype not in self.arrays:
      self.arrays[dtype] = tensors.typed(self.raw, dtype, self.order)
    return self.arrays[dtype]


class _Reference(NamedTuple):
  """Describes a storage as a pickle refers to it; `view` is (name, first element, elements)."""
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
  if not tensors.is_count(numel) or not isinstance(key, str | int):
    raise ArchiveError(f'lies in storage {key!r:.80} of {numel!r:.80} elements')
  view = view[0] if view else None
  if view is not None and not (tensors.is_count(*view[1:]) and view[1] + view[2] <= numel):
    raise ArchiveError(f'lies outside its storage {key!r:.80}')
  return _Reference(str(key), dtype, numel, view)


def _storages(find: Callable[[str], np.ndarray], order: str = '<') -> Callable[[Any], Any]:
  """Builds the loader of persistent ids, which finds, checks and converts each storage once."""
  raws, storages = {}, {}

  def load(pid: Any) -> Any:
    if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == 'module':
      return pid[1]  # a class with its source code, which is ignored
    reference = _parse_reference(pid)
    if reference not in storages:
      key, dtype, numel, view = reference
      if key not in raws:
        raws[key] = find(key)
      raw, itemsize = raws[key], tensors.RAW[dtype].itemsize
      if len(raw) != numel * itemsize:
        raise ArchiveError(f'its storage {key!r:.80} has {len(raw)} bytes of {numel} x {itemsize}')
      if view is not None:
        raw = raw[view[1] * itemsize:(view[1] + view[2]) * itemsize]
      storages[reference] = _Storage(raw, dtype, order)
    return storages[reference]

  return load


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> np.ndarray:
  """Returns a view of a storage as a tensor, after checking every value from the file."""
  if not isinstance(storage, _Storage):
    raise ArchiveError('has no storage')
  dtype = storage.dtype if dtype is None else dtype.name.removeprefix('torch.')
  if dtype not in tensors.RAW:
    raise ArchiveError(f'has dtype {dtype[:80]}, which is not read; convert it and save again')
  values = storage.typed(dtype)
  if not isinstance(size, tuple | list) or not isinstance(stride, tuple | list):
    raise ArchiveError('has no shape')
  if len(size) != len(stride) or len(size) > 32 or not tensors.is_count(offset, *size, *stride):
    raise ArchiveError(f'has offset {offset!r:.40}, shape {size!r:.80}, strides {stride!r:.80}')
  count = math.prod(size)
  if not count:
    return tensors.typed(np.empty(0, np.uint8), dtype).reshape(size)
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if last >= len(values):
    raise ArchiveError(f'of shape {size!r:.80} reaches element {last} of {len(values)}')
  if count > max(1_000_000, 64 * len(values)):
    raise ArchiveError(f'of shape {size!r:.80} repeats {len(values)} elements {count} times')
  steps = [step * values.itemsize if n > 1 else values.itemsize
           for n, step in zip(size, stride, strict=True)]
  return np.ndarray(size, values.dtype, values, offset * values.itemsize, steps)


def read_legacy(data: mmap.mmap) -> Any:
  """Reads the format of `torch.save` before 1.6: pickles one after another, then the storages."""
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
  buffer, storages = np.frombuffer(data, np.uint8), {}
  for key in map(str, keys):
    numel, size = struct.unpack_from('<q', data, at)[0], wanted[key].numel
    end = at + 8 + size * tensors.RAW[wanted[key].dtype].itemsize
    if numel != size or end > len(buffer):
      raise ArchiveError(f'ends inside storage {key!r:.80}, or its sizes disagree ({numel}, '
                         f'{size}); download it again')
    storages[key], at = buffer[at + 8:end], end
  return unpickle.load(data, start, _storages(storages.__getitem__), _tensor)[0]


# Zip files.
class _Member(NamedTuple):
  """Holds the begin and end of a zip member's data in the file."""
  info: zipfile.ZipInfo
  begin: int
  end: int


def _members(path: pathlib.Path, data: mmap.mmap) -> dict[str, _Member]:
  """Lists the members of a zip file by its directory, checked against their own headers."""
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
  """Returns a member's bytes, uint8 [size]; a view of the file if they are not compressed."""
  info, begin, end = member
  if info.compress_type == zipfile.ZIP_STORED:
    # Its checksum is left alone: that would read gigabytes, and torch.save can omit it.
    return np.frombuffer(data, np.uint8)[begin:end]
  stream = zlib.decompressobj(-15)
  raw = stream.decompress(memoryview(data)[begin:end], info.file_size + 1)
  if len(raw) != info.file_size or not stream.eof or zlib.crc32(raw) != info.CRC:
    raise ArchiveError(f'has a damaged member {info.filename!r:.200}; download it again')
  return np.frombuffer(raw, np.uint8)


def read_zip(path: pathlib.Path, data: mmap.mmap) -> tuple[str, Any]:
  """Reads a zip file of torch.save or torch.jit.save; returns its kind and its tree."""
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
  """Returns a description of a zip file that torch.save did not write."""
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
