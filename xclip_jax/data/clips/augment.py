"""Crops, flips and colours of clips: uint8 [T, H, W, 3] in, uint8 [T, S, S, 3] out.

The operations and their order are the reference's (X-CLIP, ECCV 2022; OpenCV's bilinear filter,
which does not antialias). Normalisation, mixup and cutmix happen on the device.
"""

import dataclasses
from typing import Any

import cv2
import numpy as np
from PIL import Image

from xclip_jax.data.clips import rand_augment as rand_augment_lib
from xclip_jax.errors import UserError

_RESIZE_RATIO = 256 / 224            # short side before cropping, over image_size
_CROP_SCALES = (1, 0.875, 0.75, 0.66)
# Filters of Hugging Face's processors.
_PILLOW_FILTERS = {
  'pillow': Image.Resampling.BILINEAR, 'pillow-nearest': Image.Resampling.NEAREST,
  'pillow-lanczos': Image.Resampling.LANCZOS, 'pillow-bicubic': Image.Resampling.BICUBIC,
  'pillow-box': Image.Resampling.BOX, 'pillow-hamming': Image.Resampling.HAMMING,
}
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1


@dataclasses.dataclass(frozen=True)
class TrainTransform:
  """Crops, mirrors and recolours a clip at random.

  Fields:
    image_size: S.
    crop: 'multiscale' (a random box of another size and shape, stretched to S x S) or 'center'.
    flip, color_jitter, grayscale: probabilities; one coin is tossed for the whole clip.
    rand_augment: N, number of RandAugment operations after these; the same for all frames.
    rand_magnitude: M of RandAugment, 0..10.
    erase: probability of random erasing, the last operation.
    colors: machine that applies jitter and greyscale: 'host', or 'device' in the training step (see
      training/objectives/color_jitter.py). With RandAugment or erasing, which come after colours,
      it is always the host.

  Random numbers are drawn in this order: the box (multiscale only), the coins of flip, color_jitter
  and grayscale, then for each frame of a jittered clip the order of the four colour operations and
  their factors, then the numbers of RandAugment and erasing, if they are on.
  """

  image_size: int
  crop: str
  flip: float
  color_jitter: float
  grayscale: float
  rand_augment: int = 0
  rand_magnitude: float = 9.0
  erase: float = 0.0
  colors: str = 'host'

  def __post_init__(self):
    if self.rand_augment < 0:
      raise UserError(f'rand_augment must not be negative, found {self.rand_augment}')
    if not 0 <= self.rand_magnitude <= 10:
      raise UserError(f'rand_magnitude must be in 0..10, found {self.rand_magnitude}')
    if self.crop not in ('multiscale', 'center'):
      raise UserError(f"crop must be 'multiscale' or 'center', found {self.crop!r}")
    if self.colors not in ('host', 'device'):
      raise UserError(f"colors must be 'host' or 'device', found {self.colors!r}")
    for name in ('flip', 'color_jitter', 'grayscale', 'erase'):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f'{name} must be a probability in 0..1, found {getattr(self, name)}')

  def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 [T, S, S, 3]; the same frames and rng state give the same clip."""
    frames, colors = self._crop_and_draw(frames, rng)
    frames = apply_colors(frames, colors)
    if self.rand_augment:
      frames = rand_augment_lib.rand_augment(frames, self.rand_augment, self.rand_magnitude, rng)
    if self.erase and rng.random() < self.erase:
      frames = rand_augment_lib.erase(frames, rng)
    return np.ascontiguousarray(frames)

  def row(self, frames: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the arrays of one clip in a training batch.

    `video` is uint8 [T, S, S, 3]. If the device applies colours, `video` is the clip before that,
    and `colors`, float32 [T, 9], are the operations to apply.
    """
    if self.colors == 'host' or self.rand_augment or self.erase:
      return {'video': self(frames, rng)}
    frames, colors = self._crop_and_draw(frames, rng)
    return {'video': np.ascontiguousarray(frames), 'colors': colors.astype(np.float32)}

  def _crop_and_draw(
    self, frames: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Crops and mirrors a clip: uint8 [T, S, S, 3] and its drawn colour operations, [T, 9]."""
    size = self.image_size
    if self.crop == 'center':
      frames = EvalTransform(size)(frames)
    else:
      frames = _resize_short_side(frames, int(_RESIZE_RATIO * size))
      boxes = multiscale_boxes(frames.shape[1], frames.shape[2], size)
      x, y, width, height = boxes[rng.integers(len(boxes))]
      frames = _resize(frames[:, y:y + height, x:x + width], size, size)
    flip, jitter, gray = rng.random(3) < (self.flip, self.color_jitter, self.grayscale)
    if flip:
      frames = np.stack([cv2.flip(frame, 1) for frame in frames])
    return frames, draw_colors(len(frames), jitter, gray, rng)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
  """Resizes frames and crops S x S: the centre, or three. Missing pixels are black.

  Fields:
    image_size: S.
    crops: 1, the centre; or 3, in the reference's order: left, right and middle of a wide frame,
      top, bottom and middle of a high one. The reference has resize_ratio 1 with three crops.
    resize_ratio: the short side before the crops, over S; with OpenCV's filter at least 1. The
      height, if `resize` is 'stretch' or 'fit'.
    filter: 'opencv' (the reference: bilinear, no antialias) or one of Pillow's, as Hugging Face's
      processors have them ('pillow' is bilinear, antialiased; the long side is rounded down).
    resize: 'short_side' keeps the shape of a frame; 'stretch' to a height and a width; 'fit' keeps
      the shape within a height and a width; 'none' crops alone.
    second_ratio: for 'short_side' the most that the long side may become, over S, 0 without a
      limit; for 'stretch' and 'fit' the width, over S.
  """

  image_size: int
  resize_ratio: float = _RESIZE_RATIO
  filter: str = 'opencv'
  crops: int = 1
  resize: str = 'short_side'
  second_ratio: float = 0.0

  def __post_init__(self):
    if self.crops not in (1, 3):
      raise UserError(f'crops must be 1 or 3, found {self.crops}')
    if self.filter != 'opencv' and self.filter not in _PILLOW_FILTERS:
      raise UserError(f"filter must be 'opencv' or one of {', '.join(_PILLOW_FILTERS)}, found "
                      f'{self.filter!r}')
    if self.filter == 'opencv' and self.resize_ratio < 1:
      raise UserError(f'resize_ratio must be at least 1, found {self.resize_ratio}')
    if self.resize not in ('short_side', 'stretch', 'fit', 'none'):
      raise UserError(
        f"resize must be 'short_side', 'stretch', 'fit' or 'none', found {self.resize!r}")

  @classmethod
  def of(cls, preprocess: Any, image_size: int) -> 'EvalTransform':
    """Returns the transform of a `weights.native.Preprocess`."""
    return cls(
      image_size, preprocess.resize_ratio, preprocess.filter, resize=preprocess.resize,
      second_ratio=preprocess.second_ratio)

  def __call__(self, frames: np.ndarray) -> np.ndarray:
    """Returns uint8 [T, S, S, 3], or [3, T, S, S, 3] with three crops."""
    size = self.image_size
    frames = _pad(self._resized(frames), size)
    y, x = ((side - size) // 2 for side in frames.shape[1:3])
    crop = lambda top, left: frames[:, top:top + size, left:left + size]
    if self.crops == 1:
      return np.ascontiguousarray(crop(y, x))
    # The far crop starts at twice the middle's offset: a pixel short of the edge in odd sizes.
    return np.stack([crop(y, i * x) if x >= y else crop(i * y, x) for i in (0, 2, 1)])

  def _resized(self, frames: np.ndarray) -> np.ndarray:
    first, second = (                              # 230 / 224 * 224 < 230
      int(ratio * self.image_size + 1e-6) for ratio in (self.resize_ratio, self.second_ratio))
    if self.resize == 'none':
      return frames
    if self.resize == 'short_side' and self.filter == 'opencv' and not second:
      return _resize_short_side(frames, first)
    height, width = frames.shape[1:3]
    if self.resize == 'short_side':
      new_height, new_width = _short_side_size(height, width, first, second)
    elif self.resize == 'stretch':
      new_height, new_width = first, second
    else:
      scale = min(first / height, second / width)
      new_height, new_width = int(height * scale), int(width * scale)
    new_height, new_width = max(new_height, 1), max(new_width, 1)
    if self.filter == 'opencv':
      return _resize(frames, new_width, new_height)
    return _resize_with_pillow(frames, new_width, new_height, _PILLOW_FILTERS[self.filter])


def multiscale_boxes(height: int, width: int, image_size: int) -> list[tuple[int, int, int, int]]:
  """Returns the equally likely boxes of the reference's multi-scale crop of an H x W frame.

  Returns:
    fifty (x, y, box width, box height): ten sizes whose sides differ by at most one scale, each in
    the corners (up to 3 px off, as steps are quarters rounded down) and the centre.
  """
  base = min(height, width)
  sides = [int(base * scale) for scale in _CROP_SCALES]
  sides = [image_size if abs(side - image_size) < 3 else side for side in sides]
  boxes = []
  for i, w in enumerate(sides):
    for h in sides[max(i - 1, 0):i + 2]:
      dx, dy = (width - w) // 4, (height - h) // 4
      boxes += [(nx * dx, ny * dy, w, h) for nx, ny in ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2))]
  return boxes


def _resize_short_side(frames: np.ndarray, short: int) -> np.ndarray:
  height, width = frames.shape[1:3]
  scale = short / min(height, width)
  return _resize(frames, int(width * scale + 0.5), int(height * scale + 0.5))


def _short_side_size(height: int, width: int, short: int, most: int) -> tuple[int, int]:
  """Returns the size of a frame with this short side, whose long side is `most` pixels at most.

  The roundings are those of transformers. `most` 0 is no limit.
  """
  low, high = min(height, width), max(height, width)
  exact = None                         # the short side before rounding, where `most` decides it
  if most and high / low * short > most:
    exact = most * low / high
    short = round(exact)
  if short == low:
    return height, width
  long = short * high // low if exact is None else int(exact * high / low)
  return (short, long) if width > height else (long, short)


def _resize_with_pillow(
  frames: np.ndarray, width: int, height: int, resample: Image.Resampling
) -> np.ndarray:
  if frames.shape[1:3] == (height, width):
    return frames
  return np.stack([
    np.asarray(Image.fromarray(x).resize((width, height), resample)) for x in frames])


def _pad(frames: np.ndarray, size: int) -> np.ndarray:
  """Pads frames with black on both sides of an axis that is shorter than `size`."""
  missing = [max(size - side, 0) for side in frames.shape[1:3]]
  if not any(missing):
    return frames
  before = [-(-count // 2) for count in missing]
  return np.pad(frames, ((0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True)),
                         (0, 0)))


def _resize(frames: np.ndarray, width: int, height: int) -> np.ndarray:
  if frames.shape[1:3] == (height, width):
    return frames
  return np.stack([cv2.resize(frame, (width, height)) for frame in frames])


def draw_colors(
  num_frames: int, jitter: bool, gray: bool, rng: np.random.Generator
) -> np.ndarray:
  """Draws colour operations for each frame of a clip, as torchvision's ColorJitter does.

  Returns:
    float64 [T, 9]. Columns 0..3: the order of operations, 0 brightness, 1 contrast, 2 saturation,
    3 hue, 4 nothing; 4..6: factors of the first three; 7: turn of the hue, 256 being a whole one;
    8: 1 if the clip becomes grey in the end. Nothing is drawn for a clip without jitter.
  """
  colors = np.full((num_frames, 9), 4.0)
  colors[:, 8] = gray
  strengths = np.array([_BRIGHTNESS, _CONTRAST, _SATURATION])
  for row in colors if jitter else ():
    row[:4] = rng.permutation(4)
    row[4:7] = rng.uniform(1 - strengths, 1 + strengths)
    row[7] = int(rng.uniform(-_HUE, _HUE) * 255) % 256
  return colors


def apply_colors(frames: np.ndarray, colors: np.ndarray) -> np.ndarray:
  """Applies drawn colour operations: uint8 [T, H, W, 3] and [T, 9] -> uint8 [T, H, W, 3]."""
  if (colors[:, :4] == 4).all() and not colors[:, 8].any():
    return frames
  return np.stack([_recolor(*pair) for pair in zip(frames, colors, strict=True)])


def _recolor(frame: np.ndarray, colors: np.ndarray) -> np.ndarray:
  """Applies torchvision's operations to a frame in the drawn order: uint8 [H, W, 3]."""
  brightness, contrast, saturation, hue, gray = colors[4:]
  for step in colors[:4]:
    if step == 0:
      frame = _blend_with(frame, 0, brightness)
    elif step == 1:
      mean = int(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).mean() + 0.5)
      frame = _blend_with(frame, mean, contrast)
    elif step == 2:
      frame = cv2.addWeighted(frame, saturation, _to_gray(frame), 1 - saturation, 0)
    elif step == 3:
      hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV_FULL)
      hsv[..., 0] += np.uint8(hue)     # a full turn is 256: uint8 wraps around
      frame = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
  return _to_gray(frame) if gray else frame


def _blend_with(frame: np.ndarray, level: int, factor: float) -> np.ndarray:
  """Moves all values away from (factor > 1) or towards a grey level, clipped to 0..255."""
  table = factor * np.arange(256) + (1 - factor) * level
  return cv2.LUT(frame, np.clip(np.round(table), 0, 255).astype(np.uint8))


def _to_gray(frame: np.ndarray) -> np.ndarray:
  """Returns Rec.601 luma in three equal channels."""
  return cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
