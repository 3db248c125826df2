"""Runs train.py and notes every video that it reads: count_reads.py TRAIN.PY ...

The names go to the file that XCLIP_TEST_COUNT names, with the number of the process at its end.
"""

import os
import runpy
import sys

from xclip_jax.data.video import decode

read = decode.read_video


def read_and_note(path, *more, **options):
  with open(f'{os.environ["XCLIP_TEST_COUNT"]}{os.getpid()}', 'a') as file:
    file.write(f'{more[-1]}\n')
  return read(path, *more, **options)


decode.read_video = read_and_note
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
