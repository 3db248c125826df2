"""Clips of a user: reading them from a folder or CSV, checking them, and holding some out."""

import collections
import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.data.datasets import annotations, folders, public_formats, text_lists
from xclip_jax.data.tools import check
from xclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Clip:
  """Describes one video: absolute path, class names, and 'train', 'val' or '' if not yet split."""

  path: str
  labels: tuple[str, ...]
  split: str = ''


@dataclasses.dataclass(frozen=True)
class Clips:
  """Holds the clips of a user and their classes.

  Fields:
    root: folder that all paths start from.
    clips: usable clips.
    classes: class names, in order.
    is_multi_label: whether a video may have several labels.
    left_out: path and reason of each clip that cannot be used.
    unnamed: files that may be clips, but whose names do not end as those of videos.
    notes: path and what was lost of each damaged clip that is used.
  """

  root: Path
  clips: tuple[Clip, ...]
  classes: tuple[str, ...]
  is_multi_label: bool
  left_out: tuple[tuple[str, str], ...] = ()
  unnamed: tuple[str, ...] = ()
  notes: tuple[tuple[str, str], ...] = ()

  def of(self, split: str) -> list[Clip]:
    """Returns the clips of a split."""
    return [clip for clip in self.clips if clip.split == split]

  def count(self, split: str) -> dict[str, int]:
    """Returns the number of clips of each class in a split."""
    counts = collections.Counter(label for clip in self.of(split) for label in clip.labels)
    return {name: counts[name] for name in self.classes}


def read(source: str | os.PathLike, root: str | os.PathLike | None = None) -> Clips:
  """Reads clips and their class names from a folder or a CSV.

  Class names are those of folders or labels, with blanks for underscores.

  Args:
    source: a folder with a subfolder of videos for each class, or with two such folders `train` and
      `val`; or a CSV with `path,label`, whose labels are names, several separated by `;`.
    root: folder that the paths of a CSV start from; None: the folder of the CSV.

  Raises:
    UserError: the source does not exist, or is none of these.
  """
  location = Path(os.path.abspath(source))
  if location.is_dir():
    given = [name for name in ('train', 'val') if (location / name).is_dir()]
    if len(given) == 1 and not _holds_videos(location / given[0]):
      other = {'train': 'val', 'val': 'train'}[given[0]]
      raise UserError(f'{location} has a folder {given[0]} and no folder {other}; add it, or put '
                      'the folders of the classes into one')
    rows, classes, unnamed = [], None, []
    for split in given if len(given) == 2 else ['']:
      classes, listing = public_formats.read_folder(location / split, classes)
      unnamed += listing.left_out
      for example in listing.examples:
        assert isinstance(example.label, int)          # of a folder
        rows.append((example.path, (classes.names[example.label],), split))
    assert classes is not None
    names, is_multi_label = classes.names, False
  elif location.is_file():
    rows, names, is_multi_label = _read_csv(
      location, Path(root) if root else location.parent)
    unnamed = []
    location = Path(os.path.abspath(root)) if root else location.parent
  else:
    raise UserError(f'{location} is not there; give a folder with a subfolder for each class, or a '
                     'CSV with path,label')
  pretty = {name: ' '.join(name.replace('_', ' ').split()) for name in names}
  if len(set(pretty.values())) < len(names):
    twice = collections.Counter(pretty.values()).most_common(1)[0][0]
    raise UserError(f'{location}: two classes are called {twice!r}; rename one')
  clips = tuple(Clip(path, tuple(pretty[x] for x in labels), split)
                for path, labels, split in rows)
  return Clips(location, clips, tuple(pretty.values()), is_multi_label, unnamed=tuple(unnamed))


def _holds_videos(folder: Path) -> bool:
  """Returns whether a folder itself holds videos, so that its name is that of a class."""
  return any(folders.has_suffix(x.name) for x in folder.iterdir())


def _read_csv(path: Path, root: Path) -> tuple[list[tuple], tuple[str, ...], bool]:
  _, rows = annotations.read_rows(path, ('path', 'label'))
  is_multi_label = any(';' in row['label'] for _, row in rows)
  clips = []
  for line, row in rows:
    where = f'{path}, line {line}'
    labels = [x.strip() for x in row['label'].split(';')] if is_multi_label else [row['label']]
    labels = tuple(x for x in labels if x)
    if not labels:
      raise UserError(f'{where}: the label is empty; write its name')
    if len(set(labels)) < len(labels):
      raise UserError(f'{where}: {row["label"]!r} names a class twice')
    clips.append((annotations.absolute(row['path'], os.path.abspath(root), where), labels, ''))
  names = tuple(sorted({label for _, labels, _ in clips for label in labels}))
  if all(name.isdecimal() for name in names):
    raise UserError(f'{path}: labels are numbers; write the names of the classes, which the model '
                     'reads')
  return clips, names, is_multi_label


def usable(clips: Clips, num_frames: int, progress: Any = None) -> Clips:
  """Leaves out clips that cannot be read, and all but the first of files with the same content.

  Short videos stay: their frames are repeated. So do damaged ones, as far as they can be decoded.
  """
  with tempfile.TemporaryDirectory() as folder:
    lists = write_lists(Path(folder), clips, {'all': clips.clips})
    _, rows = annotations.read_rows(lists['all'], ('path',))
    findings = check.check_list(lists['all'], clips.root, lists['classes'],
                                check.Inspection(num_frames), progress=progress)
  # A name with a line break takes several lines.
  by_line = {line: clip for (line, _), clip in zip(rows, clips.clips, strict=True)}
  show = lambda line: os.path.relpath(by_line[int(line)].path, clips.root)
  bad = {x.line: re.sub(r'line (\d+)', lambda m: show(m[1]), x.reason)
         if x.kind == 'duplicate' else x.reason
         for x in findings.problems if x.line and x.kind not in ('short', 'damaged')}
  notes = tuple((by_line[x.line].path, x.reason) for x in (*findings.problems, *findings.notes)
                if x.line and x.kind in ('damaged', 'resized'))
  return dataclasses.replace(
    clips, clips=tuple(clip for line, clip in by_line.items() if line not in bad),
    left_out=tuple((by_line[line].path, bad[line]) for line in sorted(bad)), notes=notes)


def split(clips: Clips, share: float, seed: int) -> Clips:
  """Assigns every clip to 'train' or 'val', unless the clips have splits already.

  Of each class a share is held out for 'val', at least one clip, and at least one clip stays in
  'train'; rare classes come first. The choice depends on the seed and the paths below the root.

  Raises:
    UserError: there are fewer than two classes, or a class has too few clips.
  """
  if len(clips.classes) < 2:
    raise UserError(f'{clips.root} has one class, {"".join(clips.classes)!r}; a model needs two or '
                    'more to tell apart')
  if not 0 < share < 1:
    raise UserError(f'the share held out must lie between 0 and 1, got {share}')
  members = collections.defaultdict(list)
  for n, clip in enumerate(clips.clips):
    for label in clip.labels:
      members[label].append(n)
  if not any(clip.split for clip in clips.clips):
    poor = [name for name in clips.classes if len(members[name]) < 2]
    if poor:
      more = f' (and {len(poor) - 1} more classes)' if poor[1:] else ''
      raise UserError(
        f'class {poor[0]!r} has {len(members[poor[0]])} usable clip(s){more}; each needs two, one '
        'to train on and one to test on: add clips, or take the class out')
    sides: dict[int, str] = {}
    for name in sorted(clips.classes, key=lambda name: (len(members[name]), name)):
      numbers = members[name]
      held_out = min(max(round(share * len(numbers)), 1), len(numbers) - 1)
      held_out -= sum(sides.get(n) == 'val' for n in numbers)
      free = [n for n in numbers if n not in sides]
      free.sort(key=lambda n: _draw(seed, os.path.relpath(clips.clips[n].path, clips.root)))
      for i, n in enumerate(free):
        sides[n] = 'val' if i < held_out else 'train'
    clips = dataclasses.replace(clips, clips=tuple(
      dataclasses.replace(clip, split=sides[n]) for n, clip in enumerate(clips.clips)))
  for side in ('train', 'val'):
    lacking = [name for name, n in clips.count(side).items() if not n]
    if lacking and (side == 'train' or not clips.of(side)):
      raise UserError(f'no usable clip of {lacking[0]!r} is left to '
                       f'{"train" if side == "train" else "test"} on')
  return clips


def _draw(seed: int, name: str) -> bytes:
  # A name may hold bytes that are no text.
  return hashlib.sha256(f'{seed} {name}'.encode(errors='surrogateescape')).digest()


def write_lists(
  folder: Path, clips: Clips, parts: Mapping[str, Sequence[Clip]]
) -> dict[str, Path]:
  """Writes a list of each part, and classes.csv; UserError if the folder holds other ones."""
  start = os.path.join(clips.root, '')
  tables: dict[str, list[tuple]] = {
    name: [('path', 'label'), *(
      (text_lists.protect_blanks(x.path.removeprefix(start)), _label(x, clips)) for x in part)]
    for name, part in parts.items()}
  tables['classes'] = [('id', 'name'), *enumerate(clips.classes)]
  for name, rows in tables.items():
    file = folder / f'{name}.csv'
    content = annotations.encode_list(text_lists.format_csv(rows))
    if file.exists() and file.read_bytes() != content:
      raise UserError(
        f'{file} is of other clips than there are now; choose another folder with -o, or delete '
        f'{folder} to start anew')
    files.write_bytes(file, content)
  return {name: folder / f'{name}.csv' for name in tables}


def _label(clip: Clip, clips: Clips) -> str:
  ids = [str(clips.classes.index(label)) for label in clip.labels]
  return ';'.join(ids) + ';' * (clips.is_multi_label and len(ids) == 1)
