"""Draws docs/images/demo.gif: moving clips with the toy model's best guesses, mistakes included.

  python benchmarks/demo_gif.py

The clips are the first of each of the eight compositions that the demo never trains on, and the
model chooses among all 32 labels. It sees the stored clips of 64 pixels; the picture shows the same
scenes drawn larger and without noise.
"""

import argparse
import dataclasses
import io
import pathlib

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

import xclip_jax
from xclip_jax import files
from xclip_jax.data.datasets import synthetic, synthetic_scenes
from xclip_jax.reports import theme

WIDTH, COLUMNS, GAP = 800, 4, 18          # pixels; the grid has two rows of four clips
TILE = (WIDTH - (COLUMNS + 1) * GAP) // COLUMNS
TEXT = 76                                 # height of the text below a clip
HEADER = 46
GUESSES = 2                               # shown below each clip
STEP, PAUSE = 90, 900                     # milliseconds of a frame, and of the last one
PAPER = '#ffffff'
FONTS = pathlib.Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip of the grid: its frames, its class and the guesses of the model, best first."""

  frames: np.ndarray                      # uint8 [T, TILE, TILE, 3]
  name: str
  guesses: list[tuple[str, float]]

  @property
  def is_right(self) -> bool:
    return self.guesses[0][0] == self.name


def open_font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
  """Opens DejaVu Sans, which matplotlib brings along."""
  name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
  return ImageFont.truetype(str(FONTS / name), size)


def read_clips() -> list[Clip]:
  """Lets the toy model answer the first clip of each composition that it was not trained on."""
  folder = synthetic.prepare()
  recipe = synthetic.Recipe()
  model = xclip_jax.load('toy')
  clips = []
  for number, (shape, motion) in enumerate(synthetic_scenes.compositions('zero_shot')):
    answer = model.classify(str(folder / 'videos' / 'zero_shot' / f'{number:05d}.mp4'))
    scene = recipe.scene('zero_shot', number)
    clips.append(Clip(render_smoothly(scene), f'a {shape} {motion}', answer.top(GUESSES)))
  return clips


def render_smoothly(scene: synthetic_scenes.Scene) -> np.ndarray:
  """Draws a scene as uint8 [T, TILE, TILE, 3] without most of its noise, which GIF cannot pack."""
  draws = [synthetic_scenes.render(dataclasses.replace(scene, grain=grain), TILE)
           for grain in range(24)]
  return np.round(np.mean(draws, axis=0)).astype(np.uint8)


def draw_page(clips: list[Clip]) -> Image.Image:
  """Draws everything that does not move: the header and the guesses below each clip."""
  page = Image.new('RGB', (WIDTH, HEADER + 2 * (TILE + TEXT + GAP)), PAPER)
  draw = ImageDraw.Draw(page)
  wrong = sum(not clip.is_right for clip in clips)
  draw.text((GAP, 12), 'Shapes and motions in pairs that were never trained on', theme.INK,
            open_font(14, bold=True))
  told = f'best 2 of 32 labels: {len(clips) - wrong} clips right, {wrong} wrong'
  draw.text((WIDTH - GAP, 14), told, theme.MUTED, open_font(12), anchor='ra')
  for number, clip in enumerate(clips):
    left, top = find_corner(number)
    draw_guesses(draw, clip, left, top + TILE + 7)
  return page


def find_corner(number: int) -> tuple[int, int]:
  """Returns the left and upper edge of a clip in the page, in pixels."""
  row, column = divmod(number, COLUMNS)
  return GAP + column * (TILE + GAP), HEADER + row * (TILE + TEXT + GAP)


def draw_guesses(draw: ImageDraw.ImageDraw, clip: Clip, left: int, top: int) -> None:
  """Draws the labels of one clip: the most probable one green if right and red if wrong."""
  verdict = theme.GREEN if clip.is_right else theme.RED
  for rank, (label, probability) in enumerate(clip.guesses):
    y = top + 32 * rank
    is_class = label == clip.name
    text = label.removeprefix('a ')
    draw.text((left, y), text, theme.INK if is_class else theme.MUTED,
              open_font(9.5, bold=is_class))
    track = TILE - 38
    color = verdict if not rank else '#b8c4ce'
    draw.rounded_rectangle((left, y + 16, left + track, y + 22), 3, theme.TRACK)
    draw.rounded_rectangle(
      (left, y + 16, left + max(6, round(track * probability)), y + 22), 3, color)
    draw.text((left + TILE, y + 19), f'{100 * probability:.0f} %', theme.INK, open_font(10),
              anchor='rm')


def mark(frame: Image.Image, clip: Clip, left: int, top: int) -> None:
  """Draws a badge in the corner of a clip: a green tick or a red cross."""
  draw = ImageDraw.Draw(frame)
  color = theme.GREEN if clip.is_right else theme.RED
  x, y = left + TILE - 24, top + 6
  draw.ellipse((x, y, x + 18, y + 18), color)
  draw.text((x + 9, y + 9), '✓' if clip.is_right else '✗', PAPER, open_font(12, bold=True),
            anchor='mm')


def choose_palette(frames: list[Image.Image], colors: int) -> Image.Image:
  """Chooses colours for all frames: those of shapes and text are exact, the rest by median cut."""
  shades = np.linspace(0, 1, 8)[:, None]
  ink = lambda color: shades * np.array(ImageColor.getrgb(color)) + (1 - shades) * 255
  light = np.array([0.88, 0.94, 1.0, 1.06])[:, None]
  exact = [ink(x) for x in (theme.INK, theme.MUTED, theme.GREEN, theme.RED, theme.TRACK)]
  exact += [np.clip(255 * light * color, 0, 255) for color in synthetic_scenes.COLORS.values()]
  exact = np.round(np.concatenate(exact)).astype(np.uint8)
  together = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames[::5]]))
  rest = together.quantize(colors - len(exact), method=Image.Quantize.MEDIANCUT).getpalette()
  palette = Image.new('P', (1, 1))
  palette.putpalette([*exact.ravel().tolist(), *(rest or [])])
  return palette


def draw_gif(clips: list[Clip], colors: int) -> bytes:
  """Encodes the grid as a GIF with one palette for all frames."""
  page = draw_page(clips)
  frames = []
  for time in range(len(clips[0].frames)):
    frame = page.copy()
    for number, clip in enumerate(clips):
      frame.paste(Image.fromarray(clip.frames[time]), find_corner(number))
      mark(frame, clip, *find_corner(number))
    frames.append(frame)
  palette = choose_palette(frames, colors)
  indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
  file = io.BytesIO()
  durations = [STEP] * (len(frames) - 1) + [PAUSE]
  indexed[0].save(file, 'GIF', save_all=True, append_images=indexed[1:], duration=durations, loop=0,
                  optimize=False)
  return file.getvalue()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', default='docs/images/demo.gif')
  parser.add_argument('--colors', type=int, default=200,
                      help='number of colours in the palette (default: 200)')
  arguments = parser.parse_args()
  content = draw_gif(read_clips(), arguments.colors)
  files.write_bytes(pathlib.Path(arguments.out), content)
  print(f'{arguments.out}: {len(content):,} bytes')


if __name__ == '__main__':
  main()
