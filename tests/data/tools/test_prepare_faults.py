"""Tests of interrupted preparations and damaged shards: nothing is lost or taken for complete."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import av
import numpy as np
import pytest
from preparing import (
  COMMAND,
  COUNT,
  ROOT,
  children,
  identities,
  is_alive,
  make,
  make_store,
  read,
  run,
  start,
  stored,
  until,
  write_list,
)

import videos
from xclip_jax.data.tools import prepare_shards
from xclip_jax.data.video import encode
from xclip_jax.errors import UserError


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('set'))


@pytest.fixture(scope='module')
def prepared(store, tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared') / 'new'
  make(store, folder)
  return folder


@pytest.mark.parametrize('way, status', [
  (signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
  pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_run_that_is_ended_goes_on_where_it_was(store, prepared, tmp_path, way, status):
  process = start(store, tmp_path)
  until(lambda: list(tmp_path.glob('train-*.json')), 'no shard was written')
  busy = until(lambda: children(process), 'nobody works')
  process.send_signal(way)
  process.wait(30)
  assert process.returncode == status, process.stderr.read()
  until(lambda: not any(map(is_alive, busy)), 'workers stay behind', 10)
  if way != signal.SIGKILL:
    assert not list(tmp_path.glob('.*'))
  assert not (tmp_path / 'train.csv').exists()                      # what has a list is complete
  kept = {x.with_suffix('.array_record').name for x in tmp_path.glob('train-*.json')}
  before = identities(tmp_path)
  assert 0 < len(kept) < 4
  make(store, tmp_path)
  after = identities(tmp_path)
  assert {name for name in kept if before[name] == after[name]} == kept
  assert stored(tmp_path) == stored(prepared) and not list(tmp_path.glob('.*'))


def test_a_worker_that_is_killed_costs_nothing(store, prepared, tmp_path):
  process = start(store, tmp_path)
  until(lambda: list(tmp_path.glob('.*.array_record')), 'nobody has begun')
  os.kill(children(process)[0], signal.SIGKILL)
  assert process.wait(60) == 0, process.stderr.read()
  assert stored(tmp_path) == stored(prepared) and not list(tmp_path.glob('.*'))


def crash_on_3(connection, shard, blamed):
  real = encode.encode

  def crash(file, *rest):
    if file.endswith('3.mp4'):
      os.kill(os.getpid(), signal.SIGSEGV)
    return real(file, *rest)

  encode.encode = crash
  prepare_shards._work(connection, shard, blamed)


def test_a_video_that_crashes_the_decoder_costs_itself_only(store, prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(prepare_shards, '_work', crash_on_3)
  report = make(store, tmp_path, max_bad_share=0.2)
  assert report.failed == (('in ner/é 3.mp4', 'reading it ends the process: SIGSEGV'),)
  want = [row[1:] for n, row in enumerate(read(prepared / 'train.csv')) if n != 4]
  assert [row[1:] for row in read(tmp_path / 'train.csv')] == want
  assert not list(tmp_path.glob('.*'))


def lose_everything(connection, shard, blamed):
  os._exit(3)


def test_workers_that_cannot_work_end_the_run_and_what_is_incomplete_has_no_list(
  store, prepared, tmp_path, monkeypatch):
  shutil.copytree(prepared, tmp_path / 'x')
  os.truncate(tmp_path / 'x/train-00003-of-00004.array_record', 70000)
  monkeypatch.setattr(prepare_shards, '_work', lose_everything)
  with pytest.raises(ValueError, match=r'the process that writes .*3-of.* ends: exit status 3'):
    make(store, tmp_path / 'x')
  assert not (tmp_path / 'x/train.csv').exists() and len(identities(tmp_path / 'x')) == 4


def test_videos_that_cannot_be_read_are_named_and_left_out(store, tmp_path, capsys):
  args = (store / 'bad.csv', '-o', tmp_path / 'x', *COMMAND)
  assert run(*args, '--processes', 1) == 2            # of two, the first in the list is met first
  error = capsys.readouterr().err
  assert 'of 9 videos cannot be read, more than --max-bad-share 0.05 allows: broken.mp4' in error
  assert not (tmp_path / 'x/bad.csv').exists()
  assert read(tmp_path / 'x/bad_failed.csv')[1][0] == 'broken.mp4'
  assert run(*args, '--max-bad-share', 0.3) == 0
  out = capsys.readouterr().out
  assert '7 of 9 videos, 5 shards' in out and '2 videos failed: bad_failed.csv names' in out
  failed = read(tmp_path / 'x/bad_failed.csv')
  assert failed[0] == ['path', 'reason'] and failed[2] == ['gone.mp4', 'No such file or directory']
  assert 'cannot be read as a video' in failed[1][1]
  assert len(read(tmp_path / 'x/bad.csv')) == 1 + COUNT
  before = identities(tmp_path / 'x')
  moved = tmp_path / 'set'                                           # repaired, on another disk
  shutil.copytree(store, moved)
  for name in ('broken.mp4', 'gone.mp4'):
    shutil.copy(moved / 'in ner/é 0.mp4', moved / name)
  args = (moved / 'bad.csv', '-o', tmp_path / 'x', *COMMAND)
  assert run(*args, '--max-bad-share', 0.3) == 0 and identities(tmp_path / 'x') == before
  assert run(*args, '--retry') == 0
  assert not (tmp_path / 'x/bad_failed.csv').exists() and len(read(tmp_path / 'x/bad.csv')) == 10
  after = identities(tmp_path / 'x')
  assert [before[name] == after[name] for name in sorted(after)] == [True] * 3 + [False] * 2


def test_what_is_lost_of_a_stored_video_is_named(store, tmp_path, capsys):
  whole = videos.write_video(tmp_path / 'a.mp4', videos.barcode_frames(12, 48, 64))
  with av.open(whole) as container:
    position, size = [(x.pos, x.size) for x in container.demux(video=0) if x.size][-1]
  content = bytearray(open(whole, 'rb').read())
  content[position:position + size] = bytes(size)
  (tmp_path / 'a.mp4').write_bytes(content)
  listed = write_list(tmp_path / 'one.csv', [('a.mp4', '0', '')])
  assert run(listed, '-o', tmp_path / 'out', '--classes', store / 'classes.csv', *COMMAND) == 0
  note = '1 of 12 frames cannot be decoded and are left out'
  assert f'a.mp4: {note}' in capsys.readouterr().out
  report = json.loads((tmp_path / 'out' / 'one_report.json').read_text())
  assert report['notes'] == [['a.mp4', note]] and report['frames'] == 11


def test_damage_is_found_by_verifying_and_repaired_by_preparing(store, prepared, tmp_path, capsys):
  folder = tmp_path / 'x'
  shutil.copytree(prepared, folder)
  args = (store / 'train.csv', '-o', folder, '--processes', 1)
  assert run(*args[:-1], 2, '--verify') == 0
  assert '4 shards, all as they were written' in capsys.readouterr().out
  before = identities(folder)
  name = 'train-{:05d}-of-00004'.format
  content = bytearray((folder / f'{name(0)}.array_record').read_bytes())
  content[40000] ^= 1
  (folder / f'{name(0)}.array_record').write_bytes(content)
  os.truncate(folder / f'{name(1)}.array_record', 100000)
  for left in ('train.csv', f'{name(2)}.array_record', f'{name(2)}.json', 'classes.csv'):
    (folder / f'.17.tmp.{left}').touch()                            # by a process that was killed
  (folder / f'{name(3)}.json').unlink()
  assert run(*args, '--verify') == 1
  out = capsys.readouterr().out
  for line in ('00000-of-00004.array_record: its SHA-256 is not',
               '00001-of-00004.array_record: 100000 bytes, written were',
               '00003-of-00004.array_record: train-00003-of-00004.json cannot be read',
               '3 files are damaged; the command without --verify repairs them'):
    assert line in out
  assert run(*args, *COMMAND) == 0
  after = identities(folder)
  assert [before[x] == after[x] for x in sorted(after)] == [False, False, True, False]
  assert stored(folder) == stored(prepared) and not list(folder.glob('.*'))
  (folder / 'train.csv').write_text('path,label\n')
  (folder / f'{name(2)}.array_record').unlink()
  capsys.readouterr()
  assert run(*args, '--verify') == 1
  assert '00002-of-00004.array_record: No such file or directory' in capsys.readouterr().out
  assert run(*args, *COMMAND) == 0 and stored(folder) == stored(prepared)
  (folder / 'train.csv').unlink()
  assert run(*args, '--verify') == 1
  assert 'train.csv: No such file' in capsys.readouterr().out
  assert run(store / 'bad.csv', '-o', folder, '--verify') == 2
  assert 'nothing was prepared' in capsys.readouterr().err


def test_a_full_disk_is_named_and_what_is_done_is_kept(store, tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / 'set').mkdir()
  videos.write_video(tmp_path / 'set/big.mp4', rng.integers(0, 256, (60, 96, 96, 3), np.uint8))
  shutil.copy(store / 'in ner/é 0.mp4', tmp_path / 'set/a.mp4')
  (tmp_path / 'set/classes.csv').write_text('id,name\n0,open\n')
  write_list(tmp_path / 'set/train.csv', [('a.mp4', 0), ('big.mp4', 0)], ('path', 'label'))
  out = tmp_path / 'x'
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
  command = [sys.executable, '-m', 'xclip_jax.cli', 'data', 'prepare', 'train.csv', '-o', str(out),
             '--short-side', '96', '--per-shard', '1', '--processes', '1']
  command = dict(args=command, cwd=tmp_path / 'set', capture_output=True, text=True, check=False,
                 env=os.environ | {'PYTHONPATH': str(ROOT)})
  done = subprocess.run(**command, preexec_fn=limit)
  assert done.returncode == 2
  assert re.search(r'cannot write .*train-00001-of-00002.*: .*File too large', done.stderr)
  assert len(done.stderr.splitlines()) == 1, done.stderr
  assert sorted(x.name for x in out.iterdir()) == [
    'train-00000-of-00002.array_record', 'train-00000-of-00002.json', 'train_request.json']
  before = identities(out)
  done = subprocess.run(**command)
  assert done.returncode == 0, done.stderr
  assert identities(out).items() > before.items()


@pytest.mark.parametrize('lacking', ['bytes', 'sha256', 'videos', 'failed'])
def test_facts_that_lack_a_fact_are_damaged(tmp_path, lacking):
  shard = prepare_shards.Shard(str(tmp_path / 'a.array_record'), (), '/', encode.Encoding())
  facts = {'digest': shard.digest, 'bytes': 0, 'sha256': '', 'videos': [], 'failed': []}
  (tmp_path / 'a.json').write_text(json.dumps(facts))
  assert prepare_shards.read_facts(shard) == facts
  del facts[lacking]
  (tmp_path / 'a.json').write_text(json.dumps(facts))
  assert prepare_shards.find_fault(shard) == 'a.json is damaged: a fact is missing'
  with pytest.raises(UserError, match=r'a\.json is damaged'):
    prepare_shards.read_facts(shard)
