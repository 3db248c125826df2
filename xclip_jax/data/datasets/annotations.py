"""Class lists and annotation lists, read into examples that the pipeline can index."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.data.datasets import tables, text_lists
from xclip_jax.data.datasets.text_lists import Rows
from xclip_jax.data.datasets.text_lists import is_reference_list as is_reference_list
from xclip_jax.data.video import times
from xclip_jax.errors import UserError

_SPAN = ('time_start', 'time_end')      # columns


@dataclasses.dataclass(frozen=True)
class Example:
  """Describes one video of a list.

  Fields:
    path: absolute path.
    label: class id; in a multi-label list a tuple of distinct ids, in a list of captions None.
    caption: sentence that says what happens in the video; '' if the list has none.
  """

  path: str
  label: int | tuple[int, ...] | None
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class ClassList:
  """Holds class names by id, and for each the id of the class that it is when played backwards."""

  names: tuple[str, ...]
  reverse: tuple[int | None, ...]

  def __len__(self) -> int:
    return len(self.names)


def read_classes(path: str | os.PathLike) -> ClassList:
  """Reads `id,name[,reverse]` rows into a class list ordered by id.

  Args:
    path: CSV with a header. Ids are 0..K-1 in any order; `reverse` holds a class name or nothing.

  Raises:
    UserError: the list has no classes, a gap or a repeat in the ids, two classes of one name, or a
      `reverse` that is no class.
  """
  rows = {}
  _, listed = read_rows(path, ('id', 'name'), ('reverse',))
  for line, row in listed:
    where = f'{path}, line {line}'
    if not row['id'].isdecimal():
      raise UserError(f'{where}: id must be a whole number from 0, found {row["id"]!r}')
    if not row['name']:
      raise UserError(f'{where}: class {row["id"]} has no name')
    if int(row['id']) in rows:
      first = rows[int(row['id'])][0]
      raise UserError(f'{where}: id {row["id"]} is already used in line {first}')
    rows[int(row['id'])] = (line, row['name'], row.get('reverse', ''))
  missing = sorted(set(range(len(rows))) - rows.keys())
  if missing:
    raise UserError(
      f'{path}: ids must be 0..{len(rows) - 1} without a gap, {_few(missing)} missing'
    )
  ids = {}
  for label, (line, name, _) in sorted(rows.items()):
    if name in ids:
      lines = f'lines {rows[ids[name]][0]} and {line}'
      raise UserError(f'{path}: class name {name!r} is used twice, in {lines}')
    ids[name] = label
  reverse = []
  for _, (line, name, other) in sorted(rows.items()):
    if other and other not in ids:
      raise UserError(f'{path}, line {line}: reverse of {name!r} is {other!r}, not a class name')
    reverse.append(ids.get(other))
  return ClassList(tuple(ids), tuple(reverse))


def read_annotations(
  path: str | os.PathLike, root: str | os.PathLike, classes: ClassList
) -> list[Example]:
  """Reads a list of videos with one class, or several classes, each.

  Args:
    path: CSV with header `path,label[,caption]` where a label is a class id or a class name, a
      `.parquet` with such columns, or a `.txt` of the reference's `path id` lines (split at the
      last blank: paths may hold blanks).
      Several labels of a video are separated by `;`. A path may lead into an archive; see
      data/video/archives.py.
    root: folder that relative paths start from. Whether the videos exist is not checked.
    classes: the classes that labels name.

  Returns:
    one example a row. Labels are ids; if any row has several labels, or one that ends in `;`, all
    labels are tuples of ids.

  Raises:
    UserError: a row is malformed or its label is no class (the message names file and line), or
      the list has no rows.
  """
  _, rows = read_rows(path, ('path', 'label'), ('caption',))
  labels = Labels(classes, names=not is_reference_list(path))
  root = os.path.abspath(root)
  examples = []
  for line, row in rows:
    where = f'{path}, line {line}'
    label = labels.parse(row['label'], where)
    examples.append(Example(absolute(row['path'], root, where), label, row.get('caption', '')))
  if any(isinstance(example.label, tuple) for example in examples):
    as_tuple = lambda label: label if isinstance(label, tuple) else (label,)
    examples = [dataclasses.replace(x, label=as_tuple(x.label)) for x in examples]
  return examples


def read_captions(path: str | os.PathLike, root: str | os.PathLike) -> list[Example]:
  """Reads (video, caption) pairs: a CSV with header `path,caption`; errors as above.

  A video may be listed with several captions, one a row.
  """
  _, rows = read_rows(path, ('path', 'caption'))
  root = os.path.abspath(root)
  examples = []
  for line, row in rows:
    where = f'{path}, line {line}'
    if not row['caption']:
      raise UserError(f'{where}: the caption is empty')
    examples.append(Example(absolute(row['path'], root, where), None, row['caption']))
  return examples


class Labels:
  """Parses the label fields of a list into class ids."""

  def __init__(self, classes: ClassList, names: bool = True):
    self._classes = classes
    self._ids = {str(label): label for label in range(len(classes))}
    self._names = {name: label for label, name in enumerate(classes.names)} if names else {}

  def parse(self, text: str, where: str) -> int | tuple[int, ...]:
    """Returns the class id, or a tuple of ids where `;` separates; UserError if it is no class."""
    # A class name may hold a semicolon: a text that is a class name is not split.
    if ';' not in text or text in self._names:
      return self._parse_one(text, where)
    parts = [part.strip() for part in text.removesuffix(';').split(';')]
    ids = tuple(self._parse_one(part, where) for part in parts)
    if len(set(ids)) < len(ids):
      raise UserError(f'{where}: {text!r} names a class twice')
    return ids

  def _parse_one(self, text: str, where: str) -> int:
    ids = {table[text] for table in (self._ids, self._names) if text in table}
    if not ids:
      allowed = f'an id in 0..{len(self._classes) - 1}' + (' or a class name' * bool(self._names))
      raise UserError(f'{where}: label must be {allowed}, found {text!r}')
    if len(ids) > 1:
      raise UserError(
        f'{where}: label {text!r} is an id and also the name of class {self._names[text]}; '
        'rename that class in the class list'
      )
    return ids.pop()


class VideoList:
  """Indexes examples by row for the pipeline, in little memory and cheap to send to workers.

  An element is `dict(path, label, index)`; index is its row, label as in `Example`.
  """

  def __init__(self, examples: Sequence[Example], classes: ClassList, root: str | os.PathLike = ''):
    # Plain strings and one array: a quarter of a million dataclasses would take seconds to pickle.
    self._root = os.path.join(os.path.abspath(root), '')
    self._paths = [example.path.removeprefix(self._root) for example in examples]
    labels = [example.label for example in examples]
    self._labels: np.ndarray | list = (
      np.array(labels, np.int32) if all(type(x) is int for x in labels) else labels)
    self._classes = classes

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, row: int) -> dict:
    path = os.path.join(self._root, self._paths[row])
    label = self._labels[row]
    return dict(path=path, label=int(label) if self.is_single_label else label, index=row)

  def __repr__(self) -> str:
    return f'VideoList({len(self)} videos, {len(self._classes)} classes)'

  @property
  def is_single_label(self) -> bool:
    """Returns whether every video has exactly one class id, as single-label training needs."""
    return isinstance(self._labels, np.ndarray)

  @property
  def listed_paths(self) -> tuple[str, ...]:
    """Paths of the videos, relative to the root if they lie in it."""
    return tuple(self._paths)

  @property
  def labels(self) -> np.ndarray:
    """Class ids, int32 [R], of a single-label list."""
    assert isinstance(self._labels, np.ndarray)
    return self._labels

  @functools.cached_property
  def fingerprint(self) -> str:
    """Returns the SHA-256 of class names, paths below the root and labels, hexadecimal."""
    digest = hashlib.sha256(json.dumps(self._classes.names).encode())
    labels = self._labels.tolist() if isinstance(self._labels, np.ndarray) else self._labels
    for path, label in zip(self._paths, labels, strict=True):
      digest.update(json.dumps([path, label]).encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Unlabelled:
  """Replaces the labels of a VideoList by 0, for tasks that look targets up by `index`."""

  videos: VideoList

  def __len__(self) -> int:
    return len(self.videos)

  def __getitem__(self, row: int) -> dict:
    return self.videos[row] | {'label': 0}


def read_rows(
  path: str | os.PathLike, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[str], Rows]:
  """Reads the rows of a list without interpreting them.

  A CSV names its columns in its first line. A list of paths and labels may lack that line and have
  ids as labels, as lists for PySlowFast do; a comma or a blank separates the two. Columns of a
  `.txt` are path and label, those of a `.parquet` its own. Lines at the beginning that start with a
  hash and a blank are comments. A path may hold bytes that are not UTF-8, which become surrogates,
  as in `os.fsdecode`. Columns time_start and time_end, seconds of the span of a video that
  a row is about, become the end of its path (`name.mp4#t=10,20`).

  Args:
    path: the list.
    required: names of columns that the list must have.
    optional: names of columns that error messages mention.

  Returns:
    column names, and (line number, fields by column) of every row. Rows of a Parquet file are
    numbered as if its names stood in line 1.

  Raises:
    UserError: a column is missing, a row is malformed, or the list has no row.
  """
  header = ','.join(required) + ''.join(f'[,{name}]' for name in optional)
  content = read_content(path)
  if tables.is_table(path):
    columns, rows = _table_rows(path, content)
  else:
    columns, rows = text_lists.read(path, content, required, header)
  if 'path' in columns and not set(_SPAN).isdisjoint(columns):
    columns = _join_spans(path, columns, rows)
  missing = set(required) - set(columns)
  if missing and is_reference_list(path):
    raise UserError(f'{path}: a .txt list has a path and a label; {header} needs a CSV')
  if missing:
    raise UserError(f'{path}: the columns must hold {header}, found {",".join(columns)!r}')
  if not rows:
    raise UserError(f'{path}: has a header but no rows; wanted {header}')
  for line, row in rows:
    for column, field in row.items():
      if column != 'path' and not is_text(field):
        raise UserError(f'{path}, line {line}: {column} must be UTF-8 text, found {field!r}; save '
                        'the list as UTF-8')
  return columns, rows


def _table_rows(path: str | os.PathLike, content: bytes) -> tuple[list[str], Rows]:
  columns, rows = tables.read(path, content)
  return columns, [(number, dict(zip(columns, fields, strict=True)))
                   for number, fields in enumerate(rows, start=2)]


def _join_spans(
  path: str | os.PathLike, columns: list[str], rows: list[tuple[int, dict[str, str]]]
) -> list[str]:
  """Moves the times of rows to the end of their paths; returns the columns that are left."""
  for line, row in rows:
    begin, end = (row.pop(name, '') for name in _SPAN)
    if (begin or end) and row['path']:
      span = times.parse_span(begin, end, f'{path}, line {line}')
      row['path'] = times.join_span(row['path'], span)
  return [name for name in columns if name not in _SPAN]


def absolute(path: str, root: str | os.PathLike, where: str) -> str:
  """Returns the absolute path of a row, given an absolute root; UserError if it is empty."""
  if not path:
    raise UserError(f'{where}: the path is empty')
  return os.path.join(root, path)


def is_text(text: str) -> bool:
  """Returns whether a string can be written as UTF-8, so that it holds no undecodable bytes."""
  return text.isascii() or not any('\ud800' <= letter <= '\udfff' for letter in text)


def encode_list(text: str) -> bytes:
  """Returns a list as `read_rows` reads it: UTF-8, with the bytes of paths that are not text."""
  return text.encode(errors='surrogateescape')


def read_lines(path: str | os.PathLike) -> list[str]:
  """Reads a text file, UTF-8 with or without a byte order mark; UserError if it is no such text."""
  content = read_content(path)
  try:
    return text_lists.decode_lines(content)
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: must be UTF-8 text ({error}); save it as UTF-8') from error


def read_content(path: str | os.PathLike) -> bytes:
  """Reads a file, which may be gs://bucket/...; UserError if it cannot be read."""
  try:
    with files.explain_errors(path):
      return files.as_path(path, 'list').read_bytes()
  except FileNotFoundError as error:
    raise UserError(f'{path}: cannot be read (No such file or directory)') from error
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})') from error


def _few(values: Sequence[Any]) -> str:
  return ', '.join(map(str, values[:5])) + (', ...' if len(values) > 5 else '')
