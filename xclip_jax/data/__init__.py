"""Data sets on disk: what a run reads, and where it is found.

To add a kind of data set, write what yields its examples and name it in `open_splits`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xclip_jax.data import formats, source

_NAMES = ('files', 'folder', 'kinetics', 'hmdb51', 'ucf101', 'ssv2', 'synthetic', 'tfds')


@dataclasses.dataclass(frozen=True)
class Split:
  """Videos and the classes they are told apart in; `listed` counts absent videos, too."""

  videos: source.VideoList
  classes: source.ClassList
  listed: int
  captions: Sequence[str] = ()     # of each video, where annotations can hold them

  @property
  def count(self) -> str:
    """How many videos there are, of how many that the annotations list if some are missing."""
    present = len(self.videos)
    return str(present) if present == self.listed else f'{present} of {self.listed} present'


def open_splits(data: Any) -> dict[str, Split]:
  """Opens the annotation files of `config.data`; renders the synthetic set on first use.

  Returns:
    'train' and 'val' with the same classes; 'zero_shot', if there is one, with its own.

  Raises:
    ValueError: unknown name, a file that is missing or wrong (see data/source.py and formats.py),
      or a list that does not give each video one class.
  """
  if data.name not in _NAMES:
    raise ValueError(f'config.data.name={data.name!r} is unknown; one of {", ".join(_NAMES)}')
  if data.name == 'synthetic':
    from xclip_jax.data import synthetic  # who only wants to read a video has no use for it
    root = synthetic.prepare(data.root or None, **data.synthetic)
  else:
    root = Path(data.root)
    if not data.root or not root.is_dir():
      raise ValueError(
        f'config.data.root={data.root!r} is not a folder; set it to the one that holds the videos '
        'and what says which class they show'
      )
  if data.name == 'tfds':
    from xclip_jax.data import tfds_source  # TFDS takes a second to import
    found = {k: tfds_source.TfdsVideos(root, getattr(data, k)) for k in ('train', 'val')}
    splits = {k: Split(videos, videos.classes, len(videos)) for k, videos in found.items()}
  else:
    splits = _read_lists(data, root)
  if data.zero_shot:
    classes = source.read_classes(root / data.zero_shot_classes)
    splits['zero_shot'] = _split(_read_list(root, data.zero_shot, classes), classes, root)
  return splits


def _read_lists(data: Any, root: Path) -> dict[str, Split]:
  videos, official = root / data.videos, root / data.split_files
  if data.name == 'folder':
    classes, train = formats.read_folder(root / data.train)
    lists = {'train': train, 'val': formats.read_folder(root / data.val, classes)[1]}
  elif data.name == 'kinetics':
    classes, train = formats.read_kinetics(root / data.train, videos)
    lists = {'train': train, 'val': formats.read_kinetics(root / data.val, videos, classes)[1]}
  elif data.name == 'hmdb51':
    classes, lists = formats.read_hmdb51(official, data.split, videos)
  elif data.name == 'ucf101':
    classes, lists = formats.read_ucf101(official, data.split, videos)
  elif data.name == 'ssv2':
    classes = formats.read_ssv2_classes(root / data.classes)
    lists = {
      k: formats.read_ssv2(root / getattr(data, k), videos, classes) for k in ('train', 'val')}
  else:
    classes = source.read_classes(root / data.classes)
    lists = {k: _read_list(root, getattr(data, k), classes) for k in ('train', 'val')}
  return {name: _split(found, classes, root) for name, found in lists.items()}


def _split(found: formats.Listing, classes: source.ClassList, root: Path) -> Split:
  videos = source.VideoList(found.examples, classes, root)
  return Split(videos, classes, found.listed, [example.caption for example in found.examples])


def _read_list(root: Path, name: str, classes: source.ClassList) -> formats.Listing:
  path = root / name
  columns, _ = source.read_rows(path, ('path',))
  if 'caption' in columns and 'label' not in columns:
    raise ValueError(
      f'{path}: gives captions and no labels; a run learns from classes so far, so add a column '
      'label (source.read_captions reads such a list)'
    )
  examples = source.read_annotations(path, root, classes)
  if isinstance(examples[0].label, tuple):
    raise ValueError(
      f'{path}: gives a video several labels, separated by `;`; a run learns from and is evaluated '
      'on one label a video so far, so keep one in each row'
    )
  return formats.Listing(examples, len(examples))
