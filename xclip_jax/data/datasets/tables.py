"""Lists of videos in Parquet files, whose columns are those of a CSV."""

import importlib.util
import io
import os
from collections.abc import Sequence
from typing import Any

from xclip_jax.errors import UserError

SUFFIX = '.parquet'


def is_table(path: str | os.PathLike) -> bool:
  """Returns whether a list is a Parquet file, by its name."""
  return os.fspath(path).lower().endswith(SUFFIX)


def read(path: str | os.PathLike, content: bytes) -> tuple[list[str], list[list[str]]]:
  """Reads the columns of texts, numbers, and lists of them.

  Args:
    path: name of the file in messages.
    content: its bytes.

  Returns:
    column names, and the fields of each row as texts. A list of labels becomes texts separated by
    `;`, which ends in `;` if there is one label, and nothing becomes ''.

  Raises:
    UserError: pyarrow is missing, or the file is no Parquet file.
  """
  if importlib.util.find_spec('pyarrow') is None:
    raise UserError(f'{path} needs pyarrow: pip install "xclip-jax[parquet]"; or save the list as '
                    'CSV')
  import pyarrow
  from pyarrow import parquet

  try:
    file = parquet.ParquetFile(io.BytesIO(content))
    schema = file.schema_arrow
    # Other columns, such as the bytes of videos, are not read.
    kept = [n for n in range(len(schema)) if _is_text_or_number(schema.field(n).type)]
    table = file.read(columns=[schema.field(n).name for n in kept])
  except (pyarrow.ArrowException, OSError) as error:
    raise UserError(f'{path}: cannot be read as a Parquet file ({error})') from error
  columns = [table.column(n).to_pylist() for n in range(table.num_columns)]
  rows = [[_text(field) for field in fields] for fields in zip(*columns, strict=True)]
  return [str(name).strip() for name in table.column_names], rows


def _is_text_or_number(kind: Any) -> bool:
  """Returns whether fields of a type of pyarrow can be written as text."""
  from pyarrow import types

  if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
    return _is_text_or_number(kind.value_type)
  return any(test(kind) for test in (
    types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_null))


def write(columns: Sequence[str], rows: Sequence[dict[str, str]], note: str) -> bytes:
  """Returns a Parquet file of texts; its metadata hold a note."""
  import pyarrow
  from pyarrow import parquet

  table = pyarrow.table({
    name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in columns})
  content = io.BytesIO()
  parquet.write_table(table.replace_schema_metadata({'note': note}), content)
  return content.getvalue()


def _text(field: Any) -> str:
  if field is None or field != field:            # nothing, or NaN
    return ''
  if isinstance(field, list):
    parts = [_text(part) for part in field]
    return ';'.join(parts) + ';' * (len(parts) == 1)
  if isinstance(field, float) and field.is_integer():     # as pandas writes ids with gaps
    return str(int(field))
  return str(field).strip()
