"""Annotations in the formats of public data sets, and folders, read into examples.

One function reads one format. Class ids follow the official order if the format has one, else the
names in order of their characters.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.data.datasets import annotations, folders
from xclip_jax.data.datasets.annotations import ClassList, Example
from xclip_jax.data.video import streams, times
from xclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Listing:
  """Holds the present videos of one split, and the number of videos in its annotations.

  Fields:
    examples: the videos.
    listed: number of videos in the annotations.
    left_out: files of a folder that may be videos, but whose names do not say so.
  """

  examples: list[Example]
  listed: int
  left_out: tuple[str, ...] = ()


def read_folder(
  folder: str | os.PathLike, classes: ClassList | None = None
) -> tuple[ClassList, Listing]:
  """Reads a folder with one subfolder for each class; its name is the class name.

  Args:
    folder: the folder. Videos lie at any depth of a subfolder, see `folders.find_videos`.
    classes: classes of the training split, to read another split; None: the subfolders, in order.

  Returns:
    the classes and the Listing, ordered by class and path.

  Raises:
    UserError: the folder does not exist or has no subfolders, or a subfolder holds no video or is
      none of `classes`.
  """
  folder = Path(os.path.abspath(folder))
  names = sorted(x.name for x in _entries(folder)
                 if x.is_dir() and x.name[0] != '.' and not folders.is_above(x, folder))
  for name in names:
    if not annotations.is_text(name):
      raise UserError(f'{folder}: the name of subfolder {os.fsencode(name)!r} is not UTF-8 text; '
                      'rename it, as it is the name of a class')
  if not names:
    raise UserError(f'{folder}: has no subfolders; put the videos of each class into one')
  unknown = sorted(set(names) - set(classes.names)) if classes else []
  if classes and unknown:
    raise UserError(
      f'{folder}: subfolder {unknown[0]!r} is none of the {len(classes)} classes of the training '
      'folder; rename it, or add that class there'
    )
  classes = classes or _class_list(names)
  examples, left_out = [], []
  for label, name in enumerate(classes.names):
    found = folders.find_videos(folder / name) if name in names else folders.Found([], [])
    if name in names and not found.videos:
      raise UserError(f'{folder / name}: holds no video ({" ".join(folders.SUFFIXES)})')
    examples += [Example(path, label) for path in found.videos]
    left_out += found.left_out
  return classes, Listing(examples, len(examples), tuple(left_out))


def read_kinetics(
  path: str | os.PathLike, videos: str | os.PathLike, classes: ClassList | None = None
) -> tuple[ClassList, Listing]:
  """Reads an official list of Kinetics-400, -600 or -700.

  Args:
    path: CSV with at least label, youtube_id, time_start, time_end (seconds).
    videos: folder that is searched, at any depth, for `<youtube_id>_<start>_<end>` with six digits
      each, or else `<youtube_id>`, and the suffix of a video. Among several matches, a file in a
      folder with the name of the class is taken, else the first by path. Of `<youtube_id>` that
      lasts longer than the clip and until its end, the whole upload, only the clip is read.
    classes: classes of the training split; None: the labels of this list, in order.

  Returns:
    the classes and the Listing. Absent videos are left out: many are gone from the web.

  Raises:
    UserError: a row is malformed, its label is none of `classes`, no video is present, or several
      clips of an upload are listed and the one file of it is none of them for certain.
  """
  columns = ('label', 'youtube_id', 'time_start', 'time_end')
  _, rows = annotations.read_rows(path, columns)
  classes = classes or _class_list(sorted({row['label'] for _, row in rows}))
  ids = {name: label for label, name in enumerate(classes.names)}
  files_by_stem: dict[str, list[str]] = {}
  for file in _videos_in(videos):
    files_by_stem.setdefault(Path(file).stem, []).append(file)
  examples, expected = [], ''
  whole: dict[str, tuple[int, times.Span]] = {}          # files that are a clip as they are
  for line, row in rows:
    where, label, name = f'{path}, line {line}', row['label'], row['youtube_id']
    if label not in ids:
      raise UserError(f'{where}: label {label!r} is none of the {len(ids)} classes of training')
    span = times.parse_span(row['time_start'] or 'missing', row['time_end'] or 'missing', where)
    timed_name = f'{name}_{int(span.begin):06d}_{int(span.end):06d}'
    expected = f'{timed_name}.mp4 or {name}.mp4'
    matches = files_by_stem.get(timed_name) or files_by_stem.get(name)
    if not matches:
      continue
    in_class = [x for x in matches if Path(x).parent.name in (label, label.replace(' ', '_'))]
    file = (in_class or matches)[0]
    if Path(file).stem == name and _is_upload(file, span):
      file = times.join_span(file, span)
    elif whole.setdefault(file, (line, span))[1] != span:
      raise UserError(f'{where}: {file} would be this clip and that of line {whole[file][0]}, and '
                      f'is not long enough to hold both; name the clips {timed_name}.mp4')
    examples.append(Example(file, ids[label]))
  if not examples:
    raise UserError(f'{path}: 0 of {len(rows)} videos are present; {videos} holds no file such as '
                    f'{expected}')
  return classes, Listing(examples, len(rows))


def _is_upload(file: str, span: times.Span) -> bool:
  """Returns whether a file is longer than a clip and reaches its end, so that it was not cut."""
  seconds = streams.read_duration(file)
  return seconds is not None and span.is_shorter_than(seconds) and span.is_part_of(seconds)


def read_hmdb51(
  folder: str | os.PathLike, split: int, videos: str | os.PathLike
) -> tuple[ClassList, dict[str, Listing]]:
  """Reads an official split of HMDB51, files `<class>_test_split<split>.txt`.

  Args:
    folder: folder of these files; a line is a name, then 1 (training), 2 (test) or 0 (neither).
    split: 1, 2 or 3.
    videos: folder of the videos, `<class>/<name>`. Whether they exist is not checked.

  Returns:
    the classes, underscores turned into blanks, and Listings 'train' and 'val'.

  Raises:
    UserError: the folder holds no such files, or a line is malformed.
  """
  _check_split(split)
  end = f'_test_split{split}.txt'
  lists = {x.name.removesuffix(end): x for x in _entries(folder) if x.name.endswith(end)}
  if not lists:
    raise UserError(f'{folder}: holds no files <class>{end}, the official splits of HMDB51')
  names = sorted(lists)
  examples = {'train': [], 'val': []}
  for label, name in enumerate(names):
    for line, text in _lines(lists[name]):
      video, _, use = text.rpartition(' ')
      if use not in ('0', '1', '2') or not video.strip():
        raise UserError(f'{lists[name]}, line {line}: `name 0|1|2` wanted, found {text!r}')
      if use != '0':
        path = os.path.join(os.path.abspath(videos), name, video.strip())
        examples[('train', 'val')[int(use) - 1]].append(Example(path, label))
  return _class_list([name.replace('_', ' ') for name in names]), _listings(examples)


def read_ucf101(
  folder: str | os.PathLike, split: int, videos: str | os.PathLike
) -> tuple[ClassList, dict[str, Listing]]:
  """Reads an official split of UCF101: `classInd.txt`, `trainlist0<n>.txt`, `testlist0<n>.txt`.

  Args:
    folder: folder of these files.
    split: n; 1, 2 or 3.
    videos: folder that the paths in the lists start from. Whether they exist is not checked.

  Returns:
    the classes, `ApplyLipstick` as `Apply Lipstick`, and Listings 'train' and 'val'.

  Raises:
    UserError: a file is missing, or a line is malformed or contradicts the classes.
  """
  _check_split(split)
  folder = files.as_path(folder, 'folder')
  names = []
  for line, text in _lines(folder / 'classInd.txt'):
    number, _, name = text.partition(' ')
    if number != str(len(names) + 1) or not name.strip():
      where = f'{folder / "classInd.txt"}, line {line}'
      raise UserError(f'{where}: `{len(names) + 1} ClassName` wanted, found {text!r}')
    names.append(name.strip())
  examples = {}
  for key, kind in (('train', 'train'), ('val', 'test')):
    file, examples[key] = folder / f'{kind}list0{split}.txt', []
    for line, text in _lines(file):
      # Lines of training lists end in the id, from 1; those of test lists give only the folder.
      video, number = text.rsplit(maxsplit=1) if re.search(r'\s\d+$', text) else (text, None)
      name = video.split('/')[0]
      if name not in names or '/' not in video:
        raise UserError(f'{file}, line {line}: `Class/name.avi` wanted, found {text!r}')
      label = names.index(name)
      if number not in (None, str(label + 1)):
        raise UserError(f'{file}, line {line}: {name} is class {label + 1}, found {number}')
      examples[key].append(Example(os.path.join(os.path.abspath(videos), video), label))
  spaced = [re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name) for name in names]
  return _class_list(spaced), _listings(examples)


def read_ssv2_classes(path: str | os.PathLike) -> ClassList:
  """Reads `labels.json` of Something-Something v2, template -> id; UserError if it is malformed."""
  labels = _json(path, dict)
  try:
    ids = {int(label): name for name, label in labels.items()}
  except (TypeError, ValueError, OverflowError) as error:
    raise UserError(f'{path}: {{"template": "id"}} wanted ({error})') from error
  if sorted(ids) != list(range(len(labels))) or not labels:
    raise UserError(f'{path}: ids must be 0..{len(labels) - 1}, each once')
  return _class_list([ids[i] for i in range(len(ids))])


def read_ssv2(
  path: str | os.PathLike, videos: str | os.PathLike, classes: ClassList
) -> Listing:
  """Reads the training or validation list of Something-Something v2.

  Args:
    path: JSON, a list of {"id", "template", "label" (the template with its blanks filled in)}.
    videos: folder of `<id>.webm`. Whether they exist is not checked.
    classes: classes of `read_ssv2_classes`; a template without its brackets is a class name.

  Returns:
    the Listing; captions are the labels.

  Raises:
    UserError: an entry lacks a field, or its template is no class.
  """
  ids = {name: label for label, name in enumerate(classes.names)}
  videos = os.path.abspath(videos)
  examples = []
  for number, entry in enumerate(_json(path, list), start=1):
    where = f'{path}, entry {number}'
    if not isinstance(entry, dict) or not {'id', 'template'} <= entry.keys():
      raise UserError(
        f'{where}: id and template wanted, found {str(entry)[:80]}; the test list has no '
        'templates, use the validation list'
      )
    name = str(entry['template']).replace('[', '').replace(']', '')
    if name not in ids:
      raise UserError(f'{where}: template {name!r} is none of the {len(ids)} classes')
    video = os.path.join(videos, f'{entry["id"]}.webm')
    try:
      os.fsencode(video)
    except UnicodeEncodeError as error:          # JSON can hold letters that no name of a file can
      raise UserError(f'{where}: the id {entry["id"]!r} names no file ({error})') from error
    examples.append(Example(video, ids[name], entry.get('label', '')))
  if not examples:
    raise UserError(f'{path}: lists no videos')
  return Listing(examples, len(examples))


def _class_list(names: Sequence[str]) -> ClassList:
  return ClassList(tuple(names), (None,) * len(names))


def _listings(examples: dict[str, list[Example]]) -> dict[str, Listing]:
  return {name: Listing(split, len(split)) for name, split in examples.items()}


def _check_split(split: int) -> None:
  if split not in (1, 2, 3):
    raise UserError(f'there are official splits 1, 2 and 3, found {split}; set config.data.split')


def _lines(path: files.AnyPath) -> list[tuple[int, str]]:
  """Returns (line number, text) of the lines that are not empty."""
  numbered = enumerate((line.strip() for line in annotations.read_lines(path)), start=1)
  lines = [(number, line) for number, line in numbered if line]
  if not lines:
    raise UserError(f'{path}: is empty')
  return lines


def _entries(folder: str | os.PathLike) -> list[files.AnyPath]:
  try:
    with files.explain_errors(folder):
      return list(files.as_path(folder, 'folder').iterdir())
  except OSError as error:
    reason = error.strerror or 'No such file or directory'       # gcsfs gives no reason
    raise UserError(f'{folder}: cannot be read as a folder ({reason})') from error


def _videos_in(folder: str | os.PathLike) -> list[str]:
  _entries(folder)            # raises for a missing folder
  return folders.find_videos(os.path.abspath(folder)).videos


def _json(path: str | os.PathLike, kind: type) -> Any:
  text = ''.join(annotations.read_lines(path))
  try:
    content = json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(f'{path}, line {error.lineno}: not valid JSON ({error.msg})') from error
  if not isinstance(content, kind):
    expected = 'an object' if kind is dict else 'a list'
    raise UserError(f'{path}: must hold {expected}, found {str(content)[:80]}')
  return content
