"""A small set of videos that can only be told apart by watching them move.

A coloured shape moves, circles or changes its size in front of a drifting texture. Every motion has
a partner, and clips of one are clips of the other played backwards: as bags of frames the two are
the same, only the order tells. A quarter of the (shape, motion) pairs is kept for zero-shot.
The folder has the format of users' own sets: videos, `path,label,caption` and `id,name,reverse`.

  python -m xclip_jax.data.datasets.synthetic [--out DIR] [--seed 0] [--train 2880] [--size 64] ...
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable

import av
import numpy as np
import tqdm
from av.video.reformatter import VideoReformatter

from xclip_jax import files
from xclip_jax.errors import UserError

FORMAT = 2  # part of the folder's name and of every file: raise it when the same numbers draw anew

SHAPES = ('square', 'triangle', 'cross', 'ring')
# Neighbours are partners: each is the other played backwards.
MOTIONS = ('moving left', 'moving right', 'moving up', 'moving down',
           'circling clockwise', 'circling counter-clockwise', 'growing', 'shrinking')
REVERSE = {motion: MOTIONS[i ^ 1] for i, motion in enumerate(MOTIONS)}
COLORS = {'red': (0.95, 0.20, 0.15), 'green': (0.20, 0.85, 0.25), 'blue': (0.25, 0.50, 1.00),
          'yellow': (1.00, 0.90, 0.15), 'pink': (1.00, 0.45, 0.85), 'white': (0.97, 0.97, 0.97)}
SPLITS = ('train', 'val', 'zero_shot')

_WAVES = 4      # in the background's texture
_SHIFT = 32     # pixels by which the noise differs between frames, at most
_FPS = 16
_SHARE = 150    # clips worth starting a process for


def is_held_out(shape: str, motion: str) -> bool:
  """Tell whether a composition is kept for zero-shot: one pair of partners for each shape."""
  return SHAPES.index(shape) == MOTIONS.index(motion) // 2


def compositions(split: str) -> list[tuple[str, str]]:
  """List the (shape, motion) of each class id: 24 in train and val, 8 others in zero_shot."""
  return [(shape, motion) for shape in SHAPES for motion in MOTIONS
          if is_held_out(shape, motion) == (split == 'zero_shot')]


# --- what is seen ---------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)


class Scene:
  """All that a clip shows; places and lengths in frame widths, y down, the angle clockwise, rad."""

  shape: str
  motion: str
  color: str
  center: np.ndarray      # [T, 2] x, y
  radius: np.ndarray      # [T]
  angle: float
  light: np.ndarray       # [T] brightness of the whole frame
  phase: np.ndarray       # [T, waves] where the drifting texture is
  noise: np.ndarray       # [T, 2] where each frame's pixel noise is cut from one larger tile
  waves: np.ndarray       # [waves, 2] wave vectors of the texture, rad a frame width
  tint: np.ndarray        # [waves, 3] their amplitudes in RGB
  ground: np.ndarray      # [3] mean colour of the background
  grain: int              # seed of the tile of noise

  @property
  def caption(self) -> str:
    return f'a {self.color} {self.shape} {self.motion}'


_TRACKS = ('center', 'radius', 'light', 'phase', 'noise')


def reverse(scene: Scene) -> Scene:
  """Play a scene backwards: a scene of the partner motion with the same frames in other order."""
  flipped = {name: getattr(scene, name)[::-1] for name in _TRACKS}
  return dataclasses.replace(scene, motion=REVERSE[scene.motion], **flipped)


def draw_scene(rng: np.random.Generator, shape: str, motion: str, frames: int) -> Scene:
  """Draw a random scene; only the named motion's own track depends on the motion."""
  if MOTIONS.index(motion) % 2:  # so that no frame, nor any set of frames, tells partners apart
    return reverse(draw_scene(rng, shape, REVERSE[motion], frames))
  time = np.linspace(-0.5, 0.5, frames)
  radius = np.full(frames, rng.uniform(0.18, 0.26))
  center = np.tile(rng.uniform(0.3, 0.7, 2), (frames, 1))
  if motion == 'growing':
    radius = rng.uniform(0.19, 0.22) * rng.uniform(2.2, 3.2) ** time
  elif motion == 'circling clockwise':
    # The middle of the arc is near the top. Were it anywhere, only a product of places at two times
    # would tell the directions apart, which takes a small model many times longer to find.
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
  """Draw every frame of a scene: uint8 RGB [T, size, size, 3]."""
  frames = len(scene.radius)
  center, radius, light, phase, waves, tint, ground = (
    getattr(scene, name).astype(np.float32) for name in
    ('center', 'radius', 'light', 'phase', 'waves', 'tint', 'ground'))
  grid = (np.arange(size, dtype=np.float32) + 0.5) / size

  # cos(a + b) as a product of matrices gives the texture: [H, 2*waves] @ [2*waves, 3*W] a frame,
  # small enough for BLAS to stay in this thread.
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
  pixels = (radius * size)[:, None, None]                                      # in a radius
  inside = np.clip(0.5 - _OUTLINES[scene.shape](x, y) * pixels, 0, 1)[:, :, None]
  paint = np.asarray(COLORS[scene.color], np.float32)[:, None]
  video += inside * (paint - video)

  tile = np.random.default_rng(scene.grain).standard_normal((size + _SHIFT,) * 2, np.float32)
  noise = np.stack([tile[row:row + size, column:column + size] for row, column in scene.noise])
  video *= light[:, None, None, None]
  video += 0.015 * noise[:, :, None]
  return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 1, 3, 2)


# --- what is stored -------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)


class Recipe:
  """All that decides what a set contains; a larger set begins with the clips of a smaller one."""

  seed: int = 0
  train: int = 2880       # clips
  val: int = 480
  zero_shot: int = 240
  size: int = 64          # pixels, both ways
  frames: int = 16        # in a clip, at 16 a second

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      least = {'seed': 0, 'size': 32, 'frames': 2}.get(name, 1)
      if not isinstance(value, int) or value < least:
        raise UserError(f'synthetic data: {name} must be an integer >= {least}, got {value!r}')
    if self.size % 2:
      raise UserError(f'synthetic data: size must be even for video codecs, got {self.size}')

  @property
  def folder(self) -> str:
    return (f'synthetic-v{FORMAT}-seed{self.seed}-{self.train}-{self.val}-{self.zero_shot}'
            f'-{self.size}px-{self.frames}f')

  def clips(self) -> list[tuple[str, int]]:
    """List (split, number) of every clip."""
    return [(split, number) for split in SPLITS for number in range(getattr(self, split))]

  def scene(self, split: str, number: int) -> Scene:
    """Draw the scene of one clip, which depends on nothing but (seed, split, number, frames)."""
    rng = np.random.default_rng((self.seed, SPLITS.index(split), number))
    classes = compositions(split)
    return draw_scene(rng, *classes[number % len(classes)], self.frames)


def prepare(root: str | os.PathLike | None = None, *, seed: int = 0, train: int = 2880,
            val: int = 480, zero_shot: int = 240, size: int = 64, frames: int = 16,
            processes: int | None = None) -> pathlib.Path:
  """Return the folder of a set under root, drawing it (or what is missing of it) first.

  Args:
    root: where sets are kept, one folder each; default $XCLIP_CACHE or ~/.cache/xclip_jax.
    seed, train, val, zero_shot, size, frames: see Recipe.
    processes: how many draw at once, default one a CPU; what is drawn does not depend on it.
  """
  root = root or os.environ.get('XCLIP_CACHE') or '~/.cache/xclip_jax'
  recipe = Recipe(seed, train, val, zero_shot, size, frames)
  return write(pathlib.Path(root).expanduser() / recipe.folder, recipe, processes)


def write(folder: str | os.PathLike, recipe: Recipe, processes: int | None = None) -> pathlib.Path:
  """Make folder hold the recipe's set, drawing only clips that are missing or damaged.

  The manifest is written last: with it, file sizes are enough to know that the set is whole.
  Files appear under their names complete or not at all, so runs at the same time do not clash.
  """
  folder = pathlib.Path(folder).resolve()
  sizes = _read_sizes(folder, recipe)
  damaged = {name for name, size in sizes.items()
             if not (folder / name).exists() or (folder / name).stat().st_size != size}
  if sizes and not damaged:
    return folder
  clips = [clip for clip in recipe.clips() if not sizes or _clip_name(*clip) in damaged]
  for split in SPLITS:
    (folder / 'videos' / split).mkdir(parents=True, exist_ok=True)
  _draw(folder, recipe, clips, processes or os.cpu_count() or 1)
  texts = _texts(recipe)
  for name, text in texts.items():
    _write(folder / name, text.encode())
  names = [*texts, *(_clip_name(*clip) for clip in recipe.clips())]
  manifest = {'format': FORMAT, 'recipe': dataclasses.asdict(recipe),
              'sizes': {name: (folder / name).stat().st_size for name in names}}
  _write(folder / 'manifest.json', json.dumps(manifest, indent=1).encode())
  return folder


def _read_sizes(folder: pathlib.Path, recipe: Recipe) -> dict[str, int]:
  """Read the size of every file from the manifest; empty if there is none that can be read."""
  try:
    manifest = json.loads((folder / 'manifest.json').read_bytes())
    found, sizes = {'format': manifest['format'], **manifest['recipe']}, manifest['sizes']
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return {}
  wanted = {'format': FORMAT, **dataclasses.asdict(recipe)}
  if found != wanted:
    differ = ', '.join(f'{name}={found.get(name)} instead of {value}'
                       for name, value in wanted.items() if found.get(name) != value)
    raise UserError(f'{folder} holds another synthetic set ({differ}); '
                     'choose another folder, delete this one, or ask for what it holds')
  return sizes


def _write(path: pathlib.Path, content: bytes) -> None:
  # Every file is checked against its recipe when the set is used again, so it need not be durable.
  with files.atomic_file(path, durable=False) as file:
    file.write(content)


def _clip_name(split: str, number: int) -> str:
  return f'videos/{split}/{number:05d}.mp4'


def _draw(folder: pathlib.Path, recipe: Recipe, clips: list[tuple[str, int]],
          processes: int) -> None:
  job = functools.partial(_ensure_clip, folder, recipe)
  bar = functools.partial(tqdm.tqdm, total=len(clips), desc='drawing videos', unit='clip')
  processes = min(processes, len(clips) // _SHARE)
  if processes < 2:
    for _ in bar(map(job, clips)):
      pass
    return
  # Spawned, not forked: the caller may run threads (JAX does), whose locks a fork would copy.
  spawn = multiprocessing.get_context('spawn')
  try:
    with concurrent.futures.ProcessPoolExecutor(processes, spawn) as pool:
      for _ in bar(pool.map(job, clips, chunksize=16)):
        pass
  except concurrent.futures.process.BrokenProcessPool as error:
    raise RuntimeError(
      'a process that draws synthetic videos ended early: call this under '
      "`if __name__ == '__main__':`, or with processes=1 to draw in this process") from error


def _ensure_clip(folder: pathlib.Path, recipe: Recipe, clip: tuple[str, int]) -> None:
  path = folder / _clip_name(*clip)
  # Told apart from other sets' clips, in a folder whose manifest is lost, by its comment tag.
  tag = f'synthetic v{FORMAT} seed {recipe.seed} {recipe.size}px {clip[0]} {clip[1]}'
  if not _is_intact(path, tag, recipe.frames):
    _write(path, encode(render(recipe.scene(*clip), recipe.size), tag))


def _is_intact(path: pathlib.Path, tag: str, frames: int) -> bool:
  try:
    with av.open(path) as container:
      packets = sum(packet.size > 0 for packet in container.demux(video=0))
      return packets == frames and container.metadata.get('comment') == tag
  except (FileNotFoundError, av.FFmpegError):
    return False


def encode(video: np.ndarray, comment: str = '', codec: str | None = None) -> bytes:
  """Encode uint8 RGB [T, H, W, 3] as mp4: H.264, or MPEG-4 where FFmpeg has no libx264."""
  codec = codec or ('libx264' if 'libx264' in av.codecs_available else 'mpeg4')
  options = {
    # Without mbtree: with it, x264's output for small pictures depends on what memory held before.
    'libx264': {'preset': 'veryfast', 'crf': '19', 'mbtree': '0'},
    'mpeg4': {'qmin': '2', 'qmax': '4'},
  }
  file, colors = io.BytesIO(), VideoReformatter()
  with av.open(file, 'w', format='mp4') as container:
    container.metadata['comment'] = comment
    stream = container.add_stream(codec, rate=_FPS, options=options[codec])
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.gop_size = 8
    stream.codec_context.max_b_frames = 0
    stream.codec_context.thread_count = 1      # the output of more would depend on their number
    for image in video:
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      # One thread: by default each conversion starts some, which takes longer than small pictures.
      container.mux(stream.encode(colors.reformat(frame, format='yuv420p', threads=1)))
    container.mux(stream.encode(None))
  return file.getvalue()


def _texts(recipe: Recipe) -> dict[str, str]:
  """Write out the annotation and class files and the README: name -> content."""
  texts = {'README.txt': _README}
  for split, name in (('train', 'classes.csv'), ('zero_shot', 'classes_zero_shot.csv')):
    texts[name] = _csv(('id', 'name', 'reverse'), (
      (i, f'a {shape} {motion}', f'a {shape} {REVERSE[motion]}')
      for i, (shape, motion) in enumerate(compositions(split))))
  for split in SPLITS:
    texts[f'{split}.csv'] = _csv(('path', 'label', 'caption'), (
      (_clip_name(split, i), i % len(compositions(split)), recipe.scene(split, i).caption)
      for i in range(getattr(recipe, split))))
  return texts


def _csv(header: Iterable[str], rows: Iterable[Iterable]) -> str:
  file = io.StringIO()
  csv.writer(file, lineterminator='\n').writerows([header, *rows])
  return file.getvalue()


_README = """\
Synthetic videos of xclip_jax: coloured shapes that move, turn, grow or shrink over a texture.
A class is a shape with a motion; every motion is another one played backwards (column `reverse` of
the class files), so only the order of the frames tells them apart, and mirrored clips would have
wrong names. train.csv and val.csv hold the 24 classes of classes.csv; zero_shot.csv holds 8 other
compositions, listed in classes_zero_shot.csv. Captions add the colour. manifest.json lists it all.
"""


def main(args: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m xclip_jax.data.datasets.synthetic', description='Draw the synthetic set of videos.')
  parser.add_argument('--out', help='folder for the set itself (default: one in the cache)')
  parser.add_argument('--processes', type=int, help='default: one a CPU')
  for field in dataclasses.fields(Recipe):
    parser.add_argument(f'--{field.name.replace("_", "-")}', type=int, default=field.default)
  chosen = vars(parser.parse_args(args))
  out, processes = chosen.pop('out'), chosen.pop('processes')
  try:
    recipe = Recipe(**chosen)
    print(write(out, recipe, processes) if out else prepare(processes=processes, **chosen))
  except ValueError as error:
    parser.error(str(error))


if __name__ == '__main__':
  main()
