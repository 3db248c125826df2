"""Lists derived from lists: without bad rows, few-shot, base and novel classes, moved videos.

Every function returns the content of files, as bytes that `annotations.read_rows` reads.
"""

import collections
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xclip_jax.data.datasets import annotations, tables, text_lists
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.errors import UserError

Rows = Sequence[tuple[int, dict[str, str]]]       # (line, fields), from annotations.read_rows


def without(path: str | os.PathLike, lines: set[int]) -> bytes:
  """Returns a list in its own format without the rows at the given lines."""
  columns, rows = annotations.read_rows(path, ('path',))
  kept = [row for line, row in rows if line not in lines]
  return _format(path, columns, kept, f'{_origin(path)}, {len(kept)} of {len(rows)} rows')


def moved(path: str | os.PathLike, places: dict[str, str], note: str) -> bytes:
  """Returns a list in its own format with other paths, without the rows whose path has none.

  Args:
    path: the list.
    places: old path -> new path.
    note: beginning of the comment in the first line.
  """
  columns, rows = annotations.read_rows(path, ('path',))
  kept = [row | {'path': places[row['path']]} for _, row in rows if row['path'] in places]
  return _format(path, columns, kept, f'{note}, {_origin(path)}')


def from_split(
  videos: annotations.VideoList, classes: ClassList, root: str | os.PathLike, note: str
) -> tuple[bytes, bytes]:
  """Returns the videos and classes of an open split as a list and a class list.

  Args:
    videos: the split, opened from any format.
    classes: its classes.
    root: folder that the paths of the list start from.
    note: comment in the first line of both.
  """
  root = os.path.abspath(root)
  rows = [videos[n] for n in range(len(videos))]
  place = lambda path: text_lists.protect_blanks(os.path.relpath(path, root))
  written = [{'path': place(x['path']), 'label': str(x['label'])} for x in rows]
  ids = {label: label for label in range(len(classes))}
  return (
    _format('list.csv', ['path', 'label'], written, note),
    _format('classes.csv', ['id', 'name', 'reverse'],
            [_class_row(classes, label, label, ids) for label in ids], note),
  )


def few_shot(path: str | os.PathLike, classes: ClassList, shots: int, seed: int) -> bytes:
  """Returns a list of `shots` videos of each class, drawn at random, in their old order.

  The draw depends on the seed, the class name and the paths, not on the order of rows. With one
  seed, the videos of fewer shots are among those of more shots.

  Raises:
    UserError: a class has fewer than `shots` videos, or a row has several labels.
  """
  if shots < 1:
    raise UserError(f'shots must be at least 1, found {shots}')
  columns, rows = annotations.read_rows(path, ('path', 'label'))
  members = collections.defaultdict(list)
  for n, label in enumerate(_labels(path, rows, classes)):
    members[label].append(n)
  poor = [label for label in range(len(classes)) if len(members[label]) < shots]
  if poor:
    name, count = classes.names[poor[0]], len(members[poor[0]])
    raise UserError(
      f'{path}: {len(poor)} classes have fewer than {shots} videos, {name!r} has {count}; ask for '
      'fewer shots'
    )
  kept = []
  for label, numbers in members.items():
    numbers.sort(key=lambda n: rows[n][1]['path'])
    name = int.from_bytes(hashlib.sha256(classes.names[label].encode()).digest()[:8])
    order = np.random.default_rng([seed, name]).permutation(len(numbers))
    kept += [numbers[i] for i in order[:shots]]
  note = f'{shots} of each class, seed {seed}, {_origin(path)}'
  return _format(path, columns, [rows[n][1] for n in sorted(kept)], note)


def base_novel(paths: Sequence[str | os.PathLike], classes: ClassList) -> dict[str, bytes]:
  """Splits classes into a frequent half (base) and a rare half (novel), and lists alike.

  Args:
    paths: lists of the same classes; the first, the training list, gives the class frequencies.
    classes: classes to split. Base gets one more of an odd number, and the lower id of two equally
      frequent classes.

  Returns:
    file name -> content: `classes_base.csv`, `classes_novel.csv`, and `<stem>_base` and
    `<stem>_novel` of each list, whose labels are ids in the new class lists. Ids keep their order.

  Raises:
    UserError: two lists have one name, there are fewer than two classes, a half of a list is empty,
      or a row has several labels.
  """
  if len(classes) < 2:
    raise UserError(f'there must be at least two classes to split, found {len(classes)}')
  if len({Path(path).stem for path in paths}) < len(paths):
    raise UserError('lists must have different names, as what is written is named after them')
  read = {}
  for path in paths:
    columns, rows = annotations.read_rows(path, ('path', 'label'))
    read[path] = columns, rows, _labels(path, rows, classes)
  counts = np.bincount(read[paths[0]][2], minlength=len(classes))
  ranked = np.argsort(-counts, kind='stable')
  middle = -(-len(classes) // 2)
  texts = {}
  for half, chosen in (('base', ranked[:middle]), ('novel', ranked[middle:])):
    ids = {int(label): new for new, label in enumerate(sorted(chosen))}
    note = f'the {half} half of {len(classes)} classes by frequency, '
    texts[f'classes_{half}.csv'] = _format(
      'classes.csv', ['id', 'name', 'reverse'],
      [_class_row(classes, old, new, ids) for old, new in ids.items()], note + _origin(paths[0]),
    )
    for path, (columns, rows, labels) in read.items():
      kept = [
        row | {'label': str(ids[label])}
        for (_, row), label in zip(rows, labels, strict=True) if label in ids
      ]
      if not kept:
        raise UserError(f'{path}: has no video of the {half} classes')
      name = f'{Path(path).stem}_{half}{Path(path).suffix}'
      texts[name] = _format(path, columns, kept, note + _origin(path))
  return texts


def _class_row(classes: ClassList, old: int, new: int, ids: dict[int, int]) -> dict[str, str]:
  partner = classes.reverse[old]          # not in `ids` if it is in the other half
  reverse = classes.names[partner] if partner in ids else ''
  return {'id': str(new), 'name': classes.names[old], 'reverse': reverse}


def _labels(path: str | os.PathLike, rows: Rows, classes: ClassList) -> list[int]:
  labels = annotations.Labels(classes, names=not annotations.is_reference_list(path))
  ids = []
  for line, row in rows:
    label = labels.parse(row['label'], f'{path}, line {line}')
    if isinstance(label, tuple):
      raise UserError(f'{path}, line {line}: one label wanted, found {row["label"]!r}')
    ids.append(label)
  return ids


def _origin(path: str | os.PathLike) -> str:
  """Returns the file name and the SHA-256 of a list, for the comment of a derived list."""
  content = annotations.read_content(path)
  name = ascii(Path(path).name)[1:-1]     # a line break in it must not end the comment
  return f'from {name} sha256:{hashlib.sha256(content).hexdigest()}'


def _format(
  path: str | os.PathLike, columns: Sequence[str], rows: Sequence[dict[str, str]], note: str
) -> bytes:
  """Returns rows as a list in the format that the file name of `path` asks for."""
  if annotations.is_reference_list(path):
    return annotations.encode_list(
      f'# {note}\n' + ''.join(f'{row["path"]} {row["label"]}\n' for row in rows))
  if tables.is_table(path):
    return tables.write(columns, rows, note)
  text = text_lists.format_csv([columns, *([row[name] for name in columns] for row in rows)])
  return annotations.encode_list(f'# {note}\n' + text)
