"""Picture files: their orientation, and animated WebP where FFmpeg cannot read it."""

import io
import struct
from collections.abc import Iterator

import numpy as np
from av.container import InputContainer
from PIL import Image, UnidentifiedImageError

from xclip_jax.data.reading import opening
from xclip_jax.data.video import geometry

_EXIF_ORIENTATION = 0x112
_ANIMATIONS = ('gif', 'apng', 'webp_anim')
# What Pillow raises for files that it cannot read.
_UNREADABLE = (
  OSError, SyntaxError, ValueError, EOFError, struct.error, UnidentifiedImageError,
  Image.DecompressionBombError)

File = io.BytesIO | str


def is_image(container: InputContainer) -> bool:
  """Returns whether a file is of a picture format: one picture, or an animation."""
  return container.format.name.endswith('_pipe') or container.format.name in _ANIMATIONS


def read_orientation(file: File) -> geometry.Orientation | None:
  """Returns the orientation in the EXIF of a picture file; None if Pillow cannot read it."""
  try:
    # A copy: FFmpeg goes on at the position where it reads the original.
    with Image.open(io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else file) as image:
      return geometry.from_exif(image.getexif().get(_EXIF_ORIENTATION))
  except _UNREADABLE:
    return None


def webp_durations(file: File) -> list[float]:
  """Returns the seconds that each picture of an animated WebP is shown; [] for other files.

  The FFmpeg of PyAV 18 reads no animated WebP, so that `play_webp` has to. One with more than
  `MAX_PIXELS` counts as another file.
  """
  content, durations, at = _content(file), [], 12         # RIFF, size, WEBP
  if content[8:16] != b'WEBPVP8X':
    return []
  width, height = (1 + int.from_bytes(content[i:i + 3], 'little') for i in (24, 27))
  if width * height > opening.MAX_PIXELS:
    return []
  while at + 8 <= len(content):
    size = int.from_bytes(content[at + 4:at + 8], 'little')
    if content[at:at + 4] == b'ANMF':
      durations.append(int.from_bytes(content[at + 20:at + 23], 'little') / 1000)
    at += 8 + size + size % 2
  return durations


def play_webp(file: File) -> Iterator[tuple[float, np.ndarray]]:
  """Yields (seconds, uint8 [H, W, 3]) of each picture of an animated WebP; OSError at damage."""
  seconds, durations = 0.0, webp_durations(file)
  with Image.open(io.BytesIO(_content(file)), formats=['WEBP']) as image:
    for number, duration in enumerate(durations):
      try:
        image.seek(number)
        yield seconds, np.array(image.convert('RGB'))
      except EOFError as error:
        raise OSError(f'picture {number} of {len(durations)} is missing') from error
      seconds += duration


def _content(file: File) -> bytes:
  """Returns the contents without moving the position at which FFmpeg reads."""
  if isinstance(file, io.BytesIO):
    return file.getvalue()
  with open(file, 'rb') as opened:
    return opened.read()
