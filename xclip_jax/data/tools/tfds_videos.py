"""A TFDS data set of videos encoded anew, one record a video, built here or by Beam on a cluster.

tfds_build.py is its command. With TensorFlow installed TFDS's own does the same:

  tfds build xclip_videos --imports xclip_jax.data.tools.tfds_videos --data_dir /data/tfds \\
    --config '{"name": "k400", "dataset": "kinetics", "root": "/data/k400", "videos": "videos"}'
"""

import dataclasses
import json
import os
import types
from collections.abc import Iterator, Sequence
from typing import Any

import av
import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from xclip_jax import data
from xclip_jax.data import bad_files
from xclip_jax.data.video import encode
from xclip_jax.errors import UserError

# What a file, its storage or an absurd picture size can cause; everything else is a fault of ours.
_UNREADABLE = (ValueError, OSError, MemoryError, av.FFmpegError, cv2.error)

_DESCRIPTION = 'Videos with one class each, encoded for reading a few frames of them fast.'


@dataclasses.dataclass(eq=False, kw_only=True)
class VideosConfig(tfds.core.BuilderConfig):
  """What to prepare, and how it is stored.

  Attributes:
    dataset: its kind, config.data.name of a run; root to split_files are the fields of
      config.data with these names.
    format: 'h264' or 'jpeg'; this and the fields after it are those of `encode.Encoding`.
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
    """Return the last six fields; ValueError if one is out of range."""
    names = [field.name for field in dataclasses.fields(encode.Encoding)]
    return encode.Encoding(**{name: getattr(self, name) for name in names})

  def open_splits(self) -> dict[str, data.Split]:
    """Open the annotations of the data set; ValueError as `data.open_splits`."""
    if self.dataset == 'tfds':
      raise UserError('a data set of TFDS is stored as records already; name what it is made of')
    return data.open_splits(types.SimpleNamespace(
      name=self.dataset, root=self.root, train=self.train, val=self.val, classes=self.classes,
      videos=self.videos, split=self.split, split_files=self.split_files, synthetic={},
      zero_shot='', zero_shot_classes='',
    ))


class XclipVideos(tfds.core.GeneratorBasedBuilder):
  """Splits train and val of a data set that config.data describes.

  Beam builds it where a download config has Beam's options or runner, else this process does. Both
  write the same records; their order can differ. Videos that cannot be read are left out and named
  in unreadable_<split>.txt beside the records.
  """

  VERSION = tfds.core.Version('1.0.0')
  # TFDS would look for checksums of downloads beside the code; to find that, it imports
  # importlib_resources, which it does not install.
  code_path = None
  # TFDS takes a config of the user's own only where there is one that it knows.
  BUILDER_CONFIGS = [VideosConfig(name='unset', description='names no data set: give a config')]  # noqa: RUF012

  def __init__(self, *, file_format: str | None = None, **kwargs: Any):
    self._beam = False
    self._opened = None
    super().__init__(file_format=file_format or 'array_record', **kwargs)

  def download_and_prepare(self, *, download_config: Any = None, **kwargs: Any) -> None:
    """Build the data set, unless it is there; arguments are TFDS's.

    Raises:
      ValueError: not one video of a split can be read, or what is there was made otherwise.
    """
    download_config = download_config or tfds.download.DownloadConfig()
    self._beam = bool(download_config.beam_options or download_config.beam_runner)
    there = self.data_path / 'metadata.json'
    if there.exists() and not download_config.download_mode.overwrite_dataset:
      if json.loads(there.read_text()) != json.loads(json.dumps(self._metadata())):
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
    """Return `path: reason` of what was left out when it was built, by split; only where any."""
    files = {split: self.data_path / _report(split) for split in self.info.splits}
    return {k: file.read_text().splitlines() for k, file in files.items() if file.exists()}

  def source_splits(self) -> dict[str, data.Split]:
    """Return what is to be stored, as it is listed; ValueError as `data.open_splits`."""
    if self._opened is None:
      self._opened = self.builder_config.open_splits()
    return self._opened

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=features.FeaturesDict({
        'video': features.Text(doc='bytes of a video file'),   # features.Video needs TensorFlow
        'path': features.Text(doc='below the root of the data set, as it is listed'),
        'label': features.ClassLabel(names=self.source_splits()['train'].classes.names),
        'caption': features.Text(doc='empty if nobody wrote one'),
        'num_frames': features.Scalar(np.int32),
        'height': features.Scalar(np.int32),
        'width': features.Scalar(np.int32),
        'psnr': features.Scalar(np.float32, doc='of stored frames, dB; infinite if they are equal'),
      }),
      metadata=tfds.core.MetadataDict(self._metadata()),
    )

  def _metadata(self) -> dict[str, Any]:
    return dict(
      encoding=dataclasses.asdict(self.builder_config.encoding()),
      reverse=self.source_splits()['train'].classes.reverse,
      listed={name: split.videos.fingerprint for name, split in self.source_splits().items()},
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    root = os.path.abspath(self.builder_config.root)
    return {
      name: self._generate_examples(list(_rows(split, root)), name)
      for name, split in self.source_splits().items()
    }

  def _generate_examples(self, rows: list['_Row'], name: str) -> Any:
    build = _with_beam if self._beam else _in_process
    return build(rows, self.builder_config.encoding(), self.data_path, name)


@dataclasses.dataclass(frozen=True)
class _Row:
  """A video to store: key of its record, file, path as listed, class id, caption."""

  key: str
  file: str
  path: str
  label: int
  caption: str


def _rows(split: data.Split, root: str) -> Iterator[_Row]:
  seen = {}
  for number in range(len(split.videos)):
    found = split.videos[number]
    path = found['path'].removeprefix(os.path.join(root, ''))
    # Lists may name a video twice; a key has to be unique, and no path holds a zero byte.
    repeat = seen[path] = seen.get(path, -1) + 1
    key = f'{path}\0{repeat}' if repeat else path
    yield _Row(key, found['path'], path, found['label'], split.captions[number])


def _encoded(row: _Row, encoding: encode.Encoding) -> tuple[dict | None, str]:
  """Return (example, '') or (None, 'path: reason')."""
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
  """Return a PTransform that yields (key, example); what it calls runs on workers."""
  import apache_beam as beam

  # In a file, not in the graph of the job, whose size cloud runners limit to some megabytes.
  listing = folder / _listing(split)
  listing.write_text(json.dumps([dataclasses.astuple(row) for row in rows]))

  @beam.ptransform_fn
  def build(pipeline):
    found = (
      pipeline
      | beam.Create([os.fspath(listing)])
      | 'Rows' >> beam.FlatMap(_read_rows)
      | beam.Reshuffle()                     # else all of them would stay with one worker
      | 'Encode' >> beam.FlatMap(_outputs, encoding).with_outputs('unreadable', main='examples')
    )
    _ = (
      found.unreadable
      | 'List' >> beam.combiners.ToList()
      | 'Report' >> beam.Map(_write_report, len(rows), folder, split)
    )
    return found.examples

  return build()


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
    (folder / _report(split)).write_text('\n'.join(sorted(reasons)) + '\n')
