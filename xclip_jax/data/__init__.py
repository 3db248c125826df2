"""Data sets on disk: what a run reads, and where it is found.

To add a kind of data set, write what yields its examples and name it in `open_splits`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from xclip_jax.data import source


@dataclasses.dataclass(frozen=True)
class Split:
  """Videos and the classes they are told apart in."""

  videos: source.VideoList
  classes: source.ClassList


def open_splits(data: Any) -> dict[str, Split]:
  """Opens the annotation files of `config.data`; renders the synthetic set on first use.

  Returns:
    'train' and 'val' with the same classes; 'zero_shot', if there is one, with its own.

  Raises:
    ValueError: unknown name, or a file that is missing or wrong; see data/source.py.
  """
  if data.name == 'synthetic':
    from xclip_jax.data import synthetic  # who only wants to read a video has no use for it
    root = synthetic.prepare(data.root or None, **data.synthetic)
  elif data.name == 'files':
    root = Path(data.root)
    if not data.root or not root.is_dir():
      raise ValueError(
        f'config.data.root={data.root!r} is not a folder; set it to the one that holds '
        f'{data.train}, {data.val} and {data.classes}'
      )
  else:
    raise ValueError(f'config.data.name={data.name!r} is unknown; one of files, synthetic')
  classes = source.read_classes(root / data.classes)
  splits = {name: _open(root, data[name], classes) for name in ('train', 'val')}
  if data.zero_shot:
    classes = source.read_classes(root / data.zero_shot_classes)
    splits['zero_shot'] = _open(root, data.zero_shot, classes)
  return splits


def _open(root: Path, name: str, classes: source.ClassList) -> Split:
  examples = source.read_annotations(root / name, root, classes)
  return Split(source.VideoList(examples, classes, root), classes)
