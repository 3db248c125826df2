"""Dtypes, arrays, bounds and errors that all formats of weight files share."""

import concurrent.futures
import reprlib
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from xclip_jax.errors import UserError

# Names: torch storage, torch dtype, safetensors, and numpy's. `bfloat16` is widened when read.
TYPES = (
  ('Float', 'float32', 'F32'), ('Half', 'float16', 'F16'), ('Double', 'float64', 'F64'),
  ('BFloat16', 'bfloat16', 'BF16'), ('Long', 'int64', 'I64'), ('Int', 'int32', 'I32'),
  ('Short', 'int16', 'I16'), ('Char', 'int8', 'I8'), ('Byte', 'uint8', 'U8'),
  ('Bool', 'bool', 'BOOL'), ('ComplexFloat', 'complex64', 'C64'),
  ('ComplexDouble', 'complex128', None), (None, 'uint16', 'U16'), (None, 'uint32', 'U32'),
  (None, 'uint64', 'U64'),
)
RAW = {dtype: np.dtype('uint16' if dtype == 'bfloat16' else dtype) for _, dtype, _ in TYPES}


class ArchiveError(UserError):
  """Raised for a weight file that cannot be used; names it and says what to do."""


class Budget:
  """Bounds the memory that a file may make a reader take, relative to the size of the file.

  Real files stay far below the bounds: bfloat16 doubles when it is widened, compression of weights
  saves a few tenths, and tied weights are listed twice or thrice.
  """

  _FREE, _FACTOR, _MOST = 16 << 20, 16, 64 << 30      # bytes, times the size of the file, bytes

  def __init__(self, file_size: int):
    self.limit = min(self._FREE + self._FACTOR * file_size, self._MOST)
    self._allocated = self._viewed = 0

  def allocate(self, count: int) -> None:
    """Counts bytes that are about to be allocated; ArchiveError if the file may not have them."""
    self._allocated += count
    self._check(self._allocated, 'unpack to')

  def view(self, count: int) -> None:
    """Counts the elements of a tensor, of which each may become a float32."""
    self._viewed += 4 * count
    self._check(self._viewed, 'repeat its data to')

  def _check(self, count: int, what: str) -> None:
    if count > self.limit:
      raise ArchiveError(
        f'would {what} more than {self.limit >> 20:,} MiB, which no file of its size with weights '
        'does; it is damaged, or made to fill the memory')


class Checksums:
  """Compares arrays with the checksums of their file; each piece of the file once."""

  _THREADS = 4                 # computing a checksum releases the interpreter lock

  def __init__(self):
    self._piece_of: dict[int, tuple[np.ndarray, str, Any, int]] = {}

  def __bool__(self) -> bool:
    """Tells whether the file has checksums."""
    return bool(self._piece_of)

  def add(self, array: np.ndarray, name: str, raw: np.ndarray, checksum: int) -> None:
    """Records that an array lies in the bytes `raw` of the file, which have a name there."""
    self._piece_of[id(array)] = array, name, raw, checksum     # kept: its id must stay its own

  def check(self, arrays: Iterable[np.ndarray]) -> None:
    """Reads the bytes that arrays lie in; ArchiveError if they are not those that were written."""
    pieces = {}
    for array in arrays:
      if id(array) in self._piece_of:
        _, name, raw, checksum = self._piece_of[id(array)]
        pieces[name] = raw, checksum
    with concurrent.futures.ThreadPoolExecutor(self._THREADS) as pool:
      found = pool.map(lambda piece: zlib.crc32(piece[0]), pieces.values())
      for (name, (_, checksum)), value in zip(pieces.items(), found, strict=True):
        if value != checksum:
          raise damaged(name)


def damaged(name: str) -> ArchiveError:
  """Returns the error that bytes of a file are not those of their checksum."""
  return ArchiveError(f'has damaged data {name!r:.200}: they are not those that their checksum was '
                      'made of; download the file again')


def typed(
  raw: np.ndarray, dtype: str, order: Any = '<', budget: Budget | None = None
) -> np.ndarray:
  """Returns uint8 [bytes] as a view of its elements; bfloat16 becomes float32, without loss.

  Args:
    raw: the bytes.
    dtype: a key of RAW.
    order: byte order, '<' or '>'.
    budget: counts the bytes of a copy before it is made.
  """
  if budget and (dtype in ('bool', 'bfloat16') or order == '>'):
    budget.allocate(2 * len(raw))
  values = raw.view(RAW[dtype].newbyteorder(order))
  if dtype == 'bool':  # bytes other than 0 and 1 would make invalid numpy bools
    values = raw != 0
  elif dtype == 'bfloat16':
    values = values.astype(np.uint32)
    values <<= 16
    values = values.view(np.float32)
  elif order == '>':
    values = values.astype(RAW[dtype])
  values.flags.writeable = False
  return values


def is_count(*values: Any) -> bool:
  """Tells whether all values are integers that can count bytes or elements."""
  return all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def shown(value: Any) -> str:
  """Returns a value of a file as a short text, whatever it is and however deep it nests."""
  shortener = reprlib.Repr()
  shortener.maxlevel, shortener.maxtuple, shortener.maxlist = 2, 8, 8
  shortener.maxstring = shortener.maxother = shortener.maxlong = 80
  return shortener.repr(value)[:200]
