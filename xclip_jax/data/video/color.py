"""Conversion of decoded frames to the RGB that an ordinary (BT.709, SDR) screen shows."""

import functools
from typing import NamedTuple

import av
import cv2
import numpy as np

# Numbers of ITU-T H.273, which FFmpeg and the containers use.
_UNSPECIFIED = (0, 2, 3)         # 0 and 3 are reserved
_BT2020, _DISPLAY_P3 = 9, 12     # primaries
_SRGB, _PQ, _HLG = 13, 16, 18    # transfer characteristics; the others get the curve of BT.709

_REFERENCE_WHITE = 203.0         # nits of diffuse white in HDR video (ITU-R BT.2408)
_HLG_PEAK = 1000.0               # nits of the display that HLG's system gamma of 1.2 is meant for
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)

# Linear RGB to linear RGB of BT.709, all with the white point D65.
_TO_BT709 = {
  _BT2020: np.array([
    [1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349],
    [-0.018151, -0.100579, 1.118730]], np.float32),
  _DISPLAY_P3: np.array([
    [1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274],
  ], np.float32),
}
_LEVELS = 65536                  # of the 16-bit RGB that is looked up in tables
_ROWS = 256                      # rows converted at once, so that a large frame takes little memory


class Tags(NamedTuple):
  """The colours that a container states, which count where the bitstream states none."""

  primaries: int = 2
  transfer: int = 2


def read_tags(codec: av.VideoCodecContext) -> Tags:
  """Returns what a container says; call it before the decoder has replaced it by its own."""
  return Tags(codec.color_primaries, codec.color_trc)


def to_rgb(frame: av.VideoFrame, tags: Tags) -> np.ndarray:
  """Converts a frame to 8-bit RGB with its own colour matrix and range.

  PQ and HLG (HDR) are shown relative to diffuse white, 203 nits: that becomes 255, and what is
  brighter is clipped without a change of hue. Colours of BT.2020 become those of BT.709; colours
  outside BT.709 are clipped. All other video keeps the values that swscale gives.

  Args:
    frame: a decoded frame.
    tags: colours stated by the container.

  Returns:
    uint8 [H, W, 3], as stored: not turned upright.
  """
  primaries, transfer = (
    stated if own in _UNSPECIFIED else own
    for own, stated in ((frame.color_primaries, tags.primaries), (frame.color_trc, tags.transfer)))
  if transfer in (_PQ, _HLG):
    # HDR without primaries is BT.2020: no recommendation combines it with any other.
    primaries = _BT2020 if primaries in _UNSPECIFIED else primaries
  elif primaries != _BT2020:
    return frame.to_ndarray(format='rgb24', threads=1)
  matrix = 'BT2020' if frame.colorspace in _UNSPECIFIED and primaries == _BT2020 else None
  coded = frame.to_ndarray(format='rgb48le', threads=1, src_colorspace=matrix)
  shown = np.empty(coded.shape, np.uint8)
  for top in range(0, len(coded), _ROWS):
    shown[top:top + _ROWS] = _convert(coded[top:top + _ROWS], primaries, transfer)
  return shown


def _convert(coded: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
  """Converts uint16 [H, W, 3] in the file's colours to uint8 [H, W, 3] in those of the screen."""
  light = _light_table(transfer)[coded]                       # 1: diffuse white
  if transfer == _HLG:
    # The system gamma acts on the luminance of the scene, so that hues stay.
    luminance = light @ _LUMA_2020
    light *= (_HLG_PEAK / _REFERENCE_WHITE * luminance ** np.float32(0.2))[..., None]
  if primaries in _TO_BT709:
    light = cv2.transform(light, _TO_BT709[primaries])
  light /= np.maximum(light.max(axis=-1, keepdims=True), 1)
  levels = (np.maximum(light, 0) * (_LEVELS - 1) + 0.5).astype(np.uint16)
  return _screen_table(_SRGB if transfer in (_PQ, _HLG) else transfer)[levels]


@functools.cache
def _light_table(transfer: int) -> np.ndarray:
  """Returns float32 [65536]: the light of each level; of the scene, 0..1, for HLG."""
  level = np.arange(_LEVELS) / (_LEVELS - 1)
  if transfer == _PQ:                                         # SMPTE ST 2084
    power = level ** (1 / 78.84375)
    light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return (1e4 / _REFERENCE_WHITE * light ** (1 / 0.1593017578125)).astype(np.float32)
  if transfer == _HLG:                                        # ARIB STD-B67
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(level <= 0.5, level ** 2 / 3, (np.exp((level - c) / a) + b) / 12)
    return light.astype(np.float32)
  if transfer == _SRGB:
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
  else:                                                       # ITU-R BT.709 and BT.2020
    light = np.where(level < 0.081, level / 4.5, ((level + 0.099) / 1.099) ** (1 / 0.45))
  return light.astype(np.float32)


@functools.cache
def _screen_table(transfer: int) -> np.ndarray:
  """Returns uint8 [65536]: the screen's level for an amount of light, 65535 being white.

  SDR in BT.2020 gets the curve that its light was computed with, so that greys stay what they were.
  """
  light = np.arange(_LEVELS) / (_LEVELS - 1)
  if transfer == _SRGB:
    level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
  else:
    level = np.where(light < 0.018, 4.5 * light, 1.099 * light ** 0.45 - 0.099)
  return (255 * level + 0.5).astype(np.uint8)
