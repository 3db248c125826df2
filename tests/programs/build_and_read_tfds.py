"""Builds a TFDS data set, reads a video of it, and prints the frameworks that were loaded.

build_and_read_tfds.py FOLDER_OF_CLIPS FOLDER_OF_DATA_SETS
"""

import sys

from xclip_jax.data.datasets import tfds_source
from xclip_jax.data.tools import tfds_build

if __name__ == '__main__':
  clips, folder = sys.argv[1:]
  assert tfds_build.main(['files', clips, '--data-dir', folder]) == 0
  videos = tfds_source.TfdsVideos(f'{folder}/xclip_videos/files_h264/1.0.0', 'val.csv')
  assert len(videos[1]['video']) > 100
  print([name for name in ('tensorflow', 'jax', 'torch', 'apache_beam') if name in sys.modules])
