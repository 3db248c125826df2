"""Files and folders are replaced whole or not at all, and end as a plain open would leave them."""

import hashlib
import os
import pathlib
import subprocess
import sys
import threading

import pytest

import tiny
from xclip_jax import files
from xclip_jax.errors import ExistsError


def names(folder):
  return sorted(x.name for x in folder.iterdir())


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
  path = tmp_path / 'a.npz'
  with files.atomic_file(path) as file:
    file.write(b'some')
    assert not path.exists()
    assert [x.rpartition('.partial.')[2] for x in names(tmp_path)] == ['a.npz']
    file.write(b' more')
  assert path.read_bytes() == b'some more' and names(tmp_path) == ['a.npz']


@pytest.mark.parametrize('durable', [True, False])
def test_an_error_in_the_middle_leaves_the_old_file(tmp_path, durable):
  path = tmp_path / 'a'
  path.write_bytes(b'old')
  with pytest.raises(KeyError), files.atomic_file(path, durable) as file:
    file.write(b'new')
    raise KeyError
  assert path.read_bytes() == b'old' and names(tmp_path) == ['a']


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_process_that_ends_in_the_middle_leaves_what_was_there(tmp_path, kind):
  path = tmp_path / 'a'
  if kind == 'file':
    path.write_text('old')
  else:
    path.mkdir()
    (path / 'a').write_text('old')
  done = subprocess.run(
    [sys.executable, tiny.REPO / 'tests/programs/write_and_stop.py', kind, path],
    env=tiny.environment(), check=False)
  assert done.returncode == 9
  assert (path if kind == 'file' else path / 'a').read_text() == 'old'
  assert [x for x in names(tmp_path) if not x.startswith('.')] == ['a']


def test_concurrent_writers_leave_one_whole_file(tmp_path):
  path = tmp_path / 'a'
  parts = [bytes([i]) * 300_000 for i in range(8)]
  seen, stop = set(), threading.Event()

  def read():
    while not stop.is_set():
      if path.exists():
        seen.add(path.read_bytes())

  reader = threading.Thread(target=read)
  writers = [threading.Thread(target=files.write_bytes, args=(path, part)) for part in parts]
  for thread in (reader, *writers):
    thread.start()
  for thread in writers:
    thread.join()
  stop.set()
  reader.join()
  assert (seen | {path.read_bytes()}) <= set(parts) and names(tmp_path) == ['a']


def test_permissions_are_those_of_a_plain_open(tmp_path):
  before = os.umask(0o027)
  try:
    files.write_text(tmp_path / 'a', 'new')
    (tmp_path / 'plain').write_text('new')
  finally:
    os.umask(before)
  mode = lambda name: (tmp_path / name).stat().st_mode & 0o777
  assert mode('a') == mode('plain') == 0o640
  for permissions in (0o600, 0o664):                 # of a file that is there
    (tmp_path / 'a').chmod(permissions)
    files.write_text(tmp_path / 'a', 'newer')
    assert mode('a') == permissions


def test_a_link_stays_and_its_target_is_written(tmp_path):
  (tmp_path / 'real').mkdir()
  (tmp_path / 'real/a').write_text('old')
  (tmp_path / 'link').symlink_to('real/a')
  files.write_text(tmp_path / 'link', 'new')
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'real/a').read_text() == 'new'
  (tmp_path / 'folder').symlink_to('real')
  with files.atomic_folder(tmp_path / 'folder') as folder:
    (folder / 'b').write_text('new')
  assert (tmp_path / 'folder').is_symlink() and names(tmp_path / 'real') == ['b']
  assert names(tmp_path) == ['folder', 'link', 'real']


@pytest.mark.parametrize('name', ['x' * 251 + '.npz', 'ü' * 125 + '.json'])
def test_names_may_be_as_long_as_the_file_system_lets_them(tmp_path, name):
  with files.atomic_file(tmp_path / name) as file:
    file.write(b'content')
    partial, = tmp_path.iterdir()
    assert partial.suffix == pathlib.Path(name).suffix
  assert (tmp_path / name).read_bytes() == b'content'
  with files.atomic_folder(tmp_path / 'sub' / name) as folder:
    (folder / 'a').write_text('content')
  assert names(tmp_path / 'sub') == [name]


def test_a_folder_that_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch):
  """Refuses to sync folders, as some network file systems do; for a file that is an error."""
  sync = files._sync

  def fail(path):
    if path.is_dir():
      raise OSError(22, 'Invalid argument')
    sync(path)

  monkeypatch.setattr(files, '_sync', fail)
  files.write_text(tmp_path / 'a', 'new')
  with files.atomic_folder(tmp_path / 'folder') as folder:
    (folder / 'sub').mkdir()
    (folder / 'sub/b').write_text('new')
  assert (tmp_path / 'folder/sub/b').read_text() == (tmp_path / 'a').read_text() == 'new'

  def fail_all(path):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(files, '_sync', fail_all)
  with pytest.raises(OSError, match='Input/output'):
    files.write_text(tmp_path / 'a', 'newer')
  assert (tmp_path / 'a').read_text() == 'new' and names(tmp_path) == ['a', 'folder']


def test_a_folder_is_replaced_whole(tmp_path):
  path = tmp_path / 'new/a'
  for n in range(2):
    with files.atomic_folder(path) as folder:
      (folder / f'file_{n}').write_text('content')
      (folder / 'nowhere').symlink_to('/does/not/exist')
    assert names(path) == [f'file_{n}', 'nowhere'] and names(path.parent) == ['a']
  with pytest.raises(KeyError), files.atomic_folder(path) as folder:
    (folder / 'file_2').write_text('content')
    raise KeyError
  assert names(path) == ['file_1', 'nowhere'] and names(path.parent) == ['a']


def test_a_folder_is_asked_about_before_and_after_the_work(tmp_path):
  asked = []
  with files.atomic_folder(tmp_path / 'a', asked.append):
    pass
  assert not asked                                      # nothing was there
  with files.atomic_folder(tmp_path / 'a', asked.append):
    assert asked == [tmp_path / 'a']
  assert asked == [tmp_path / 'a'] * 2


def refuse(folder):
  raise ExistsError(f'{folder} is there')


def test_a_folder_that_must_not_be_replaced_stays(tmp_path):
  (tmp_path / 'a').mkdir()
  with pytest.raises(ExistsError), files.atomic_folder(tmp_path / 'a', refuse):
    raise AssertionError('the work is not begun')
  with pytest.raises(ExistsError), files.atomic_folder(tmp_path / 'b', refuse) as folder:
    (folder / 'file').write_text('content')
    (tmp_path / 'b').mkdir()                            # by another process, meanwhile
    (tmp_path / 'b/theirs').write_text('content')
  assert names(tmp_path) == ['a', 'b'] and names(tmp_path / 'b') == ['theirs']


def test_a_folder_that_appears_at_the_last_moment_is_an_error_and_stays(tmp_path, monkeypatch):
  replace, path = os.replace, tmp_path / 'a'
  path.mkdir()
  (path / 'old').write_text('content')

  def replace_late(source, target):
    if target == path:
      path.mkdir()
      (path / 'theirs').write_text('content')
    replace(source, target)

  monkeypatch.setattr(files.os, 'replace', replace_late)
  with pytest.raises(OSError, match='not empty'), files.atomic_folder(path) as folder:
    (folder / 'new').write_text('content')
  assert names(path) == ['theirs'] and names(tmp_path) == ['a']


def test_replacing_a_file_moves_it(tmp_path):
  (tmp_path / 'partial').write_text('new')
  (tmp_path / 'a').write_text('old')
  files.replace_file(tmp_path / 'partial', tmp_path / 'a')
  assert names(tmp_path) == ['a'] and (tmp_path / 'a').read_text() == 'new'


@pytest.mark.parametrize('size', [0, 5, (1 << 20) + 1])
def test_a_sum_is_that_of_hashlib(tmp_path, size):
  content = os.urandom(size)
  (tmp_path / 'a').write_bytes(content)
  assert files.sha256(tmp_path / 'a') == hashlib.sha256(content).hexdigest()
