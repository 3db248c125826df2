"""Lists prepared once: what is stored, how it is asked for, and that training reads the same."""

import fcntl
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import reading
from preparing import (
  COMMAND,
  COUNT,
  ROOT,
  SMALL,
  identities,
  make,
  make_store,
  read,
  run,
  stored,
  write_list,
)

import videos
from configs import base
from xclip_jax import data
from xclip_jax.data.clips import augment
from xclip_jax.data.tools import check, prepare, prepared_folder
from xclip_jax.data.video import archives, decode, encode
from xclip_jax.data.video.encode import Encoding


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('set'))


@pytest.fixture(scope='module')
def prepared(store, tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared') / 'new'
  make(store, folder)
  return folder


def test_a_prepared_list_has_the_rows_of_the_list_and_paths_into_shards(store, prepared):
  before, after = read(store / 'train.csv'), read(prepared / 'train.csv')
  assert [row[1:] for row in after] == [row[1:] for row in before]
  assert [row[0] for row in after[1:]] == [
    f'train-{n // 2:05d}-of-00004.array_record/{n % 2}' for n in range(COUNT)]
  assert (prepared / 'classes.csv').read_bytes() == (store / 'classes.csv').read_bytes()
  for (old, *_), (new, *_) in zip(before[1:], after[1:], strict=True):
    assert archives.read(f'{prepared}/{new}') == encode.encode(str(store / old), SMALL).content
  report = json.loads((prepared / 'train_report.json').read_text())
  assert (report['listed'], report['prepared'], report['failed']) == (COUNT, COUNT, 0)
  assert report['frames'] == sum(range(10, 10 + COUNT)) and report['psnr']['lowest'] > 30
  assert report['bytes_before'] == sum(x.stat().st_size for x in (store / 'in ner').iterdir())
  assert report['encoding'] == dict(format='h264', short_side=32, crf=23, gop=12)
  assert not [x.name for x in prepared.iterdir() if x.name.startswith('.')]


def test_the_same_is_written_by_any_number_of_processes(store, prepared, tmp_path):
  make(store, tmp_path / 'one', processes=1)
  assert stored(tmp_path / 'one') == stored(prepared)


def test_a_folder_is_refused_that_was_prepared_in_another_way(store, prepared, tmp_path, capsys):
  shutil.copytree(prepared, tmp_path / 'x')
  args = ('-o', tmp_path / 'x', '--per-shard', 2, '--processes', 1)
  before = stored(tmp_path / 'x')
  for other, message in (
    (('--short-side', 32, '--crf', 30), 'in another way: crf 23, not 30. Choose another folder'),
    (('--short-side', 48), 'short_side 32, not 48'),
    (('--short-side', 32, '--format', 'jpeg'), 'format h264, not jpeg; '),
    (('--short-side', 32, '--per-shard', 3), 'per_shard 2, not 3'),
  ):
    assert run(store / 'train.csv', *args, *other) == 2
    assert message in capsys.readouterr().err
  rows = read(store / 'train.csv')
  (tmp_path / 'set').mkdir()
  shutil.copy(store / 'classes.csv', tmp_path / 'set')
  for change, message in ((rows[1:-1], 'videos 7, not 6'),
                          (rows[:0:-1], 'as many videos, but others or in another order')):
    path = write_list(tmp_path / 'set/train.csv', change, rows[0])
    assert run(path, '--root', store, *args, '--short-side', 32) == 2
    assert message in capsys.readouterr().err
  assert stored(tmp_path / 'x') == before
  assert run(path, '--root', store, *args, '--short-side', 32, '--overwrite') == 0
  assert [row[1:] for row in read(tmp_path / 'x/train.csv')[1:]] == [x[1:] for x in rows[:0:-1]]


def test_a_label_that_was_wrong_is_changed_without_encoding_again(store, prepared, tmp_path):
  shutil.copytree(prepared, tmp_path / 'x')
  before = identities(tmp_path / 'x')
  rows = read(store / 'train.csv')
  (tmp_path / 'set').mkdir()
  write_list(tmp_path / 'set/train.csv', [(x[0], 'close', 'new') for x in rows[1:]], rows[0])
  listed = prepare.ListFiles(tmp_path / 'set/train.csv', store, store / 'classes.csv')
  prepare.prepare(listed, tmp_path / 'x', SMALL, prepare.Options(per_shard=2))
  assert {tuple(x[1:]) for x in read(tmp_path / 'x/train.csv')[1:]} == {('close', 'new')}
  assert identities(tmp_path / 'x') == before


def test_training_reads_the_frames_it_would_have_read(store, prepared):
  seen = []
  for folder, workers in ((store, 0), (prepared, 2)):
    c = base.get_config().data
    c.update(name='files', root=str(folder), val='train.csv')
    split = data.open_splits(c)['train']
    with reading.open_training(
      split.videos, augment.TrainTransform(32, 'center', 0.0, 0.0, 0.0), num_frames=4, batch_size=7,
      seed=3, workers=workers, threads=2) as batches:
      for _, batch in zip(range(3), batches, strict=False):
        assert batch['mask'].all() and (batch['failed'] == -1).all()
        numbers = [[videos.read_barcode(x[8:]) for x in clip] for clip in batch['video']]
        seen.append((batch['index'].tolist(), batch['label'].tolist(), numbers))
  assert seen[:3] == seen[3:] and len(seen) == 6


def test_records_are_read_without_this_project_as_the_docs_say(store, prepared, monkeypatch):
  text = (ROOT / 'docs/datasets.md').read_text()
  (snippet,) = [x for x in re.findall(r'```python\n(.*?)```', text, re.S) if 'array_record' in x]
  assert 'xclip' not in snippet
  monkeypatch.chdir(prepared)
  found = {}
  exec(snippet, found)
  assert [videos.read_barcode(x[6:]) for x in found['frames']] == list(range(11))


def test_jpeg_frames_are_prepared_and_checked_like_any_list(store, tmp_path):
  encoding = Encoding('jpeg', short_side=32, fps=8)
  report = make(store, tmp_path, encoding=encoding, per_shard=0)
  assert report.shards == 1 and report.frames == sum((10 + n + 1) // 2 for n in range(COUNT))
  found = check.check_list(
    tmp_path / 'train.csv', tmp_path, tmp_path / 'classes.csv', check.Inspection(5))
  assert (found.present, found.listed, found.problems) == (COUNT, COUNT, ())
  path = f'{tmp_path}/{read(tmp_path / "train.csv")[3][0]}'
  frames = decode.read_video(path, np.arange)
  assert [videos.read_barcode(x[6:]) for x in frames] == list(range(0, 12, 2))


def test_other_kinds_of_lists_are_prepared_too(store, tmp_path):
  a, b = 'in ner/é 0.mp4', 'in ner/é 1.mp4'
  lists = tmp_path / 'lists'
  lists.mkdir()
  write_list(lists / 'captions.csv', [(a, 'x'), (b, 'y'), (a, 'z')], ('path', 'caption'))
  write_list(lists / 'several.csv', [('7', a, '0;1'), ('8', b, '1;')], ('extra', 'path', 'label'))
  (lists / 'old.txt').write_text(f'{b} 1\n{a} 0\n')
  for name, want in (
    ('captions.csv', [['path', 'caption'], ['{}/0', 'x'], ['{}/1', 'y'], ['{}/0', 'z']]),
    ('several.csv', [['extra', 'path', 'label'], ['7', '{}/0', '0;1'], ['8', '{}/1', '1;']]),
    ('old.txt', [['{}/0 1'], ['{}/1 0']]),
  ):
    listed = prepare.ListFiles(lists / name, store, store / 'classes.csv')
    prepare.prepare(listed, tmp_path / 'x', SMALL)
    file = f'{pathlib.Path(name).stem}-00000-of-00001.array_record'
    assert read(tmp_path / 'x' / name) == [[x.format(file) for x in row] for row in want]


def test_the_division_depends_on_the_list_alone(store, tmp_path):
  (tmp_path / 'classes.csv').write_text('id,name\n0,open\n')
  for count, shards_wanted in ((1, 1), (16, 1), (17, 2), (1024, 64), (16384, 64), (16385, 65)):
    write_list(tmp_path / 'a.csv', [(f'{n}.mp4', 0) for n in range(count)], ('path', 'label'))
    listed = prepare.ListFiles(tmp_path / 'a.csv', tmp_path, tmp_path / 'classes.csv')
    plan = prepared_folder.make_plan(listed, tmp_path / 'x', SMALL, per_shard=0)
    assert len(plan.shards) == shards_wanted
    assert sum(len(shard.paths) for shard in plan.shards) == count


def test_what_cannot_be_prepared_is_exit_status_2(store, prepared, tmp_path, capsys):
  out = ('-o', tmp_path / 'x')
  (tmp_path / 'a.csv').write_text('path,label\na.mp4,9\n')
  (tmp_path / 'classes.csv').write_text('id,name\n0,open\n')
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there/train.csv').touch()
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other/classes.csv').write_text('id,name\n0,shut\n')
  for args, message in (
    ((store / 'train.csv', *out, '--fps', 3), '--fps does nothing to --format h264'),
    ((store / 'train.csv', *out, '--format', 'jpeg', '--quality', 0), 'quality must be a whole'),
    ((store / 'train.csv', *out, '--processes', 0), '--processes must be at least 1'),
    ((store / 'train.csv', *out, '--per-shard', -1), 'per_shard must be at least 1'),
    ((store / 'train.csv', '-o', store), 'is the folder of'),
    ((store / 'train.csv', '-o', tmp_path / 'there'), 'train.csv is there and was not prepared'),
    ((store / 'train.csv', '-o', tmp_path / 'other'), 'classes.csv is there and is not'),
    ((store / 'train.csv', '-o', tmp_path / 'a.csv'), 'File exists'),
    ((tmp_path / 'a.csv', *out), "found '9'"),
    ((tmp_path / 'gone.csv', *out), 'gone.csv: cannot be read'),
  ):
    assert run(*args) == 2
    assert message in capsys.readouterr().err
  assert not (tmp_path / 'x').exists()
  with open(prepared / 'train_request.json', 'rb') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert run(store / 'train.csv', '-o', prepared, *COMMAND) == 2
  assert 'another process prepares this list there' in capsys.readouterr().err
