import pathlib

import numpy as np
import pytest

from xclip_jax.data import sampling

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'goldens' / 'ref_frame_indices.npz')


def cases(kind):
  """Yield T, number of video frames and the reference's indices."""
  found = 0
  for name in GOLDEN.files:
    if name.startswith(kind):
      num_frames, num_video_frames = (int(part[1:]) for part in name.split('_')[-2:])
      found += 1
      yield num_frames, num_video_frames, GOLDEN[name]
  assert found == 81


def test_test_indices_are_the_references():
  for num_frames, n, want in cases('test_'):
    np.testing.assert_array_equal(sampling.test_indices(n, num_frames), want)


def test_train_indices_are_the_references():
  for num_frames, n, want in cases('train_seed1234_'):
    randint = np.random.RandomState(1234).randint
    np.testing.assert_array_equal(sampling.train_indices(n, num_frames, randint), want)


def test_four_train_draws_are_the_references_four_clips():
  for num_frames, n, want in cases('multiview4_seed1234_'):
    randint = np.random.RandomState(1234).randint
    clips = [sampling.train_indices(n, num_frames, randint) for _ in range(4)]
    np.testing.assert_array_equal(np.concatenate(clips), want)


@pytest.mark.parametrize('n', [1, 3, 8, 15, 16, 300])
def test_a_generator_draws_one_frame_from_each_segment(n):
  rng = np.random.default_rng(0)
  draws = np.stack([sampling.train_indices(n, 8, rng.integers) for _ in range(200)])
  assert draws.shape == (200, 8) and draws.min() >= 0 and draws.max() < n
  if n >= 8:
    assert set((draws - np.arange(8) * (n // 8)).ravel()) == set(range(n // 8))
  else:
    assert len(np.unique(draws, axis=0)) == 1
