"""Tests of `xclip data check` and `xclip data show` on lists with broken videos."""

import csv
import json
import os
import pathlib

import av
import cv2
import numpy as np
import pytest
from test_decode import sound

import videos
from xclip_jax.cli import main
from xclip_jax.data import workers
from xclip_jax.data.datasets import annotations
from xclip_jax.data.tools import check, derive_lists

CLASSES = 'id,name,reverse\n0,open,close\n1,close,open\n2,run fast,\n'


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  """Five good videos, one twice, and every kind of broken one."""
  root = tmp_path_factory.mktemp('set')
  (root / 'dir é').mkdir()
  for n, name in enumerate(('a.mp4', 'b.mp4', 'dir é/c c.mp4', 'd.mp4', 'e.mp4')):
    frames = videos.barcode_frames(10, 32, 32)
    frames[:, :8] = np.random.default_rng(n).integers(0, 256, (8, 32, 3))
    videos.write_video(root / name, frames)
  whole = (root / 'a.mp4').read_bytes()
  (root / 'same.mp4').write_bytes(whole)
  (root / 'truncated.mp4').write_bytes(whole[:len(whole) // 2])      # its index was at the end
  (root / 'zero.mp4').touch()
  sound(root / 'sound.mp4')
  (root / 'text.mp4').write_text('<html>404</html>')
  (root / 'picture.mp4').write_bytes(cv2.imencode('.png', np.zeros((9, 9, 3)))[1].tobytes())
  (root / 'wrong name.avi').write_bytes((root / 'b.mp4').read_bytes() + b'\0')
  videos.write_video(root / 'short.mp4', videos.barcode_frames(3, 32, 32))
  (root / 'classes.csv').write_text(CLASSES)
  return root


GOOD = ('a.mp4', 'b.mp4', 'dir é/c c.mp4', 'd.mp4', 'wrong name.avi')
BAD = {
  'truncated.mp4': 'undecodable', 'zero.mp4': 'undecodable', 'sound.mp4': 'undecodable',
  'text.mp4': 'undecodable', 'picture.mp4': 'short', 'short.mp4': 'short', 'gone.mp4': 'missing',
  'same.mp4': 'duplicate',
}


def write_list(store, name, rows, columns=('path', 'label', 'caption')):
  with open(store / name, 'w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows([columns, *rows])
  return str(store / name)


@pytest.fixture(scope='module')
def bad_list(store):
  rows = [(name, 'run fast', 'a, b') for name in (*GOOD, *BAD)]
  return write_list(store, 'bad.csv', [*rows, ('e.mp4', '3', ''), ('d.mp4', '0', '')])


def run(*args):
  return main.main(['data', *map(str, args)])


def test_every_kind_of_bad_row_is_found_before_training(store, bad_list):
  found = check.check_list(bad_list, store, store / 'classes.csv', check.Inspection(4))
  assert {x.path: x.kind for x in found.problems} == BAD | {'e.mp4': 'label', 'd.mp4': 'duplicate'}
  assert (found.present, found.listed) == (14, 15)
  reasons = {x.path: x.reason for x in found.problems}
  assert reasons['same.mp4'] == 'the same content as line 2'
  assert reasons['d.mp4'] == 'the same file as line 5'
  assert reasons['short.mp4'] == '3 frames, a clip needs 4'
  assert reasons['sound.mp4'] == 'has no video stream'
  assert "found '3'" in reasons['e.mp4']
  assert not any(str(store) in reason for reason in reasons.values())


def test_what_is_lost_of_a_video_is_named_and_a_change_of_size_is_noted(store, tmp_path, capsys):
  frames = videos.barcode_frames(24, 32, 48)
  whole = videos.write_video(tmp_path / 'a.mp4', frames, options={'g': '6', 'bf': '0'})
  with av.open(whole) as container:
    places = [(x.pos, x.size) for x in container.demux(video=0) if x.size]
  content = open(whole, 'rb').read()
  for name, numbers in (('end.mp4', range(15, 24)), ('one.mp4', [9])):
    damaged = bytearray(content)
    for position, size in np.array(places)[list(numbers)]:
      damaged[position:position + size] = bytes(int(size))
    (tmp_path / name).write_bytes(damaged)
  pictures = [cv2.imencode('.jpg', np.zeros((size, size, 3)))[1].tobytes() for size in (16, 32)]
  (tmp_path / 'sizes.mjpeg').write_bytes(pictures[0] * 4 + pictures[1] * 4)
  listed = write_list(tmp_path, 'a.csv', [
    (name, '0', '') for name in ('a.mp4', 'end.mp4', 'one.mp4', 'sizes.mjpeg')])
  classes = store / 'classes.csv'
  for full, want in ((False, {'end.mp4'}), (True, {'end.mp4', 'one.mp4'})):
    found = check.check_list(listed, tmp_path, classes, check.Inspection(4, full))
    assert {x.path: x.kind for x in found.problems} == dict.fromkeys(want, 'damaged')
    assert found.problems[0].reason == '9 of 24 frames cannot be decoded and are left out'
    assert [(x.path, x.kind) for x in found.notes] == [('sizes.mjpeg', 'resized')]
  assert run('check', listed, '--classes', store / 'classes.csv', '--full', '--processes', 1,
             '--frames', 4) == 1
  out = capsys.readouterr().out
  assert 'line 4: damaged: one.mp4: 1 of 24 frames cannot' in out and '2 rows are bad' in out
  assert 'line 5: resized: sizes.mjpeg: the picture changes its size midway (16 x 16, then' in out


def test_worker_processes_find_the_same(store, bad_list):
  one, two = (
    check.check_list(bad_list, store, store / 'classes.csv', check.Inspection(4), processes=n)
    for n in (1, 2))
  assert one == two


def crash_on_b(path):
  if path == 'b':
    os._exit(3)
  return path.upper()


def test_a_file_that_kills_the_decoder_is_told_from_the_others():
  names = ['a', 'b', *(f'c{n}' for n in range(20))]
  found = dict(workers.unordered(crash_on_b, names, 2, crashed='gone'))
  assert found == {name: name.upper() for name in names} | {'b': 'gone'}


def test_check_writes_only_what_it_is_asked_to(store, bad_list, tmp_path, capsys):
  before = sorted(store.rglob('*'))
  options = ('--frames', 4, '--processes', 1)
  assert run('check', bad_list, *options) == 1
  out = capsys.readouterr().out
  assert f'{bad_list}: 14 of 15 present' in out and '10 rows are bad' in out
  assert sorted(store.rglob('*')) == before
  report, clean = tmp_path / 'report.json', tmp_path / 'clean.csv'
  options += ('--report', report, '--clean', clean)
  assert run('check', bad_list, *options) == 1
  assert len(json.loads(report.read_text())['problems']) == 10
  assert clean.read_text().startswith('# from bad.csv sha256:')
  columns, rows = annotations.read_rows(clean, ('path',))
  assert columns == ['path', 'label', 'caption']
  assert [row['path'] for _, row in rows] == list(GOOD)
  assert all(row['caption'] == 'a, b' for _, row in rows)
  assert run('check', bad_list, *options) == 2                       # they are there
  assert 'add --overwrite' in capsys.readouterr().err
  assert run('check', bad_list, *options, '--overwrite') == 1
  args = ('--root', store, '--classes', store / 'classes.csv', '--frames', 4, '--processes', 1)
  assert run('check', clean, *args) == 0
  assert '5 of 5 present\nnothing is wrong with it' in capsys.readouterr().out


def test_what_cannot_be_checked_is_exit_status_2(store, bad_list, tmp_path, capsys):
  (tmp_path / 'a.csv').write_text('path,label\na.mp4,0\n')
  for args, message in (
    ((tmp_path / 'gone.csv',), 'gone.csv: cannot be read'),
    ((tmp_path / 'a.csv',), 'classes.csv is not there; name the class list with --classes'),
    ((bad_list, '--frames', 0), '--frames must be at least 1'),
    ((bad_list, '--clean', tmp_path / 'x.txt'), 'must end in .csv'),
  ):
    assert run('check', *args) == 2
    assert message in capsys.readouterr().err
  assert [x.name for x in tmp_path.iterdir()] == ['a.csv']


@pytest.mark.parametrize('text, message', [
  ('id,name\n0,Run  fast\n1,run FAST\n', "classes 0 and 1, 'Run  fast' and 'run FAST', differ in"),
  ('id,name\n0,run\n1,run \n', "class name 'run' is used twice"),
])
def test_class_names_that_clash_are_a_problem(store, tmp_path, capsys, text, message):
  (tmp_path / 'c.csv').write_text(text)
  path = write_list(store, 'few.csv', [('a.mp4', 0, '')])
  assert run('check', path, '--classes', tmp_path / 'c.csv', '--processes', 1) == 1
  assert message in capsys.readouterr().out


def test_other_kinds_of_lists_are_checked_too(store):
  several = write_list(store, 'several.csv', [('a.mp4', '0;2'), ('b.mp4', '0;0')],
                       ('path', 'label'))
  options = dict(inspection=check.Inspection(4))
  found = check.check_list(several, store, store / 'classes.csv', **options)
  assert [(x.line, x.kind) for x in found.problems] == [(3, 'label')]
  captions = write_list(store, 'captions.csv', [('a.mp4', 'x'), ('a.mp4', 'y'), ('b.mp4', '')],
                        ('path', 'caption'))
  found = check.check_list(captions, store, None, **options)         # a video may have several
  assert [(x.line, x.kind) for x in found.problems] == [(4, 'label')]
  (store / 'old.txt').write_text('dir é/c c.mp4 2\ngone.mp4 1\na.mp4 run\n')
  found = check.check_list(store / 'old.txt', store, store / 'classes.csv', **options)
  assert [(x.line, x.kind) for x in found.problems] == [(2, 'missing'), (3, 'label')]
  text = derive_lists.without(store / 'old.txt', found.bad_lines)
  assert text.decode().splitlines()[1:] == ['dir é/c c.mp4 2']


def test_the_contact_sheet_shows_training_clips(store, tmp_path, capsys):
  rows = [(name, n % 3, '') for n, name in enumerate((*GOOD, 'gone.mp4'))]
  path, sheet = write_list(store, 'show.csv', rows), tmp_path / 'sheet.png'
  args = ('show', path, '-o', sheet, '--count', 6, '--size', 64, '--frames', 4)
  assert run(*args) == 0
  assert '6 clips; 1 unreadable videos were replaced' in capsys.readouterr().out
  image = cv2.imread(str(sheet))
  assert image.shape[0] > 300 and image.shape[1] > 800
  assert 20 < image.std()
  first = sheet.read_bytes()
  assert run(*args) == 2                                             # never over another
  assert run(*args, '--overwrite') == 0
  assert sheet.read_bytes() == first


def many(tmp_path, counts=(6, 3, 9), name='train.csv', seed=0):
  rows = [(f'{label}/v {n}.mp4', ('open', 'close', 'run fast')[label], 'a, b')
          for label, count in enumerate(counts) for n in range(count)]
  order = np.random.default_rng(seed).permutation(len(rows))
  (tmp_path / 'classes.csv').write_text(CLASSES)
  return pathlib.Path(write_list(tmp_path, name, [rows[n] for n in order]))


def paths(file):
  return [row['path'] for _, row in annotations.read_rows(file, ('path', 'label'))[1]]


def test_few_shot_lists_are_the_same_every_time(tmp_path, capsys):
  path, out = many(tmp_path), tmp_path / 'few.csv'
  assert run('few-shot', path, '--shots', 3, '--seed', 5, '-o', out) == 0
  few = paths(out)
  assert [sum(p.startswith(c) for p in few) for c in '012'] == [3, 3, 3]
  assert few == [p for p in paths(path) if p in few]                 # in the order they had
  assert out.read_text().splitlines()[0].startswith(
    '# 3 of each class, seed 5, from train.csv sha256:')
  classes = annotations.read_classes(tmp_path / 'classes.csv')
  assert derive_lists.few_shot(path, classes, 3, 5) == out.read_bytes()
  many(tmp_path, seed=1)                                             # rows in another order
  assert run('few-shot', path, '--shots', 3, '--seed', 5, '-o', out, '--overwrite') == 0
  assert sorted(paths(out)) == sorted(few)
  for shots, seed, test in ((2, 5, lambda x: x < set(few)), (3, 6, lambda x: x != set(few))):
    other = tmp_path / f'{shots}{seed}.csv'
    assert run('few-shot', path, '--shots', shots, '--seed', seed, '-o', other) == 0
    assert test(set(paths(other)))
  assert run('few-shot', path, '--shots', 4, '-o', tmp_path / 'no.csv') == 2
  assert "1 classes have fewer than 4 videos, 'close' has 3" in capsys.readouterr().err
  assert not (tmp_path / 'no.csv').exists()


def test_base_and_novel_share_no_class_and_lose_no_video(tmp_path, capsys):
  train, val = many(tmp_path), many(tmp_path, (2, 2, 1), 'val.csv')
  out = tmp_path / 'half'
  assert run('base-novel', train, val, '-o', out) == 0
  halves = {half: annotations.read_classes(out / f'classes_{half}.csv')
            for half in ('base', 'novel')}
  assert halves['base'].names == ('open', 'run fast')                # 6 and 9 videos of 18
  assert halves['novel'].names == ('close',)
  assert halves['base'].reverse == (None, None)                      # the partner is not here
  for path in (train, val):
    found = []
    for half, classes in halves.items():
      examples = annotations.read_annotations(out / f'{path.stem}_{half}.csv', tmp_path, classes)
      found += [(os.path.relpath(e.path, tmp_path), classes.names[e.label]) for e in examples]
    rows = annotations.read_rows(path, ('path', 'label'))[1]
    assert sorted(found) == sorted((row['path'], row['label']) for _, row in rows)
  before = {x.name: x.read_bytes() for x in out.iterdir()}
  assert run('base-novel', train, val, '-o', out) == 2
  assert run('base-novel', train, val, '-o', out, '--overwrite') == 0
  assert {x.name: x.read_bytes() for x in out.iterdir()} == before and len(before) == 6


def test_makers_refuse_rows_with_several_labels(tmp_path, capsys):
  (tmp_path / 'classes.csv').write_text(CLASSES)
  path = write_list(tmp_path, 'several.csv', [('a.mp4', '0;1')], ('path', 'label'))
  for args in (('few-shot', path, '--shots', 1, '-o', tmp_path / 'x.csv'),
               ('base-novel', path, '-o', tmp_path / 'x')):
    assert run(*args) == 2
    assert "several.csv, line 2: one label wanted, found '0;1'" in capsys.readouterr().err
