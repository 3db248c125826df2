"""Videos of a built TFDS data set, read without TensorFlow.

Any will do that is stored as ArrayRecord and has a class label and the bytes of a video file;
tfds_videos.py makes such.
"""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.data.video import decode
from xclip_jax.errors import UserError

# What config.data.train and val are where nobody set them, and the splits that are read then.
_UNSET = {'train.csv': ('train',), 'val.csv': ('val', 'validation', 'test')}


class TfdsVideos:
  """A split of a data set, as grain wants it: `len` and `[row]`, cheap to send to workers.

  An element is `dict(path, label, index, video)`: path as the data set gives it, else made of its
  name and the row; video holds the bytes of a file. What cannot be read has, instead of video,
  error: the reason.

  Attributes:
    classes: the names of the class label, and what each is when played backwards if tfds_videos.py
      wrote it.
    fingerprint: identifies what the data set holds, wherever it lies on disk: sha256, hexadecimal.
  """

  is_single_label = True

  def __init__(self, root: str | os.PathLike, split: str):
    """Open a split.

    Args:
      root: folder of one version of a built data set, `.../<name>/[<config>/]1.0.0`.
      split: name of a split, or a part of one, such as `train[:50%]`.

    Raises:
      ValueError: no such data set or split, or one that is empty or is not stored as wanted.
    """
    self._root = os.path.abspath(root)
    builder = _open(self._root)
    if split in _UNSET:
      split = next((name for name in _UNSET[split] if name in builder.info.splits), split)
    try:
      found = builder.info.splits[split]
      self._len = int(found.num_examples)
    except (KeyError, ValueError, AssertionError) as error:
      raise UserError(
        f'{root}: has no split {split!r}; set config.data.train and val to some of '
        f'{", ".join(builder.info.splits)} or to parts of them such as train[:50%]'
      ) from error
    self._split = split
    if not self._len:
      raise UserError(f'{root}: split {split!r} is empty')
    features = builder.info.features
    self._label = _label_feature(root, features)
    self._has_path = 'path' in features and _is_text(features['path'])
    self._video = self._video_feature(builder, root)
    self._lock, self._records = threading.Lock(), self._read(builder, self._names())
    written = dict(builder.info.metadata or {})
    names = tuple(features[self._label].names)
    self.classes = ClassList(names, tuple(written.get('reverse') or (None,) * len(names)))
    info = builder.info
    self.fingerprint = hashlib.sha256(json.dumps([
      info.name, info.config_name, str(info.version), names, split, self._video, self._label,
      written.get('listed'), written.get('encoding'),
      [[x.name, x.shard_lengths, x.num_bytes] for x in info.splits.values()],
    ]).encode()).hexdigest()

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, row: int) -> dict:
    row = int(row)
    path = f'{self._root}/{self._split}/{row}'
    records, features = self._open_records()
    try:
      found = features.deserialize_example_np(records[row])
      if any(found[name] is None for name in features):
        raise UserError('it is empty')    # what ArrayRecord makes of a file that was cut off
    except Exception as error:     # of any kind: TFDS and ArrayRecord do not say which
      reason = ' '.join(str(error).split())[:100]
      return dict(path=path, label=0, index=row, error=f'the record is damaged ({reason})')
    if self._has_path:
      path = os.fsdecode(found['path'])
    label = int(found[self._label])
    if label < 0:
      return dict(path=path, label=0, index=row, error='the record has no class label')
    return dict(path=path, label=label, index=row, video=found[self._video])

  def __repr__(self) -> str:
    return f'TfdsVideos({self._root!r}, {self._split!r}, {len(self)} videos)'

  def __getstate__(self) -> dict:
    # Workers open files of their own, and have no use for names.
    kept = ('_root', '_split', '_len', '_label', '_video', '_has_path')
    return {name: self.__dict__[name] for name in kept}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state, _lock=threading.Lock(), _records=None)

  def _open_records(self) -> tuple:
    with self._lock:
      if self._records is None:
        self._records = self._read(_open(self._root), self._names())
    return self._records

  def _names(self) -> set[str]:
    return {self._label, self._video} | ({'path'} if self._has_path else set())

  def _read(self, builder: Any, names: set[str]) -> tuple:
    """Return records, as bytes, and what turns one into these features."""
    import tensorflow_datasets as tfds

    # Parsed here, because TFDS would decode every feature, pictures included.
    records = builder.as_data_source(
      self._split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return records, tfds.features.FeaturesDict({k: builder.info.features[k] for k in names})

  def _video_feature(self, builder: Any, root: str | os.PathLike) -> str:
    """Find the feature that holds a video by its type, its name, and then by looking into it."""
    features = builder.info.features
    texts = sorted(name for name, feature in features.items() if _is_text(feature))
    if 'video' in texts:
      return 'video'
    if len(texts) > 1:
      records, wanted = self._read(builder, set(texts))
      first = wanted.deserialize_example_np(records[0])
      texts = [name for name in texts if _is_video(first[name])]
    if len(texts) != 1:
      raise UserError(
        f'{root}: one feature wanted that holds the bytes of video files (tfds.features.Text), '
        f'found {", ".join(texts) or "none"} among {", ".join(sorted(features))}'
      )
    return texts[0]


def _open(root: str) -> Any:
  """Open what was built in a folder; ValueError if that is nothing that can be read here."""
  import tensorflow_datasets as tfds

  if not Path(root, 'dataset_info.json').is_file():
    below = sorted(Path(root).glob('**/dataset_info.json'))
    hint = f'; it may be {below[0].parent}' if below else ''
    raise UserError(
      f'config.data.root={root!r} is no built data set of TFDS (it has no dataset_info.json); name '
      f'the folder of its version, .../1.0.0{hint}'
    )
  try:
    builder = tfds.builder_from_directory(root)
    stored = builder.info.file_format.value
  except ImportError as error:
    raise UserError(
      f'{root}: has features that cannot be read without TensorFlow ({error}), such as '
      'tfds.features.Video; store the bytes of video files as tfds.features.Text'
    ) from error
  except Exception as error:       # damaged or foreign files; TFDS has no error of its own for them
    raise UserError(f'{root}: cannot be read as a data set of TFDS ({error})') from error
  if stored != 'array_record':
    raise UserError(
      f'{root}: is stored as {stored}, which cannot be read at random; build it with '
      "file_format='array_record'"
    )
  return builder


def _label_feature(root: str | os.PathLike, features: Any) -> str:
  import tensorflow_datasets as tfds

  found = sorted(
    name for name, feature in features.items()
    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
  )
  if 'label' in found:
    found = ['label']
  if len(found) != 1:
    raise UserError(
      f'{root}: one feature wanted that is a class label (tfds.features.ClassLabel), found '
      f'{", ".join(found) or "none"} among {", ".join(sorted(features))}'
    )
  return found[0]


def _is_text(feature: Any) -> bool:
  """Tell whether a feature is one string of bytes."""
  return feature.np_dtype == np.object_ and feature.shape == ()


def _is_video(content: bytes) -> bool:
  try:
    return decode.count_frames(content) > 0
  except decode.VideoError:
    return False
