"""Moving scenes of the synthetic set: their classes, their random draws, and their pixels.

Every motion has a partner, and clips of one are clips of the other played backwards: as bags of
frames the two are the same, only the order tells them apart.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np

SHAPES = ('square', 'triangle', 'cross', 'ring')
# Neighbours are partners: each is the other played backwards.
MOTIONS = ('moving left', 'moving right', 'moving up', 'moving down',
           'circling clockwise', 'circling counter-clockwise', 'growing', 'shrinking')
REVERSE = {motion: MOTIONS[i ^ 1] for i, motion in enumerate(MOTIONS)}
COLORS = {'red': (0.95, 0.20, 0.15), 'green': (0.20, 0.85, 0.25), 'blue': (0.25, 0.50, 1.00),
          'yellow': (1.00, 0.90, 0.15), 'pink': (1.00, 0.45, 0.85), 'white': (0.97, 0.97, 0.97)}

_WAVES = 4      # number of waves in the background's texture
_SHIFT = 32     # pixels: largest shift of the noise from frame to frame


def is_held_out(shape: str, motion: str) -> bool:
  """Returns whether a composition is kept for zero-shot: one pair of partners for each shape."""
  return SHAPES.index(shape) == MOTIONS.index(motion) // 2


def compositions(split: str) -> list[tuple[str, str]]:
  """Returns the (shape, motion) of each class id: 24 in train and val, 8 others in zero_shot."""
  return [(shape, motion) for shape in SHAPES for motion in MOTIONS
          if is_held_out(shape, motion) == (split == 'zero_shot')]


@dataclasses.dataclass(frozen=True)
class Scene:
  """Describes everything that a clip of T frames shows.

  Positions and lengths are in frame widths, y points down, the angle is clockwise in rad.
  """

  shape: str
  motion: str
  color: str
  center: np.ndarray      # [T, 2] x, y
  radius: np.ndarray      # [T]
  angle: float
  light: np.ndarray       # [T] brightness of the whole frame
  phase: np.ndarray       # [T, waves] phases of the drifting texture, rad
  noise: np.ndarray       # [T, 2] corner of each frame's pixel noise in one larger tile, pixels
  waves: np.ndarray       # [waves, 2] wave vectors of the texture, rad a frame width
  tint: np.ndarray        # [waves, 3] amplitudes of the waves in RGB
  ground: np.ndarray      # [3] mean colour of the background
  grain: int              # seed of the tile of noise

  @property
  def caption(self) -> str:
    """Returns a sentence with the colour, the shape and the motion."""
    return f'a {self.color} {self.shape} {self.motion}'


_TRACKS = ('center', 'radius', 'light', 'phase', 'noise')


def reverse(scene: Scene) -> Scene:
  """Returns a scene played backwards: a scene of the partner motion with the same frames."""
  flipped = {name: getattr(scene, name)[::-1] for name in _TRACKS}
  return dataclasses.replace(scene, motion=REVERSE[scene.motion], **flipped)


def draw_scene(rng: np.random.Generator, shape: str, motion: str, frames: int) -> Scene:
  """Draws a random scene; only the track that the motion moves depends on the motion."""
  if MOTIONS.index(motion) % 2:  # a reversed scene: no set of frames can tell partners apart
    return reverse(draw_scene(rng, shape, REVERSE[motion], frames))
  time = np.linspace(-0.5, 0.5, frames)
  radius = np.full(frames, rng.uniform(0.18, 0.26))
  center = np.tile(rng.uniform(0.3, 0.7, 2), (frames, 1))
  if motion == 'growing':
    radius = rng.uniform(0.19, 0.22) * rng.uniform(2.2, 3.2) ** time
  elif motion == 'circling clockwise':
    # The middle of the arc is near the top. With arcs anywhere, only a product of positions at two
    # times would tell the directions apart, which a small model takes many times longer to learn.
    turn = np.deg2rad(rng.uniform(-150, -30) + rng.uniform(200, 300) * time)
    center = 0.5 + rng.uniform(0.22, 0.28) * np.stack([np.cos(turn), np.sin(turn)], 1)
  else:
    axis = 0 if motion == 'moving left' else 1
    travel = rng.uniform(0.5, 0.65)
    room = (0.8 - travel) / 2
    center[:, axis] = 0.5 + rng.uniform(-room, room) - travel * time
  waves = rng.uniform(4, 14, (_WAVES, 1)) * _directions(rng, _WAVES)
  drift = rng.uniform(0.1, 0.6) * _directions(rng, 1)[0]
  return Scene(
    shape=shape, motion=motion, color=str(rng.choice(list(COLORS))),
    center=center, radius=radius, angle=rng.uniform(-0.25, 0.25),
    light=1 + rng.uniform(0, 0.12) * np.sin(rng.uniform(0, 7) + rng.uniform(2, 7) * time),
    phase=rng.uniform(0, 2 * np.pi, _WAVES) - time[:, None] * (waves @ drift),
    noise=rng.integers(_SHIFT, size=(frames, 2)),
    waves=waves, tint=rng.uniform(-0.045, 0.045, (_WAVES, 3)), ground=rng.uniform(0.06, 0.28, 3),
    grain=int(rng.integers(2 ** 63)))


def _directions(rng: np.random.Generator, count: int) -> np.ndarray:
  turn = rng.uniform(0, 2 * np.pi, count)
  return np.stack([np.cos(turn), np.sin(turn)], 1)


def _half_planes(x: np.ndarray, y: np.ndarray, sides: int) -> Iterable[np.ndarray]:
  for turn in np.arange(sides) * 2 * np.pi / sides:
    yield np.float32(np.sin(turn)) * x + np.float32(np.cos(turn)) * y


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return functools.reduce(np.maximum, _half_planes(x, y, 3)) - 0.56


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  x, y = np.abs(x), np.abs(y)
  return np.maximum(np.minimum(x, y) - 0.28, np.maximum(x, y) - 0.95)


# Signed distance to the outline, in radii.
_OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  'square': lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.8,
  'triangle': _triangle,
  'cross': _cross,
  'ring': lambda x, y: np.abs(np.sqrt(x * x + y * y) - 0.7) - 0.25,
}


def render(scene: Scene, size: int) -> np.ndarray:
  """Draws every frame of a scene: uint8 RGB [T, size, size, 3]."""
  frames = len(scene.radius)
  center, radius, light, phase, waves, tint, ground = (
    getattr(scene, name).astype(np.float32) for name in
    ('center', 'radius', 'light', 'phase', 'waves', 'tint', 'ground'))
  grid = (np.arange(size, dtype=np.float32) + 0.5) / size

  # The texture is cos(a + b), written as a product of matrices, [H, 2*waves] @ [2*waves, 3*W] a
  # frame: small enough for BLAS to stay in this thread.
  rows = phase[:, None] + grid[:, None] * waves[:, 1]                          # [T, H, waves]
  columns = waves[:, :1] * grid                                                # [waves, W]
  left = np.concatenate([np.cos(rows), -np.sin(rows)], -1)
  right = np.concatenate([np.cos(columns), np.sin(columns)])[:, None]
  right = right * np.tile(tint, (2, 1))[..., None]                             # [2*waves, 3, W]
  video = left @ right.reshape(2 * _WAVES, -1)
  video = video.reshape(frames, size, 3, size) + ground[:, None]               # [T, H, 3, W]

  x = (grid - center[:, :1])[:, None, :]
  y = (grid - center[:, 1:])[:, :, None]
  cos, sin = ((np.float32(f(scene.angle)) / radius)[:, None, None] for f in (np.cos, np.sin))
  x, y = cos * x + sin * y, cos * y - sin * x                                  # [T, H, W] in radii
  pixels = (radius * size)[:, None, None]                                      # pixels in a radius
  inside = np.clip(0.5 - _OUTLINES[scene.shape](x, y) * pixels, 0, 1)[:, :, None]
  paint = np.asarray(COLORS[scene.color], np.float32)[:, None]
  video += inside * (paint - video)

  tile = np.random.default_rng(scene.grain).standard_normal((size + _SHIFT,) * 2, np.float32)
  noise = np.stack([tile[row:row + size, column:column + size] for row, column in scene.noise])
  video *= light[:, None, None, None]
  video += 0.015 * noise[:, :, None]
  return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 1, 3, 2)
