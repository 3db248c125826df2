"""Builder of a TFDS data set of videos encoded anew, here or with Beam on a cluster.

Each record holds one video. tfds_build.py is the command; with TensorFlow installed, the command of
TFDS does the same:

  tfds build xclip_videos --imports xclip_jax.data.tools.tfds_videos --data_dir /data/tfds \\
    --config '{"name": "k400", "dataset": "kinetics", "root": "/data/k400", "videos": "videos"}'
"""

import dataclasses
import json
import os
import types
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from av.error import FFmpegError
from etils import epath

from xclip_jax import data, files
from xclip_jax.data import bad_files
from xclip_jax.data.video import encode
from xclip_jax.errors import UserError

# Errors of a file, its storage or an absurd picture size; every other error is a fault of ours.
_UNREADABLE = (ValueError, OSError, MemoryError, FFmpegError, cv2.error)

_DESCRIPTION = 'Videos with one class each, encoded for reading a few frames of them fast.'


@dataclasses.dataclass(eq=False, kw_only=True)
class VideosConfig(tfds.core.BuilderConfig):
  """Names the data set to store, and says how its videos are stored.

  Fields:
    dataset: kind of data set, the config.data.name of a run; the fields from root to split_files
      are those of config.data.
    format: 'h264' or 'jpeg'; this field and those after it are those of `encode.Encoding`.
  """

  dataset: str = 'files'
  root: str = ''
  train: str = 'train.csv'
  val: str = 'val.csv'
  classes: str = 'classes.csv'
  videos: str = ''
  split: int = 1
  split_files: str = ''
  format: str = encode.Encoding.format
  short_side: int = encode.Encoding.short_side
  crf: int = encode.Encoding.crf
  gop: int = encode.Encoding.gop
  quality: int = encode.Encoding.quality
  fps: float = encode.Encoding.fps

  def encoding(self) -> encode.Encoding:
    """Returns the encoding that the last six fields describe; UserError if one is out of range."""
    names = [field.name for field in dataclasses.fields(encode.Encoding)]
    return encode.Encoding(**{name: getattr(self, name) for name in names})

  def open_splits(self) -> dict[str, data.Split]:
    """Opens the splits of the data set to store; raises UserError like `data.open_splits`."""
    if self.dataset == 'tfds':
      raise UserError('a data set of TFDS is stored as records already; name the data set that it '
                      'was made of')
    return data.open_splits(types.SimpleNamespace(
      name=self.dataset, root=self.root, train=self.train, val=self.val, classes=self.classes,
      videos=self.videos, split=self.split, split_files=self.split_files, synthetic={},
      zero_shot='', zero_shot_classes='',
    ))


class XclipVideos(tfds.core.GeneratorBasedBuilder):
  """Builds the splits train and val of a data set that config.data describes.

  Beam builds them if the download config has Beam's options or runner, else this process does. Both
  write the same records; their order can differ. Videos that cannot be read are left out and named
  in unreadable_<split>.txt beside the records.
  """

  VERSION = tfds.core.Version('1.0.0')
  # Without this TFDS looks for checksums of downloads beside the code; to find the code, it imports
  # importlib_resources, which it does not install.
  code_path = None
  # TFDS accepts a config of the user only if the builder has a config of its own.
  BUILDER_CONFIGS = [VideosConfig(name='unset', description='names no data set: give a config')]  # noqa: RUF012

  def __init__(self, *, file_format: str | None = None, **kwargs: Any):
    self._beam = False
    self._opened = None
    super().__init__(file_format=file_format or 'array_record', **kwargs)

  def download_and_prepare(self, *, download_config: Any = None, **kwargs: Any) -> None:
    """Builds the data set, unless it exists; arguments are those of TFDS.

    Raises:
      UserError: no video of a split can be read, or the existing data set was built otherwise.
    """
    download_config = download_config or tfds.download.DownloadConfig()
    self._beam = bool(download_config.beam_options or download_config.beam_runner)
    metadata = self.data_path / 'metadata.json'
    if metadata.exists() and not download_config.download_mode.overwrite_dataset:
      if json.loads(metadata.read_text()) != json.loads(json.dumps(self._metadata())):
        raise UserError(
          f'{self.data_path} holds other videos, or stored otherwise, than those of this config; '
          'give it another name, or overwrite what is there'
        )
    super().download_and_prepare(download_config=download_config, **kwargs)
    for split in self.info.splits:
      (self.data_path / _listing(split)).unlink(missing_ok=True)
    for split, lines in self.unreadable().items():
      logging.warning('%d videos of %s cannot be read and were left out: %s', len(lines), split,
                      self.data_path / _report(split))

  def unreadable(self) -> dict[str, list[str]]:
    """Returns `path: reason` of the videos that were left out, for each split with such videos."""
    reports = {split: self.data_path / _report(split) for split in self.info.splits}
    return {k: file.read_text().splitlines() for k, file in reports.items() if file.exists()}

  def source_splits(self) -> dict[str, data.Split]:
    """Returns the splits to store; raises UserError like `data.open_splits`."""
    if self._opened is None:
      self._opened = self._config().open_splits()
    return self._opened

  def _config(self) -> VideosConfig:
    assert isinstance(self.builder_config, VideosConfig)
    return self.builder_config

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=features.FeaturesDict({
        'video': features.Text(doc='bytes of a video file'),   # features.Video needs TensorFlow
        'path': features.Text(doc='path below the root of the data set, as it is listed'),
        'label': features.ClassLabel(names=self.source_splits()['train'].classes.names),
        'caption': features.Text(doc='empty if the annotations have none'),
        'num_frames': features.Scalar(np.int32),
        'height': features.Scalar(np.int32),
        'width': features.Scalar(np.int32),
        'psnr': features.Scalar(np.float32, doc='quality of stored frames, dB; inf if lossless'),
      }),
      metadata=tfds.core.MetadataDict(self._metadata()),
    )

  def _metadata(self) -> dict[str, Any]:
    return dict(
      encoding=dataclasses.asdict(self._config().encoding()),
      reverse=self.source_splits()['train'].classes.reverse,
      listed={name: split.videos.fingerprint for name, split in self.source_splits().items()},
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    root = os.path.abspath(self._config().root)
    return {
      name: self._generate_examples(list(_rows(split, root)), name)
      for name, split in self.source_splits().items()
    }

  def _generate_examples(self, rows: list['_Row'], name: str) -> Any:
    build = _with_beam if self._beam else _in_process
    return build(rows, self._config().encoding(), self.data_path, name)


@dataclasses.dataclass(frozen=True)
class _Row:
  """Describes a video to store: key of its record, file, path as listed, class id, caption."""

  key: str
  file: str
  path: str
  label: int
  caption: str


def _rows(split: data.Split, root: str) -> Iterator[_Row]:
  seen = {}
  for number in range(len(split.videos)):
    video = split.videos[number]
    path = video['path'].removeprefix(os.path.join(root, ''))
    # A list may name a video twice, but keys are unique; the zero byte cannot be part of a path.
    repeat = seen[path] = seen.get(path, -1) + 1
    key = f'{path}\0{repeat}' if repeat else path
    yield _Row(key, video['path'], path, video['label'], split.captions[number])


def _encoded(row: _Row, encoding: encode.Encoding) -> tuple[dict | None, str]:
  """Encodes a video; returns (example, '') or (None, 'path: reason')."""
  try:
    stored = encode.encode(row.file, encoding)
  except _UNREADABLE as error:
    reason = ' '.join(str(error).removeprefix(f'{row.file}: ').split())
    return None, bad_files.escape_undecodable(f'{row.path}: {reason}')
  return dict(
    video=stored.content, path=os.fsencode(row.path), label=row.label, caption=row.caption,
    num_frames=stored.num_frames, height=stored.height, width=stored.width, psnr=stored.psnr,
  ), ''


def _in_process(
  rows: Sequence[_Row], encoding: encode.Encoding, folder: epath.Path, split: str,
) -> Iterator[tuple[bytes, dict]]:
  reasons = []
  for row in rows:
    example, reason = _encoded(row, encoding)
    if example:
      yield os.fsencode(row.key), example
    else:
      reasons.append(reason)
  _write_report(reasons, len(rows), folder, split)


def _with_beam(
  rows: Sequence[_Row], encoding: encode.Encoding, folder: epath.Path, split: str,
) -> Any:
  """Returns a PTransform that yields (key, example), and encodes on Beam's workers."""
  import apache_beam as beam

  # The rows are in a file: cloud runners limit the graph of the job to some megabytes.
  listing = folder / _listing(split)
  files.write_text(listing, json.dumps([dataclasses.astuple(row) for row in rows]))

  @beam.ptransform_fn
  def build(pipeline):
    encoded = (
      pipeline
      | beam.Create([os.fspath(listing)])
      | 'Rows' >> beam.FlatMap(_read_rows)
      | beam.Reshuffle()                     # else one worker would encode all rows
      | 'Encode' >> beam.FlatMap(_outputs, encoding).with_outputs('unreadable', main='examples')
    )
    _ = (
      encoded.unreadable
      | 'List' >> beam.combiners.ToList()
      | 'Report' >> beam.Map(_write_report, len(rows), folder, split)
    )
    return encoded.examples

  return build()  # pyright: ignore[reportCallIssue]  (the decorator gives it the pipeline)


def _read_rows(listing: str) -> list[_Row]:
  return [_Row(*fields) for fields in json.loads(epath.Path(listing).read_text())]


def _outputs(row: _Row, encoding: encode.Encoding) -> Iterator[Any]:
  import apache_beam as beam

  example, reason = _encoded(row, encoding)
  name = 'stored' if example else 'unreadable'
  beam.metrics.Metrics.counter('xclip_videos', name).inc()
  yield (os.fsencode(row.key), example) if example else beam.TaggedOutput('unreadable', reason)


def _listing(split: str) -> str:
  return f'rows_{split}.json'


def _report(split: str) -> str:
  return f'unreadable_{split}.txt'


def _write_report(reasons: Sequence[str], listed: int, folder: epath.Path, split: str) -> None:
  if len(reasons) == listed:
    raise UserError(f'not one of the {listed} videos of {split} can be read; the first: '
                     f'{min(reasons)}')
  if reasons:
    files.write_text(folder / _report(split), '\n'.join(sorted(reasons)) + '\n')
