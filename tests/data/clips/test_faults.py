"""Files and disks that misbehave: each is noticed, named, replaced and counted; nothing hangs."""

import contextlib
import fcntl
import io
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reading
from test_decode import BROKEN

import videos
from xclip_jax.data import bad_files
from xclip_jax.data.clips import augment
from xclip_jax.data.datasets import annotations
from xclip_jax.data.reading import time_limits
from xclip_jax.data.video import decode

PROGRAMS = pathlib.Path(__file__).parents[2] / 'programs'

N, T, S, FRAMES = 4, 4, 32, 24
TRAIN = augment.TrainTransform(S, 'center', flip=0.5, color_jitter=0, grayscale=0)
CLASSES = annotations.ClassList(('a', 'b'), (None, None))


def looping_link(path):
  path.symlink_to(path)


def cut_short(path):
  data = pathlib.Path(write(path)).read_bytes()
  path.write_bytes(data[:100])


def dangling_link(path):
  path.symlink_to(path.parent / 'gone' / 'video.mp4')


def link_below_a_file(path):
  path.symlink_to(path.parent / 'video 0.mp4' / 'video.mp4')


FAULTS = BROKEN | {
  'first 100 bytes': cut_short, 'looping link': looping_link, 'dangling link': dangling_link,
  'below a file': link_below_a_file,
}


def write(path, **options):
  return videos.write_video(path, videos.barcode_frames(FRAMES, 48, 64), options={'g': '6'})


def list_of(folder, count=N):
  paths = [folder / f'video {row}.mp4' for row in range(count)]
  return annotations.VideoList(
    [annotations.Example(str(p), i % 2) for i, p in enumerate(paths)], CLASSES)


def train(listed, count, **options):
  options = dict(num_frames=T, batch_size=4, seed=0, threads=1) | options
  with reading.open_training(listed, TRAIN, **options) as batches:
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize('kind', FAULTS)
def test_a_broken_file_is_replaced_named_and_counted(tmp_path, kind):
  FAULTS[kind](tmp_path / 'video 2.mp4')
  for row in (0, 1, 3):
    write(tmp_path / f'video {row}.mp4')
  assert_replaced(tmp_path)


def assert_replaced(folder):
  """Train and evaluate on four videos, the third of them broken; return what is said of it."""
  listed = list_of(folder)
  bad = bad_files.BadFiles(N, max_share=0.3)
  (batch,) = train(listed, 1)
  bad.update(batch)
  assert batch['mask'].all() and sorted(batch['failed'].tolist()) == [-1, -1, -1, 2]
  assert list(bad.items) == [2] and 'video 2.mp4: ' in bad.items[2]
  with reading.open_evaluation(
    listed, augment.EvalTransform(S), num_frames=T, batch_size=4, threads=1
  ) as batches:
    (batch,) = batches
  assert batch['mask'].tolist() == [True, True, False, True]
  assert batch['failed'].tolist() == [-1, -1, 2, -1]
  return bad.items[2]


def test_a_file_that_may_not_be_read_is_replaced_named_and_counted(tmp_path):
  for row in range(N):
    write(tmp_path / f'video {row}.mp4')
  os.chmod(tmp_path / 'video 2.mp4', 0)
  run = lambda name: [sys.executable, str(PROGRAMS / name)]
  found = subprocess.run(
    [*run('obey_permissions.py'), *run('read_forbidden_video.py'), str(tmp_path)], text=True,
    capture_output=True, check=False, env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
  assert found.returncode == 0, found.stderr
  if not found.stdout:
    pytest.skip('this user may read every file and cannot give that up')
  assert found.stdout.endswith('video 2.mp4: cannot be read as a video (Permission denied)\n')


@pytest.mark.parametrize('name', ['a.avi', 'a.txt', 'a', 'a.jpg'])
def test_the_contents_count_and_not_the_extension(tmp_path, name):
  write(tmp_path / 'a.mp4')
  os.rename(tmp_path / 'a.mp4', tmp_path / name)
  frames = decode.read_video(tmp_path / name, lambda count: np.array([5, 17, count - 1]))
  assert [videos.read_barcode(frame) for frame in frames] == [5, 17, FRAMES - 1]


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv', 'a.avi'])
def test_titles_in_an_unknown_encoding_do_no_harm(tmp_path, name):
  path = pathlib.Path(write(tmp_path / name))
  assert b'Lavf' in path.read_bytes()                      # the name of the program that wrote it
  path.write_bytes(path.read_bytes().replace(b'Lavf', b'L\xe9vf'))
  (frame,) = decode.read_video(path, lambda count: np.array([7]))
  assert videos.read_barcode(frame) == 7


def test_an_unknown_codec_is_named_as_the_reason(tmp_path):
  path = pathlib.Path(write(tmp_path / 'a.mp4'))
  path.write_bytes(path.read_bytes().replace(b'avc1', b'zzz1'))
  with pytest.raises(decode.VideoError, match=r'a\.mp4: its video is of a kind that'):
    decode.read_video(path, np.arange)


def test_damage_anywhere_gives_pictures_or_a_reason(tmp_path):
  data = np.frombuffer(pathlib.Path(write(tmp_path / 'a.mp4')).read_bytes(), np.uint8)
  rng = np.random.default_rng(0)
  for _ in range(200):
    damaged = data.copy()
    damaged[rng.integers(len(data), size=5)] = rng.integers(256, size=5)
    with contextlib.suppress(decode.VideoError):
      decode.read_video(damaged.tobytes(), lambda count: rng.integers(count, size=T))


def test_a_file_that_vanishes_in_mid_run_is_replaced_from_then_on(tmp_path):
  listed = list_of(tmp_path)
  for row in range(N):
    write(tmp_path / f'video {row}.mp4')
  with reading.open_training(
    listed, TRAIN, num_frames=T, batch_size=N, seed=0, threads=0
  ) as batches:
    assert (next(batches)['failed'] == -1).all()
    os.remove(tmp_path / 'video 1.mp4')
    batch = next(batches)
  assert sorted(batch['failed'].tolist()) == [-1, -1, -1, 1] and batch['mask'].all()
  (error,) = set(batch['error']) - {b''}
  assert b'video 1.mp4: cannot be read as a video (No such file' in error


def test_an_unreadable_row_draws_its_substitute_however_far_reading_got(tmp_path):
  listed = list_of(tmp_path)
  for row in range(N):
    write(tmp_path / f'video {row}.mp4')
  shown = []
  for fault in (lambda path: path.unlink(), damage):
    write(tmp_path / 'video 2.mp4')
    fault(tmp_path / 'video 2.mp4')
    batches = train(listed, 6)
    assert any(2 in batch['failed'] for batch in batches)
    shown.append(np.stack([np.concatenate([b['index'], b['video'].sum((1, 2, 3, 4))])
                           for b in batches]))
  np.testing.assert_array_equal(*shown)


def damage(path):
  """Zero all pictures: the frames are counted and drawn before anything is noticed."""
  data = bytearray(path.read_bytes())
  with decode.av.open(str(path)) as container:
    for packet in container.demux(video=0):
      if packet.size:
        data[packet.pos:packet.pos + packet.size] = bytes(packet.size)
  path.write_bytes(data)


class SlowFile(io.BytesIO):
  """Contents that arrive a little at a time."""

  def read(self, size=-1):
    time.sleep(0.05)
    return super().read(min(size, 512) if size >= 0 else size)


def readers():
  return [t for t in threading.enumerate() if t.name == 'read_video']


def gone(seconds=20):
  end = time.monotonic() + seconds
  while readers() and time.monotonic() < end:
    time.sleep(0.02)
  return not readers()


def test_a_slow_file_is_given_up_in_time_and_its_thread_ends(tmp_path):
  data = pathlib.Path(write(tmp_path / 'a.mkv')).read_bytes()
  start = time.monotonic()
  with pytest.raises(decode.VideoError, match=r'video in memory: not read within 0\.3 s'):
    decode.read_video(SlowFile(data), np.arange, seconds=0.3)
  assert time.monotonic() - start < 3
  assert gone()


def test_slow_decoding_is_given_up_between_two_pictures(tmp_path, monkeypatch):
  path = write(tmp_path / 'a.mp4')
  to_rgb = decode._to_rgb
  monkeypatch.setattr(decode, '_to_rgb', lambda *frame: time.sleep(0.1) or to_rgb(*frame))
  with pytest.raises(decode.VideoError, match=r'a\.mp4: not read within 0\.25 s'):
    decode.read_video(path, np.arange, seconds=0.25)
  assert gone()


@contextlib.contextmanager
def unopenable(path):
  """Blocks everybody who opens a file, as storage that is gone does, until the block ends.

  The kernel lets them wait for the holder of a lease, for 45 s. Yields a function that ends it.
  """
  previous = signal.signal(signal.SIGIO, signal.SIG_IGN)   # by which it asks for the lease
  handle = os.open(path, os.O_RDONLY)
  try:
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
  except OSError as error:
    os.close(handle)
    pytest.skip(f'this file system has no leases ({error})')
  release = lambda: fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
  try:
    yield release
  finally:
    with contextlib.suppress(BlockingIOError):             # it was ended before
      release()
    os.close(handle)
    assert gone()
    signal.signal(signal.SIGIO, previous)


@pytest.fixture
def hanging(tmp_path):
  """A file whose reading blocks."""
  path = pathlib.Path(write(tmp_path / 'video 2.mp4'))
  with unopenable(path):
    yield path


def test_a_hanging_read_is_given_up_in_time(hanging):
  start = time.monotonic()
  with pytest.raises(decode.VideoError, match=r'2\.mp4: not read within 0\.2 s; .*raise data'):
    decode.read_video(hanging, np.arange, seconds=0.2)
  assert time.monotonic() - start < 3 and len(readers()) == 1


@pytest.mark.parametrize('workers', [0, 1])
def test_a_hanging_file_is_replaced_as_if_it_were_missing(hanging, tmp_path, workers):
  listed = list_of(tmp_path)
  missing = tmp_path / 'missing'
  missing.mkdir()
  for folder, row in itertools.product((tmp_path, missing), (0, 1, 3)):
    write(folder / f'video {row}.mp4')
  got = train(listed, 2, clip_seconds=1, workers=workers)   # that others need less, on any machine
  want = train(list_of(missing), 2)
  for a, b in zip(got, want, strict=True):
    for name in ('video', 'label', 'index', 'mask', 'failed'):
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  reasons = {error for batch in got for error in batch['error'] if error}
  assert len(reasons) == 1 and b'video 2.mp4: not read within 1 s' in reasons.pop()


def test_a_process_full_of_hanging_reads_says_so(hanging, monkeypatch):
  monkeypatch.setattr(time_limits, '_MAX_STUCK', 2)
  for _ in range(2):
    with pytest.raises(decode.VideoError):
      decode.read_video(hanging, np.arange, seconds=0.05)
  with pytest.raises(RuntimeError, match='2 reads hang in this process; is the storage gone'):
    decode.read_video(hanging, np.arange, seconds=0.05)


def test_a_time_limit_changes_no_row(tmp_path):
  listed = list_of(tmp_path)
  for row in range(N):
    write(tmp_path / f'video {row}.mp4')
  for a, b in zip(train(listed, 3), train(listed, 3, clip_seconds=60), strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  assert gone()


@pytest.mark.parametrize('takes, limit, replaced', [(1, 60, False), (60, 2, True)])
def test_a_slow_disk_is_waited_for_as_long_as_the_limit(tmp_path, takes, limit, replaced):
  for row in (0, 1, 3):
    write(tmp_path / f'video {row}.mp4')
  path = write(tmp_path / 'video 2.mp4')
  begin = time.monotonic()
  with unopenable(path) as release:
    arrival = threading.Timer(takes, release)
    arrival.start()
    (batch,) = train(list_of(tmp_path), 1, clip_seconds=limit, threads=0)
    arrival.cancel()
  assert time.monotonic() - begin < 30 and batch['mask'].all()
  assert (2 in batch['failed'], 2 in batch['index']) == (replaced, not replaced)
  assert (b'video 2.mp4: not read within 2 s' in b''.join(batch['error'])) == replaced


def test_an_error_in_the_sampler_is_not_taken_for_a_bad_file(tmp_path):
  path = write(tmp_path / 'a.mp4')

  def mistaken(count):
    raise KeyError('a mistake in the code')

  with pytest.raises(KeyError, match='a mistake in the code'):
    decode.read_video(path, mistaken, seconds=10)
