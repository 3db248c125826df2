import pathlib

import numpy as np
import pytest

from xclip_jax.data.clips import sampling

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / 'goldens' / 'ref_frame_indices.npz')


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


def test_reference_views_are_the_references():
  for num_frames, n, want in cases('multiview4_seed1234_'):
    sampler = sampling.ClipSampler(num_frames, views='reference')
    clips = sampler.test(n, 4, np.random.RandomState(1234).randint)
    np.testing.assert_array_equal(clips.ravel(), want)


def test_one_view_is_the_middle_of_each_segment_in_either_mode():
  for views in ('centred', 'reference'):
    for num_frames, n, want in cases('test_'):
      sampler = sampling.ClipSampler(num_frames, views=views)
      np.testing.assert_array_equal(sampler.test(n, 1, None), [want])


@pytest.mark.parametrize('clips', [2, 3, 4, 10])
def test_centred_views_spread_evenly_and_share_no_frame(clips):
  for T, n in ((8, 300), (16, 1001), (8, 80)):
    views = sampling.ClipSampler(T).test(n, clips, None)
    assert views.shape == (clips, T)
    together = views.T.ravel()                                   # in order of time
    np.testing.assert_array_equal(together, sampling.test_indices(n, T * clips))
    assert len(set(together)) == T * clips and np.ptp(np.diff(together)) <= 1
    segment = views // (n / T)
    assert (segment.astype(int) == np.arange(T)).all()           # each view spans the video


@pytest.mark.parametrize('n', [1, 2, 5, 29, 30, 300])
def test_dense_frames_are_a_stride_apart_in_a_window_that_fits(n):
  T, stride = 8, 4
  rng, span = np.random.default_rng(0), (8 - 1) * 4 + 1
  draws = np.stack([sampling.dense_train_indices(n, T, stride, rng.integers) for _ in range(2000)])
  views = sampling.dense_test_indices(n, T, stride, clips=3)
  for frames in (draws, views):
    assert frames.min() >= 0 and frames.max() < n
    if n >= span:
      assert (np.diff(frames, axis=1) == stride).all()
    else:
      want = np.minimum(np.arange(T) * stride, n - 1)
      np.testing.assert_array_equal(frames, np.broadcast_to(want, frames.shape))
  assert set(draws[:, 0]) == set(range(max(n - span, 0) + 1))
  middle = sampling.dense_test_indices(n, T, stride)[0]
  assert middle[0] == max(n - span, 0) // 2


def test_dense_views_cover_the_video_evenly():
  starts = sampling.dense_test_indices(429, 8, 4, clips=4)[:, 0]
  np.testing.assert_array_equal(starts, [50, 150, 250, 350])


def test_a_sampler_passes_its_choice_on():
  dense = sampling.ClipSampler(8, 'dense', 4)
  rng = [np.random.default_rng(1).integers for _ in range(4)]
  np.testing.assert_array_equal(
    dense.train(300, rng[0]), sampling.dense_train_indices(300, 8, 4, rng[1]))
  np.testing.assert_array_equal(
    dense.test(300, 3, None), sampling.dense_test_indices(300, 8, 4, 3))
  np.testing.assert_array_equal(
    sampling.ClipSampler(8).train(300, rng[2]), sampling.train_indices(300, 8, rng[3]))


@pytest.mark.parametrize('fields, message', [
  (dict(sampling='spread'), "sampling must be 'sparse' or 'dense', found 'spread'"),
  (dict(stride=0), 'stride must be at least 1 frame, found 0'),
  (dict(views='random'), "views must be 'centred' or 'reference', found 'random'"),
])
def test_unknown_ways_to_sample_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    sampling.ClipSampler(8, **fields)


@pytest.mark.parametrize('n', [1, 3, 8, 15, 16, 300])
def test_a_generator_draws_one_frame_from_each_segment(n):
  rng = np.random.default_rng(0)
  draws = np.stack([sampling.train_indices(n, 8, rng.integers) for _ in range(200)])
  assert draws.shape == (200, 8) and draws.min() >= 0 and draws.max() < n
  if n >= 8:
    assert set((draws - np.arange(8) * (n // 8)).ravel()) == set(range(n // 8))
  else:
    assert len(np.unique(draws, axis=0)) == 1
