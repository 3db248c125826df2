"""The pictures of the docs: drawn from the stored numbers alone, in the style of the reports."""

import pathlib

import pytest
from PIL import Image

from benchmarks import pictures

IMAGES = pathlib.Path(__file__).parents[2] / 'docs' / 'images'


@pytest.mark.parametrize('name', ['ablations', 'data_speed', 'forgetting', 'soak'])
def test_a_picture_is_redrawn_from_its_stored_results(name, tmp_path):
  pictures.redraw(name, tmp_path)
  with Image.open(tmp_path / f'{name}.png') as drawn, Image.open(IMAGES / f'{name}.png') as kept:
    for size, before in zip(drawn.size, kept.size, strict=True):   # text differs by version
      assert abs(size - before) < 30
    assert drawn.getpixel((0, 0))[:3] == (255, 255, 255)


def test_every_run_of_an_ablation_is_a_dot():
  _, *rows = pictures.read('ablations')
  axes = pictures.draw_ablations(rows).axes
  for axis, metric in zip(axes, pictures.ABLATIONS, strict=True):
    dots = [x for line in axis.lines if line.get_marker() == 'o' for x in line.get_xdata()]
    assert sorted(dots) == pytest.approx(sorted(100 * row[metric] for row in rows))


def test_the_gif_of_the_readme_is_small_and_moves():
  file = IMAGES / 'demo.gif'
  assert file.stat().st_size <= 1_500_000
  with Image.open(file) as gif:
    assert 640 <= gif.width <= 800 and gif.n_frames == 16 and gif.info['loop'] == 0
