"""What can be wrong with a list of videos, found before training instead of during it."""

import collections
import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from xclip_jax.data import workers
from xclip_jax.data.datasets import annotations
from xclip_jax.data.video import archives, decode
from xclip_jax.errors import UserError

KINDS = {                     # kind of problem -> what it means
  'classes': 'class lists that cannot be told apart',
  'label': 'labels or captions that are wrong',
  'missing': 'files that are not there',
  'undecodable': 'files that are no video that can be decoded',
  'short': 'videos with fewer frames than a clip',
  'duplicate': 'files with the same content as an earlier one',
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is wrong with one row; without a line, with the class list."""

  kind: str                   # a key of KINDS
  line: int | None
  path: str                   # as the list gives it
  reason: str


@dataclasses.dataclass(frozen=True)
class Findings:
  """What a check has found; problems are ordered by line."""

  listed: int
  present: int
  problems: tuple[Problem, ...]

  @property
  def bad_lines(self) -> set[int]:
    """Lines of the rows that should go."""
    return {problem.line for problem in self.problems if problem.line is not None}


@dataclasses.dataclass(frozen=True)
class _File:
  """What was found in a file: size in bytes, and a problem unless a frame of it was decoded."""

  size: int = 0
  kind: str = ''
  reason: str = ''


def check_list(
  path: str | os.PathLike, root: str | os.PathLike, classes_path: str | os.PathLike | None,
  *, num_frames: int, processes: int = 1, progress: Callable[..., Iterable] | None = None,
) -> Findings:
  """Check each row of a list: its label, its file, one frame of it, and whether it is a duplicate.

  Args:
    path: a list as `source.read_annotations` or `source.read_captions` takes it.
    root: folder that relative paths start from.
    classes_path: class list; None for a list of captions, which has no classes.
    num_frames: T; a video with fewer frames is a problem.
    processes: that read files; 1: this one. With more, call it under a `__main__` guard.
    progress: wraps an iterable as tqdm does, given `total` and `desc`.

  Raises:
    ValueError: a list that cannot be read, or that has a malformed row; a missing class list.
  """
  columns, rows = annotations.read_rows(path, ('path',))
  problems = []
  if 'label' in columns:
    problems += _check_labels(rows, path, classes_path)
  elif 'caption' in columns:
    problems += [
      Problem('label', line, row['path'], 'the caption is empty')
      for line, row in rows if not row['caption']
    ]
  else:
    raise UserError(f'{path}, line 1: a column label or caption is wanted, found {columns}')
  root = os.path.abspath(root)
  lines, files = [], {}       # files: absolute path -> lines, for one may be listed again
  for line, row in rows:
    if not row['path']:
      problems.append(Problem('missing', line, '', 'the path is empty'))
      continue
    lines.append((line, row['path'], annotations.absolute(row['path'], root, '')))
    files.setdefault(lines[-1][2], []).append(line)
  progress = progress or (lambda items, **_: items)
  inspect = _Inspect(num_frames)
  crashed = _File(0, 'undecodable', 'reading it crashes the decoder')
  results = workers.unordered(inspect, list(files), processes, crashed)
  found = dict(progress(results, total=len(files), desc='decoding'))
  by_size = collections.Counter(x.size for x in found.values() if not x.kind)
  suspects = [x for x in files if not found[x].kind and by_size[found[x].size] > 1]
  results = workers.unordered(_digest, suspects, processes, '')
  digests = dict(progress(results, total=len(suspects), desc='comparing'))
  several_rows = 'label' not in columns   # a video may have several captions
  first = {}
  for line, name, file in lines:
    if found[file].kind:
      problems.append(Problem(found[file].kind, line, name, found[file].reason))
      continue
    key = digests.get(file) or file
    earlier_line, earlier_file = first.setdefault(key, (line, file))
    if earlier_line != line and not (several_rows and earlier_file == file):
      same = 'the same file as' if earlier_file == file else 'the same content as'
      problems.append(Problem('duplicate', line, name, f'{same} line {earlier_line}'))
  present = sum(found[file].kind != 'missing' for _, _, file in lines)
  problems.sort(key=lambda problem: (problem.line or 0, problem.kind))
  return Findings(len(rows), present, tuple(problems))


def _check_labels(rows: list, path: Any, classes_path: Any) -> Iterator[Problem]:
  annotations.read_lines(classes_path)         # a list that is not there is not a problem of this list
  try:
    classes = annotations.read_classes(classes_path)
  except ValueError as error:
    yield Problem('classes', None, '', f'{error}; labels were not checked')
    return
  seen = {}
  for label, name in enumerate(classes.names):
    key = ' '.join(unicodedata.normalize('NFKC', name).split()).casefold()
    other = seen.setdefault(key, label)
    if other != label:
      pair = f'classes {other} and {label}, {classes.names[other]!r} and {name!r}'
      yield Problem('classes', None, '', f'{classes_path}: {pair}, differ in case or blanks only')
  labels = annotations.Labels(classes, names=not annotations.is_reference_list(path))
  for line, row in rows:
    try:
      labels.parse(row['label'], '')
    except ValueError as error:
      yield Problem('label', line, row['path'], str(error).removeprefix(': '))


@dataclasses.dataclass(frozen=True)
class _Inspect:
  """Path -> _File; a class so that worker processes can be sent one."""

  num_frames: int

  def __call__(self, path: str) -> _File:
    counts = []
    inside = archives.is_member(path)
    if not inside and not os.path.isfile(path):
      return _File(0, 'missing', 'no such file')
    try:
      size = archives.size(path) if inside else os.path.getsize(path)
      decode.read_video(path, lambda n: counts.append(n) or np.array([n // 2]))
    except (decode.VideoError, MemoryError) as error:
      return _File(0, 'undecodable', str(error).removeprefix(f'{path}: '))
    except OSError as error:  # the archive is there, the file in it is not
      return _File(0, 'missing', error.strerror or str(error))
    if counts[-1] < self.num_frames:
      return _File(size, 'short', f'{counts[-1]} frames, a clip needs {self.num_frames}')
    return _File(size)


def _digest(path: str) -> str:
  if archives.is_member(path):
    return hashlib.sha256(archives.read(path)).hexdigest()
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
