"""Damaged videos and pictures of fifteen formats, read in part and read whole."""

import fractions
import functools
import pathlib
import random

import av
import numpy as np

from benchmarks.fuzz import harness
from xclip_jax.data.video import decode

# Ending, container, codec, pixel format.
FORMATS = (
  ('.mp4', None, 'libx264', 'yuv420p'), ('.mov', None, 'mpeg4', 'yuv420p'),
  ('.mkv', None, 'libx264', 'yuv420p'), ('.webm', None, 'libvpx', 'yuv420p'),
  ('.webm', None, 'libvpx-vp9', 'yuv420p'), ('.avi', None, 'mpeg4', 'yuv420p'),
  ('.avi', None, 'mjpeg', 'yuvj420p'), ('.ts', 'mpegts', 'libx264', 'yuv420p'),
  ('.mpg', 'mpeg', 'mpeg2video', 'yuv420p'), ('.flv', None, 'flv', 'yuv420p'),
  ('.wmv', 'asf', 'wmv2', 'yuv420p'), ('.3gp', None, 'mpeg4', 'yuv420p'),
  ('.gif', None, 'gif', 'rgb8'), ('.png', 'image2', 'png', 'rgb24'),
  ('.jpg', 'image2', 'mjpeg', 'yuvj420p'))


def write_sound(path: pathlib.Path, container: str | None, codec: str, pixels: str) -> None:
  """Writes 12 frames (one of a picture) of 64 x 48 pixels."""
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 255, (48, 64, 3), np.uint8)
  with av.open(str(path), 'w', format=container) as out:
    stream = out.add_stream(codec, rate=25, options={'threads': '1'})
    stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
    for number in range(1 if container == 'image2' else 12):
      frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, 1), format='rgb24')
      frame = frame.reformat(format=pixels)
      frame.pts, frame.time_base = number, fractions.Fraction(1, 25)
      out.mux(stream.encode(frame))
    out.mux(stream.encode())


def read(path: pathlib.Path) -> None:
  """Reads four chosen frames, with a time limit as in training, then every frame."""
  decode.read_video(path, lambda n: np.linspace(0, n - 1, 4).round().astype(int), seconds=4)
  _, frames = decode.read_frames(path)
  for number, _ in enumerate(frames):
    if number >= 40:
      break


def _prepare(form, folder: pathlib.Path, canary: pathlib.Path):
  ending, *rest = form
  path = folder / f'a{ending}'
  write_sound(path, *rest)
  sound = path.read_bytes()
  read(path)

  def write_next(rng: random.Random) -> pathlib.Path:
    # Half of the changes hit the first 600 bytes, where sizes and counts of most formats are.
    cut = min(600, len(sound)) if rng.random() < 0.5 else len(sound)
    path.write_bytes(harness.damage(sound[:cut], rng) + sound[cut:])
    return path

  return write_next


KINDS = [
  harness.Kind(f'{ending[1:]} {codec}', functools.partial(_prepare, (ending, *rest)), read)
  for ending, *rest in FORMATS for codec in rest[1:2]]
