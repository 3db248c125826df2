"""Ends in the middle of an atomic write, as a killed process does: write_and_stop.py KIND PATH."""

import os
import pathlib
import sys

from xclip_jax import files

kind, path = sys.argv[1], pathlib.Path(sys.argv[2])
if kind == 'file':
  with files.atomic_file(path) as file:
    file.write(b'new, but not all of')
    file.flush()
    os._exit(9)
with files.atomic_folder(path) as folder:
  (folder / 'a').write_text('new')
  os._exit(9)
