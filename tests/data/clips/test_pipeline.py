import contextlib
import itertools
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import reading

import videos
from xclip_jax.data import bad_files
from xclip_jax.data.clips import augment, batch_iterator, sampling
from xclip_jax.data.datasets import annotations

PROGRAMS = pathlib.Path(__file__).parents[2] / 'programs'

N, T, S = 7, 4, 32
FRAMES = 20
CLASSES = annotations.ClassList(('a', 'b', 'c'), (None, None, None))
TRAIN = augment.TrainTransform(S, 'multiscale', flip=0.5, color_jitter=0.8, grayscale=0.2)
PLAIN = augment.TrainTransform(S, 'center', flip=0, color_jitter=0, grayscale=0)
EVAL = augment.EvalTransform(S)
BAD_ROW = 2


def make_videos(folder, bad=()):
  """Write N videos, those in `bad` as text files; the label is the row modulo 3."""
  examples = []
  for row in range(N):
    path = folder / f'video {row}.mp4'
    if row in bad:
      path.write_text('<html>not found</html>')
    else:
      videos.write_video(path, videos.barcode_frames(FRAMES, 64, 64), options={'bf': '2'})
    examples.append(annotations.Example(str(path), row % 3))
  return annotations.VideoList(examples, CLASSES, folder)


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  return make_videos(tmp_path_factory.mktemp('good'))


@pytest.fixture(scope='module')
def one_bad(tmp_path_factory):
  return make_videos(tmp_path_factory.mktemp('bad'), bad=(BAD_ROW,))


def train(listed, count, transform=TRAIN, batch_size=4, **options):
  options = dict(num_frames=T, seed=11, threads=2) | options
  with reading.open_training(listed, transform, batch_size=batch_size, **options) as batches:
    return list(itertools.islice(batches, count))


def evaluate(listed, batch_size=4, **options):
  options = dict(num_frames=T, threads=2) | options
  with reading.open_evaluation(listed, EVAL, batch_size=batch_size, **options) as batches:
    got = list(batches)
    assert len(got) == len(batches)
  return got


def assert_same(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_contract(batch, rows):
  kinds = dict(video='u1', label='i4', index='i4', mask='?', failed='i4', error='S200')
  assert {name: array.dtype for name, array in batch.items()} == {
    name: np.dtype(kind) for name, kind in kinds.items()
  }
  assert batch.pop('video').shape == (rows, T, S, S, 3)
  assert all(array.shape == (rows,) for array in batch.values())


def test_a_training_batch_keeps_the_contract(good):
  (batch,) = train(good, 1)
  assert batch['mask'].all() and (batch['failed'] == -1).all() and not batch['error'].any()
  np.testing.assert_array_equal(batch['label'], batch['index'] % 3)
  assert_contract(batch, rows=4)


def test_training_clips_hold_frames_of_successive_segments(good):
  for batch in train(good, 4, PLAIN):
    for clip in batch['video']:
      numbers = np.array([videos.read_barcode(frame) for frame in clip])
      np.testing.assert_array_equal(numbers // (FRAMES // T), np.arange(T))


def test_every_epoch_shows_each_video_once_in_another_order_and_another_guise(good):
  batches = train(good, 2, batch_size=N)
  first, second = (batch['index'] for batch in batches)
  assert sorted(first) == sorted(second) == list(range(N))
  assert list(first) != list(second)
  clips = [dict(zip(batch['index'], batch['video'], strict=True)) for batch in batches]
  assert all(np.any(clips[0][row] != clips[1][row]) for row in range(N))


def test_the_seed_decides_the_stream(good):
  assert_same(train(good, 2), train(good, 2))
  assert train(good, 2)[1]['video'].tobytes() != train(good, 2, seed=12)[1]['video'].tobytes()
  train(good, 1, seed=-1)


def test_threads_do_not_change_the_stream(good):
  want = train(good, 4)
  for threads in (0, 1, 4):
    assert_same(train(good, 4, threads=threads), want)


@pytest.mark.parametrize('workers', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_do_not_change_the_stream(one_bad, workers):
  assert_same(train(one_bad, 5, workers=workers, start_step=1), train(one_bad, 6)[1:])


def test_a_resumed_stream_goes_on_where_it_was(good):
  whole = train(good, 6)
  for step in (1, 5):
    assert_same(train(good, 6 - step, start_step=step), whole[step:])


def test_a_late_start_costs_nothing(good):
  start = time.monotonic()
  train(good, 1, start_step=10**9)
  assert time.monotonic() - start < 5


@pytest.mark.parametrize('hosts', [[[0, 1], [2, 3]], [[0, 3], [1, 2]], [[2], [0, 1, 3]]])
def test_hosts_read_the_rows_of_one_global_batch_that_they_are_told(good, hosts):
  whole = train(good, 3)
  parts = [train(good, 3, rows=rows) for rows in hosts]
  for batch, *shares in zip(whole, *parts, strict=True):
    for rows, share in zip(hosts, shares, strict=True):
      for name in batch:
        np.testing.assert_array_equal(share[name], batch[name][rows])


def test_a_batch_may_hold_more_rows_than_there_are_files(good):
  (batch,) = train(good, 1, batch_size=3 * N)
  assert np.bincount(batch['index']).tolist() == [3] * N
  assert len({clip.tobytes() for clip in batch['video']}) == 3 * N


def test_an_unreadable_video_is_replaced_and_reported(one_bad):
  batches = train(one_bad, 7)
  rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  hit = rows['failed'] >= 0
  assert hit.sum() == 4 and set(rows['failed'][hit]) == {BAD_ROW}  # 28 rows are four epochs of 7
  assert rows['mask'].all() and BAD_ROW not in rows['index']
  np.testing.assert_array_equal(rows['label'], rows['index'] % 3)
  assert all(b'video 2.mp4: cannot be read as a video' in error for error in rows['error'][hit])
  assert not rows['error'][~hit].any()
  assert (rows['video'].reshape(len(hit), -1).max(1) > 0).all()


def test_other_rows_do_not_notice_an_unreadable_one(good, one_bad):
  for clean, batch in zip(train(good, 4), train(one_bad, 4), strict=True):
    kept = batch['failed'] < 0
    np.testing.assert_array_equal(clean['video'][kept], batch['video'][kept])


def test_with_nothing_to_read_rows_are_masked(tmp_path):
  bad = make_videos(tmp_path, bad=range(N))
  (batch,) = train(bad, 1)
  assert not batch['mask'].any() and not batch['video'].any()
  np.testing.assert_array_equal(batch['failed'], batch['index'])
  assert_contract(batch, rows=4)


def test_a_long_path_keeps_its_file_name_and_reason(tmp_path):
  folder = tmp_path / ('x' * 120) / ('y' * 120)
  folder.mkdir(parents=True)
  (batch,) = train(make_videos(folder, bad=range(N)), 1)
  assert all(b'mp4: cannot be read as a video (Invalid data' in error for error in batch['error'])


def test_too_many_unreadable_files_stop_the_run(one_bad):
  bad = bad_files.BadFiles(len(one_bad), max_share=0.2)
  for batch in train(one_bad, 7):
    bad.update(batch)
  assert bad.count == 1 and list(bad.items) == [BAD_ROW]  # four failures of one file count once
  assert 'video 2.mp4' in bad.items[BAD_ROW]
  more = dict(failed=np.array([-1, 5]), error=np.array([b'', b'/videos/v.mp4: too short']))
  with pytest.raises(ValueError, match='2 of 7 videos cannot be read') as raised:
    bad.update(more)
  assert 'video 2.mp4: ' in str(raised.value) and '/videos/v.mp4: too short' in str(raised.value)


def test_the_report_of_unreadable_files_stays_short():
  bad = bad_files.BadFiles(20, max_share=0.5)
  rows = np.arange(20)
  with pytest.raises(ValueError, match='20 of 20') as raised:
    bad.update(dict(failed=rows, error=np.array([b'/v%d.mp4: gone' % row for row in rows])))
  assert str(raised.value).count('gone') == 5


@pytest.mark.parametrize('batch_size, hosts', [(2, 1), (4, 2), (16, 2)])
def test_evaluation_counts_each_video_once_on_any_hosts(good, batch_size, hosts):
  parts = [
    evaluate(good, batch_size, rows=rows) for rows in np.array_split(np.arange(batch_size), hosts)
  ]
  assert len({len(part) for part in parts}) == 1
  seen = []
  for batches in zip(*parts, strict=True):
    assert all(len(batch['index']) == batch_size // hosts for batch in batches)
    seen += np.concatenate([batch['index'] for batch in batches]).tolist()
    for batch in batches:
      np.testing.assert_array_equal(batch['mask'], batch['index'] >= 0)
      label = np.where(batch['mask'], batch['index'] % 3, 0)
      np.testing.assert_array_equal(batch['label'], label)
      assert not batch['video'][~batch['mask']].any()
  assert seen == list(range(N)) + [-1] * (len(seen) - N)


def test_evaluation_takes_the_middle_of_each_segment(good):
  for batch in evaluate(good):
    for clip in batch['video'][batch['mask']]:
      numbers = [videos.read_barcode(frame) for frame in clip]
      assert numbers == sampling.test_indices(FRAMES, T).tolist()


def test_evaluation_masks_an_unreadable_video(one_bad):
  batch = evaluate(one_bad, batch_size=8)[0]
  np.testing.assert_array_equal(np.flatnonzero(~batch['mask']), [BAD_ROW, 7])
  assert batch['failed'].tolist() == [-1, -1, BAD_ROW, -1, -1, -1, -1, -1]
  assert b'video 2.mp4' in batch['error'][BAD_ROW]
  assert batch['index'].tolist() == [*range(7), -1] and not batch['video'][BAD_ROW].any()
  assert_contract(batch, rows=8)


@pytest.mark.parametrize('workers', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_evaluation_is_the_same_in_workers(one_bad, workers):
  assert_same(evaluate(one_bad, workers=workers), evaluate(one_bad))


def test_wrong_sizes_are_refused(good):
  with pytest.raises(ValueError, match='batch_size=3 must be a positive multiple of repeats=2'):
    reading.open_training(good, TRAIN, num_frames=T, batch_size=3, seed=0, repeats=2)
  for rows in ([2], [-1, 0], [1, 0], [0, 0], []):
    with pytest.raises(ValueError, match=r'rows must be some of 0\.\.1, ascending, found'):
      reading.open_evaluation(good, EVAL, num_frames=T, batch_size=2, rows=rows)
  nothing = annotations.VideoList([], CLASSES)
  with pytest.raises(ValueError, match='no videos'):
    reading.open_evaluation(nothing, EVAL, num_frames=T, batch_size=2)


class Broken:
  image_size = S

  def row(self, frames, rng):
    raise KeyError('a mistake in the code')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_mistake_in_the_code_is_not_taken_for_a_bad_file(good, workers):
  options = dict(num_frames=T, batch_size=2, seed=0, workers=workers)
  with reading.open_training(good, Broken(), **options) as batches:
    with pytest.raises(KeyError, match='a mistake in the code'):
      next(batches)
    with pytest.raises(ValueError, match='closed'):
      next(batches)


def test_closing_is_final_and_may_be_repeated(good):
  batches = reading.open_training(good, TRAIN, num_frames=T, batch_size=2, seed=0)
  next(batches)
  with pytest.raises(TypeError, match='no end'):
    len(batches)
  batches.close()
  batches.close()
  with pytest.raises(ValueError, match='closed'):
    next(batches)


def test_a_killed_worker_leaves_no_trace_in_the_stream(good):
  want = train(good, 8)
  options = dict(num_frames=T, batch_size=4, seed=11, threads=1, workers=1)
  with reading.open_training(good, TRAIN, **options) as batches:
    got = [next(batches)]
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    got += itertools.islice(batches, 7)
    (successor,) = multiprocessing.active_children()
  assert successor.pid != worker.pid
  assert_same(got, want)


def test_workers_that_keep_dying_end_the_run(good, monkeypatch):
  monkeypatch.setattr(batch_iterator, '_RESTARTS', 0)
  options = dict(num_frames=T, batch_size=4, seed=11, threads=1, workers=1)
  with reading.open_training(good, TRAIN, **options) as batches:
    next(batches)
    for worker in multiprocessing.active_children():
      os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r'failed after 0 restarts.*exit code -9'):
      list(itertools.islice(batches, 8))


RUN = (PROGRAMS / 'main_process_of_workers.py').read_text()


@contextlib.contextmanager
def main_process(folder, script, what):
  """Run a main process with a worker in use; yields it and the id of that worker."""
  script.write_text(RUN)
  root = pathlib.Path(__file__).parents[3]
  with subprocess.Popen(
    [sys.executable, script, folder, what], cwd=root, env=os.environ | {'PYTHONPATH': str(root)},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  ) as process:
    try:
      worker = process.stdout.readline().strip()
      assert worker.isdecimal(), process.stderr.read()
      yield process, worker
    finally:
      process.kill()


def alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')')[-1].split()[0] != 'Z'
  except OSError:
    return False


def wait_until(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.2)
  return condition()


@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='looks into /proc and /dev/shm')
@pytest.mark.parametrize('how', [
  pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_killed_main_process_leaves_nothing_behind(good, tmp_path, how):
  folder = os.path.dirname(good[0]['path'])
  with main_process(folder, tmp_path / 'run.py', 'stay') as (process, worker):
    assert alive(worker)
    # What the two have in shared memory; other tests of this machine have theirs there, too.
    mapped = lambda: set(re.findall(r'/dev/shm/(\S+)', ''.join(
      pathlib.Path(f'/proc/{pid}/maps').read_text() for pid in (process.pid, worker))))
    assert wait_until(mapped)
    time.sleep(1)
    ours = mapped()
    process.send_signal(how)
    assert process.wait(60) == -how
    assert wait_until(lambda: not alive(worker))
  assert wait_until(lambda: not ours.intersection(os.listdir('/dev/shm')))


@pytest.mark.slow
def test_leaving_without_closing_is_quiet(good, tmp_path):
  folder = os.path.dirname(good[0]['path'])
  with main_process(folder, tmp_path / 'run.py', 'leave') as (process, worker):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert 'Exception ignored' not in errors and 'leaked' not in errors, errors
    assert wait_until(lambda: not alive(worker))
