"""The way from a stored picture to an upright one of the right shape."""

from typing import NamedTuple

import av
import cv2
import numpy as np

from xclip_jax.data.reading.opening import MAX_PIXELS

# A pixel more than this many times as wide as high, or as high as wide, is a mistake in the file.
_MAX_PIXEL_ASPECT = 4


class Orientation(NamedTuple):
  """Says how to make a stored picture upright: rows and columns are swapped before the mirrors."""

  transposed: bool = False
  mirrored: bool = False       # left and right
  flipped: bool = False        # top and bottom


# EXIF's numbers: where the first row and the first column of the stored picture are shown.
_EXIF = {
  1: Orientation(), 2: Orientation(mirrored=True),
  3: Orientation(mirrored=True, flipped=True), 4: Orientation(flipped=True),
  5: Orientation(transposed=True), 6: Orientation(transposed=True, mirrored=True),
  7: Orientation(transposed=True, mirrored=True, flipped=True),
  8: Orientation(transposed=True, flipped=True),
}


def from_exif(number: int | None) -> Orientation:
  """Returns the orientation of an EXIF number, 1 to 8; that of 1 for any other number."""
  return _EXIF.get(number or 1, Orientation())


def of_frame(frame: av.VideoFrame) -> Orientation:
  """Returns the orientation of a frame's display matrix, which containers and streams give."""
  # A frame and the list of its side data hold each other until the garbage collector comes. A
  # small copy has the same list.
  small = frame.reformat(width=16, height=16, format='gray', threads=1)
  try:
    matrix = small.side_data.get('DISPLAYMATRIX')
  except ValueError:
    # PyAV 18 lists no side data of a frame if it does not know the kind of one of them.
    turns = round(frame.rotation / 90) % 4                          # counterclockwise
    return (Orientation(), from_exif(8), from_exif(3), from_exif(6))[turns]
  if matrix is None:
    return Orientation()
  # A point (x, y) is shown at (a * x + c * y, b * x + d * y), where y points down.
  a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).tolist()
  if abs(a) + abs(d) >= abs(b) + abs(c):        # of any other angle, the nearest right one
    return Orientation(False, a < 0, d < 0)
  return Orientation(True, c < 0, b < 0)


def turn_upright(picture: np.ndarray, orientation: Orientation) -> np.ndarray:
  """Returns a view of a picture [H, W, 3] that is upright."""
  if orientation.transposed:
    picture = picture.swapaxes(0, 1)
  if orientation.mirrored:
    picture = picture[:, ::-1]
  return picture[::-1] if orientation.flipped else picture


def square_pixels(picture: np.ndarray, aspect: float) -> np.ndarray:
  """Scales the width of a stored picture [H, W, 3] so that its pixels become square.

  Args:
    picture: uint8, before it is turned upright.
    aspect: width of a pixel over its height; 0 if the file does not say.
  """
  height, width = picture.shape[:2]
  wide = round(width * aspect)
  is_plausible = 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT
  if not is_plausible or wide in (0, width) or wide * height > MAX_PIXELS:
    return picture
  filter_ = cv2.INTER_LINEAR if wide > width else cv2.INTER_AREA
  return cv2.resize(picture, (wide, height), interpolation=filter_)
