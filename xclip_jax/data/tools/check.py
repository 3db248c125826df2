"""Check of a list of videos, which finds faults before training instead of during it."""

import collections
import dataclasses
import errno
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from xclip_jax.data import workers
from xclip_jax.data.datasets import annotations
from xclip_jax.data.reading import damage
from xclip_jax.data.video import archives, decode, times
from xclip_jax.errors import UserError

KINDS = {                     # kind of problem -> what it means
  'classes': 'class lists that cannot be told apart',
  'label': 'labels or captions that are wrong',
  'missing': 'files that are not there',
  'undecodable': 'files that are no video that can be decoded',
  'damaged': 'videos of which a part is lost; training uses the rest',
  'short': 'videos with fewer frames than a clip',
  'duplicate': 'files with the same content as an earlier one',
}
NOTES = {                     # kind of note -> what it means
  'resized': 'videos whose picture changes its size midway; training scales all to the first size',
}
_SECONDS = 600.0              # time limit for reading one video, or in --full its next frame


@dataclasses.dataclass(frozen=True)
class Problem:
  """Describes a fault of one row, or of the class list if it has no line."""

  kind: str                   # a key of KINDS, or of NOTES
  line: int | None
  path: str                   # as the list gives it
  reason: str


@dataclasses.dataclass(frozen=True)
class Findings:
  """Holds the result of a check: numbers of rows, and problems ordered by line.

  Fields:
    listed, present: number of rows, and of those whose file is there.
    problems: what is wrong.
    notes: what is unusual and does no harm.
  """

  listed: int
  present: int
  problems: tuple[Problem, ...]
  notes: tuple[Problem, ...] = ()

  @property
  def bad_lines(self) -> set[int]:
    """Returns the lines of the rows to remove."""
    return {problem.line for problem in self.problems if problem.line is not None}


@dataclasses.dataclass(frozen=True)
class Inspection:
  """Says what is looked at in each file.

  Fields:
    num_frames: T; a video with fewer frames is a problem.
    full: decode all frames, so that no damage is missed.
  """

  num_frames: int
  full: bool = False


@dataclasses.dataclass(frozen=True)
class _File:
  """Describes a file: size in bytes, a problem if it has one, and its notes as (kind, text)."""

  size: int = 0
  kind: str = ''
  reason: str = ''
  notes: tuple[tuple[str, str], ...] = ()

  @property
  def is_whole(self) -> bool:
    """Returns whether its content can be compared with that of others."""
    return self.kind in ('', 'damaged', 'short')


def check_list(
  path: str | os.PathLike, root: str | os.PathLike, classes_path: str | os.PathLike | None,
  inspection: Inspection, *, processes: int = 1,
  progress: Callable[..., Iterable] | None = None,
) -> Findings:
  """Checks the label and the file of each row of a list, and finds duplicates.

  Frames are read from all parts of a video that training draws from. A video without a problem
  other than 'damaged', 'short' and 'duplicate' is one that training can read.

  Args:
    path: a list as `annotations.read_annotations` or `read_captions` takes it.
    root: folder that relative paths start from.
    classes_path: class list; None for a list of captions, which has no classes.
    inspection: what is looked at in each file.
    processes: number of reading processes; 1: this one. With more, call it under a `__main__`
      guard.
    progress: wraps an iterable as tqdm does, given `total` and `desc`.

  Raises:
    UserError: the list cannot be read or has a malformed row, or the class list is missing.
  """
  columns, rows = annotations.read_rows(path, ('path',))
  if 'label' in columns:
    problems = list(_check_labels(rows, path, classes_path))
  elif 'caption' in columns:
    problems = [Problem('label', line, row['path'], 'the caption is empty')
                for line, row in rows if not row['caption']]
  else:
    raise UserError(f'{path}, line 1: a column label or caption is wanted, found {columns}')
  root = os.path.abspath(root)
  problems += [Problem('missing', line, '', 'the path is empty')
               for line, row in rows if not row['path']]
  lines = [(line, row['path'], annotations.absolute(row['path'], root, ''))
           for line, row in rows if row['path']]
  paths = list(dict.fromkeys(file for _, _, file in lines))     # a file may be listed again
  progress = progress or (lambda items, **_: items)
  crashed = _File(0, 'undecodable', 'reading it crashes the decoder')
  inspect = _Inspect(inspection.num_frames, inspection.full)
  results = workers.unordered(inspect, paths, processes, crashed)
  inspected = dict(progress(results, total=len(paths), desc='decoding'))
  by_size = collections.Counter(x.size for x in inspected.values() if x.is_whole)
  suspects = [x for x in paths if inspected[x].is_whole and by_size[inspected[x].size] > 1]
  results = workers.unordered(_digest, suspects, processes, '')
  digests = dict(progress(results, total=len(suspects), desc='comparing'))
  problems += _check_files(lines, inspected, digests, repeats='label' not in columns)
  present = sum(inspected[file].kind != 'missing' for _, _, file in lines)
  problems.sort(key=lambda problem: (problem.line or 0, problem.kind))
  notes = [Problem(kind, line, name, text) for line, name, file in lines
           for kind, text in inspected[file].notes]
  return Findings(len(rows), present, tuple(problems), tuple(notes))


def _check_files(
  lines: Sequence[tuple[int, str, str]], inspected: dict[str, _File], digests: dict[str, str],
  repeats: bool,
) -> Iterator[Problem]:
  """Yields the problems of files, and duplicates.

  Args:
    lines: (line, path as listed, absolute path) of each row.
    inspected: absolute path -> facts.
    digests: absolute path -> SHA-256 of files that share their size with others.
    repeats: whether a video may have several rows, one for each caption.
  """
  first: dict[str, tuple[int, str]] = {}
  for line, name, file in lines:
    if inspected[file].kind:
      yield Problem(inspected[file].kind, line, name, inspected[file].reason)
    if not inspected[file].is_whole:
      continue
    earlier_line, earlier_file = first.setdefault(digests.get(file) or file, (line, file))
    if earlier_line != line and not (repeats and earlier_file == file):
      same = 'the same file as' if earlier_file == file else 'the same content as'
      yield Problem('duplicate', line, name, f'{same} line {earlier_line}')


def _check_labels(rows: list, path: Any, classes_path: Any) -> Iterator[Problem]:
  annotations.read_lines(classes_path)         # raises for a missing class list
  try:
    classes = annotations.read_classes(classes_path)
  except UserError as error:
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
    except UserError as error:
      yield Problem('label', line, row['path'], str(error).removeprefix(': '))


@dataclasses.dataclass(frozen=True)
class _Inspect:
  """Reads frames of a file and returns its _File; a class, so that it can be pickled."""

  num_frames: int
  full: bool

  def __call__(self, path: str) -> _File:
    file, _ = times.split_span(path)
    inside = archives.is_member(file)
    if not inside and not os.path.exists(file):
      return _File(0, 'missing', 'no such file')
    notes: list[damage.Note] = []
    try:
      size = archives.size(file) if inside else os.path.getsize(file)
      count = self._count_all(path, notes) if self.full else self._count(path, notes)
    except (decode.VideoError, MemoryError) as error:
      return _File(0, 'undecodable', str(error).removeprefix(f'{path}: '))
    except OSError as error:
      reason = error.strerror or str(error)
      return _File(0, 'missing' if error.errno == errno.ENOENT else 'undecodable', reason)
    other = tuple((note.kind, note.text) for note in notes if note.kind != damage.DAMAGED)
    lost = '; '.join(note.text for note in notes if note.kind == damage.DAMAGED)
    if count < self.num_frames:
      short = f'{count} frames, a clip needs {self.num_frames}'
      return _File(size, 'short', f'{short}; {lost}' if lost else short, other)
    return _File(size, 'damaged' if lost else '', lost, other)

  def _count(self, path: str, notes: list[damage.Note]) -> int:
    """Reads the first frame of every part that training draws from, and the last of all."""
    counts = []

    def choose(count: int) -> np.ndarray:
      counts.append(count)
      return np.unique(np.arange(self.num_frames + 1) * max(count - 1, 0) // self.num_frames)

    decode.read_video(path, choose, _SECONDS, report=notes.append)
    return counts[-1]

  def _count_all(self, path: str, notes: list[damage.Note]) -> int:
    _, frames = decode.read_frames(path, notes.append, _SECONDS)
    return sum(1 for _ in frames)


def _digest(path: str) -> str:
  """Returns what two paths share if they name the same span of the same content."""
  path, span = times.split_span(path)
  if archives.is_member(path):
    digest = hashlib.sha256(archives.read(path)).hexdigest()
  else:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return digest if span is None else times.join_span(digest, span)
