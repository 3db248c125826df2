"""Videos in ArrayRecord files, read in place: whole or with a plain reason, never a crash."""

import os
import pathlib
import pickle
import random
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import reading
from array_record.python import array_record_module

import videos
from xclip_jax.data.clips import augment
from xclip_jax.data.datasets import annotations
from xclip_jax.data.tools import check
from xclip_jax.data.video import archives, decode

PROGRAMS = pathlib.Path(__file__).parents[2] / 'programs'

CLASSES = annotations.ClassList(('open', 'run'), (None, None))
FRAMES = (12, 7, 9)           # of each record


def write_records(path, contents):
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
  for content in contents:
    writer.write(content)
  writer.close()
  return path


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
  folder = tmp_path_factory.mktemp('videos')
  paths = [
    videos.write_video(folder / f'{n}.mp4', videos.barcode_frames(n, 32, 32)) for n in FRAMES]
  return [open(path, 'rb').read() for path in paths]


@pytest.fixture(scope='module')
def shard(tmp_path_factory, contents):
  return write_records(tmp_path_factory.mktemp('my set') / 'é 1.array_record', contents)


def test_a_record_reads_like_its_file(shard, contents):
  for n, content in enumerate(contents):
    path = f'{shard}/{n}'
    assert archives.is_member(path) and archives.read(path) == content
    assert archives.size(path) == len(content)
    assert decode.count_frames(path) == FRAMES[n]
    last = decode.read_video(path, lambda n: np.array([n - 1]))[0]
    assert videos.read_barcode(last) == FRAMES[n] - 1


def test_a_folder_may_be_named_as_an_archive(tmp_path, contents):
  folder = tmp_path / 'İ.TAR/all.array_record'        # whose lower case has one character more
  folder.mkdir(parents=True)
  (folder / '1').write_bytes(contents[0])
  assert not archives.is_member(f'{folder}/1') and decode.count_frames(folder / '1') == FRAMES[0]
  inner = write_records(folder / 'x.Array_Record', contents)
  assert decode.count_frames(f'{inner}/2') == FRAMES[2]
  with tarfile.open(folder / 'y.tar', 'w') as tar:
    tar.add(folder / '1', 'a.mp4')
  assert decode.count_frames(folder / 'y.tar/a.mp4') == FRAMES[0]


def test_what_is_wrong_with_a_record_is_named(tmp_path, shard, contents):
  whole = write_records(tmp_path / 'cut.array_record', contents).read_bytes()
  (tmp_path / 'cut.array_record').write_bytes(whole[:-1000])
  (tmp_path / 'zero.array_record').touch()
  (tmp_path / 'text.array_record').write_text('<html>' * 20000)
  write_records(tmp_path / 'texts.array_record', [b'hello'])
  for path, message in (
    (f'{shard}/3', 'no such record among the 3 in the file'),
    (f'{shard}/{10 ** 17}', 'no such record among the 3'),
    (f'{shard}/{"9" * 5000}', 'records are numbered 0, 1'),
    (f'{shard}/-1', "records are numbered 0, 1, ..., found '-1'"),
    (f'{shard}/1.0', 'records are numbered'), (f'{shard}/01', 'records are numbered'),
    (f'{shard}/٣', 'records are numbered'), (f'{shard}/a/0', 'records are numbered'),
    (f'{tmp_path}/gone.array_record/0', 'No such file'),
    (f'{tmp_path}/cut.array_record/0', 'the file is not a whole ArrayRecord'),
    (f'{tmp_path}/zero.array_record/0', 'not a whole ArrayRecord: .*at least 64KB'),
    (f'{tmp_path}/text.array_record/0', 'not a whole ArrayRecord'),
    (f'{tmp_path}/texts.array_record/0', 'cannot be read as a video'),
  ):
    with pytest.raises(decode.VideoError, match=message) as raised:
      decode.count_frames(path)
    assert str(raised.value).startswith(path)


DAMAGED = (PROGRAMS / 'read_damaged_archives.py').read_text()


def test_no_damage_ends_the_process_or_gives_wrong_bytes(tmp_path, contents):
  rng = random.Random(0)
  whole = write_records(tmp_path / 'whole.array_record', contents).read_bytes()
  paths = [tmp_path / 'whole.array_record']
  for n in range(60):
    damaged = bytearray(whole)
    if n % 3 == 0:
      damaged = damaged[:rng.randrange(len(whole))]
    else:                     # anywhere, or where the index of the records is
      start = 0 if n % 3 == 1 else len(whole) - 66000
      for _ in range(3):
        damaged[rng.randrange(start, len(whole))] ^= 1 << rng.randrange(8)
    paths.append(tmp_path / f'{n}.array_record')
    paths[-1].write_bytes(damaged)
  done = subprocess.run(
    [sys.executable, '-c', DAMAGED, str(len(contents)), *map(str, paths)], text=True,
    capture_output=True, check=False, env=os.environ | {'PYTHONHASHSEED': '0'})
  assert done.returncode == 0, done.stderr[-2000:]
  read = [line.rsplit(' ', 2) for line in done.stdout.splitlines()]
  assert len(read) == len(paths) * len(contents)
  want = {number: found for path, number, found in read if path == str(paths[0])}
  assert 'refused' not in want.values() and len(set(want.values())) == len(contents)
  assert {found for _, number, found in read if found != want[number]} == {'refused'}


def test_a_file_is_opened_once_and_again_when_it_was_replaced(tmp_path, contents, monkeypatch):
  opened, real = [], array_record_module.ArrayRecordReader
  monkeypatch.setattr(array_record_module, 'ArrayRecordReader',
                      lambda *a, **k: opened.append(a) or real(*a, **k))
  path = write_records(tmp_path / 'a.array_record', contents)
  for n in (0, 2, 1):
    archives.read(f'{path}/{n}')
  assert len(opened) == 1
  os.replace(write_records(tmp_path / 'b', contents[::-1]), path)
  assert archives.read(f'{path}/0') == contents[2] and len(opened) == 2


def test_many_files_do_not_use_up_what_a_process_may_open(tmp_path, contents):
  paths = [write_records(tmp_path / f'{n}.array_record', contents[:1]) for n in range(140)]
  before = len(os.listdir('/proc/self/fd'))
  for path in paths:
    assert archives.read(f'{path}/0') == contents[0]
  assert len(os.listdir('/proc/self/fd')) - before <= archives._OPEN_RECORD_FILES


def test_threads_share_a_reader(shard, contents):
  wrong = []

  def read(seed):
    rng = random.Random(seed)
    for _ in range(200):
      n = rng.randrange(len(contents))
      wrong.extend([n] * (archives.read(f'{shard}/{n}') != contents[n]))

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_a_list_of_records_feeds_the_pipeline_with_any_workers(shard):
  examples = [annotations.Example(f'{shard}/{n}', n % 2) for n in range(3)]
  examples.append(annotations.Example(f'{shard}/7', 0))
  listed = annotations.VideoList(examples, CLASSES, shard.parent)
  assert len(pickle.dumps(listed)) < 1000                           # paths, not contents
  seen = {}
  for workers in (0, 1):
    with reading.open_evaluation(listed, augment.EvalTransform(32), num_frames=2, batch_size=2,
                               threads=2, workers=workers) as batches:
      seen[workers] = list(batches)
  rows = [row for batch in seen[0] for row in batch['mask']]
  assert rows == [True, True, True, False]
  assert b'no such record among the 3' in seen[0][1]['error'][1]
  for one, other in zip(seen[0], seen[1], strict=True):
    np.testing.assert_array_equal(one['video'], other['video'])


def test_a_list_of_records_is_checked_as_one_of_files(tmp_path, contents):
  write_records(tmp_path / 'a.array_record', [*contents, contents[0], b'no video'])
  (tmp_path / 'classes.csv').write_text('id,name\n0,open\n')
  (tmp_path / 'a.csv').write_text('path,label\n' + ''.join(
    f'a.array_record/{n},open\n' for n in range(6)))
  found = check.check_list(
    tmp_path / 'a.csv', tmp_path, tmp_path / 'classes.csv', check.Inspection(8))
  assert {x.path[-1]: x.kind for x in found.problems} == {
    '1': 'short', '3': 'duplicate', '4': 'undecodable', '5': 'missing'}
