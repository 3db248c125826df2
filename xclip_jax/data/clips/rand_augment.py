"""RandAugment and random erasing for clips: uint8 [T, H, W, 3] in and out.

Random numbers are drawn once for all frames of a clip, and an operation derives one table from the
pixels of all frames (equalize, autocontrast, contrast), so that a clip does not flicker. A clip of
one frame gives the same as Pillow does for the picture.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

_GRAY = (128, 128, 128)                      # of pixels outside the picture
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_ERASED_AREA = (0.02, 0.33)                  # of the picture; Random Erasing, AAAI 2020
_ERASED_ASPECT = (0.3, 1 / 0.3)


def rand_augment(
  clip: np.ndarray, num_ops: int, magnitude: float, rng: np.random.Generator
) -> np.ndarray:
  """Applies N random operations of one magnitude (RandAugment, Cubuk et al., 2020).

  Operations are drawn with replacement from OPERATIONS, with a direction for each; the draws do not
  depend on pixels.

  Args:
    clip: uint8 [T, H, W, 3].
    num_ops: N.
    magnitude: M, 0..10; at 0 no operation but autocontrast and equalize does anything.
    rng: source of all random numbers.
  """
  names = list(OPERATIONS)
  drawn = rng.integers(len(names), size=num_ops)
  signs = np.where(rng.random(num_ops) < 0.5, -1, 1)
  for i, sign in zip(drawn, signs, strict=True):
    clip = OPERATIONS[names[i]](clip, magnitude / 10, int(sign))
  return clip


def erase(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Hides a random box behind still noise (Random Erasing, Zhong et al., 2020).

  The box covers 2 to 33 % of the picture with an aspect ratio of 0.3 to 3.3, in all frames alike;
  after ten drawn boxes that do not fit, the clip is returned as it is.
  """
  height, width = clip.shape[1:3]
  for _ in range(10):
    area = rng.uniform(*_ERASED_AREA) * height * width
    aspect = np.exp(rng.uniform(*np.log(_ERASED_ASPECT)))
    h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    if 0 < h < height and 0 < w < width:
      y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
      clip = clip.copy()
      clip[:, y:y + h, x:x + w] = rng.integers(0, 256, (h, w, 3), np.uint8)
      break
  return clip


def _look_up(clip: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Maps values by a table of 256 numbers, or [256, 3] for a table a channel."""
  table = np.clip(table, 0, 255).astype(np.uint8)
  table = table.reshape(1, 256, 3) if table.ndim == 2 else table
  return cv2.LUT(clip.reshape(-1, *clip.shape[2:]), table).reshape(clip.shape)


def _gray(clip: np.ndarray) -> np.ndarray:
  """Returns Rec.601 luma, uint8 [T * H, W]."""
  return cv2.cvtColor(clip.reshape(-1, *clip.shape[2:]), cv2.COLOR_RGB2GRAY)


def _histograms(clip: np.ndarray) -> list[np.ndarray]:
  return [np.bincount(clip[..., c].ravel(), minlength=256) for c in range(3)]


def _autocontrast(clip, strength, sign):
  tables = []
  for histogram in _histograms(clip):
    used = np.flatnonzero(histogram)
    low, high = used[0], used[-1]
    scale = 255 / (high - low) if high > low else 1
    tables.append(np.arange(256) * scale - (low * scale if high > low else 0))
  return _look_up(clip, np.stack(tables, -1))


def _equalize(clip, strength, sign):
  tables = []
  for histogram in _histograms(clip):
    used = histogram[histogram > 0]
    step = (used.sum() - used[-1]) // 255
    before = np.cumsum(histogram) - histogram
    tables.append((before + step // 2) // step if step else np.arange(256))
  return _look_up(clip, np.stack(tables, -1))


def _solarize(clip, strength, sign):
  values = np.arange(256)
  return _look_up(clip, np.where(values < 256 - 256 * strength, values, 255 - values))


def _posterize(clip, strength, sign):
  bits = 8 - round(4 * strength)
  return _look_up(clip, np.arange(256) & (0xff << (8 - bits)))


def _brightness(clip, strength, sign):
  return _look_up(clip, np.arange(256) * (1 + sign * 0.9 * strength))


def _contrast(clip, strength, sign):
  factor = 1 + sign * 0.9 * strength
  mean = int(_gray(clip).mean() + 0.5)
  return _look_up(clip, factor * np.arange(256) + (1 - factor) * mean)


def _color(clip, strength, sign):
  factor = 1 + sign * 0.9 * strength
  flat = clip.reshape(-1, *clip.shape[2:])                               # [T * H, W, 3]
  gray = cv2.cvtColor(_gray(clip), cv2.COLOR_GRAY2RGB)
  return cv2.addWeighted(flat, factor, gray, 1 - factor, 0).reshape(clip.shape)


def _sharpness(clip, strength, sign):
  factor = 1 + sign * 0.9 * strength
  sharpened = clip.copy()                                 # the outermost pixels stay, as in Pillow
  for frame, out in zip(clip, sharpened, strict=True):
    inner = cv2.addWeighted(frame, factor, cv2.filter2D(frame, -1, _SMOOTH), 1 - factor, 0)
    out[1:-1, 1:-1] = inner[1:-1, 1:-1]
  return sharpened


def _warp(clip: np.ndarray, matrix: npt.ArrayLike) -> np.ndarray:
  """Takes each output pixel [x, y] from matrix @ [x, y, 1], gray if that is outside the clip."""
  size = clip.shape[2], clip.shape[1]
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  rows = np.asarray(matrix, float)
  warp = lambda frame: cv2.warpAffine(frame, rows, size, flags=flags, borderValue=_GRAY)
  return np.stack([warp(frame) for frame in clip])


def _rotate(clip, strength, sign):
  center = (clip.shape[2] - 1) / 2, (clip.shape[1] - 1) / 2
  return _warp(clip, cv2.getRotationMatrix2D(center, sign * 30 * strength, 1))


def _shear_x(clip, strength, sign):
  return _warp(clip, [[1, sign * 0.3 * strength, 0], [0, 1, 0]])


def _shear_y(clip, strength, sign):
  return _warp(clip, [[1, 0, 0], [sign * 0.3 * strength, 1, 0]])


def _translate_x(clip, strength, sign):
  return _warp(clip, [[1, 0, sign * 0.45 * strength * clip.shape[2]], [0, 1, 0]])


def _translate_y(clip, strength, sign):
  return _warp(clip, [[1, 0, 0], [0, 1, sign * 0.45 * strength * clip.shape[1]]])


# The fourteen operations of the paper. Ranges are AutoAugment's; 0.45 of the picture is its 150 of
# 331 pixels.
OPERATIONS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
  'identity': lambda clip, strength, sign: clip,
  'autocontrast': _autocontrast,
  'equalize': _equalize,
  'rotate': _rotate,
  'solarize': _solarize,
  'color': _color,
  'posterize': _posterize,
  'contrast': _contrast,
  'brightness': _brightness,
  'sharpness': _sharpness,
  'shear_x': _shear_x,
  'shear_y': _shear_y,
  'translate_x': _translate_x,
  'translate_y': _translate_y,
}
