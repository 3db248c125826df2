"""Resizing and cropping of frames of any size within a graph, as `EvalTransform` does on a host.

OpenCV and Pillow compute with integers: weights of 11 and of 22 bits, pixels rounded to uint8 after
Pillow's first pass. So do these functions, whose sizes H and W may be symbolic: positions are exact
fractions in int32, products that do not fit into float32 are computed in two halves. OpenCV's
filter takes two pixels by computed index; the wider filters of Pillow are products with a matrix
[S, side] that is computed from the size. Fractions stay within int32 while
2 * side * resized side < 2**31. Pillow 13 resizes the height first where the height loses more than
twice as many pixels as the width; here the width is always first, as in all versions before it, so
pixels of frames more than twice as high as wide can differ by a rounding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.models.matmul import AnyArray
from xclip_jax.weights.native import Preprocess

_OPENCV_BITS = 11
_PILLOW_BITS = 22
_REFUSED = ('pillow-nearest', 'pillow-box')
_LONGEST_SIDE = 1 << 14            # pixels, for tables by side
_UNIT = 2.0 ** -_PILLOW_BITS
_HALF = 1 << _PILLOW_BITS // 2     # weights of 22 bits are products in two halves of 11


class Side(NamedTuple):
  """One side of the frames, and what becomes of it; int32 scalars, pixels."""

  old: Any          # as given
  new: Any          # after the resize
  positions: Any    # int32 [S]: the pixels of the resized side that the crop takes; may be outside


def resize_and_crop(frames: AnyArray, preprocess: Preprocess, size: int) -> AnyArray:
  """Resizes frames and crops the centre square; missing pixels are black.

  Args:
    frames: uint8 [B, T, H, W, 3] of any H and W, which may be symbolic.
    preprocess: the resize and its filter, as the model was trained.
    size: S, height and width of the crop.

  Returns:
    float32 [B, T, S, S, 3], whole numbers in 0..255.

  Raises:
    UserError: the filter is Pillow's nearest or box.
  """
  if preprocess.filter in _REFUSED:
    raise UserError(
      f'the weights resize with the filter {preprocess.filter}, whose edges depend on how float64 '
      'sums are rounded, and no graph computes those; take weights with another filter, or '
      '`xclip convert --to hf`, where Pillow resizes')
  height, width = (jnp.asarray(side, jnp.int32) for side in frames.shape[2:4])
  new_height, new_width = _resized_size(height, width, preprocess, size)
  rows, columns = (
    Side(old, new, jnp.arange(size, dtype=jnp.int32) + _floor_half(new - size))
    for old, new in ((height, new_height), (width, new_width)))
  if preprocess.filter == 'opencv' or preprocess.resize == 'none':
    cropped = _resize_by_opencv(frames, rows, columns)
  else:
    cropped = _resize_by_pillow(frames, rows, columns, preprocess.filter)
  inside = [(side.positions >= 0) & (side.positions < side.new) for side in (rows, columns)]
  black = ~(inside[0][:, None] & inside[1])[..., None]
  return jnp.where(black, 0, cropped).astype(jnp.float32)


def _resized_size(
  height: Any, width: Any, preprocess: Preprocess, size: int
) -> tuple[Any, Any]:
  """Returns height and width after the resize, with the roundings of `EvalTransform`.

  Where the host rounds a quotient in float64 that lies half-way between two integers, or at one,
  the result can differ by a pixel (`tests/export/test_pixels.py` counts such sizes).
  """
  first, second = (
    int(ratio * size + 1e-6) for ratio in (preprocess.resize_ratio, preprocess.second_ratio))
  if preprocess.resize == 'none':
    return height, width
  if preprocess.resize == 'stretch':
    return jnp.int32(first), jnp.int32(second)
  if preprocess.resize == 'fit':
    by_height = first * width <= second * height
    new_height = jnp.where(
      by_height, _rounded_down(first, height), _quotient(height * second, width))
    new_width = jnp.where(by_height, _quotient(width * first, height), _rounded_down(second, width))
    return jnp.maximum(new_height, 1), jnp.maximum(new_width, 1)
  low, high = jnp.minimum(height, width), jnp.maximum(height, width)
  if preprocess.filter == 'opencv' and not second:
    short, long = jnp.int32(first), _quotient(2 * high * first + low, 2 * low)
  else:
    short, long = jnp.int32(first), _quotient(first * high, low)
    if second:
      limited = high * first > second * low
      short = jnp.where(limited, _round_half_even(second * low, high), short)
      long = jnp.where(limited, second, long)
    unchanged = short == low
    short, long = jnp.where(unchanged, low, short), jnp.where(unchanged, high, long)
  wide = width > height
  return (jnp.maximum(jnp.where(wide, short, long), 1),
          jnp.maximum(jnp.where(wide, long, short), 1))


def _rounded_down(new: int, old: Any) -> Any:
  """Returns int(old * (new / old)) in float64: `new`, or one less for some `old`."""
  sides = np.arange(1, _LONGEST_SIDE + 1)
  less = (sides * (new / sides)).astype(np.int32) - new
  return new + jnp.take(jnp.asarray(less), old - 1, mode='clip')


def _quotient(a: Any, b: Any) -> Any:
  """Divides int32 arrays that are not negative, rounding down."""
  return jax.lax.div(*jnp.broadcast_arrays(jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32)))


def _floor_half(x: Any) -> Any:
  """Divides an int32 array by two, rounding down, negative numbers too."""
  return _quotient(x + (1 << 20), 2) - (1 << 19)


def _round_half_even(a: Any, b: Any) -> Any:
  """Rounds the fraction a / b of int32 arrays that are not negative."""
  down = _quotient(a, b)
  twice = 2 * (a - down * b)
  return down + ((twice > b) | ((twice == b) & (down % 2 == 1)))


def _take(frames: AnyArray, rows: AnyArray, columns: AnyArray) -> AnyArray:
  """Returns pixels [B, T, S, S, 3] of these rows and columns, int32 [S], which lie inside."""
  return jnp.take(jnp.take(frames, rows, axis=2, mode='clip'), columns, axis=3, mode='clip')


# --- OpenCV: two pixels a side, weights of 11 bits ----------------------------------------------


def _resize_by_opencv(frames: AnyArray, rows: Side, columns: Side) -> AnyArray:
  """Resizes by cv2.INTER_LINEAR, which does not antialias; int32 [B, T, S, S, 3]."""
  (top, bottom), row_weights = _opencv_taps(rows, edge_weights=True)
  (left, right), column_weights = _opencv_taps(columns, edge_weights=False)
  pixels = _take(frames, jnp.concatenate([top, bottom]), jnp.concatenate([left, right]))
  B, T, size = *frames.shape[:2], len(rows.positions)
  pixels = pixels.astype(jnp.int32).reshape(B, T, 2, size, 2, size, 3)
  across = (pixels * column_weights[:, :, None]).sum(axis=4)       # [B, T, 2, S, S, 3]
  # OpenCV rounds down twice on its way, so that its products fit into 16 bits.
  parts = _quotient(_quotient(across, 16) * row_weights[:, :, None, None], 1 << 16)
  return _quotient(parts.sum(axis=2) + 2, 4)


def _opencv_taps(
  side: Side, edge_weights: bool
) -> tuple[tuple[AnyArray, AnyArray], AnyArray]:
  """Returns the two pixels of each position, and their weights, int32 [2, S].

  Position = (i + 1/2) * old / new - 1/2, of which OpenCV keeps a float32: the whole part costs the
  fraction some bits.

  Args:
    side: height or width.
    edge_weights: a position before the first pixel keeps its fraction; else it counts as the pixel.
  """
  positions = side.positions.clip(0, side.new - 1)
  # One pixel more, so that the whole part is rounded down although the position may be -1/2.
  numerator = (2 * positions + 1) * side.old + side.new
  whole = _quotient(numerator, 2 * side.new)
  fraction = _rounded_fraction(whole - 1, numerator - whole * 2 * side.new, 2 * side.new)
  carried = fraction >= 1                            # the float32 is the next whole number
  whole, fraction = whole - 1 + carried, jnp.where(carried, 0, fraction)
  if not edge_weights:
    fraction = jnp.where((whole < 0) | (whole >= side.old - 1), 0, fraction)
  weights = jnp.stack([1 - fraction, fraction]) * (1 << _OPENCV_BITS)
  taps = whole.clip(0, side.old - 1), (whole + 1).clip(0, side.old - 1)
  return taps, jnp.round(weights).astype(jnp.int32)


def _rounded_fraction(whole: AnyArray, part: AnyArray, parts: Any) -> AnyArray:
  """Returns what float32 keeps of part / parts beside a whole number, 0..1; part < parts.

  In integers, because compilers replace a division by a constant, which the size of a frame is to
  them, by a product that can be off in the last bit; and rounded once, since twice is another
  number now and then.
  """
  digits, rest = jnp.zeros_like(part), part    # part / parts = (digits + rest / parts) / 2**22
  for _ in range(2):
    digit = _quotient(rest * _HALF, parts)
    digits, rest = digits * _HALF + digit, rest * _HALF - digit * parts
  step = 1                                           # float32 keeps multiples of step / 2**22
  for bits in range(2, 15):
    step = step * jnp.where(whole >= 1 << bits, 2, 1)
  kept = _quotient(digits, step)
  left = digits - kept * step
  odd = kept - 2 * _quotient(kept, 2) == 1
  above = jnp.where(step == 1, 2 * rest > parts,
                    (2 * left > step) | ((2 * left == step) & (rest > 0)))
  tie = jnp.where(step == 1, 2 * rest == parts, (2 * left == step) & (rest == 0))
  coarse = ((kept + (above | (tie & odd))) * step).astype(jnp.float32)
  # Beside less than 2, float32 keeps the digits and some more.
  low = jnp.minimum(whole, 1).astype(jnp.float32)
  fine = (low + digits.astype(jnp.float32) * _UNIT) + rest.astype(jnp.float32) / parts * _UNIT - low
  return jnp.where(whole >= 2, coarse * _UNIT, fine)


# --- Pillow: as many pixels as the filter is wide, weights of 22 bits ---------------------------


def _bicubic(x):
  x, a = jnp.abs(x), -0.5
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _sinc(x):
  x = x * jnp.pi
  return jnp.where(x == 0, 1, jnp.sin(x) / jnp.where(x == 0, 1, x))


def _lanczos(x):
  return jnp.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0)


def _hamming(x):
  x = jnp.abs(x)
  return jnp.where(x < 1, _sinc(x) * (0.54 + 0.46 * jnp.cos(x * jnp.pi)), 0)


_CURVES: dict[str, Callable[[AnyArray], AnyArray]] = {
  'pillow-bicubic': _bicubic, 'pillow-lanczos': _lanczos, 'pillow-hamming': _hamming,
}


def _resize_by_pillow(frames: AnyArray, rows: Side, columns: Side, name: str) -> AnyArray:
  """Resizes with antialiasing, the width first; float32 [B, T, S, S, 3], whole numbers."""
  x = frames.astype(jnp.float32).transpose(0, 1, 4, 2, 3)                        # [B, T, 3, H, W]
  across, down = (_pillow_weights(side, count, name)
                  for side, count in ((columns, frames.shape[3]), (rows, frames.shape[2])))
  x = _weighted_sum(lambda part: _product('...HW,SW->...HS', x, part), across)
  y = _weighted_sum(lambda part: _product('RH,...HS->...RS', part, x), down)
  return y.transpose(0, 1, 3, 4, 2)


def _product(spec: str, a: AnyArray, b: AnyArray) -> AnyArray:
  return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def _pillow_weights(side: Side, count: Any, name: str) -> AnyArray:
  """Returns the weights of every pixel of a side for every position, int32 [S, count].

  The argument of a filter is the distance of the centres of pixel x and position i, in pixels of
  the coarser of the two: ((2 x + 1) new - (2 i + 1) old) / (2 max(old, new)).
  """
  i = side.positions.clip(0, side.new - 1)[:, None]
  x = jnp.arange(count, dtype=jnp.int32)
  distance = (2 * x + 1) * side.new - (2 * i + 1) * side.old
  coarser = jnp.maximum(side.old, side.new)
  if name == 'pillow':                                   # bilinear: a triangle
    return _shares_of_one(jnp.maximum(2 * coarser - jnp.abs(distance), 0))
  weights = _CURVES[name](distance.astype(jnp.float32) / (2 * coarser).astype(jnp.float32))
  weights = weights / weights.sum(axis=1, keepdims=True) * (1 << _PILLOW_BITS)
  return jnp.trunc(weights + jnp.where(weights < 0, -0.5, 0.5)).astype(jnp.int32)


def _shares_of_one(parts: AnyArray) -> AnyArray:
  """Divides int32 parts [S, count] by their sum, rounded to 22 bits; exact, by long division."""
  total = parts.sum(axis=1, keepdims=True)
  rest, share = parts, 0
  for _ in range(2):
    digit = _quotient(rest * _HALF, total)
    rest, share = rest * _HALF - digit * total, share * _HALF + digit
  return share + (2 * rest >= total)


def _weighted_sum(multiply: Callable[[AnyArray], AnyArray], weights: AnyArray) -> AnyArray:
  """Returns sums of pixels times weights, rounded to whole numbers in 0..255, float32.

  float32 holds whole numbers up to 2**24, which products with halves of the weights stay below.
  """
  high = jnp.floor_divide(weights, _HALF)
  low = weights - high * _HALF
  total = (multiply(high.astype(jnp.float32)).astype(jnp.int32) * _HALF
           + multiply(low.astype(jnp.float32)).astype(jnp.int32) + (1 << _PILLOW_BITS - 1))
  return jnp.right_shift(total, _PILLOW_BITS).clip(0, 255).astype(jnp.float32)
