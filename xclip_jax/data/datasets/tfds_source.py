"""Videos of a built TFDS data set, read without TensorFlow.

Any data set that is stored as ArrayRecord and has a class label and the bytes of a video file can
be read; tools/tfds_videos.py builds such data sets.
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

# Default value of config.data.train or val -> splits that are read for it, the first that exists.
_UNSET = {'train.csv': ('train',), 'val.csv': ('val', 'validation', 'test')}


class TfdsVideos:
  """Indexes the videos of a split by row for the pipeline, cheap to send to workers.

  An element is `dict(path, label, index, video)`: path as the data set gives it, else made of its
  name and the row; video is the bytes of a file. An element that cannot be read has, instead of
  video, error: the reason.

  Fields:
    classes: names of the class label, and for each its reverse if tfds_videos.py wrote the set.
    fingerprint: SHA-256 of the facts about the data set, wherever it lies on disk, hexadecimal.
  """

  is_single_label = True

  def __init__(self, root: str | os.PathLike, split: str):
    """Opens a split.

    Args:
      root: folder of one version of a built data set, `.../<name>/[<config>/]1.0.0`.
      split: name of a split, or a part of one, such as `train[:50%]`.

    Raises:
      UserError: there is no such data set or split, it is empty, or it is not stored as ArrayRecord
        with a class label and videos.
    """
    self._root = os.path.abspath(root)
    builder = _open(self._root)
    if split in _UNSET:
      split = next((name for name in _UNSET[split] if name in builder.info.splits), split)
    try:
      self._len = int(builder.info.splits[split].num_examples)
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
      example = features.deserialize_example_np(records[row])
      if any(example[name] is None for name in features):
        raise UserError('it is empty')    # so ArrayRecord reads a file that was cut off
    except Exception as error:     # of any kind: TFDS and ArrayRecord do not document theirs
      reason = ' '.join(str(error).split())[:100]
      return dict(path=path, label=0, index=row, error=f'the record is damaged ({reason})')
    if self._has_path:
      path = os.fsdecode(example['path'])
    label = int(example[self._label])
    if label < 0:
      return dict(path=path, label=0, index=row, error='the record has no class label')
    return dict(path=path, label=label, index=row, video=example[self._video])

  def __repr__(self) -> str:
    return f'TfdsVideos({self._root!r}, {self._split!r}, {len(self)} videos)'

  def __getstate__(self) -> dict:
    # Workers open the files themselves, and need no class names.
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
    """Returns the records, as bytes, and a FeaturesDict that parses these features of a record."""
    import tensorflow_datasets as tfds

    # Parsed here, because TFDS would decode every feature, pictures included.
    records = builder.as_data_source(
      self._split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return records, tfds.features.FeaturesDict({k: builder.info.features[k] for k in names})

  def _video_feature(self, builder: Any, root: str | os.PathLike) -> str:
    """Returns the feature with the video, found by its type, its name, then its contents."""
    features = builder.info.features
    texts = sorted(name for name, feature in features.items() if _is_text(feature))
    if 'video' in texts:
      return 'video'
    if len(texts) > 1:
      records, parser = self._read(builder, set(texts))
      first = parser.deserialize_example_np(records[0])
      texts = [name for name in texts if _is_video(first[name])]
    if len(texts) != 1:
      raise UserError(
        f'{root}: one feature wanted that holds the bytes of video files (tfds.features.Text), '
        f'found {", ".join(texts) or "none"} among {", ".join(sorted(features))}'
      )
    return texts[0]


def _open(root: str) -> Any:
  """Opens the data set in a folder; UserError if it cannot be read without TensorFlow."""
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
    file_format = builder.info.file_format
    assert file_format is not None, 'TFDS gives every built data set a format'
    stored = file_format.value
  except ImportError as error:
    raise UserError(
      f'{root}: has features that cannot be read without TensorFlow ({error}), such as '
      'tfds.features.Video; store the bytes of video files as tfds.features.Text'
    ) from error
  except Exception as error:       # damaged or foreign files, for which TFDS has no error class
    raise UserError(f'{root}: cannot be read as a data set of TFDS ({error})') from error
  if stored != 'array_record':
    raise UserError(
      f'{root}: is stored as {stored}, which cannot be read at random; build it with '
      "file_format='array_record'"
    )
  return builder


def _label_feature(root: str | os.PathLike, features: Any) -> str:
  import tensorflow_datasets as tfds

  labels = sorted(
    name for name, feature in features.items()
    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
  )
  if 'label' in labels:
    labels = ['label']
  if len(labels) != 1:
    raise UserError(
      f'{root}: one feature wanted that is a class label (tfds.features.ClassLabel), found '
      f'{", ".join(labels) or "none"} among {", ".join(sorted(features))}'
    )
  return labels[0]


def _is_text(feature: Any) -> bool:
  """Returns whether a feature is one string of bytes."""
  return feature.np_dtype == np.object_ and feature.shape == ()


def _is_video(content: bytes) -> bool:
  try:
    return decode.count_frames(content) > 0
  except decode.VideoError:
    return False
