"""Lists of videos as text: CSV, the reference's `path id` lines, and lists for PySlowFast."""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from xclip_jax.errors import UserError

Rows = list[tuple[int, dict[str, str]]]          # (line, fields by column)


def read(
  path: str | os.PathLike, content: bytes, required: Sequence[str], header: str
) -> tuple[list[str], Rows]:
  """Reads a .txt, a CSV, or a list for PySlowFast.

  Args:
    path: name of the list; its ending tells the format.
    content: its bytes.
    required: names of columns that the list must have.
    header: these, for messages.

  Returns:
    column names, and (line number, fields by column) of every row.

  Raises:
    UserError: a column is missing, or a row is malformed.
  """
  lines = decode_lines(content, 'surrogateescape')
  comments = 0
  # The blank matters: HMDB51 has videos whose names start with a hash.
  while comments < len(lines) and lines[comments].startswith('# '):
    comments += 1
  if is_reference_list(path):
    rows = _text_rows(path, lines[comments:], comments)
    if not rows:
      raise UserError(f'{path}: is empty; wanted `path label` lines')
    return ['path', 'label'], rows
  reader = csv.reader(lines[comments:], strict=True)
  try:
    columns = [name.strip() for name in next(reader, [])]
    if set(required) <= {'path', 'label'} and not set(required) <= set(columns):
      if len(columns) == 2 and columns[1].isdecimal():
        columns, reader = ['path', 'label'], csv.reader(lines[comments:], strict=True)
      elif _is_blank_separated(lines[comments:]):
        return ['path', 'label'], _text_rows(path, lines[comments:], comments)
      elif columns and columns[0].split() == ['path', 'label'] and (
          _is_blank_separated(lines[comments + 1:])):
        return ['path', 'label'], _text_rows(path, lines[comments + 1:], comments + 1)
    if not set(required) <= set(columns):
      raise UserError(f'{path}, line {comments + 1}: the header must hold {header}, found '
                      f'{",".join(columns)!r}; commas separate columns')
    return columns, _csv_rows(path, reader, columns, comments)
  except csv.Error as error:
    where = f'{path}, line {reader.line_num + comments}'
    raise UserError(f'{where}: not valid CSV ({error})') from error


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
  """Returns rows as CSV that `read` reads; fields may hold line breaks of any kind."""
  text = io.StringIO()
  plain = csv.writer(text, lineterminator='\n')
  # Before Python 3.13, a carriage return is not quoted.
  quoting = csv.writer(text, lineterminator='\n', quoting=csv.QUOTE_ALL)
  for row in rows:
    (quoting if any('\r' in str(field) for field in row) else plain).writerow(row)
  return text.getvalue()


def protect_blanks(path: str) -> str:
  """Returns a relative path for a list, where blanks around a field do not count."""
  return os.path.join('.', path) if path != path.lstrip() else path


def _is_blank_separated(lines: Sequence[str]) -> bool:
  """Returns whether every line is a path, blanks and the id of a class."""
  lines = [line for line in lines if line.strip()]
  return bool(lines) and all(re.fullmatch(r'\s*\S.*\s\d+\s*', line) for line in lines)


def is_reference_list(path: str | os.PathLike) -> bool:
  """Returns whether a list has the reference's format, `path id` lines, by its file name."""
  return os.path.splitext(path)[1] == '.txt'


def _csv_rows(
  path: str | os.PathLike, reader: Any, columns: Sequence[str], skipped: int
) -> Rows:
  rows = []
  for fields in reader:
    if not any(field.strip() for field in fields):
      continue
    line = reader.line_num + skipped
    if len(fields) != len(columns):
      raise UserError(
        f'{path}, line {line}: {len(columns)} fields wanted ({",".join(columns)}), '
        f'found {len(fields)}; quote a field that holds a comma'
      )
    rows.append((line, dict(zip(columns, (field.strip() for field in fields), strict=True))))
  return rows


def _text_rows(
  path: str | os.PathLike, lines: Sequence[str], skipped: int
) -> Rows:
  rows = []
  for line, text in enumerate(lines, start=skipped + 1):
    if not text.strip():
      continue
    fields = text.strip().rsplit(maxsplit=1)
    if len(fields) != 2:
      raise UserError(f'{path}, line {line}: `path label` wanted, found {text.strip()!r}')
    rows.append((line, dict(zip(('path', 'label'), fields, strict=True))))
  return rows


def decode_lines(content: bytes, errors: str = 'strict') -> list[str]:
  """Returns the lines, with their ends, of UTF-8 text with or without a byte order mark."""
  return io.StringIO(content.decode('utf-8-sig', errors), newline='').readlines()
