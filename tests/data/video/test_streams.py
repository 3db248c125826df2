"""Of the pictures in a file, those of the video that the file is about are read."""

import fractions

import av
import numpy as np
import pytest
from av.stream import Disposition

from xclip_jax.data.video import decode

RED, GREEN = (220, 20, 20), (20, 200, 20)
SMALL, LARGE = (48, 64), (120, 160)


def write(path, *streams):
  """Write streams of (codec, colour, size, number of pictures, dispositions)."""
  with av.open(str(path), 'w') as container:
    made = []
    for codec, color, size, count, disposition in streams:
      stream = container.add_stream(codec, rate=10)
      stream.height, stream.width = size
      stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'rgb24' if codec == 'png' else 'yuv420p'
      stream.codec_context.thread_count = 1
      stream.disposition = disposition
      made.append((stream, color, size, count))
    packets = []
    for stream, color, size, count in made:
      image = np.broadcast_to(np.uint8(color), (*size, 3)).copy()
      for number in range(count):
        frame = av.VideoFrame.from_ndarray(image, format='rgb24')
        frame.pts, frame.time_base = number, fractions.Fraction(1, 10)
        packets += stream.encode(frame)
      packets += stream.encode()
    for packet in sorted(packets, key=lambda x: float((x.dts or 0) * x.time_base)):
      container.mux(packet)
  return str(path)


def seen(file):
  """Number of frames, size, and whether they are green."""
  counts = []
  frame = decode.read_video(file, lambda count: counts.append(count) or np.array([0]))[0]
  assert decode.count_frames(file) == counts[0] == len(list(decode.read_frames(file)[1]))
  return counts[0], frame.shape[:2], frame[..., 1].mean() > frame[..., 0].mean()


DEFAULT, NOTHING = Disposition.default, Disposition(0)
MAIN = ('libx264', GREEN, LARGE, 12)
FILES = {
  'a thumbnail, then the default': (
    'mp4', ('libx264', RED, SMALL, 1, NOTHING), (*MAIN, DEFAULT)),
  'a preview, then the default': (
    'mkv', ('libx264', RED, SMALL, 12, NOTHING), (*MAIN, DEFAULT)),
  'a large preview, then the default': (
    'mkv', ('libx264', RED, (240, 320), 12, NOTHING), (*MAIN, DEFAULT)),
  'a JPEG that is marked as default': (
    'mov', ('mjpeg', RED, SMALL, 1, DEFAULT), (*MAIN, NOTHING)),
  'a JPEG in Matroska, larger than the video': (
    'mkv', ('mjpeg', RED, (240, 320), 1, DEFAULT), (*MAIN, NOTHING)),
  'cover art': ('mp4', ('mjpeg', RED, (240, 320), 1, Disposition.attached_pic), (*MAIN, DEFAULT)),
  'neither is marked': ('ts', ('libx264', RED, SMALL, 12, NOTHING), (*MAIN, NOTHING)),
  'both are marked': ('mkv', ('libx264', RED, SMALL, 12, DEFAULT), (*MAIN, DEFAULT)),
  'the first of two alike': ('mkv', (*MAIN, NOTHING), ('libx264', RED, LARGE, 12, NOTHING)),
}


@pytest.mark.parametrize('name', FILES)
def test_the_main_video_is_read(tmp_path, name):
  suffix, *streams = FILES[name]
  path = write(tmp_path / f'a.{suffix}', *streams)
  with open(path, 'rb') as file:
    content = file.read()
  for file in (path, content):
    assert seen(file) == (12, LARGE, True)


def test_a_small_video_that_is_marked_as_default_is_the_main_one(tmp_path):
  path = write(tmp_path / 'a.mkv', ('libx264', RED, LARGE, 12, NOTHING),
               ('libx264', GREEN, SMALL, 12, DEFAULT))
  assert seen(path) == (12, SMALL, True)


def test_a_picture_alone_is_a_video_of_one_frame(tmp_path):
  path = write(tmp_path / 'a.mkv', ('mjpeg', GREEN, SMALL, 1, DEFAULT))
  assert seen(path) == (1, SMALL, True)
