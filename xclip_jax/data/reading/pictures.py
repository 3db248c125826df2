"""Pictures of a video: JPEG frames that encode.py stored, and frames of several sizes."""

import collections
import contextlib
import functools
import io
from collections.abc import Callable

import av
import cv2
import numpy as np

from xclip_jax.data.reading import damage
from xclip_jax.data.reading.damage import Damage
from xclip_jax.data.reading.opening import VideoError

JPEG_FRAMES = 'xclip-jax: JPEG frames'  # comment of files with JPEG pictures as packets


def find(
  file: io.BytesIO | str, stream: av.VideoStream
) -> list[Callable[[], bytes]]:
  """Returns a function for each JPEG frame that encode.py stored, which reads its bytes.

  The list is empty for other files. Positions are those of the file's index: reading all packets
  takes as long as decoding two of them.
  """
  if stream.container.metadata.get('comment') != JPEG_FRAMES:
    return []

  def read(position: int, size: int) -> bytes:
    if isinstance(file, io.BytesIO):
      return bytes(file.getbuffer()[position:position + size])
    with open(file, 'rb') as opened:
      opened.seek(position)
      return opened.read(size)

  return [functools.partial(read, entry.pos, entry.size) for entry in stream.index_entries]


def read(
  name: str, pictures: list[Callable[[], bytes]], choose: Callable[[int], np.ndarray],
  report: damage.Report | None,
) -> np.ndarray:
  """Decodes chosen pictures, of the whole ones if some are damaged."""
  try:
    return np.stack([_decode_picture(name, pictures[int(i)]) for i in choose(len(pictures))])
  except VideoError:
    whole = []
    for picture in pictures:
      with contextlib.suppress(VideoError):
        _decode_picture(name, picture)
        whole.append(picture)
    if not whole:
      raise
    found = Damage(undecodable=len(pictures) - len(whole))
    damage.tell(name, found.notes(len(whole)), report)
    return np.stack([_decode_picture(name, whole[int(i)]) for i in choose(len(whole))])


def _decode_picture(name: str, read: Callable[[], bytes]) -> np.ndarray:
  """Decodes a JPEG picture, faster than FFmpeg does."""
  content = read()
  image = None
  # Only a complete picture: OpenCV fills the missing part of a truncated one with grey.
  if content[:2] == b'\xff\xd8' and content[-2:] == b'\xff\xd9':
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
  if image is None:
    raise VideoError(f'{name}: a picture of it is damaged')
  return image


def match_sizes(frames: dict[int, np.ndarray], found: Damage) -> dict[int, np.ndarray]:
  """Gives all frames the size of the earliest, and notes their sizes."""
  for _, frame in sorted(frames.items()):
    found.add_size(frame.shape[1], frame.shape[0])
  if len(found.sizes) < 2:
    return frames
  width, height = found.sizes[0]
  return {number: fit(frame, height, width) for number, frame in frames.items()}


def stack(chosen: list[int], frames: dict[int, np.ndarray]) -> np.ndarray:
  """Returns the chosen frames as one array; empties `frames`, so that few are held twice."""
  stacked = np.empty((len(chosen), *frames[chosen[0]].shape), np.uint8)
  left = collections.Counter(chosen)
  for row, index in enumerate(chosen):
    left[index] -= 1
    stacked[row] = frames[index] if left[index] else frames.pop(index)
  return stacked


def fit(frame: np.ndarray, height: int, width: int) -> np.ndarray:
  """Scales a frame until it covers a size, in pixels, and cuts out the middle."""
  if frame.shape[:2] == (height, width):
    return frame
  ratio = max(height / frame.shape[0], width / frame.shape[1])
  size = [max(side, round(old * ratio))
          for side, old in ((width, frame.shape[1]), (height, frame.shape[0]))]
  scaled = cv2.resize(np.ascontiguousarray(frame), size,
                      interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
  top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
  return scaled[top:top + height, left:left + width]
