"""What processes tell each other: all of it, only what is new, and with one compiled program."""

import json
import subprocess
import sys

import numpy as np
from test_several_processes import end, free_port

import tiny
from xclip_jax.data import bad_files

TALK = '''
import json
import sys

import jax
import numpy as np

from xclip_jax import distributed
from xclip_jax.data import bad_files

compiled = []
jax.monitoring.register_event_duration_secs_listener(
  lambda name, *_, **__: compiled.append(name) if 'backend_compile' in name else None)
me, _ = distributed.join('off', sys.argv[1], 2, int(sys.argv[2]))
assert distributed.all_gather_json(['first', me]) == [['first', 0], ['first', 1]]
assert compiled, 'the event has another name now'
before = len(compiled)
for size in (0, 1, 100, 4000, 4086, 4087, 4096, 5000, 70_000):
  mine, other = 'x' * size + 'ü', ['short', 'x' * size + 'ü']
  assert distributed.all_gather_json(mine if me else 'short') == other, size
bad, sent = bad_files.BadFiles(1000, 1.0), []
for step in range(60):
  rows = np.array([step, 500 + step // (1 + me), -1])      # one that both meet, and the like
  bad.update({'failed': rows, 'error': np.array([f'{me}: {row}'.encode() for row in rows])})
  sent.append(bad.take_new())
  bad.add(distributed.merge_failures(sent[-1]))
told = max(map(len, sent))
print(json.dumps([len(compiled) - before, told, list(bad.items.items())]), flush=True)
'''


def test_growing_lists_of_bad_files_travel_without_compiling_and_end_the_same_everywhere():
  where = f'localhost:{free_port()}'
  codes, said = end([
    subprocess.Popen([sys.executable, '-c', TALK, where, str(i)], env=tiny.environment(), text=True,
                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)])
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
