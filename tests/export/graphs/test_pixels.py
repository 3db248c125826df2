"""Frames that a graph resizes are those of OpenCV and of Pillow, at any size."""

import functools

import jax
import numpy as np
import pytest

from xclip_jax.data.clips.augment import EvalTransform
from xclip_jax.errors import UserError
from xclip_jax.export.graphs import pixels
from xclip_jax.parallel import platforms
from xclip_jax.weights.native import Preprocess

S = 40
# Enlarged and reduced, wide and high, odd and even, far from square, and S itself.
SIZES = [(40, 40), (41, 59), (96, 170), (23, 200), (77, 60), (80, 160), (31, 31), (540, 960)]
EXACT = [
  Preprocess(),
  Preprocess(filter='pillow', resize_ratio=1.0),       # Hugging Face's
  Preprocess(filter='pillow', resize_ratio=0.5),
  Preprocess(resize='stretch', resize_ratio=1.0, second_ratio=1.0),
  Preprocess(filter='pillow', resize='fit', resize_ratio=1.0, second_ratio=1.0),
  Preprocess(filter='pillow', resize='none'),
  Preprocess(filter='pillow', resize_ratio=1.0, second_ratio=1.5),
]
ROUNDED = [
  Preprocess(filter=f'pillow-{name}', resize_ratio=1.0) for name in (
    'bicubic', 'lanczos', 'hamming')]


@functools.cache
def graph(preprocess):
  """The resize as it is exported: one program for all sizes."""
  sizes = jax.export.symbolic_shape('B, T, H, W')
  frames = jax.ShapeDtypeStruct((*sizes, 3), np.uint8)
  with platforms.portable():
    return jax.export.export(jax.jit(
      lambda x: pixels.resize_and_crop(x, preprocess, S)))(frames).call


def compare(preprocess, size, seed=0):
  """The largest difference of a value, and the share of the values that differ."""
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (2, *size, 3), np.uint8)
  found = np.asarray(graph(preprocess)(frames[None]))[0]
  difference = np.abs(found - EvalTransform.of(preprocess, S)(frames).astype(np.float32))
  return difference.max(), (difference > 0).mean()


@pytest.mark.parametrize('preprocess', EXACT[:2], ids=lambda p: f'{p.filter}-{p.resize}')
def test_pixels_are_those_of_the_host_bit_for_bit(preprocess):
  for size in SIZES[:4]:
    assert compare(preprocess, size) == (0, 0), size


@pytest.mark.slow
@pytest.mark.parametrize('preprocess', EXACT, ids=lambda p: f'{p.filter}-{p.resize}')
def test_pixels_are_those_of_the_host_at_more_sizes(preprocess):
  for size in SIZES:
    assert compare(preprocess, size) == (0, 0), size


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_the_weights_of_opencv_are_equal_where_the_size_is_a_constant_of_the_program(seed):
  """Compiled for one size, a division may become a product with a rounded inverse."""
  rng = np.random.default_rng(seed)
  for old in (2000, 90, *map(int, rng.integers(30, 4000, 20))):
    new = int(old * 256 / rng.integers(80, 1100)) if old != 2000 else 5689
    side = pixels.Side(np.int32(old), np.int32(new), np.arange(new, dtype=np.int32))
    (first, _), weights = jax.jit(lambda side=side: pixels._opencv_taps(side, True))()
    exact = (np.arange(new) + 0.5) * (1 / (new / old)) - 0.5          # OpenCV's own order
    rounded = exact.astype(np.float32)
    fraction = rounded - np.floor(rounded)
    want = np.round(np.stack([1 - fraction, fraction]) * np.float32(2048)).astype(int)
    np.testing.assert_array_equal(weights, want, err_msg=f'{old} to {new}')
    np.testing.assert_array_equal(first, np.floor(rounded).clip(0, old - 1))


@pytest.mark.slow
@pytest.mark.parametrize('preprocess', ROUNDED, ids=lambda p: p.filter)
def test_wide_filters_differ_by_a_rounding_of_few_pixels(preprocess):
  """Their weights are no fractions: float32 computes them, where Pillow has float64."""
  for size in SIZES:
    largest, share = compare(preprocess, size)
    assert largest <= 1 and share < 3e-3, (size, largest, share)


@pytest.mark.slow
def test_frames_far_higher_than_wide_differ_by_roundings_at_most():
  """Pillow 13 resizes their height first, Pillow 12 their width as the graph does."""
  for size in ((200, 23), (500, 41)):
    largest, _ = compare(EXACT[1], size)
    assert largest <= 1, size


@pytest.mark.parametrize('preprocess', [EXACT[0], EXACT[1], EXACT[4]],
                         ids=lambda p: f'{p.filter}-{p.resize}')
def test_the_resized_size_is_that_of_the_host(preprocess):
  """At all sizes of a side up to 700: float64 on the host, int32 in the graph."""
  size = 224
  transform = EvalTransform.of(preprocess, size)
  found = jax.jit(lambda h, w: pixels._resized_size(h, w, preprocess, size))
  low, high = np.meshgrid(np.arange(1, 700, 3), np.arange(2, 700, 7))
  heights, widths = low.ravel().astype(np.int32), high.ravel().astype(np.int32)
  different = []
  for h, w, *resized in zip(heights, widths, *map(np.asarray, found(heights, widths)), strict=True):
    if tuple(resized) != host_size(transform, int(h), int(w)):
      different.append((h, w))
  # Where a quotient is a whole number, or half of one, float64 can fall below it.
  assert len(different) <= 2e-3 * len(heights), different[:10]


def host_size(transform, height, width):
  """The size that the host resizes frames to, without resizing them."""
  frames = np.broadcast_to(np.uint8(0), (1, height, width, 3))
  sizes = []
  with pytest.MonkeyPatch.context() as patch:
    from xclip_jax.data.clips import augment

    note = lambda frames, width, height, *_: sizes.append((height, width)) or frames
    patch.setattr(augment, '_resize', note)
    patch.setattr(augment, '_resize_with_pillow', note)
    transform._resized(frames)
  return sizes[0]


@pytest.mark.parametrize('name', ['pillow-nearest', 'pillow-box'])
def test_filters_whose_edges_no_graph_computes_are_refused(name):
  with pytest.raises(UserError, match=name):
    pixels.resize_and_crop(np.zeros((1, 1, 50, 50, 3), np.uint8), Preprocess(filter=name), S)
