"""Command that builds the TFDS data set of videos without TensorFlow.

  python -m xclip_jax.data.tools.tfds_build kinetics /data/k400 --videos videos \\
    --data-dir /data/tfds --config-name k400 [--beam runner=DirectRunner,direct_num_workers=2]
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from xclip_jax.data.tools import tfds_videos
from xclip_jax.errors import UserError

_HELP = {
  'train': 'config.data.train', 'val': 'config.data.val', 'classes': 'config.data.classes',
  'videos': 'config.data.videos', 'split': 'config.data.split',
  'split_files': 'config.data.split_files',
  'format': 'h264 stores all frames, jpeg some frames a second',
  'short_side': 'pixels to which larger videos are scaled down',
  'crf': 'quality of h264 from 0 to 51, lower is better',
  'gop': 'frames from key frame to key frame of h264',
  'quality': 'quality of jpeg from 1 to 100', 'fps': 'frames a second that jpeg stores',
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Builds the data set, prints its folder and the number of unreadable videos; exit status."""
  fields = [
    field for field in dataclasses.fields(tfds_videos.VideosConfig)
    if field.name not in {inherited.name for inherited in dataclasses.fields(
      tfds.core.BuilderConfig)}
  ]
  parser = argparse.ArgumentParser(
    prog='python -m xclip_jax.data.tools.tfds_build', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('dataset', metavar='NAME', help='config.data.name: files, kinetics, ...')
  parser.add_argument('root', metavar='ROOT', help='config.data.root')
  parser.add_argument('--data-dir', required=True, metavar='FOLDER',
                      help='folder of data sets; this one is written to xclip_videos/CONFIG/1.0.0')
  parser.add_argument('--config-name', metavar='CONFIG',
                      help='name of the config (default: NAME_FORMAT)')
  parser.add_argument('--beam', metavar='OPTION=VALUE,...',
                      help='build with Apache Beam, with these options of its pipeline')
  parser.add_argument('--overwrite', action='store_true', help='replace an existing data set')
  for field in fields[2:]:
    parser.add_argument(f'--{field.name.replace("_", "-")}', type=field.type, default=field.default,

                        help=f'{_HELP[field.name]} (default: {field.default!r})')
  given = parser.parse_args(arguments)
  logging.set_verbosity(logging.ERROR)      # main prints the results itself
  try:
    config = tfds_videos.VideosConfig(
      name=given.config_name or f'{given.dataset}_{given.format}',
      **{field.name: getattr(given, field.name) for field in fields})
    builder = tfds_videos.XclipVideos(data_dir=given.data_dir, config=config)
    builder.download_and_prepare(download_config=_download_config(given))
  except (UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(builder.data_dir)
  unreadable = builder.unreadable()
  for name, split in builder.info.splits.items():
    present = builder.source_splits()[name].count
    note = f' ({present})' if 'of' in present else ''
    print(f'{name}: {split.num_examples} videos{note}, {split.num_bytes / 1e6:.1f} MB')
    if name in unreadable:
      print(f'{name}: {len(unreadable[name])} cannot be read and were left out, see '
            f'unreadable_{name}.txt')
  return 0


def _download_config(given: argparse.Namespace) -> Any:
  mode = tfds.download.GenerateMode
  config = tfds.download.DownloadConfig(
    download_mode=mode.REUSE_CACHE_IF_EXISTS if given.overwrite else mode.REUSE_DATASET_IF_EXISTS)
  if given.beam:
    try:
      from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
      raise UserError(f"--beam needs Apache Beam: pip install -e '.[beam]' ({error})"
                       ) from error
    config.beam_options = PipelineOptions([f'--{option}' for option in given.beam.split(',')])
  return config


if __name__ == '__main__':
  sys.exit(main())
