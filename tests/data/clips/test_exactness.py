"""The training stream is a function of the seed and the step, whoever reads it.

Whole epochs with all augmentation on are compared byte by byte, every array of every batch.
"""

import hashlib
import itertools
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import reading

import videos
from xclip_jax.data.clips import augment, pipeline
from xclip_jax.data.datasets import annotations

N, T, S, FRAMES, BATCH, STEPS = 12, 4, 32, 24, 8, 6       # 6 batches are four epochs
BAD_ROW = 7
PROGRAMS = pathlib.Path(__file__).parents[2] / 'programs'
AUGMENTED = augment.TrainTransform(
  S, 'multiscale', flip=0.5, color_jitter=0.8, grayscale=0.2, rand_augment=2, erase=0.5)
PLAIN = augment.TrainTransform(S, 'center', flip=0, color_jitter=0, grayscale=0)
CLASSES = annotations.ClassList(('a', 'b', 'c'), (None, None, None))
SETTINGS = {
  'sparse': {},
  'dense': {'sampling': 'dense', 'stride': 3},
  'repeats': {'repeats': 2},
}


def write(folder):
  """Write twelve videos, one of them broken."""
  for row in range(N):
    path = folder / f'video {row:02d}.mp4'
    if row == BAD_ROW:
      path.write_text('<html>not found</html>')
    else:
      frames = videos.barcode_frames(FRAMES, 48, 64)
      frames[:, :12] = 20 * row                           # so that videos differ
      videos.write_video(path, frames, options={'g': '8', 'bf': '2'})


def listed(folder):
  paths = sorted(pathlib.Path(folder).glob('*.mp4'))
  return annotations.VideoList(
    [annotations.Example(str(x), i % 3) for i, x in enumerate(paths)], CLASSES)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('videos')
  write(path)
  return path


def stream(folder, start=0, stop=STEPS, *, hosts=1, workers=0, repeats=1, transform=AUGMENTED,
           **options):
  """Batches start..stop of all hosts, put together to global ones."""
  options = dict(num_frames=T, seed=2026, threads=2) | options
  parts = []
  for host in range(hosts):
    with reading.open_training(
      listed(folder), transform, batch_size=BATCH, start_step=start, workers=workers,
      rows=np.array_split(np.arange(BATCH), hosts)[host], repeats=repeats, **options
    ) as batches:
      parts.append(list(itertools.islice(batches, stop - start)))
  return [join(batches) for batches in zip(*parts, strict=True)]


def join(batches):
  """Put the hosts' rows one after another, as their devices' rows are."""
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def hashes(batches):
  """Returns a hash for each batch, over names, types, shapes and bytes of all its arrays."""
  found = []
  for batch in batches:
    digest = hashlib.sha256()
    for name, array in sorted(batch.items()):
      digest.update(f'{name} {array.dtype} {array.shape}'.encode() + array.tobytes())
    found.append(digest.hexdigest())
  return found


@pytest.fixture(scope='module', params=SETTINGS)
def setting(request):
  """Options of the stream; tests that start many processes take all of them only when slow."""
  return SETTINGS[request.param]


@pytest.fixture(scope='module')
def whole(folder, setting):
  """Hashes of one host, no workers, without interruption."""
  return hashes(stream(folder, **setting))


def test_epochs_are_what_they_claim_to_be(folder, setting):
  batches = stream(folder, **setting)
  drawn = np.concatenate([np.where(b['failed'] >= 0, b['failed'], b['index']) for b in batches])
  drawn = drawn[::setting.get('repeats', 1)]
  for epoch in drawn.reshape(-1, N):
    assert sorted(epoch) == list(range(N))
  assert BAD_ROW in np.concatenate([b['failed'] for b in batches])
  clips = [clip.tobytes() for b in batches for clip in b['video']]
  assert len(set(clips)) == len(clips) == STEPS * BATCH    # augmentation never repeats itself


def test_two_readings_of_the_epochs_are_equal(folder, setting, whole):
  assert hashes(stream(folder, **setting)) == whole
  assert not set(hashes(stream(folder, seed=2027, **setting))) & set(whole)


def slowly(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize('workers', [slowly(1), 2, slowly(4)])
@pytest.mark.parametrize('setting', ['sparse', slowly('dense'), slowly('repeats')], indirect=True)
def test_epochs_are_the_same_for_any_number_of_workers(folder, setting, whole, workers):
  assert hashes(stream(folder, workers=workers, **setting)) == whole


@pytest.mark.parametrize('hosts', [2, 4])
def test_epochs_are_the_same_for_any_number_of_hosts(folder, setting, whole, hosts):
  assert hashes(stream(folder, hosts=hosts, **setting)) == whole


@pytest.mark.parametrize('step', range(1, STEPS))
def test_a_restart_at_any_step_goes_on_exactly(folder, setting, whole, step):
  assert hashes(stream(folder, start=step, **setting)) == whole[step:]


@pytest.mark.slow
@pytest.mark.parametrize('setting', ['sparse', slowly('dense'), slowly('repeats')], indirect=True)
def test_restarts_with_other_workers_and_hosts_go_on_exactly(folder, setting, whole):
  found = []
  for start, stop, hosts, workers in ((0, 1, 1, 1), (1, 2, 4, 0), (2, 4, 2, 1), (4, 6, 1, 0)):
    found += hashes(stream(folder, start, stop, hosts=hosts, workers=workers, **setting))
  assert found == whole


class Counted:
  """A source that notes which of its rows are asked for."""

  def __init__(self, videos):
    self.videos, self.asked = videos, []

  def __len__(self):
    return len(self.videos)

  def __getitem__(self, row):
    self.asked.append(int(row))
    return self.videos[row]


@pytest.mark.parametrize('step', [0, 1, 5, 10**12])
def test_a_restart_reads_no_video_of_the_steps_before(folder, setting, monkeypatch, step):
  read, opened = pipeline.decode.read_video, []

  def note(path, *args, **options):
    if threading.current_thread() is threading.main_thread():   # not what earlier tests left over
      opened.append(path)
    return read(path, *args, **options)

  monkeypatch.setattr(pipeline.decode, 'read_video', note)
  counted = Counted(listed(folder))
  with reading.open_training(
    counted, AUGMENTED, num_frames=T, batch_size=BATCH, seed=2026, start_step=step, threads=0,
    **setting
  ) as batches:
    batch = next(batches)
  drawn = BATCH // setting.get('repeats', 1)
  failures = (batch['failed'] >= 0).sum() * drawn // BATCH
  assert drawn + failures <= len(counted.asked) <= drawn + 8 * failures    # with substitutes
  assert opened == [listed(folder)[row]['path'] for row in counted.asked]
  assert set(batch['index']) <= set(counted.asked)


@pytest.mark.slow
def test_another_process_reads_the_same_epochs(folder):
  done = subprocess.run(
    [sys.executable, str(PROGRAMS / 'print_stream_hashes.py'), str(folder)], text=True,
    capture_output=True, check=True,
    env=os.environ | {'PYTHONHASHSEED': '1', 'PYTHONPATH': os.pathsep.join(sys.path)})
  assert done.stdout.split() == hashes(stream(folder, repeats=2))


GOLDEN = '43f218a4d71bfcbc78339395ebb14c7e73ef59e4085c22794a84200545ccb33e'


def test_the_seed_means_the_same_for_ever(folder):
  """The order of videos and their frames are pinned; pixels may differ in the last bit by CPU."""
  batches = stream(folder, transform=PLAIN)
  numbers = [[videos.read_barcode(frame) for frame in clip] for b in batches for clip in b['video']]
  rows = [[int(x) for x in np.concatenate([b[name] for b in batches])]
          for name in ('index', 'label', 'failed')]
  assert hashlib.sha256(repr((rows, numbers)).encode()).hexdigest() == GOLDEN
