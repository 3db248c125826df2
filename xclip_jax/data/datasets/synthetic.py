"""A small set of synthetic videos that only their motion tells apart, drawn on first use.

A coloured shape moves, circles or changes its size in front of a drifting texture; see
synthetic_scenes.py. A quarter of the (shape, motion) pairs is kept for zero-shot. The folder has
the format of users' own sets: videos, `path,label,caption` lists and `id,name,reverse` class lists.

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
from collections.abc import Iterable, Mapping
from typing import cast

import av
import numpy as np
import tqdm
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from xclip_jax import files
from xclip_jax.data.datasets.synthetic_scenes import (
  REVERSE,
  Scene,
  compositions,
  draw_scene,
  render,
)
from xclip_jax.errors import UserError

FORMAT = 2  # part of the folder's name and of every file: raised when the same numbers draw anew

SPLITS = ('train', 'val', 'zero_shot')

_FPS = 16
_MIN_CLIPS = 150    # number of clips worth starting a process for


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Holds the numbers that decide a set; a larger set begins with the clips of a smaller one."""

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
    """Returns the name of the folder of this set."""
    return (f'synthetic-v{FORMAT}-seed{self.seed}-{self.train}-{self.val}-{self.zero_shot}'
            f'-{self.size}px-{self.frames}f')

  def clips(self) -> list[tuple[str, int]]:
    """Returns (split, number) of every clip."""
    return [(split, number) for split in SPLITS for number in range(getattr(self, split))]

  def scene(self, split: str, number: int) -> Scene:
    """Draws the scene of one clip, which depends on (seed, split, number, frames) alone."""
    rng = np.random.default_rng((self.seed, SPLITS.index(split), number))
    classes = compositions(split)
    return draw_scene(rng, *classes[number % len(classes)], self.frames)


def prepare(
  root: str | os.PathLike | None = None, recipe: Recipe = Recipe(), processes: int | None = None,
) -> pathlib.Path:
  """Returns the folder of a set under root, after drawing its missing files.

  Args:
    root: folder with one folder for each set; default $XCLIP_CACHE or ~/.cache/xclip_jax.
    recipe: numbers that decide the contents.
    processes: number of drawing processes, default one a CPU; the contents do not depend on it.
  """
  root = root or os.environ.get('XCLIP_CACHE') or '~/.cache/xclip_jax'
  return write(pathlib.Path(root).expanduser() / recipe.folder, recipe, processes)


def prepare_settings(root: str | os.PathLike | None, settings: Mapping[str, int]) -> pathlib.Path:
  """Returns the folder of the set that `config.data.synthetic` describes; see `prepare`.

  Args:
    root: as in `prepare`.
    settings: fields of a recipe, and `processes`.
  """
  numbers = {name: value for name, value in settings.items() if name != 'processes'}
  return prepare(root, Recipe(**numbers), settings.get('processes'))


def write(folder: str | os.PathLike, recipe: Recipe, processes: int | None = None) -> pathlib.Path:
  """Writes the set of a recipe to a folder, drawing only clips that are missing or damaged.

  The manifest is written last: with it, the sizes of files show that the set is whole. Files appear
  under their names complete or not at all, so runs at the same time do not clash.
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
  """Returns the size of every file in the manifest; empty if no manifest can be read."""
  try:
    manifest = json.loads((folder / 'manifest.json').read_bytes())
  except (FileNotFoundError, ValueError, RecursionError):
    return {}
  if not isinstance(manifest, dict) or 'format' not in manifest or not all(
    isinstance(manifest.get(name), dict) for name in ('recipe', 'sizes')):
    return {}
  drawn, sizes = {'format': manifest['format'], **manifest['recipe']}, manifest['sizes']
  asked = {'format': FORMAT, **dataclasses.asdict(recipe)}
  if drawn != asked:
    differ = ', '.join(f'{name}={drawn.get(name)} instead of {value}'
                       for name, value in asked.items() if drawn.get(name) != value)
    raise UserError(f'{folder} holds another synthetic set ({differ}); '
                     'choose another folder, delete this one, or ask for what it holds')
  return sizes


def _write(path: pathlib.Path, content: bytes) -> None:
  # Not durable: every file is checked against the recipe when the set is used again.
  with files.atomic_file(path, durable=False) as file:
    file.write(content)


def _clip_name(split: str, number: int) -> str:
  return f'videos/{split}/{number:05d}.mp4'


def _draw(folder: pathlib.Path, recipe: Recipe, clips: list[tuple[str, int]],
          processes: int) -> None:
  job = functools.partial(_ensure_clip, folder, recipe)
  bar = functools.partial(
    tqdm.tqdm, total=len(clips), desc='drawing videos', unit='clip',
    disable=None)                                    # None: disabled without a terminal
  processes = min(processes, len(clips) // _MIN_CLIPS)
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
  # The comment tells the clips of sets apart in a folder whose manifest is lost.
  tag = f'synthetic v{FORMAT} seed {recipe.seed} {recipe.size}px {clip[0]} {clip[1]}'
  if not _is_intact(path, tag, recipe.frames):
    _write(path, encode(render(recipe.scene(*clip), recipe.size), tag))


def _is_intact(path: pathlib.Path, tag: str, frames: int) -> bool:
  try:
    with av.open(path) as container:
      packets = sum(packet.size > 0 for packet in container.demux(video=0))
      return packets == frames and container.metadata.get('comment') == tag
  except (FileNotFoundError, FFmpegError):
    return False


def encode(video: np.ndarray, comment: str = '', codec: str | None = None) -> bytes:
  """Encodes uint8 RGB [T, H, W, 3] as mp4: H.264, or MPEG-4 where FFmpeg has no libx264."""
  codec = codec or ('libx264' if 'libx264' in av.codecs_available else 'mpeg4')
  options = {
    # With mbtree, x264's output for small pictures depends on the previous contents of memory.
    'libx264': {'preset': 'veryfast', 'crf': '19', 'mbtree': '0'},
    'mpeg4': {'qmin': '2', 'qmax': '4'},
  }
  file, colors = io.BytesIO(), VideoReformatter()
  with av.open(file, 'w', format='mp4') as container:
    container.metadata['comment'] = comment
    stream = cast(av.VideoStream, container.add_stream(codec, rate=_FPS, options=options[codec]))
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.gop_size = 8
    stream.codec_context.max_b_frames = 0
    stream.codec_context.thread_count = 1      # the output depends on the number of threads
    for image in video:
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      # One thread: starting more takes longer than the conversion of a small picture.
      container.mux(stream.encode(colors.reformat(frame, format='yuv420p', threads=1)))
    container.mux(stream.encode(None))
  return file.getvalue()


def _texts(recipe: Recipe) -> dict[str, str]:
  """Returns name -> content of the lists, the class lists and the README."""
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
  """Draws a set and prints its folder."""
  parser = argparse.ArgumentParser(
    prog='python -m xclip_jax.data.datasets.synthetic',
    description='Draws the synthetic set of videos.')
  parser.add_argument('--out', help='folder for the set itself (default: a folder in the cache)')
  parser.add_argument('--processes', type=int,
                      help='number of drawing processes (default: one a CPU)')
  for field in dataclasses.fields(Recipe):
    parser.add_argument(f'--{field.name.replace("_", "-")}', type=int, default=field.default)
  chosen = vars(parser.parse_args(args))
  out, processes = chosen.pop('out'), chosen.pop('processes')
  try:
    recipe = Recipe(**chosen)
    folder = write(out, recipe, processes) if out else prepare(None, recipe, processes)
  except UserError as error:
    parser.error(str(error))
  print(folder)


if __name__ == '__main__':
  main()
