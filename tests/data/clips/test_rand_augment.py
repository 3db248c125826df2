import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from xclip_jax.data.clips import augment, rand_augment

OFF = dict(image_size=32, crop='center', flip=0, color_jitter=0, grayscale=0)


def picture(height=48, width=64, shift=0):
  y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing='ij')
  waves = 120 + 60 * np.sin((x + shift) / (5 + 3 * c) + y / 7) + 40 * np.cos(y / (3 + c))
  return waves.astype(np.uint8)


def clip(num_frames=4):
  return np.stack([picture(shift=3 * t) for t in range(num_frames)])


def enhanced(kind):
  return lambda image, strength, sign: kind(image).enhance(1 + sign * 0.9 * strength)


PILLOW = {
  'identity': lambda image, *_: image,
  'autocontrast': lambda image, *_: ImageOps.autocontrast(image),
  'equalize': lambda image, *_: ImageOps.equalize(image),
  'solarize': lambda image, s, _: ImageOps.solarize(image, 256 - 256 * s),
  'posterize': lambda image, s, _: ImageOps.posterize(image, 8 - round(4 * s)),
  'brightness': enhanced(ImageEnhance.Brightness),
  'contrast': enhanced(ImageEnhance.Contrast),
  'color': enhanced(ImageEnhance.Color),
  'sharpness': enhanced(ImageEnhance.Sharpness),
}


def affine(a, b, c, d, e, f):
  # Pillow counts from pixel corners, OpenCV from centres: shift by half a pixel there and back.
  c, f = c + 0.5 - 0.5 * (a + b), f + 0.5 - 0.5 * (d + e)
  return lambda image: image.transform(
    image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR,
    fillcolor=(128,) * 3,
  )


MOVES = {
  'shear_x': lambda s, w, h: affine(1, 0.3 * s, 0, 0, 1, 0),
  'shear_y': lambda s, w, h: affine(1, 0, 0, 0.3 * s, 1, 0),
  'translate_x': lambda s, w, h: affine(1, 0, 0.45 * s * w, 0, 1, 0),
  'translate_y': lambda s, w, h: affine(1, 0, 0, 0, 1, 0.45 * s * h),
  'rotate': lambda s, w, h: lambda image: image.rotate(
    -30 * s, Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
}


@pytest.mark.parametrize('sign', [-1, 1])
@pytest.mark.parametrize('strength', [0.3, 0.9, 1.0])
@pytest.mark.parametrize('name', PILLOW)
def test_colour_operations_are_pillows(name, strength, sign):
  frame = picture()
  got = rand_augment.OPERATIONS[name](frame[None], strength, sign)[0]
  want = np.asarray(PILLOW[name](Image.fromarray(frame), strength, sign)).astype(int)
  assert got.dtype == np.uint8
  # Pillow cuts fractions off where OpenCV rounds.
  exact = name in ('identity', 'autocontrast', 'equalize', 'solarize', 'posterize')
  assert np.abs(got - want).max() <= (0 if exact else 2)


@pytest.mark.parametrize('sign', [-1, 1])
@pytest.mark.parametrize('name', MOVES)
def test_moves_are_pillows(name, sign):
  frame, strength = picture(), 0.5
  got = rand_augment.OPERATIONS[name](frame[None], strength, sign)[0].astype(int)
  want = np.asarray(MOVES[name](sign * strength, 64, 48)(Image.fromarray(frame))).astype(int)
  differ = np.abs(got - want).max(-1) > 4
  inside = np.abs(want - 128).max(-1) > 0                      # the rim is blended differently
  assert (differ & inside).mean() < 0.06 and np.median(np.abs(got - want)) <= 1


def test_every_operation_has_an_oracle_and_there_are_fourteen():
  assert set(rand_augment.OPERATIONS) == set(PILLOW) | set(MOVES)
  assert len(rand_augment.OPERATIONS) == 14


@pytest.mark.parametrize(
  'name', sorted(set(rand_augment.OPERATIONS) - {'autocontrast', 'equalize'}))
def test_magnitude_zero_changes_nothing(name):
  np.testing.assert_array_equal(rand_augment.OPERATIONS[name](clip(), 0.0, 1), clip())


@pytest.mark.parametrize('name', rand_augment.OPERATIONS)
def test_all_frames_are_changed_alike(name):
  still = np.repeat(picture()[None], 3, axis=0)
  got = rand_augment.OPERATIONS[name](still, 0.9, -1)
  assert (got == got[:1]).all()
  # Where only values change, equal values in different frames stay equal.
  moving = clip()
  got = rand_augment.OPERATIONS[name](moving, 0.9, -1)
  if name in ('autocontrast', 'equalize', 'contrast', 'brightness', 'solarize', 'posterize'):
    for c in range(3):
      pairs = {tuple(pair) for pair in np.stack([moving[..., c], got[..., c]], -1).reshape(-1, 2)}
      assert len(pairs) == len({before for before, _ in pairs})


def test_random_draws_reach_every_operation_and_both_directions(monkeypatch):
  seen = set()
  for name in rand_augment.OPERATIONS:
    note = lambda x, strength, sign, name=name: seen.add((name, strength, sign)) or x
    monkeypatch.setitem(rand_augment.OPERATIONS, name, note)
  rng = np.random.default_rng(0)
  for _ in range(200):
    rand_augment.rand_augment(clip(1), 2, 7, rng)
  assert seen == {(name, 0.7, sign) for name in rand_augment.OPERATIONS for sign in (-1, 1)}


def test_the_same_random_numbers_give_the_same_clip():
  transform = augment.TrainTransform(**OFF, rand_augment=2, rand_magnitude=9, erase=0.5)
  got = [transform(clip(), np.random.default_rng(seed)).tobytes() for seed in (3, 3, 4)]
  assert got[0] == got[1] != got[2]


def test_pixels_do_not_move_later_draws():
  ends = []
  for frames in (clip(), 255 - clip()):
    rng = np.random.default_rng(0)
    rand_augment.rand_augment(frames, 3, 9, rng)
    ends.append(rng.random())
  assert ends[0] == ends[1]


def test_input_frames_are_not_written_to():
  frames = clip()
  for name, operation in rand_augment.OPERATIONS.items():
    operation(frames, 1.0, 1)
    np.testing.assert_array_equal(frames, clip(), err_msg=name)
  rand_augment.erase(frames, np.random.default_rng(0))
  np.testing.assert_array_equal(frames, clip())


def test_erasing_hides_one_box_of_two_to_thirty_three_percent_in_all_frames():
  frames, rng, shares = np.zeros((3, 64, 64, 3), np.uint8), np.random.default_rng(0), []
  for _ in range(200):
    got = rand_augment.erase(frames, rng)
    assert (got == got[:1]).all()
    hidden = got[0].any(-1)                      # a noise pixel is black once in 16 million
    rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
    assert hidden[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].mean() > 0.99
    shares.append(hidden.mean())
    assert 0.25 < len(rows) / len(columns) < 4
  assert 0.015 < min(shares) < 0.04 and 0.3 < max(shares) < 0.345


def test_erase_is_a_probability_for_the_whole_clip():
  transform = augment.TrainTransform(**OFF, erase=0.25)
  plain = augment.EvalTransform(32)(clip())
  rng = np.random.default_rng(0)
  changed = [np.any(transform(clip(), rng) != plain) for _ in range(300)]
  assert 0.18 < np.mean(changed) < 0.32


def test_what_is_off_draws_nothing_and_changes_nothing():
  # Recorded before RandAugment and erasing existed.
  transform = augment.TrainTransform(32, 'multiscale', 0.5, 0.8, 0.2)
  rng = np.random.default_rng(5)
  frames = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), np.uint8)
  for _ in range(3):
    got = transform(frames, rng)
  assert got.astype(float).mean() == pytest.approx(130.24178059895834, abs=0.01)
  assert rng.random() == 0.9364420618420031


def test_a_one_pixel_picture_survives_everything():
  tiny = np.full((2, 1, 1, 3), 7, np.uint8)
  for operation in rand_augment.OPERATIONS.values():
    assert operation(tiny, 1.0, 1).shape == tiny.shape
  assert rand_augment.erase(tiny, np.random.default_rng(0)).shape == tiny.shape


@pytest.mark.parametrize('fields, message', [
  (dict(rand_augment=-1), 'rand_augment must not be negative, found -1'),
  (dict(rand_magnitude=11), r'rand_magnitude must be in 0\.\.10, found 11'),
  (dict(erase=2), r'erase must be a probability in 0\.\.1, found 2'),
])
def test_unknown_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    augment.TrainTransform(**OFF, **fields)
