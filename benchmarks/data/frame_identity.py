"""Share of wrong frames that video libraries return, by kind of video.

  python benchmarks/data/frame_identity.py
  python benchmarks/data/frame_identity.py --out identity.jsonl --only AVI
  python benchmarks/data/frame_identity.py --videos folder

For every kind of video in barcode_videos.py, each library reads 24 frames by number in one call; a
number painted into every frame identifies it. In videos of a folder, a frame is wrong if another
frame of the video is clearly more like it. Frames are numbered in the order of a full decode.
decord and torchcodec are measured if they are installed.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('SVT_LOG', '1')            # errors only, of the encoder SVT-AV1

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data import barcode_videos
from xclip_jax.data.video import decode

FRAMES, ASKED = 120, 24
Reader = Callable[[str, np.ndarray], tuple[int, list[np.ndarray]]]  # -> length, frames [H, W, 3]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  parser.add_argument('--only', default='', help='kinds whose names hold this')
  parser.add_argument('--videos', help='a folder of real videos, in place of the kinds')
  arguments = parser.parse_args()
  readers, rows = {'ours': read_ours} | peers(), []
  if arguments.videos:
    for path in map(str, sorted(Path(arguments.videos).iterdir())):
      every = thumbnails(path)
      number = functools.partial(nearest, every)
      rows += [ask(read, path, len(every), number) | {'kind': Path(path).name, 'reader': reader}
               for reader, read in readers.items()]
  for name, kind in barcode_videos.KINDS.items():
    if arguments.only not in name or arguments.videos:
      continue
    if kind.codec not in av.codecs_available:
      print(f'{name} is left out: this FFmpeg has no {kind.codec}')
      continue
    with tempfile.TemporaryDirectory(prefix='frame_identity') as folder:
      path, shown = barcode_videos.write(kind, folder, FRAMES)
      number = functools.partial(place, shown)
      rows += [ask(read, path, len(shown), number) | {'kind': name, 'reader': reader}
               for reader, read in readers.items()]
  lines = [json.dumps(about())] + [json.dumps(row, sort_keys=True) for row in rows]
  print('\n'.join(lines))
  if arguments.out:
    Path(arguments.out).write_text('\n'.join(lines) + '\n')
  print('\n' + table(rows, list(readers)))


def ask(
  read: Reader, path: str, frames: int, number: Callable[[np.ndarray, int], int | None]
) -> dict[str, object]:
  """Counts wrong frames among the first, the last and random frames of a video.

  Args:
    frames: that the video shows.
    number: tells which of them a picture is, if it was the one at this place that was asked for.
  """
  rng = np.random.default_rng(0)
  between = 1 + rng.choice(frames - 2, ASKED - 2, replace=False)
  asked = [0, *sorted(between.tolist()), frames - 1]
  result = {'asked': ASKED, 'frames': frames}
  try:
    length, pictures = read(path, np.array(asked))
  except Exception as error:  # a library's errors are of any kind; it is what we report
    message = re.sub(r'[\w/.-]*/', '', str(error)).partition('\n')[0]    # without folders
    return result | {'error': f'{type(error).__name__}: {message[:120]}'}
  found = [number(picture, i) for picture, i in zip(pictures, asked, strict=True)]
  wrong = [x if x is None else x - i for x, i in zip(found, asked, strict=True) if x != i]
  return result | {'claims': length, 'wrong': len(wrong), 'off_by': sorted(set(wrong), key=str)}


def place(shown: list[int], frame: np.ndarray, asked: int) -> int | None:
  """Returns the number painted into a frame; None if no such frame is shown."""
  del asked
  number = barcode_videos.read(frame)
  return shown.index(number) if number in shown else None


def thumbnails(path: str) -> np.ndarray:
  """Decodes every frame, small and grey: float [N, 32, 32]."""
  with av.open(path) as container:
    container.streams.video[0].thread_type = 'NONE'
    return np.stack([
      shrink(np.rot90(frame.to_ndarray(format='rgb24'), k=round(frame.rotation / 90)))
      for frame in container.decode(video=0)
    ])


def shrink(frame: np.ndarray) -> np.ndarray:
  gray = frame.mean(-1, dtype=np.float32)                # RGB or BGR alike
  return cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA)


def nearest(every: np.ndarray, frame: np.ndarray, asked: int) -> int:
  """Returns the most similar frame; `asked` unless another is half a grey level closer."""
  far = np.abs(every - shrink(frame)).mean((1, 2))
  return asked if far[asked] <= far.min() + 0.5 else int(far.argmin())


def read_ours(path: str, indices: np.ndarray) -> tuple[int, list[np.ndarray]]:
  return decode.count_frames(path), list(decode.read_video(path, lambda _: indices))


def peers() -> dict[str, Reader]:
  """Returns the other readers that are installed; prints the names of the others."""
  found = {'opencv grab': grab, 'opencv set': set_position}
  try:
    import decord

    def read_decord(path, indices):
      video = decord.VideoReader(path, num_threads=1)
      return len(video), list(video.get_batch(indices.tolist()).asnumpy())

    found['decord'] = read_decord
  except (ImportError, OSError) as error:
    print(f'decord is left out: {error}')
  try:
    from torchcodec.decoders import VideoDecoder

    def read_torchcodec(path, indices, mode='exact'):
      video = VideoDecoder(path, dimension_order='NHWC', seek_mode=mode)
      return len(video), list(video.get_frames_at(indices.tolist()).data.numpy())

    found['torchcodec'] = read_torchcodec
    found['torchcodec approximate'] = lambda *args: read_torchcodec(*args, mode='approximate')
  except (ImportError, OSError, RuntimeError) as error:
    print(f'torchcodec is left out: {str(error).splitlines()[0]}')
  return found


def grab(path: str, indices: np.ndarray) -> tuple[int, list[np.ndarray]]:
  """Counts frames from the start."""
  capture, frames = opened(path), {}
  for number in range(indices.max() + 1):
    if not capture.grab():
      raise OSError(f'grab() returned False at frame {number}')
    if number in indices:
      frames[number] = capture.retrieve()[1]
  return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), [frames[i] for i in indices.tolist()]


def set_position(path: str, indices: np.ndarray) -> tuple[int, list[np.ndarray]]:
  """Jump to each frame."""
  capture, frames = opened(path), []
  for number in indices.tolist():
    capture.set(cv2.CAP_PROP_POS_FRAMES, number)
    read, frame = capture.read()
    if not read:
      raise OSError(f'read() returned False at frame {number}')
    frames.append(frame)
  return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), frames


def opened(path: str) -> cv2.VideoCapture:
  capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
  if not capture.isOpened():
    raise OSError('isOpened() is False')
  return capture


def about() -> dict[str, object]:
  def version(name):
    try:
      return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      return None

  names = ('av', 'opencv-python-headless', 'decord', 'torchcodec', 'torch')
  return {
    'date': time.strftime('%Y-%m-%d'), 'machine': platform.machine(),
    'python': platform.python_version(), 'frames': FRAMES, 'asked': ASKED,
    'ffmpeg of av': '.'.join(map(str, av.library_versions['libavcodec'])),
    **{name: version(name) for name in names},
  }


def table(rows: list[dict], readers: list[str]) -> str:
  """Wrong frames of those asked for, kinds by readers, as Markdown."""
  cell = lambda row: 'error' if 'error' in row else f'{row["wrong"]}'
  of = {(row['kind'], row['reader']): cell(row) for row in rows}
  lines = [f'| wrong of {ASKED} | ' + ' | '.join(readers) + ' |', '|---' * (len(readers) + 1) + '|']
  for kind in dict.fromkeys(row['kind'] for row in rows):
    lines.append(f'| {kind} | ' + ' | '.join(of[kind, reader] for reader in readers) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
