"""Prints the hashes of a training stream of a folder: print_stream_hashes.py FOLDER."""

import sys

from test_exactness import hashes, stream

if __name__ == '__main__':
  print(*hashes(stream(sys.argv[1], repeats=2)))
