"""Trains or evaluates X-CLIP: `xclip train` from a checkout that is not installed.

  python train.py --config demo --workdir runs/demo [--config.FIELD=VALUE ...]
  python train.py --config demo --workdir runs/demo --mode eval
"""

import sys

from xclip_jax.cli import main

if __name__ == '__main__':
  sys.exit(main.main(['train', *sys.argv[1:]]))
