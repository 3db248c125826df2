"""Colour jitter and greyscale of training clips, on the device.

The host draws the strengths of a clip with the random numbers of that clip (data/clips/augment.py),
so a training stream is the same wherever its pixels are changed. The operations here equal those of
the host, and round to whole levels after each operation as the host does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from xclip_jax.models.matmul import AnyArray


def apply(
  video: UInt8[AnyArray, 'B T H W 3'], colors: Float[AnyArray, 'B T 9']
) -> Float[AnyArray, 'B T H W 3']:
  """Changes the colours of clips by the strengths that the host drew.

  Args:
    video: uint8 [B, T, H, W, 3], RGB.
    colors: float32 [B, T, 9], as `augment.draw_colors` lays them out.

  Returns:
    float32 [B, T, H, W, 3], whole numbers in 0..255, within one level of what the host computes.
  """
  factor = lambda i: colors[..., 4 + i, None, None, None]                # [B, T, 1, 1, 1]
  operations = (
    lambda x: _round(factor(0) * x),
    lambda x: _round(factor(1) * x + (1 - factor(1)) * _mean_luma(x)),
    lambda x: _round(factor(2) * x + (1 - factor(2)) * _luma(x)),
    lambda x: _turn_hue(x, factor(3)),
  )

  def step(number, x):
    operation = colors[..., number, None, None, None]
    return jnp.select([operation == i for i in range(4)], [f(x) for f in operations], x)

  # A loop, since XLA would otherwise repeat all earlier operations for the mean of each later one.
  x = jax.lax.fori_loop(0, 4, step, video.astype(jnp.float32))
  return jnp.where(factor(4) > 0, _luma(x), x)


def _round(x: Float[AnyArray, '*shape']) -> Float[AnyArray, '*shape']:
  """Rounds to whole levels in 0..255."""
  return jnp.clip(jnp.round(x), 0, 255)


def _luma(x: Float[AnyArray, '*pixels 3']) -> Float[AnyArray, '*pixels 1']:
  """Computes Rec.601 luma in OpenCV's fixed point, exactly in float32: [..., 3] -> [..., 1]."""
  red, green, blue = jnp.split(x, 3, axis=-1)
  return jnp.floor((9798 * red + 19235 * green + 3735 * blue + 16384) / 32768)


def _mean_luma(x: Float[AnyArray, '*frames H W 3']) -> Float[AnyArray, '*frames 1 1 1']:
  """Computes the rounded mean luma of each frame: [..., H, W, 3] -> [..., 1, 1, 1]."""
  return jnp.floor(_luma(x).mean((-3, -2), keepdims=True) + 0.5)


def _wrap(x: Float[AnyArray, '*shape'], period: int) -> Float[AnyArray, '*shape']:
  """Wraps x from -period..2 period to 0..period; a modulo of floats takes ten times as long."""
  x = jnp.where(x < 0, x + period, x)
  return jnp.where(x >= period, x - period, x)


def _turn_hue(x: Float[AnyArray, '*pixels 3'], shift: AnyArray) -> Float[AnyArray, '*pixels 3']:
  """Turns the hue of RGB x by a shift, in OpenCV's 8-bit HSV, whose full turn is 256."""
  red, green, blue = jnp.split(x, 3, axis=-1)
  value = jnp.maximum(jnp.maximum(red, green), blue)
  spread = value - jnp.minimum(jnp.minimum(red, green), blue)
  sector = jnp.where(
    value == red, green - blue,
    jnp.where(value == green, blue - red + 2 * spread, red - green + 4 * spread))
  # OpenCV's tables hold whole numbers of 1 / 4096; a turn has 256 steps to HSV and 255 back to RGB.
  scale = lambda x, one, by: jnp.floor((x * jnp.round(one * 4096 / by) + 2048) / 4096)
  hue = scale(sector, 256 / 6, jnp.maximum(spread, 1))
  saturation = scale(spread, 255, jnp.maximum(value, 1)) / 255
  hue = _wrap(_wrap(hue, 256) + shift, 256) * (6 / 255)
  # A channel falls from `value` where the hue is far from its own sector.
  k = _wrap(jnp.array([5.0, 3.0, 1.0]) + hue, 6)
  return _round(value * (1 - saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)))
