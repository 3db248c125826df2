"""Tests of values exchanged by processes: complete, sent once, with one compiled program."""

import json
import pathlib
import subprocess
import sys

import numpy as np
from test_several_processes import end, free_port

import tiny
from xclip_jax.data import bad_files

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'


def test_growing_lists_of_bad_files_travel_without_compiling_and_end_the_same_everywhere():
  where = f'localhost:{free_port()}'
  codes, said = end([
    subprocess.Popen(
      [sys.executable, PROGRAMS / 'exchange_failures.py', where, str(i)], env=tiny.environment(),
      text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)])
  assert codes == [0, 0], said
  found = [json.loads(text.splitlines()[-1]) for text in said]
  assert [compiled for compiled, _, _ in found] == [0, 0]
  assert max(longest for _, longest, _ in found) <= 2
  assert found[0][2] == found[1][2]
  items = dict(found[0][2])
  assert list(items) == [*range(60), *range(500, 560)]
  assert items[7] == '0: 7' and items[559] == '0: 559'     # both met 7: process 0 is believed


def batch(**reasons):
  rows = [int(name[1:]) for name in reasons]
  return {'failed': np.array([-1, *rows]),
          'error': np.array([b'', *(x.encode() for x in reasons.values())])}


def test_only_what_is_new_is_told_and_of_a_row_agreed_on_the_old_reason_stays():
  bad = bad_files.BadFiles(10, 1.0)
  bad.add({4: 'from the checkpoint'})
  bad.update(batch(r4='seen again', r2='here'))
  assert bad.count == 2 and bad.take_new() == {2: 'here'}
  bad.add({2: 'on process 0', 7: 'elsewhere'})
  assert bad.items == {2: 'on process 0', 4: 'from the checkpoint', 7: 'elsewhere'}
  bad.update(batch(r7='and here'))
  assert bad.take_new() == {} and list(bad.items) == [2, 4, 7]
