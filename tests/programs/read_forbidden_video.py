"""Reads videos of which the third may not be read, and prints its reason: ...video.py FOLDER.

Prints nothing if this user may read every file.
"""

import pathlib
import sys

import test_faults

if __name__ == '__main__':
  folder = pathlib.Path(sys.argv[1])
  try:
    open(folder / 'video 2.mp4', 'rb').close()
  except PermissionError:
    print(test_faults.assert_replaced(folder))
