"""Class lists and annotation files, read into examples a pipeline can index."""

import csv
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
  """One video: absolute path, class id, and what happens in it ('' if nobody wrote it down)."""

  path: str
  label: int
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class ClassList:
  """Class names by id; `reverse` is the class that each becomes when played backwards."""

  names: tuple[str, ...]
  reverse: tuple[int | None, ...]

  def __len__(self) -> int:
    return len(self.names)


def read_classes(path: str | os.PathLike) -> ClassList:
  """Read `id,name[,reverse]` rows into a list ordered by id.

  Args:
    path: CSV with a header. Ids are 0..K-1 in any order; `reverse` holds a class name or nothing.

  Raises:
    ValueError: no classes, a gap or a repeat in the ids, two classes of one name, a `reverse` that
      is no class.
  """
  rows = {}
  for line, row in _csv_rows(path, required=('id', 'name'), optional=('reverse',)):
    where = f'{path}, line {line}'
    if not row['id'].isdecimal():
      raise ValueError(f'{where}: id must be a whole number from 0, found {row["id"]!r}')
    if not row['name']:
      raise ValueError(f'{where}: class {row["id"]} has no name')
    if int(row['id']) in rows:
      first = rows[int(row['id'])][0]
      raise ValueError(f'{where}: id {row["id"]} is already used in line {first}')
    rows[int(row['id'])] = (line, row['name'], row.get('reverse', ''))
  missing = sorted(set(range(len(rows))) - rows.keys())
  if missing:
    raise ValueError(
      f'{path}: ids must be 0..{len(rows) - 1} without a gap, {_few(missing)} missing'
    )
  ids = {}
  for label, (line, name, _) in sorted(rows.items()):
    if name in ids:
      lines = f'lines {rows[ids[name]][0]} and {line}'
      raise ValueError(f'{path}: class name {name!r} is used twice, in {lines}')
    ids[name] = label
  reverse = []
  for _, (line, name, other) in sorted(rows.items()):
    if other and other not in ids:
      raise ValueError(f'{path}, line {line}: reverse of {name!r} is {other!r}, not a class name')
    reverse.append(ids.get(other))
  return ClassList(tuple(ids), tuple(reverse))


def read_annotations(
  path: str | os.PathLike, root: str | os.PathLike, classes: ClassList
) -> list[Example]:
  """Read which video shows which class.

  Args:
    path: CSV with header `path,label[,caption]` where a label is a class id or a class name, or a
      `.txt` of the reference's `path id` lines (split at the last blank: paths may hold blanks).
    root: folder that relative paths start from. Whether the videos exist is not checked.
    classes: what labels may be.

  Raises:
    ValueError: with file and line, if a row is malformed or its label is no class; no rows at all.
  """
  root = os.path.abspath(root)
  reference = os.path.splitext(path)[1] == '.txt'
  rows = _text_rows(path) if reference else _csv_rows(path, ('path', 'label'), ('caption',))
  ids = {str(label): label for label in range(len(classes))}
  names = {} if reference else {name: label for label, name in enumerate(classes.names)}
  examples = []
  for line, row in rows:
    where, label = f'{path}, line {line}', row['label']
    if not row['path']:
      raise ValueError(f'{where}: the path is empty')
    found = {table[label] for table in (ids, names) if label in table}
    if not found:
      allowed = f'an id in 0..{len(classes) - 1}' + ('' if reference else ' or a class name')
      raise ValueError(f'{where}: label must be {allowed}, found {label!r}')
    if len(found) > 1:
      raise ValueError(
        f'{where}: label {label!r} is an id and also the name of class {names[label]}; '
        'rename that class in the class list'
      )
    examples.append(Example(os.path.join(root, row['path']), found.pop(), row.get('caption', '')))
  return examples


class VideoList:
  """Examples as grain wants them: `len` and `[row]`, cheap to send to worker processes.

  An element is `dict(path, label, index)`; index is its row.
  """

  def __init__(self, examples: Sequence[Example], classes: ClassList, root: str | os.PathLike = ''):
    # Plain strings and one array: a quarter of a million dataclasses would take seconds to pickle.
    self._root = os.path.join(os.path.abspath(root), '')
    self._paths = [example.path.removeprefix(self._root) for example in examples]
    self._labels = np.array([example.label for example in examples], np.int32)
    self._classes = classes

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, row: int) -> dict:
    path = os.path.join(self._root, self._paths[row])
    return dict(path=path, label=int(self._labels[row]), index=row)

  def __repr__(self) -> str:
    return f'VideoList({len(self)} videos, {len(self._classes)} classes)'

  @functools.cached_property
  def fingerprint(self) -> str:
    """Identify what is listed, wherever it lies on disk: sha256, hexadecimal."""
    digest = hashlib.sha256(json.dumps(self._classes.names).encode())
    for path, label in zip(self._paths, self._labels.tolist(), strict=True):
      digest.update(json.dumps([path, label]).encode())
    return digest.hexdigest()


def _csv_rows(
  path: str | os.PathLike, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
  """Yield (line number, fields) of a CSV with a header; ValueError on a malformed or empty file."""
  wanted = ','.join(required) + ''.join(f'[,{name}]' for name in optional)
  reader = csv.reader(_read_lines(path), strict=True)
  empty = True
  try:
    header = [name.strip() for name in next(reader, [])]
    if not set(required) <= set(header):
      raise ValueError(f'{path}, line 1: the header must hold {wanted}, found {",".join(header)!r}')
    for fields in reader:
      if not any(field.strip() for field in fields):
        continue
      if len(fields) != len(header):
        raise ValueError(
          f'{path}, line {reader.line_num}: {len(header)} fields wanted ({",".join(header)}), '
          f'found {len(fields)}; quote a field that holds a comma'
        )
      empty = False
      row = dict(zip(header, (field.strip() for field in fields), strict=True))
      yield reader.line_num, row
  except csv.Error as error:
    raise ValueError(f'{path}, line {reader.line_num}: not valid CSV ({error})') from error
  if empty:
    raise ValueError(f'{path}: has a header but no rows; wanted {wanted}')


def _text_rows(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, str]]]:
  """Yield (line number, fields) of `path label` lines; ValueError on a malformed or empty file."""
  empty = True
  for line, text in enumerate(_read_lines(path), start=1):
    if not text.strip():
      continue
    fields = text.strip().rsplit(maxsplit=1)
    if len(fields) != 2:
      raise ValueError(f'{path}, line {line}: `path label` wanted, found {text.strip()!r}')
    empty = False
    yield line, dict(zip(('path', 'label'), fields, strict=True))
  if empty:
    raise ValueError(f'{path}: is empty; wanted `path label` lines')


def _read_lines(path: str | os.PathLike) -> list[str]:
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      return file.readlines()
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: must be UTF-8 text ({error}); save it as UTF-8') from error


def _few(values: Sequence[int]) -> str:
  return ', '.join(map(str, values[:5])) + (', ...' if len(values) > 5 else '')
