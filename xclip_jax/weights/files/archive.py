"""Reader of PyTorch and safetensors files that needs numpy alone.

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
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from xclip_jax.weights.files import archive_writers, tensors, torch_archive, unpickle

ArchiveError = tensors.ArchiveError
Inert = unpickle.Inert
write_torch = archive_writers.write_torch
write_safetensors = archive_writers.write_safetensors
CHECKSUMS = archive_writers.CHECKSUMS

_OF_SAFETENSORS = {name: dtype for _, dtype, name in tensors.TYPES if name}
_MAX_HEADER = 32 << 20    # of real files below 1 MB; parsed JSON takes thirty times its size
_WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'module')
_COMPRESSED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'(\xb5/\xfd': 'zstd',
               b'7z\xbc\xaf': '7z', b'Rar!': 'rar'}


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
  """Holds the content of a weight file.

  Fields:
    kind: 'torchscript', 'torch zip', 'torch legacy' or 'safetensors'.
    tree: nested dict / list / tuple of arrays, plain values and `Inert`.
    files: all files that were read.
    checksums: of the arrays of each file that has any.
  """
  kind: str
  tree: Any = dataclasses.field(repr=False)
  files: tuple[pathlib.Path, ...]
  checksums: tuple[tuple[pathlib.Path, tensors.Checksums], ...] = dataclasses.field(
    default=(), repr=False)

  def check(self, arrays: Collection[np.ndarray]) -> None:
    """Compares the bytes of arrays of the tree with the checksums of their files, where there are.

    Raises:
      ArchiveError: names a file whose bytes are not those that were written.
    """
    for path, checksums in self.checksums:
      with naming(path):
        checksums.check(arrays)


def read(path: str | os.PathLike) -> Contents:
  """Reads a weight file, or all shards that an `*.index.json` lists.

  The first bytes of the file tell its format; its ending is ignored.

  Returns:
    Its contents. Arrays keep their dtype, but bfloat16 becomes float32; they are read-only.

  Raises:
    ArchiveError: missing, damaged, dangerous or something else.
  """
  path = pathlib.Path(path)
  with naming(path):
    data = _map(path)
    if _sniff(data) == 'index':
      return _read_index(path, data)
    return _read_file(path, data)


def state_dict(contents: Contents) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Splits the content of a file into parameters by name and everything else.

  Parameters are the tensors under 'model', 'state_dict', 'model_state_dict' or 'module', else those
  at the top; of a TorchScript file those of the module tree, as 'visual.conv1.weight'. A 'module.'
  that all names begin with (distributed training) is removed.

  Returns:
    name -> array; name -> anything else in the file, such as 'epoch', 'optimizer' or 'config'.

  Raises:
    ArchiveError: none of these keys holds tensors.
  """
  tree, rest = contents.tree, {}
  if isinstance(tree, unpickle.Module):
    arrays = {}
    with naming(contents.files[0]):
      for name, value in leaves(tree):
        (arrays if isinstance(value, np.ndarray) else rest)[name] = value
  else:
    if not isinstance(tree, dict):
      raise ArchiveError(f'{contents.files[0]}: holds a {_describe(tree)}, not parameters by name; '
                         'save model.state_dict() instead')
    key = next((key for key in _WRAPPERS if _holds_tensors(tree.get(key))), None)
    source = tree if key is None else tree[key]
    arrays = {k: v for k, v in source.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
    rest = {k: v for k, v in source.items() if k not in arrays}
    if key is not None:
      inner = {f'{key}.{k}': v for k, v in rest.items()}
      rest = {k: v for k, v in tree.items() if k != key} | inner
  if not arrays:
    kinds = ', '.join(f'{k!r:.60} ({_describe(v)})' for k, v in [*tree.items()][:12]) or 'nothing'
    raise ArchiveError(
      f'{contents.files[0]}: has no tensors at the top or under {", ".join(_WRAPPERS)}; it holds '
      f'{kinds}. Save model.state_dict() instead')
  if all(name.startswith('module.') for name in arrays):
    arrays = {name.removeprefix('module.'): array for name, array in arrays.items()}
  return arrays, rest


def _describe(value: Any) -> str:
  return value.name[:80] if isinstance(value, Inert) else type(value).__name__


def _holds_tensors(value: Any) -> bool:
  return isinstance(value, dict) and any(
    isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())


def leaves(module: unpickle.Module) -> Iterator[tuple[str, Any]]:
  """Yields the dotted names of a module tree; bounded, as a file can nest a module in itself."""
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
def naming(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever goes wrong with a file into an ArchiveError that names it."""
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
  """Returns the format of a file by its first bytes: 'zip', 'pickle', 'index' or 'safetensors'."""
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
  kind, checksums = _sniff(data), None
  if kind == 'zip':
    kind, tree, checksums = torch_archive.read_zip(path, data)
  elif kind == 'pickle':
    kind, tree = 'torch legacy', torch_archive.read_legacy(data)
  elif kind == 'safetensors':
    tree, checksums = _read_safetensors(data)
  else:
    raise ArchiveError('is an index, where weights were expected')
  return Contents(kind, tree, (path,), ((path, checksums),) if checksums else ())


def _read_index(path: pathlib.Path, data: mmap.mmap) -> Contents:
  """Reads every shard of an index and compares it with the index."""
  index = _json(data[:_MAX_HEADER + 1])
  places = index.get('weight_map')
  if not isinstance(places, dict) or not places:
    raise ArchiveError('is JSON without a "weight_map"; name the weights, or the index of shards')
  for shard in places.values():
    if not isinstance(shard, str) or not shard.strip('.') or set(shard) & set('/\\:\0'):
      raise ArchiveError(f'lists the shard {shard!r:.200}, which is not a plain file name')
  kinds, tree, files, checksums = set(), {}, [path], ()
  for shard in sorted(set(places.values())):
    file = path.parent / shard
    with naming(file):
      contents = _read_file(file, _map(file))
      whole = contents.tree if isinstance(contents.tree, dict) else {}
      held = {name for name, value in whole.items() if isinstance(value, np.ndarray)}
      listed = {name for name, file_name in places.items() if file_name == shard}
      if missing := sorted(listed - held):
        raise ArchiveError(f'lacks {len(missing)} tensors of the index, first {missing[0]!r:.200}')
      if extra := sorted(held - listed, key=str):
        raise ArchiveError(f'has {len(extra)} tensors that the index does not place there, first '
                           f'{extra[0]!r:.200} (of {places.get(extra[0]) or "no shard"})')
    kinds.add(contents.kind)
    tree |= whole
    files.append(file)
    checksums += contents.checksums
  if len(kinds) > 1:
    raise ArchiveError(f'lists shards of different kinds: {sorted(kinds)}')
  return Contents(kinds.pop(), tree, tuple(files), checksums)


# Safetensors.
def _json(raw: bytes) -> dict[str, Any]:
  """Parses a JSON object; a repeated key is an error."""
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


def _read_safetensors(data: mmap.mmap) -> tuple[dict[str, Any], tensors.Checksums]:
  """Reads a safetensors file; only those of `archive_writers` may have checksums."""
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
  spans, checksums = [], tensors.Checksums()
  sums = _json(metadata[CHECKSUMS].encode()) if metadata and CHECKSUMS in metadata else {}
  for name, entry in header.items():
    with _naming_tensor(name):
      dtype, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
      if dtype not in _OF_SAFETENSORS:
        raise ArchiveError(f'has dtype {dtype!r:.40}, which is not read; convert it to F32')
      if not isinstance(shape, list) or len(shape) > 32 or not tensors.is_count(begin, end, *shape):
        raise ArchiveError(f'has shape {shape!r:.80} at {begin!r:.40} to {end!r:.40}')
      dtype = _OF_SAFETENSORS[dtype]
      want = math.prod(shape) * tensors.RAW[dtype].itemsize
      if end - begin != want or end > len(buffer):
        raise ArchiveError(f'of shape {shape!r:.80} needs {want} bytes, but has {begin} to {end} '
                           f'of {len(buffer)}; download it again')
      tree[name] = tensors.typed(buffer[begin:end], dtype).reshape(shape)
      spans.append((begin, end))
      if sums:
        checksums.add(tree[name], name, buffer[begin:end], int(sums[name], 16))
  at = 0
  for begin, end in sorted(spans):
    if begin != at:
      raise ArchiveError(f'has tensors that overlap or leave a gap at byte {min(at, begin)}')
    at = end
  if at != len(buffer):
    raise ArchiveError(f'has {len(buffer) - at} bytes after its last tensor')
  return tree, checksums


@contextlib.contextmanager
def _naming_tensor(name: str) -> Iterator[None]:
  try:
    yield
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    raise ArchiveError(f'tensor {name!r:.200}: {error}') from error
