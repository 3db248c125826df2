"""A small set of videos, lists of it, and `xclip data prepare` on them in processes of its own."""

import contextlib
import csv
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

import videos
from xclip_jax.cli import main
from xclip_jax.data.tools import prepare
from xclip_jax.data.video.encode import Encoding

ROOT = pathlib.Path(__file__).parents[3]
COUNT = 7
SMALL = Encoding(short_side=32)
COMMAND = ('--short-side', 32, '--per-shard', 2, '--processes', 2)   # what `make` does, too


def write_list(path, rows, columns=('path', 'label', 'caption')):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows([columns, *rows])
  return str(path)


def make_store(root):
  """Seven videos of different lengths with lists of them; one more is broken."""
  (root / 'in ner').mkdir()
  names = [f'in ner/é {n}.mp4' for n in range(COUNT)]
  for n, name in enumerate(names):
    frames = videos.barcode_frames(10 + n, 48, 64)
    frames[:, :8] = np.random.default_rng(n).integers(0, 256, (8, 64, 1))
    videos.write_video(root / name, frames)
  (root / 'broken.mp4').write_text('<html>404</html>')
  (root / 'classes.csv').write_text('id,name,reverse\n0,open,close\n1,close,open\n')
  rows = [(name, ('open', '1')[n % 2], f'a, "{n}"') for n, name in enumerate(names)]
  write_list(root / 'train.csv', rows)
  write_list(root / 'bad.csv', [*rows, ('broken.mp4', '0', ''), ('gone.mp4', '0', '')])
  return root


def make(store, folder, name='train.csv', encoding=SMALL, **options):
  options = dict(per_shard=2, processes=2) | options
  processes = options.pop('processes')
  listed = prepare.ListFiles(store / name, store, store / 'classes.csv')
  return prepare.prepare(listed, folder, encoding, prepare.Options(**options), processes)


def run(*args):
  return main.main(['data', 'prepare', *map(str, args), '--quiet'])


def start(store, folder, name='train.csv', **options):
  command = [sys.executable, '-m', 'xclip_jax.cli', 'data', 'prepare', store / name, '-o', folder]
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:      # tests in the background; inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)
  return subprocess.Popen([*map(str, [*command, *COMMAND])], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def stored(folder):
  """Name -> content of what must be the same however it came about."""
  return {x.name: x.read_bytes() for x in folder.iterdir()
          if x.suffix in ('.csv', '.txt', '.array_record')}


def identities(folder):
  return {x.name: x.stat().st_ino for x in folder.iterdir() if x.suffix == '.array_record'}


def read(path):
  with open(path, newline='', encoding='utf-8') as file:
    lines = [line for line in file if not line.startswith('# ')]
  return list(csv.reader(lines))


def children(process):
  """Ids of the processes that a process has spawned."""
  found = []
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      parent = stat.read_text().rsplit(')')[-1].split()[1]
      if int(parent) == process.pid and b'spawn_main' in (stat.parent / 'cmdline').read_bytes():
        found.append(int(stat.parent.name))
  return found


def is_alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')')[-1].split()[0] != 'Z'
  except OSError:
    return False


def until(condition, what, seconds=60):
  deadline = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < deadline, what
    time.sleep(0.01)
  return found
