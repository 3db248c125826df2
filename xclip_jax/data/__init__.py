"""Data sets on disk: what a run reads, and where it is found.

To add a kind of data set, write what yields its examples and name it in `open_splits`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.data.datasets import annotations, public_formats
from xclip_jax.errors import UserError

_NAMES = ('files', 'folder', 'kinetics', 'hmdb51', 'ucf101', 'ssv2', 'synthetic', 'tfds')


# Fields of config.data that name folders of videos, and lists, which may lie in a bucket.
_FOLDERS = ('root', 'videos', 'zero_shot_root')
_LISTS = ('train', 'val', 'classes', 'split_files', 'zero_shot', 'zero_shot_classes',
          'descriptions')


@dataclasses.dataclass(frozen=True)
class Split:
  """Videos and the classes they are told apart in; `listed` counts absent videos, too."""

  videos: annotations.VideoList
  classes: annotations.ClassList
  listed: int
  captions: Sequence[str] = ()     # of each video, where annotations can hold them
  name: str = ''                   # for messages: the list

  @property
  def rows(self) -> Any:
    """The videos as the pipeline reads them: label is 0 where a video has several, or none."""
    single = getattr(self.videos, 'is_single_label', True)
    return self.videos if single else annotations.Unlabelled(self.videos)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """Which classes each video shows, bool [R, K]."""
    found = np.zeros((len(self.videos), len(self.classes)), bool)
    for row in range(len(found)):
      found[row, list(np.atleast_1d(self.videos[row]['label']))] = True
    return found

  @functools.cached_property
  def file_numbers(self) -> np.ndarray:
    """A number for each row, int32 [R], the same for rows of the same file."""
    numbers: dict[str, int] = {}
    paths = (self.videos[row]['path'] for row in range(len(self.videos)))
    return np.array([numbers.setdefault(path, len(numbers)) for path in paths], np.int32)

  @property
  def count(self) -> str:
    """How many videos there are, of how many that the annotations list if some are missing."""
    present = len(self.videos)
    return str(present) if present == self.listed else f'{present} of {self.listed} present'


def check_places(data: Any) -> None:
  """Raises ValueError if a path of `config.data` cannot be used, before anything is read.

  Videos are read from local or mounted folders; lists may also be gs://bucket/....
  """
  given = {name: getattr(data, name, '') for name in _FOLDERS + _LISTS}  # `xclip data` has fewer
  for name, place in given.items():
    are_videos = name in _FOLDERS or (data.name in ('folder', 'tfds') and name in ('train', 'val'))
    files.check_scheme(place, f'config.data.{name}', bucket=not are_videos)
    if files.is_remote(place):
      files.as_path(place, f'config.data.{name}')      # needs gcsfs


def open_splits(data: Any, task: str = 'single-label') -> dict[str, Split]:
  """Opens the annotation files of `config.data`; renders the synthetic set on first use.

  Args:
    data: see config.py.
    task: what the lists say of a video: one class ('single-label'), one or several ('multi-label'),
      or a text ('captions', which have no classes).

  Returns:
    'train' and 'val' with the same classes; 'zero_shot', if there is one, with its own.

  Raises:
    ValueError: unknown name, a file that is missing or wrong (see data/source.py and formats.py),
      or a list that does not say what the task wants.
  """
  check_places(data)
  if data.name not in _NAMES:
    raise UserError(f'config.data.name={data.name!r} is unknown; one of {", ".join(_NAMES)}')
  if task != 'single-label' and data.name not in ('files', 'synthetic'):
    raise UserError(
      f'config.train.task={task!r} reads lists of its own: set config.data.name to files, found '
      f'{data.name!r}')
  if task == 'captions' and data.zero_shot:
    raise UserError(
      'config.data.zero_shot is a list of classes, and config.train.task is captions; leave it '
      'empty, and use `xclip eval zero-shot`')
  if data.name == 'synthetic':
    from xclip_jax.data.datasets import (
      synthetic,  # who only wants to read a video has no use for it
    )
    root = synthetic.prepare(data.root or None, **data.synthetic)
  else:
    root = Path(data.root)
    if not data.root or not root.is_dir():
      raise UserError(
        f'config.data.root={data.root!r} is not a folder; set it to the one that holds the videos '
        'and what says which class they show'
      )
  if data.name == 'tfds':
    from xclip_jax.data.datasets import tfds_source  # TFDS takes a second to import
    found = {k: tfds_source.TfdsVideos(root, getattr(data, k)) for k in ('train', 'val')}
    splits = {k: Split(videos, videos.classes, len(videos)) for k, videos in found.items()}
  else:
    splits = _read_lists(data, root, task)
  if data.zero_shot:
    other = Path(data.zero_shot_root) if data.zero_shot_root else root
    if not other.is_dir():
      raise UserError(f'config.data.zero_shot_root={data.zero_shot_root!r} is not a folder')
    classes = annotations.read_classes(
      files.join(other, data.zero_shot_classes, 'config.data.zero_shot_classes'))
    splits['zero_shot'] = _split(
      _read_list(other, data.zero_shot, classes, task), classes, other, data.zero_shot)
  return splits


def _read_lists(data: Any, root: Path, task: str) -> dict[str, Split]:
  videos = root / data.videos
  place = lambda field: files.join(root, getattr(data, field), f'config.data.{field}')
  if data.name == 'folder':
    classes, train = public_formats.read_folder(root / data.train)
    lists = {'train': train, 'val': public_formats.read_folder(root / data.val, classes)[1]}
  elif data.name == 'kinetics':
    classes, train = public_formats.read_kinetics(place('train'), videos)
    lists = {'train': train, 'val': public_formats.read_kinetics(place('val'), videos, classes)[1]}
  elif data.name == 'hmdb51':
    classes, lists = public_formats.read_hmdb51(place('split_files'), data.split, videos)
  elif data.name == 'ucf101':
    classes, lists = public_formats.read_ucf101(place('split_files'), data.split, videos)
  elif data.name == 'ssv2':
    classes = public_formats.read_ssv2_classes(place('classes'))
    lists = {
      k: public_formats.read_ssv2(place(k), videos, classes) for k in ('train', 'val')}
  elif task == 'captions':
    classes = annotations.ClassList((), ())
    lists = {}
    for k in ('train', 'val'):
      examples = annotations.read_captions(place(k), root)
      lists[k] = public_formats.Listing(examples, len(examples))
  else:
    classes = annotations.read_classes(place('classes'))
    lists = {k: _read_list(root, getattr(data, k), classes, task) for k in ('train', 'val')}
  return {name: _split(found, classes, root, getattr(data, name, name))
          for name, found in lists.items()}


def _split(found: public_formats.Listing, classes: annotations.ClassList, root: Path, name: str) -> Split:
  # What captions say is part of what is listed.
  listed = classes if classes.names else annotations.ClassList(
    tuple(example.caption for example in found.examples), ())
  videos = annotations.VideoList(found.examples, listed, root)
  captions = [example.caption for example in found.examples]
  return Split(videos, classes, found.listed, captions, str(files.join(root, name, 'list')))


def _read_list(root: Path, name: str, classes: annotations.ClassList, task: str) -> public_formats.Listing:
  path = files.join(root, name, 'list')
  columns, _ = annotations.read_rows(path, ('path',))
  if 'caption' in columns and 'label' not in columns:
    raise UserError(
      f'{path}: gives captions and no labels; set config.train.task to captions, or add a column '
      'label'
    )
  examples = annotations.read_annotations(path, root, classes)
  if isinstance(examples[0].label, tuple) and task != 'multi-label':
    raise UserError(
      f'{path}: gives a video several labels, separated by `;`; set config.train.task to '
      'multi-label, or keep one label in each row'
    )
  return public_formats.Listing(examples, len(examples))
