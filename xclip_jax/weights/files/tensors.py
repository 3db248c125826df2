"""Dtypes, arrays and errors that all formats of weight files share."""

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


def typed(raw: np.ndarray, dtype: str, order: Any = '<') -> np.ndarray:
  """Returns uint8 [bytes] as a view of its elements; bfloat16 becomes float32, without loss."""
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
