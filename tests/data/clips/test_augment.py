import colorsys
import json
import pathlib

import numpy as np
import pytest

from xclip_jax.data.clips import augment

GOLDENS = pathlib.Path(__file__).parents[2] / 'goldens'
PREPROCESS = np.load(GOLDENS / 'ref_preprocess.npz')
CANDIDATES = json.loads((GOLDENS / 'ref_multiscalecrop_candidates.json').read_text())
CLIPS = {'land': 32, 'port': 32, 'odd': 32, 'up': 32, 'sq': 48}
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
OFF = dict(flip=0, color_jitter=0, grayscale=0)


def noise(num_frames=4, height=40, width=56, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def smooth(num_frames=4, height=48, width=64):
  y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing='ij')
  image = 128 + 100 * np.sin(x / (9 + 4 * c) + y / 13)
  return np.repeat(image[None], num_frames, 0).astype(np.uint8)


@pytest.mark.parametrize('name', ['land', 'port', 'up', 'sq'])  # 'odd' was not recorded
def test_eval_resize_is_the_references_bit_for_bit(name):
  size = CLIPS[name]
  resized = augment._resize_short_side(PREPROCESS[f'{name}.frames'], int(256 / 224 * size))
  np.testing.assert_array_equal(resized, PREPROCESS[f'{name}.S{size}.center.resized_uint8'])


@pytest.mark.parametrize('name', CLIPS)
def test_eval_crop_is_the_references(name):
  size = CLIPS[name]
  clip = augment.EvalTransform(size)(PREPROCESS[f'{name}.frames'])
  assert clip.dtype == np.uint8 and clip.flags.c_contiguous
  normalized = ((clip - MEAN) / STD).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(normalized, PREPROCESS[f'{name}.S{size}.center'], atol=1e-5)


@pytest.mark.parametrize('name', CLIPS)
def test_three_crops_are_the_references_bit_for_bit(name):
  size = CLIPS[name]
  crops = augment.EvalTransform(size, resize_ratio=1, crops=3)(PREPROCESS[f'{name}.frames'])
  assert crops.shape == (3, 4, size, size, 3) and crops.flags.c_contiguous
  # float32 of the reference back to the uint8 it came from: crop-major, then frame
  golden = PREPROCESS[f'{name}.S{size}.three_crop'].transpose(0, 2, 3, 1) * STD + MEAN
  np.testing.assert_allclose(golden, golden.round(), atol=1e-3)
  np.testing.assert_array_equal(crops.reshape(-1, size, size, 3), golden.round())


@pytest.mark.parametrize('height, width', [(40, 70), (70, 40), (48, 48)])
def test_by_default_three_crops_see_the_scale_of_one(height, width):
  frames = noise(2, height, width)
  one, three = augment.EvalTransform(32)(frames), augment.EvalTransform(32, crops=3)(frames)
  np.testing.assert_array_equal(three[2], one)
  resized = augment._resize_short_side(frames, 36)
  edge = resized[:, :32, 2:34] if height > width else resized[:, 2:34, :32]
  np.testing.assert_array_equal(three[0], edge)
  far = 2 * ((max(resized.shape[1:3]) - 32) // 2)                # the reference's last column
  edge = resized[:, far:far + 32, 2:34] if height > width else resized[:, 2:34, far:far + 32]
  np.testing.assert_array_equal(three[1], edge)


def test_train_center_crop_is_the_eval_crop():
  frames = noise()
  train = augment.TrainTransform(32, 'center', **OFF)(frames, np.random.default_rng(0))
  np.testing.assert_array_equal(train, augment.EvalTransform(32)(frames))


@pytest.mark.parametrize('case', CANDIDATES)
def test_multiscale_candidates_are_the_references(case):
  frame, size = case.split('->')
  boxes = augment.multiscale_boxes(*map(int, frame.split('x')), int(size))
  assert len(boxes) == 50
  found = {}
  for x, y, width, height in boxes:
    found.setdefault(f'{width}x{height}', set()).add((x, y))
  assert found == {box: set(map(tuple, at)) for box, at in CANDIDATES[case].items()}


def test_multiscale_crop_draws_every_candidate_and_one_for_the_whole_clip(monkeypatch):
  frames = augment._resize_short_side(noise(3, 90, 120), 36)
  boxes = augment.multiscale_boxes(*frames.shape[1:3], 32)
  crops = [
    augment._resize(frames[:, y:y + h, x:x + w], 32, 32).tobytes() for x, y, w, h in boxes
  ]
  transform = augment.TrainTransform(32, 'multiscale', **OFF)
  rng = np.random.default_rng(0)
  drawn = [transform(frames, rng) for _ in range(400)]
  assert all(clip.shape == (3, 32, 32, 3) for clip in drawn)
  assert {clip.tobytes() for clip in drawn} == set(crops)


def test_flip_mirrors_the_whole_clip():
  frames = noise()
  plain = augment.TrainTransform(32, 'center', **OFF)(frames, np.random.default_rng(0))
  flip = augment.TrainTransform(32, 'center', **{**OFF, 'flip': 1})
  flipped = flip(frames, np.random.default_rng(0))
  np.testing.assert_array_equal(flipped, plain[:, :, ::-1])
  assert flipped.flags.c_contiguous


def test_grayscale_is_rec_601_in_three_equal_channels():
  frames = noise()
  gray = augment.TrainTransform(32, 'center', **{**OFF, 'grayscale': 1})
  got = gray(frames, np.random.default_rng(0))
  want = augment.EvalTransform(32)(frames) @ np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(got, np.repeat(want[..., None], 3, -1), atol=1)
  assert np.ptp(got, axis=-1).max() == 0


@pytest.mark.parametrize('coin', ['flip', 'color_jitter', 'grayscale'])
def test_a_probability_is_one_coin_per_clip(coin):
  frames = smooth()
  transform = augment.TrainTransform(32, 'center', **{**OFF, coin: 0.25})
  plain = augment.EvalTransform(32)(frames)
  rng = np.random.default_rng(0)
  changed = np.array([
    [np.any(frame != before) for frame, before in zip(transform(frames, rng), plain, strict=True)]
    for _ in range(400)
  ])
  assert (changed.all(1) | ~changed.any(1)).all()
  assert 0.19 < changed[:, 0].mean() < 0.31


def oracle_jitter(image, order, brightness, contrast, saturation, hue):
  """Apply torchvision's definition, one pixel at a time in floats rounded at each step."""
  luma = np.array([0.299, 0.587, 0.114])
  clip = lambda x: np.clip(np.round(x), 0, 255)
  image = image.astype(float)
  for step in order:
    if step == 0:
      image = clip(brightness * image)
    elif step == 1:
      image = clip(contrast * image + (1 - contrast) * np.round((image @ luma).mean()))
    elif step == 2:
      image = clip(saturation * image + (1 - saturation) * (image @ luma)[..., None])
    else:
      pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
      pixels = [colorsys.hsv_to_rgb((h + hue) % 1, s, v) for h, s, v in pixels]
      image = clip(np.reshape(pixels, image.shape) * 255)
  return image


def test_color_jitter_is_torchvisions():
  image = smooth(1, 24, 32)[0]
  for seed in range(12):
    rng = np.random.default_rng(seed)
    got = augment.apply_colors(image[None], augment.draw_colors(1, True, False, rng))[0]
    rng = np.random.default_rng(seed)
    order = rng.permutation(4)
    factors = [rng.uniform(1 - width, 1 + width) for width in (0.4, 0.4, 0.2)]
    hue = rng.uniform(-0.1, 0.1)
    want = oracle_jitter(image, order, *factors, hue)
    error = np.abs(got - want)
    # Hue is kept in 256 steps, as in PIL: a step moves a saturated colour by up to 6 levels.
    assert error.mean() < 1 and error.max() < 10, (seed, error.mean(), error.max())


def test_color_jitter_draws_anew_for_each_frame():
  frames = smooth(8)
  jitter = augment.TrainTransform(32, 'center', **{**OFF, 'color_jitter': 1})
  clip = jitter(frames, np.random.default_rng(0))
  assert len({frame.tobytes() for frame in clip}) == 8


def test_the_same_random_numbers_give_the_same_clip():
  frames = noise()
  transform = augment.TrainTransform(32, 'multiscale', 0.5, 0.8, 0.2)
  clips = [transform(frames, np.random.default_rng(seed)).tobytes() for seed in (3, 3, 4)]
  assert clips[0] == clips[1] != clips[2]


@pytest.mark.parametrize('shape', [(1, 1), (7, 200), (200, 7), (32, 32), (37, 36)])
def test_any_frame_size_becomes_square(shape):
  frames = noise(2, *shape)
  train = augment.TrainTransform(32, 'multiscale', 0.5, 0.8, 0.2)
  assert train(frames, np.random.default_rng(0)).shape == (2, 32, 32, 3)
  assert augment.EvalTransform(32)(frames).shape == (2, 32, 32, 3)


def test_input_frames_are_not_written_to():
  frames = noise(2, 36, 36)
  before = frames.copy()
  transform = augment.TrainTransform(32, 'multiscale', 1, 1, 1)
  for seed in range(20):
    transform(frames, np.random.default_rng(seed))
  np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize('fields, message', [
  (dict(crop='random'), "crop must be 'multiscale' or 'center', found 'random'"),
  (dict(flip=1.5), 'flip must be a probability in 0..1, found 1.5'),
  (dict(grayscale=-1), 'grayscale must be a probability'),
])
def test_unknown_settings_are_refused(fields, message):
  settings = dict(image_size=32, crop='center', **OFF)
  with pytest.raises(ValueError, match=message):
    augment.TrainTransform(**{**settings, **fields})


def test_a_crop_larger_than_the_frame_is_refused():
  with pytest.raises(ValueError, match='resize_ratio must be at least 1'):
    augment.EvalTransform(32, resize_ratio=0.9)


def test_other_numbers_of_crops_are_refused():
  with pytest.raises(ValueError, match='crops must be 1 or 3, found 5'):
    augment.EvalTransform(32, crops=5)
