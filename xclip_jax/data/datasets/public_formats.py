"""Annotations as public data sets publish them, and folders, read into examples.

A function for each; all return what the lists of data/source.py give. Class ids follow the official
order where there is one, else the names in order of their characters.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.data.datasets import annotations
from xclip_jax.data.datasets.annotations import ClassList, Example
from xclip_jax.errors import UserError

SUFFIXES = (  # of videos
  '.3gp', '.asf', '.avi', '.flv', '.m2ts', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts',
  '.mxf', '.ogv', '.ts', '.vob', '.webm', '.wmv',
)


@dataclasses.dataclass(frozen=True)
class Listing:
  """The videos of one split that can be used, of so many that its annotations list."""

  examples: list[Example]
  listed: int


def read_folder(folder: str | os.PathLike, classes: ClassList | None = None) -> tuple:
  """Read a folder with one subfolder for each class, whose names are the class names.

  Args:
    folder: videos are found at any depth of a subfolder, by their suffix; hidden files are not.
    classes: those of training, to read another split; None: the subfolders, in order.

  Returns:
    the classes and the Listing, ordered by class and path.

  Raises:
    ValueError: no such folder, no subfolders, one that holds no video or is none of `classes`.
  """
  folder = Path(os.path.abspath(folder))
  names = sorted(x.name for x in _entries(folder) if x.is_dir() and x.name[0] != '.')
  for name in names:
    if not annotations.is_text(name):
      raise UserError(f'{folder}: the name of subfolder {os.fsencode(name)!r} is not UTF-8 text; '
                      'rename it, as it is the name of a class')
  if not names:
    raise UserError(f'{folder}: has no subfolders; put the videos of each class into one')
  unknown = sorted(set(names) - set(classes.names)) if classes else []
  if unknown:
    raise UserError(
      f'{folder}: subfolder {unknown[0]!r} is none of the {len(classes)} classes of the training '
      'folder; rename it, or add that class there'
    )
  classes = classes or _class_list(names)
  examples = []
  for label, name in enumerate(classes.names):
    paths = _videos_in(folder / name) if name in names else []
    if name in names and not paths:
      raise UserError(f'{folder / name}: holds no video ({" ".join(SUFFIXES)})')
    examples += [Example(path, label) for path in paths]
  return classes, Listing(examples, len(examples))


def read_kinetics(
  path: str | os.PathLike, videos: str | os.PathLike, classes: ClassList | None = None
) -> tuple:
  """Read an official list of Kinetics-400, -600 or -700.

  Args:
    path: CSV with at least label, youtube_id, time_start, time_end (seconds).
    videos: folder that is searched, at any depth, for `<youtube_id>_<start>_<end>` with six digits
      each, or else `<youtube_id>`, and a suffix of a video. Of several, one in a folder with the
      name of the class is taken, else the first by path.
    classes: those of training; None: the labels of this list, in order.

  Returns:
    the classes and the Listing. Videos that are not there are left out: many are gone from the web.

  Raises:
    ValueError: a row is malformed, its label is none of `classes`, or not one video is there.
  """
  columns = ('label', 'youtube_id', 'time_start', 'time_end')
  _, rows = annotations.read_rows(path, columns)
  classes = classes or _class_list(sorted({row['label'] for _, row in rows}))
  ids = {name: label for label, name in enumerate(classes.names)}
  there = {}
  for file in _videos_in(videos):
    there.setdefault(Path(file).stem, []).append(file)
  examples = []
  for line, row in rows:
    where, label = f'{path}, line {line}', row['label']
    if label not in ids:
      raise UserError(f'{where}: label {label!r} is none of the {len(ids)} classes of training')
    try:
      times = [int(float(row[name])) for name in ('time_start', 'time_end')]
    except ValueError as error:
      raise UserError(f'{where}: time_start and time_end must be seconds ({error})') from error
    name = row['youtube_id']
    found = there.get(f'{name}_{times[0]:06d}_{times[1]:06d}') or there.get(name)
    if found:
      own = [file for file in found if Path(file).parent.name in (label, label.replace(' ', '_'))]
      examples.append(Example((own or found)[0], ids[label]))
  if not examples:
    raise UserError(
      f'{path}: 0 of {len(rows)} videos are present; {videos} holds no file such as '
      f'{name}_{times[0]:06d}_{times[1]:06d}.mp4 or {name}.mp4'
    )
  return classes, Listing(examples, len(rows))


def read_hmdb51(
  folder: str | os.PathLike, split: int, videos: str | os.PathLike
) -> tuple[ClassList, dict[str, Listing]]:
  """Read an official split of HMDB51, files `<class>_test_split<split>.txt`.

  Args:
    folder: of these files; a line is a name, then 1 (training), 2 (test) or 0 (neither).
    split: 1, 2 or 3.
    videos: `<class>/<name>` below it are the videos. Whether they exist is not checked.

  Returns:
    the classes, underscores turned into blanks, and Listings 'train' and 'val'.

  Raises:
    ValueError: no such files, or a malformed line.
  """
  _check_split(split)
  end = f'_test_split{split}.txt'
  files = {x.name.removesuffix(end): x for x in _entries(folder) if x.name.endswith(end)}
  if not files:
    raise UserError(f'{folder}: holds no files <class>{end}, the official splits of HMDB51')
  names = sorted(files)
  examples = {'train': [], 'val': []}
  for label, name in enumerate(names):
    for line, text in _lines(files[name]):
      video, _, use = text.rpartition(' ')
      if use not in ('0', '1', '2') or not video.strip():
        raise UserError(f'{files[name]}, line {line}: `name 0|1|2` wanted, found {text!r}')
      if use != '0':
        path = os.path.join(os.path.abspath(videos), name, video.strip())
        examples[('train', 'val')[int(use) - 1]].append(Example(path, label))
  return _class_list([name.replace('_', ' ') for name in names]), _listings(examples)


def read_ucf101(
  folder: str | os.PathLike, split: int, videos: str | os.PathLike
) -> tuple[ClassList, dict[str, Listing]]:
  """Read an official split of UCF101: `classInd.txt`, `trainlist0<n>.txt`, `testlist0<n>.txt`.

  Args:
    folder: of these files.
    split: n; 1, 2 or 3.
    videos: folder that the paths in the lists start from. Whether they exist is not checked.

  Returns:
    the classes, `ApplyLipstick` as `Apply Lipstick`, and Listings 'train' and 'val'.

  Raises:
    ValueError: no such file, a malformed line, or one that contradicts the classes.
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
      # Lists of training end in the id, from 1; lists of testing leave the class to the folder.
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
  """Read `labels.json` of Something-Something v2, templates to ids; ValueError if it is none."""
  labels = _json(path, dict)
  try:
    ids = {int(label): name for name, label in labels.items()}
  except (TypeError, ValueError) as error:
    raise UserError(f'{path}: {{"template": "id"}} wanted ({error})') from error
  if sorted(ids) != list(range(len(labels))) or not labels:
    raise UserError(f'{path}: ids must be 0..{len(labels) - 1}, each once')
  return _class_list([ids[i] for i in range(len(ids))])


def read_ssv2(
  path: str | os.PathLike, videos: str | os.PathLike, classes: ClassList
) -> Listing:
  """Read the training or validation list of Something-Something v2.

  Args:
    path: JSON, a list of {"id", "template", and what it was filled in to: "label"}.
    videos: folder of `<id>.webm`. Whether they exist is not checked.
    classes: of `read_ssv2_classes`; a template names one when its brackets are removed.

  Returns:
    the Listing; captions are the labels.

  Raises:
    ValueError: an entry lacks a field, or its template is no class.
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
    name = entry['template'].replace('[', '').replace(']', '')
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
  return {name: Listing(some, len(some)) for name, some in examples.items()}


def _check_split(split: int) -> None:
  if split not in (1, 2, 3):
    raise UserError(f'there are official splits 1, 2 and 3, found {split}; set config.data.split')


def _lines(path: Path) -> list[tuple[int, str]]:
  lines = enumerate((line.strip() for line in annotations.read_lines(path)), start=1)
  found = [(number, line) for number, line in lines if line]
  if not found:
    raise UserError(f'{path}: is empty')
  return found


def _entries(folder: str | os.PathLike) -> list[Path]:
  try:
    with files.explain_errors(folder):
      return list(files.as_path(folder, 'folder').iterdir())
  except OSError as error:
    reason = error.strerror or 'No such file or directory'       # gcsfs gives the name alone
    raise UserError(f'{folder}: cannot be read as a folder ({reason})') from error


def _videos_in(folder: str | os.PathLike) -> list[str]:
  _entries(folder)            # os.walk is silent about a folder that is not there
  return sorted(
    os.path.join(place, name)
    for place, _, names in os.walk(os.path.abspath(folder), followlinks=True) for name in names
    if name.lower().endswith(SUFFIXES) and name[0] != '.'
  )


def _json(path: str | os.PathLike, kind: type) -> Any:
  text = ''.join(annotations.read_lines(path))
  try:
    content = json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(f'{path}, line {error.lineno}: not valid JSON ({error.msg})') from error
  if not isinstance(content, kind):
    wanted = 'an object' if kind is dict else 'a list'
    raise UserError(f'{path}: must hold {wanted}, found {str(content)[:80]}')
  return content
