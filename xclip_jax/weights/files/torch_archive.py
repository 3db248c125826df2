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
shown = tensors.shown

_OF_STORAGE = {
  f'{module}.{storage}Storage': dtype for storage, dtype, _ in tensors.TYPES if storage
  for module in ('torch', 'torch.cuda')
} | {'torch.storage.UntypedStorage': 'uint8', 'torch.UntypedStorage': 'uint8'}
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950a86a20f9469cfc6c, 1001
_MAX_UNPACKED = 64 << 30


# Tensors in pickles.
class _Piece(NamedTuple):
  """Describes bytes of the file; those without a checksum have none, or are compared already."""
  name: str
  raw: np.ndarray
  checksum: int | None


class _Storage:
  """Holds the bytes that tensors share, and their typed arrays, made once."""

  def __init__(self, piece: '_Piece', order: str, budget: tensors.Budget):
    self.piece, self.raw = piece, piece.raw
    self._order, self._budget = order, budget
    self._arrays: dict[str, np.ndarray] = {}

  def typed(self, dtype: str) -> np.ndarray:
    if dtype not in self._arrays:
      self._arrays[dtype] = tensors.typed(self.raw, dtype, self._order, self._budget)
    return self._arrays[dtype]


class _Window(NamedTuple):
  """Refers to the bytes of a storage from `begin` to `end`, of elements of `dtype`."""
  storage: _Storage
  dtype: str
  begin: int
  end: int


class _Reference(NamedTuple):
  """Describes a storage as a pickle refers to it; `view` is (name, first element, elements)."""
  key: str
  dtype: str
  numel: int
  view: tuple[str, int, int] | None


def _parse_reference(pid: Any) -> _Reference:
  if not isinstance(pid, tuple) or len(pid) not in (5, 6):
    raise ArchiveError(f'lies in storage {shown(pid)}')
  kind, cls, key, _, numel, *view = pid
  dtype = _OF_STORAGE.get(cls.name)
  if kind != 'storage' or dtype is None:
    raise ArchiveError(f'has elements of type {cls.name[:80]}, which is not read; convert it to '
                       'float32 and save again')
  if not tensors.is_count(numel) or not isinstance(key, str | int):
    raise ArchiveError(f'lies in storage {shown(key)} of {shown(numel)} elements')
  view = view[0] if view else None
  if view is not None and not (
      isinstance(view, tuple) and len(view) == 3 and tensors.is_count(*view[1:])
      and view[1] + view[2] <= numel):
    raise ArchiveError(f'lies outside its storage {shown(key)}')
  return _Reference(str(key), dtype, numel, view)


class _Tensors:
  """Builds the tensors of a pickle, after checking every value from the file."""

  def __init__(self, find: Callable[[str], _Piece], order: str, budget: tensors.Budget):
    self.checksums = tensors.Checksums()
    self._find, self._order, self._budget = find, order, budget
    self._storages: dict[str, _Storage] = {}

  def find(self, pid: Any) -> Any:
    """Finds and checks the storage of a persistent id; each is read once."""
    if _is_class(pid):
      return pid[1]
    key, dtype, numel, view = _parse_reference(pid)
    if key not in self._storages:
      self._storages[key] = _Storage(self._find(key), self._order, self._budget)
    storage, itemsize = self._storages[key], tensors.RAW[dtype].itemsize
    if len(storage.raw) != numel * itemsize:
      raise ArchiveError(
        f'its storage {shown(key)} has {len(storage.raw)} bytes of {numel} x {itemsize}')
    begin, count = (view[1], view[2]) if view else (0, numel)
    return _Window(storage, dtype, begin * itemsize, (begin + count) * itemsize)

  def build(
    self, window: Any, offset: Any, size: Any, stride: Any, dtype: Any, metadata: Any = None,
  ) -> np.ndarray:
    """Returns a view of a storage as a tensor, or a copy if its sign or conjugate is pending."""
    if not isinstance(window, _Window):
      raise ArchiveError('has no storage')
    dtype = window.dtype if dtype is None else dtype.name.removeprefix('torch.')
    if dtype not in tensors.RAW:
      raise ArchiveError(f'has dtype {dtype[:80]}, which is not read; convert it and save again')
    itemsize = tensors.RAW[dtype].itemsize
    if window.begin % itemsize or window.end % itemsize:
      raise ArchiveError(f'begins or ends inside an element of dtype {dtype}')
    values = window.storage.typed(dtype)[window.begin // itemsize:window.end // itemsize]
    array = self._view(values, dtype, offset, size, stride)
    array = self._resolve(array, metadata)
    name, raw, checksum = window.storage.piece
    if checksum is not None:
      self.checksums.add(array, name, raw, checksum)
    return array

  def _view(
    self, values: np.ndarray, dtype: str, offset: Any, size: Any, stride: Any
  ) -> np.ndarray:
    if not isinstance(size, tuple | list) or not isinstance(stride, tuple | list):
      raise ArchiveError('has no shape')
    if len(size) != len(stride) or len(size) > 32 or not tensors.is_count(offset, *size, *stride):
      raise ArchiveError(
        f'has offset {shown(offset)}, shape {shown(size)}, strides {shown(stride)}')
    count = math.prod(size)
    if not count:
      return tensors.typed(np.empty(0, np.uint8), dtype).reshape(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(values):
      raise ArchiveError(f'of shape {shown(size)} reaches element {last} of {len(values)}')
    if count > max(1_000_000, 64 * len(values)):
      raise ArchiveError(f'of shape {shown(size)} repeats {len(values)} elements {count} times')
    self._budget.view(count)
    steps = [step * values.itemsize if n > 1 else values.itemsize
             for n, step in zip(size, stride, strict=True)]
    return np.ndarray(size, values.dtype, values, offset * values.itemsize, steps)

  def _resolve(self, array: np.ndarray, metadata: Any) -> np.ndarray:
    """Follows the bits that PyTorch sets where a sign or a conjugate is still to be computed."""
    if metadata is None:
      return array
    if not isinstance(metadata, dict) or not metadata.keys() <= {'neg', 'conj'} or not all(
        isinstance(x, bool) for x in metadata.values()):
      raise ArchiveError(f'has metadata {shown(metadata)}, which is not read; save it as '
                         'x.resolve_conj().resolve_neg().clone()')
    for name, function in (('neg', np.negative), ('conj', np.conjugate)):
      if metadata.get(name):
        self._budget.allocate(array.size * array.itemsize)
        array = np.asarray(function(array))      # of one element it returns a scalar
        array.flags.writeable = False
    return array


def _is_class(pid: Any) -> bool:
  """Tells whether a persistent id is a class with its source code, which is ignored."""
  return isinstance(pid, tuple) and len(pid) == 4 and pid[0] == 'module'


def read_legacy(data: mmap.mmap) -> Any:
  """Reads the format of `torch.save` before 1.6: pickles one after another, then the storages."""
  magic, at = unpickle.load(data)
  if magic != _LEGACY_MAGIC or not isinstance(magic, int):
    raise ArchiveError('is a pickle, but not one of torch.save; save the weights with torch.save '
                       'or as safetensors')
  version, at = unpickle.load(data, at)
  if version != _LEGACY_VERSION:
    raise ArchiveError(f'has version {shown(version)} of the legacy format; only 1001 is known')
  _, start = unpickle.load(data, at)  # sizes of C types; the data do not depend on them
  # Where the storages begin shows only after the pickle that needs them: it is read twice.
  wanted: dict[str, _Reference] = {}

  def note(pid: Any) -> None:
    if not _is_class(pid):
      reference = _parse_reference(pid)._replace(view=None)
      if wanted.setdefault(reference.key, reference) != reference:
        raise ArchiveError(f'its storage {shown(reference.key)} is described in two ways')

  _, at = unpickle.load(data, start, note, lambda *_: None)
  keys, at = unpickle.load(data, at)
  if not isinstance(keys, list) or len(keys) != len(wanted) or (
      {str(key) for key in keys if isinstance(key, str | int)} != wanted.keys()):
    raise ArchiveError('lists other storages than its tensors use')
  buffer, storages = np.frombuffer(data, np.uint8), {}
  for key in map(str, keys):
    numel, size = struct.unpack_from('<q', data, at)[0], wanted[key].numel
    end = at + 8 + size * tensors.RAW[wanted[key].dtype].itemsize
    if numel != size or end > len(buffer):
      raise ArchiveError(f'ends inside storage {shown(key)}, or its sizes disagree ({numel}, '
                         f'{size}); download it again')
    storages[key], at = _Piece(key, buffer[at + 8:end], None), end
  builder = _Tensors(storages.__getitem__, '<', tensors.Budget(len(data)))
  return unpickle.load(data, start, builder.find, builder.build)[0]


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


class _Unpacker:
  """Reads the members of a zip file, and compares them with the checksums in its directory."""

  def __init__(self, members: dict[str, _Member], data: mmap.mmap, budget: tensors.Budget):
    self._members, self._data, self._budget = members, data, budget
    # torch.save can leave checksums out: all of them are 0 then.
    self._has_checksums = any(member.info.CRC for member in members.values())

  def read(self, name: str) -> _Piece:
    """Returns a member's bytes, uint8 [size], with the checksum if they are not yet compared."""
    info, begin, end = self._members[name]
    if info.compress_type == zipfile.ZIP_STORED:
      raw = np.frombuffer(self._data, np.uint8)[begin:end]
      return _Piece(info.filename, raw, info.CRC if self._has_checksums else None)
    self._budget.allocate(info.file_size)
    stream = zlib.decompressobj(-15)
    raw = stream.decompress(memoryview(self._data)[begin:end], info.file_size + 1)
    if len(raw) != info.file_size or not stream.eof:
      raise ArchiveError(f'has a damaged member {info.filename!r:.200}; download it again')
    if self._has_checksums and zlib.crc32(raw) != info.CRC:
      raise tensors.damaged(info.filename)
    return _Piece(info.filename, np.frombuffer(raw, np.uint8), None)

  def read_whole(self, name: str) -> bytes:
    """Returns a member's bytes after comparing them with its checksum."""
    piece = self.read(name)
    if piece.checksum is not None and zlib.crc32(piece.raw.data) != piece.checksum:
      raise tensors.damaged(name)
    return piece.raw.tobytes()


def read_zip(path: pathlib.Path, data: mmap.mmap) -> tuple[str, Any, tensors.Checksums]:
  """Reads a zip file of torch.save or torch.jit.save.

  Returns:
    'torchscript' or 'torch zip'; its tree; the checksums of the arrays that lie in the file as
    they are.
  """
  members, budget = _members(path, data), tensors.Budget(len(data))
  names = [n for n in members if n.count('/') == 1 and n.endswith('/data.pkl')]
  if len(names) != 1:
    raise ArchiveError(_explain_zip(members, data, len(names)))
  folder, unpacker = names[0].removesuffix('data.pkl'), _Unpacker(members, data, budget)
  if members[names[0]].info.file_size > unpickle.MAX_BYTES:
    raise ArchiveError(f'has a pickle of more than {unpickle.MAX_BYTES >> 20} MiB')
  order = 'little'
  if f'{folder}byteorder' in members:
    order = unpacker.read_whole(f'{folder}byteorder')[:20].decode()
    if order not in ('little', 'big'):
      raise ArchiveError(f'has byte order {order!r}, not little or big')

  def find(key: str) -> _Piece:
    if f'{folder}data/{key}' not in members:
      raise ArchiveError(f'its data {shown(key)} are not in the file; download it again')
    return unpacker.read(f'{folder}data/{key}')

  builder = _Tensors(find, '<' if order == 'little' else '>', budget)
  tree, _ = unpickle.load(
    unpacker.read_whole(names[0]), 0, builder.find, builder.build, file_size=len(data))
  script = any(n == f'{folder}constants.pkl' or n.startswith(f'{folder}code/') for n in members)
  return 'torchscript' if script else 'torch zip', tree, builder.checksums


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
