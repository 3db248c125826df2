"""Damaged lists of videos, and damaged tar and ArrayRecord shards that hold them."""

import io
import pathlib
import random
import tarfile

import numpy as np
from array_record.python import array_record_module

from benchmarks.fuzz import harness, video_files
from xclip_jax.data.datasets import annotations
from xclip_jax.data.video import decode

CLASSES = annotations.ClassList(('walking', 'running', 'a, b'), (None,) * 3)
ROWS = [('a.mp4', 'walking'), ('b c.mp4', 'running'), ('d/e.mp4', '"a, b"'), ('f.mp4', '0;2')]
LISTS = {
  'a.csv': 'path,label\n' + ''.join(f'{path},{label}\n' for path, label in ROWS[:3]),
  'several.csv': 'path,label,caption\na.mp4,0;2,one\nb.mp4,1;,"two\nlines"\n',
  'a.txt': ''.join(f'{path} {n % 3}\n' for n, (path, _) in enumerate(ROWS)),
  'blank.csv': 'some/a.mp4 0\nsome/b.mp4 1\n',
  'classes.csv': 'id,name\n0,walking\n1,running\n2,"a, b"\n'}
WORDS = (b'\0', b'"', b'\r', b'\n', b',', b';', b'\xff\xfe', b'\xef\xbb\xbf', b'../', b'-1',
         b'9' * 40, b'\x1b[2J', b' ', b'\t', b'path,label\n')


def _prepare_list(folder: pathlib.Path, canary: pathlib.Path):
  def write_next(rng: random.Random) -> pathlib.Path:
    name = rng.choice(sorted(LISTS))
    path = folder / name
    path.write_bytes(harness.damage(LISTS[name].encode(), rng, WORDS))
    return path
  return write_next


def read_list(path: pathlib.Path) -> None:
  if path.name == 'classes.csv':
    annotations.read_classes(path)
  else:
    annotations.read_annotations(path, path.parent, CLASSES)


def _video(folder: pathlib.Path) -> bytes:
  path = folder / 'clip.mp4'
  video_files.write_sound(path, None, 'mpeg4', 'yuv420p')
  content = path.read_bytes()
  path.unlink()
  return content


def _prepare_shard(folder: pathlib.Path, canary: pathlib.Path, ending: str):
  path = folder / f'shard{ending}'
  video = _video(folder)
  if ending == '.tar':
    with tarfile.open(path, 'w') as out:
      for number in range(3):
        entry = tarfile.TarInfo(f'{number}.mp4')
        entry.size = len(video)
        out.addfile(entry, io.BytesIO(video))
  else:
    writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
    for _ in range(3):
      writer.write(video)
    writer.close()
  sound = path.read_bytes()

  def write_next(rng: random.Random) -> pathlib.Path:
    # Half of the changes hit a header of a tar, 512 bytes, or the index, the last block.
    at = rng.randrange(0, len(sound), 512) if ending == '.tar' else max(0, len(sound) - 65536)
    if rng.random() < 0.5:
      path.write_bytes(
        sound[:at] + harness.damage(sound[at:at + 512], rng) + sound[at + 512:])
    else:
      path.write_bytes(harness.damage(sound, rng))
    return path

  return write_next


def read_shard(path: pathlib.Path) -> None:
  member = '1.mp4' if path.suffix == '.tar' else '1'
  decode.read_video(f'{path}/{member}', lambda n: np.arange(min(n, 2)), seconds=4)


KINDS = [
  harness.Kind('lists', _prepare_list, read_list),
  harness.Kind('tar', lambda *x: _prepare_shard(*x, '.tar'), read_shard),
  harness.Kind('array_record', lambda *x: _prepare_shard(*x, '.array_record'), read_shard)]
