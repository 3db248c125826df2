"""Folders of videos: which files are taken, what is said of others, and links that form loops."""

import glob
import os

import pytest

import videos
from xclip_jax.cli import main
from xclip_jax.data.datasets import folders, own_clips, public_formats


def touch(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def names(found, root):
  return [os.path.relpath(path, root) for path in found]


def test_every_command_takes_the_same_endings_and_names_what_it_leaves_out(tmp_path):
  taken = ['a/x.GIF', 'a/x.apng', 'a/x.3g2', 'a/x.f4v', 'a/x.divx', 'a/x.dv', 'a/x.mp4']
  touch(tmp_path, *taken, 'a/noext', 'a/x.unknown', 'a/note.txt', 'a/x.jpg', 'a/.hidden.mp4',
        'a/.trash/x.mp4')
  found = folders.find_videos(tmp_path)
  assert names(found.videos, tmp_path) == sorted(taken)
  assert names(found.left_out, tmp_path) == ['a/noext', 'a/x.unknown']
  line = folders.describe_left_out(names(found.left_out, tmp_path))
  assert line == ('left out 2 files whose names do not end as those of videos: a/noext, '
                  'a/x.unknown')
  _, listing = public_formats.read_folder(tmp_path)
  assert [x.path for x in listing.examples] == found.videos
  assert list(listing.left_out) == found.left_out == list(own_clips.read(tmp_path).unnamed)
  assert [x.path for x in own_clips.read(tmp_path).clips] == found.videos


def test_links_that_form_loops_are_walked_once(tmp_path):
  touch(tmp_path, 'clips/run/1.mp4', 'clips/sit/2.mp4', 'clips/sit/deep/3.mp4', 'other/4.mp4')
  for link, target in (('clips/run/up', '..'), ('clips/sit/up2', '..'), ('clips/self', '.'),
                       ('clips/run/me', 'me'), ('clips/sit/deep/above', '../..'),
                       ('clips/run/other', '../../other'), ('clips/run/again', '../../other')):
    os.symlink(target, tmp_path / link)
  want = {'run': ['1.mp4', 'other/4.mp4'], 'sit': ['2.mp4', 'deep/3.mp4']}
  classes, listing = public_formats.read_folder(tmp_path / 'clips')
  assert list(classes.names) == ['run', 'sit']
  paths = names([x.path for x in listing.examples], tmp_path / 'clips')
  assert sorted(x.replace('again/', 'other/') for x in paths) == [
    f'{name}/{x}' for name, inside in want.items() for x in inside]
  assert len(folders.find_videos(tmp_path / 'clips').videos) == 4


def test_patterns_find_what_glob_finds_and_walk_loops_once(tmp_path, monkeypatch):
  touch(tmp_path, 'c/run/1.mp4', 'c/sit/2.mp4', 'c/sit/deep/3.avi', 'c/.h/4.mp4', 'c[1]/5.mp4')
  monkeypatch.chdir(tmp_path)
  patterns = ['c/*/*.mp4', 'c/**/*.mp4', '**/*.avi', '**', 'c/**/deep/**/*', '*/**/?.mp4',
              str(tmp_path / '**' / '*.mp4'), 'gone/**/*.mp4', 'c[[]1]/**/*.mp4']
  for pattern in patterns:
    want = [x for x in glob.glob(pattern, recursive=True) if os.path.isfile(x)]
    assert [x for x in folders.match(pattern) if os.path.isfile(x)] == sorted(want), pattern
  for link, target in (('c/run/up', '..'), ('c/sit/up2', '..'), ('c/sit/deep/top', '../../..')):
    os.symlink(target, tmp_path / link)
  assert folders.match('c/**/*.mp4') == ['c/run/1.mp4', 'c/sit/2.mp4']


def test_lists_of_a_folder_name_what_they_leave_out(tmp_path, capsys):
  touch(tmp_path, 'clips/a/1.mp4', 'clips/a/odd', 'clips/b/2.mp4')
  argv = ['data', 'lists', 'folder', str(tmp_path), '--train', 'clips', '--val', 'clips',
          '-o', str(tmp_path / 'lists')]
  assert main.main(argv) == 0
  assert 'left out 1 file whose name does not end as' in capsys.readouterr().err


@pytest.mark.parametrize('name', [' lead.mp4', 'line\nbreak, "q".mp4', 'cr\rx.mp4', 'é\udce9.mp4'])
def test_any_name_survives_the_lists_that_are_written(tmp_path, name, capsys):
  for place in (f' a/{name}', ' a/2.mp4', 'b/1.mp4', 'b/2.mp4'):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    frames = videos.barcode_frames(4 + len(place), 32, 32)
    videos.write_video(tmp_path / 'written.mp4', frames)
    os.rename(tmp_path / 'written.mp4', tmp_path / place)
  (tmp_path / 'b' / '2.mp4').write_bytes(b'no video')
  clips = own_clips.usable(own_clips.read(tmp_path), 2)
  assert names([x.path for x in clips.clips], tmp_path) == sorted(
    [f' a/{name}', ' a/2.mp4']) + ['b/1.mp4']
  assert names([x for x, _ in clips.left_out], tmp_path) == ['b/2.mp4']
  argv = ['data', 'lists', 'folder', str(tmp_path), '--train', '.', '--val', '.',
          '-o', str(tmp_path / '.lists')]
  assert main.main(argv) == 0
  assert main.main(['data', 'check', str(tmp_path / '.lists' / 'train.csv'), '--root',
                    str(tmp_path), '--frames', '2', '--processes', '1']) == 1
  assert '4 of 4 present' in capsys.readouterr().out
