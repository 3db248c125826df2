"""Writers of PyTorch and safetensors files that need numpy alone."""

import json
import math
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from xclip_jax import files
from xclip_jax.weights.files import tensors as tensors_lib

ArchiveError = tensors_lib.ArchiveError
_CHUNK = 16 << 20
CHECKSUMS = 'crc32'        # key in the metadata of safetensors


def write_torch(
  path: str | os.PathLike, tensors: Mapping[str, np.ndarray], wrap: str | None = None
) -> None:
  """Writes a file that `torch.load(path, weights_only=True)` reads as name -> tensor.

  Args:
    path: replaced at once when the whole file is written.
    tensors: name -> array, of any dtype that PyTorch has.
    wrap: gives {wrap: name -> tensor} instead.
  """
  path = pathlib.Path(path)
  storage_of = {dtype: storage for storage, dtype, _ in tensors_lib.TYPES if storage}
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
  with files.atomic_file(path) as file, zipfile.ZipFile(file, 'w') as archive:
    _add(archive, file, 'data.pkl', [b'\x80\x02', body, b'.'])
    _add(archive, file, 'byteorder', [b'little'])
    for key, array in enumerate(tensors.values()):
      _add(archive, file, f'data/{key}', _chunks(array), array.nbytes)
    _add(archive, file, 'version', [b'3\n'])


def write_safetensors(
  path: str | os.PathLike, tensors: Mapping[str, np.ndarray],
  metadata: dict[str, str] | None = None, checksums: bool = False,
) -> None:
  """Writes a safetensors file; `path` is replaced at once when the whole file is written.

  Args:
    path: of the file.
    tensors: name -> array.
    metadata: texts for the header.
    checksums: also write the CRC-32 of each tensor into the metadata, which the format has no
      other place for; `archive.Contents.check` compares them.
  """
  path = pathlib.Path(path)
  if checksums:
    sums = {name: f'{_crc32(array):08x}' for name, array in tensors.items()}
    metadata = (metadata or {}) | {CHECKSUMS: json.dumps(sums, separators=(',', ':'))}
  type_of = {dtype: name for _, dtype, name in tensors_lib.TYPES if name}
  header: dict[str, Any] = {} if metadata is None else {'__metadata__': metadata}
  # Every array at a multiple of 64 bytes, where the size of those before it allows: JAX then uses
  # the mapped file as it is, and nothing is copied.
  order = sorted(
    tensors, key=lambda name: (-tensors[name].dtype.itemsize, tensors[name].nbytes % 64 != 0, name)
  )
  at = 0
  for name in order:
    array = tensors[name]
    if array.dtype.name not in type_of or name == '__metadata__':
      raise ArchiveError(f'{path}: safetensors cannot hold {name!r} of dtype {array.dtype}')
    header[name] = {'dtype': type_of[array.dtype.name], 'shape': list(array.shape),
                    'data_offsets': [at, at + array.nbytes]}
    at += array.nbytes
  raw = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  raw += b' ' * (-(8 + len(raw)) % 64)
  with files.atomic_file(path) as file:
    file.write(struct.pack('<Q', len(raw)) + raw)
    for name in order:
      for chunk in _chunks(tensors[name]):
        file.write(chunk)


def _crc32(array: np.ndarray) -> int:
  value = 0
  for chunk in _chunks(array):
    value = zlib.crc32(chunk, value)
  return value


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
  """Cuts an array's bytes, little-endian and row by row, into pieces."""
  if array.dtype.byteorder == '>':
    array = array.astype(array.dtype.newbyteorder('<'))
  flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  for at in range(0, flat.size, _CHUNK):
    yield flat[at:at + _CHUNK].data


def _add(
  archive: zipfile.ZipFile, file: BinaryIO, name: str, pieces: Any, size: int = 0
) -> None:
  """Adds an uncompressed member whose data begin at a multiple of 64."""
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
