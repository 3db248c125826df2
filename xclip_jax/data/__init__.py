"""Which videos does a run read? Splits with their classes, opened from any kind of data set.

To add a kind of data set, write a function that reads its examples and call it in `_read_lists`.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xclip_jax import files
from xclip_jax.data import bad_files
from xclip_jax.data.datasets import annotations, folders, public_formats
from xclip_jax.errors import UserError

if TYPE_CHECKING:
  from xclip_jax.data.datasets.tfds_source import TfdsVideos

_log = logging.getLogger(__name__)

_NAMES = ('files', 'folder', 'kinetics', 'hmdb51', 'ucf101', 'ssv2', 'synthetic', 'tfds')

# Fields of config.data: folders of videos, which are local, and lists, which may lie in a bucket.
_FOLDERS = ('root', 'videos', 'zero_shot_root')
_LISTS = ('train', 'val', 'classes', 'split_files', 'zero_shot', 'zero_shot_classes',
          'descriptions')


@dataclasses.dataclass(frozen=True)
class Split:
  """Holds the videos of one split and their classes.

  Fields:
    videos: the videos that are present.
    classes: the classes that labels are ids of; none for captions.
    listed: number of videos in the annotations, absent ones included.
    captions: caption of each video, if the annotations have captions.
    name: path of the list, for messages.
  """

  videos: 'annotations.VideoList | TfdsVideos'
  classes: annotations.ClassList
  listed: int
  captions: Sequence[str] = ()
  name: str = ''

  @property
  def rows(self) -> Any:
    """Returns the videos for the pipeline; labels are 0 in multi-label and caption lists."""
    if isinstance(self.videos, annotations.VideoList) and not self.videos.is_single_label:
      return annotations.Unlabelled(self.videos)
    return self.videos

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """Returns which classes each of R videos shows, bool [R, K]."""
    labels = np.zeros((len(self.videos), len(self.classes)), bool)
    for row in range(len(labels)):
      labels[row, list(np.atleast_1d(self.videos[row]['label']))] = True
    return labels

  @functools.cached_property
  def file_numbers(self) -> np.ndarray:
    """Returns a number for each row, int32 [R], equal for rows of the same file."""
    numbers: dict[str, int] = {}
    paths = (self.videos[row]['path'] for row in range(len(self.videos)))
    return np.array([numbers.setdefault(path, len(numbers)) for path in paths], np.int32)

  @property
  def count(self) -> str:
    """Returns the number of present videos as text, '3 of 4 present' if some are absent."""
    present = len(self.videos)
    return str(present) if present == self.listed else f'{present} of {self.listed} present'


def check_places(data: Any) -> None:
  """Raises UserError if a path of `config.data` cannot be used, before anything is read.

  Videos are read from local or mounted folders; lists may also be gs://bucket/....
  """
  given = {name: getattr(data, name, '') for name in _FOLDERS + _LISTS}  # `xclip data` has fewer
  for name, path in given.items():
    are_videos = name in _FOLDERS or (data.name in ('folder', 'tfds') and name in ('train', 'val'))
    files.check_scheme(path, f'config.data.{name}', bucket=not are_videos)
    if files.is_remote(path):
      files.as_path(path, f'config.data.{name}')      # fails without gcsfs


def open_splits(data: Any, task: str = 'single-label') -> dict[str, Split]:
  """Opens the annotation files of `config.data`; renders the synthetic set on first use.

  Args:
    data: `config.data`; see config.py.
    task: targets in the lists: one class per video ('single-label'), one or several classes
      ('multi-label'), or a text ('captions', which have no classes).

  Returns:
    'train' and 'val' with the same classes; 'zero_shot', if the config has one, with its own.

  Raises:
    UserError: unknown name, a missing or malformed file (see annotations.py, public_formats.py), or
      a list whose targets are not those of the task.
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
    from xclip_jax.data.datasets import synthetic  # imported here: only this kind needs it

    root = synthetic.prepare_settings(data.root or None, data.synthetic)
  else:
    root = Path(data.root)
    if not data.root or not root.is_dir():
      raise UserError(
        f'config.data.root={data.root!r} is not a folder; set it to the one that holds the videos '
        'and what says which class they show'
      )
  if data.name == 'tfds':
    from xclip_jax.data.datasets import tfds_source  # TFDS takes a second to import

    opened = {k: tfds_source.TfdsVideos(root, getattr(data, k)) for k in ('train', 'val')}
    splits = {k: Split(videos, videos.classes, len(videos)) for k, videos in opened.items()}
  else:
    splits = _read_lists(data, root, task)
  if data.zero_shot:
    zero_shot_root = Path(data.zero_shot_root) if data.zero_shot_root else root
    if not zero_shot_root.is_dir():
      raise UserError(
        f'config.data.zero_shot_root={data.zero_shot_root!r} is not a folder; set it to the '
        'one that the paths in config.data.zero_shot start from')
    classes = annotations.read_classes(
      files.join(zero_shot_root, data.zero_shot_classes, 'config.data.zero_shot_classes'))
    listing = _read_list(zero_shot_root, data.zero_shot, classes, task)
    splits['zero_shot'] = _make_split(listing, classes, zero_shot_root, data.zero_shot)
  return splits


def _read_lists(data: Any, root: Path, task: str) -> dict[str, Split]:
  videos = root / data.videos
  path_of = lambda field: files.join(root, getattr(data, field), f'config.data.{field}')
  if data.name == 'folder':
    classes, train = public_formats.read_folder(root / data.train)
    lists = {'train': train, 'val': public_formats.read_folder(root / data.val, classes)[1]}
    unnamed = dict.fromkeys(path for listing in lists.values() for path in listing.left_out)
    if unnamed:
      _log.warning('%s', bad_files.escape_undecodable(folders.describe_left_out(unnamed)))
  elif data.name == 'kinetics':
    classes, train = public_formats.read_kinetics(path_of('train'), videos)
    _, val = public_formats.read_kinetics(path_of('val'), videos, classes)
    lists = {'train': train, 'val': val}
  elif data.name == 'hmdb51':
    classes, lists = public_formats.read_hmdb51(path_of('split_files'), data.split, videos)
  elif data.name == 'ucf101':
    classes, lists = public_formats.read_ucf101(path_of('split_files'), data.split, videos)
  elif data.name == 'ssv2':
    classes = public_formats.read_ssv2_classes(path_of('classes'))
    lists = {
      k: public_formats.read_ssv2(path_of(k), videos, classes) for k in ('train', 'val')}
  elif task == 'captions':
    classes = annotations.ClassList((), ())
    lists = {}
    for k in ('train', 'val'):
      examples = annotations.read_captions(path_of(k), root)
      lists[k] = public_formats.Listing(examples, len(examples))
  else:
    classes = annotations.read_classes(path_of('classes'))
    lists = {k: _read_list(root, getattr(data, k), classes, task) for k in ('train', 'val')}
  return {name: _make_split(listing, classes, root, getattr(data, name, name))
          for name, listing in lists.items()}


def _make_split(
  listing: public_formats.Listing, classes: annotations.ClassList, root: Path, name: str
) -> Split:
  # Captions take the place of class names, so that the fingerprint of the videos depends on them.
  listed = classes if classes.names else annotations.ClassList(
    tuple(example.caption for example in listing.examples), ())
  videos = annotations.VideoList(listing.examples, listed, root)
  captions = [example.caption for example in listing.examples]
  return Split(videos, classes, listing.listed, captions, str(files.join(root, name, 'list')))


def _read_list(
  root: Path, name: str, classes: annotations.ClassList, task: str
) -> public_formats.Listing:
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
