"""The arithmetic of every protocol, against numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from xclip_jax.evaluation import metrics

LN = np.log
NAN, INF = float('nan'), float('inf')


def test_probabilities_or_logits_of_views_are_averaged():
  # Two views: odds 1:3 and 3:1 between two classes, then certainty against indifference.
  logits = np.array([[[LN(1), LN(3)], [LN(3), LN(1)]], [[LN(81), LN(1)], [LN(1), LN(1)]]])
  np.testing.assert_allclose(
    metrics.average_views(logits, 'probabilities'),
    [[0.5, 0.5], [(81 / 82 + 1 / 2) / 2, (1 / 82 + 1 / 2) / 2]])
  np.testing.assert_allclose(              # the mean logit of the second is ln 9
    metrics.average_views(logits, 'logits'), [[0.5, 0.5], [0.9, 0.1]])
  with pytest.raises(ValueError, match='average must be one of probabilities, logits'):
    metrics.average_views(logits, 'median')


def test_the_two_averages_may_name_different_classes():
  logits = np.array([[[0, 20.0], [5, 0], [5, 0]]])
  assert metrics.average_views(logits, 'probabilities').argmax() == 0
  assert metrics.average_views(logits, 'logits').argmax() == 1


def test_far_apart_logits_make_no_ties():
  found = metrics.average_views(np.array([[[0, 200.0, -200]]], np.float32), 'probabilities')
  assert metrics.label_ranks(found, np.array([2])).tolist() == [3]
  assert metrics.label_ranks(found, np.array([0])).tolist() == [2]


def test_ranks_count_ties_and_nan_against_the_label():
  scores = np.array([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2], [0.2, 0.2, 0.6], [NAN, 0.7, 0.3]])
  assert metrics.label_ranks(scores, np.array([0, 0, 0, 1])).tolist() == [1, 2, 3, 2]
  assert metrics.label_ranks(scores, np.array([1, 2, 2, 0])).tolist() == [3, 3, 1, 3]


def test_accuracy_of_each_class_counts_its_own_videos():
  label = np.array([0, 0, 0, 2, 2])
  found = metrics.class_accuracy(np.array([True, True, False, False, True]), label, 4)
  np.testing.assert_allclose(found, [2 / 3, NAN, 1 / 2, NAN])
  assert math.isclose(np.nanmean(found), 7 / 12)


def test_calibration_error_of_three_bins_by_hand():
  # Confidences .4 and .6 share (1/3, 2/3]; .9 and 1 share (2/3, 1].
  probabilities = np.array([[0.4, 0.3, 0.3], [0.6, 0.4, 0], [0.9, 0.1, 0], [0, 1, 0]])
  found = metrics.reliability(probabilities, np.array([True, False, True, False]), bins=3)
  assert found.count.tolist() == [0, 2, 2]
  np.testing.assert_allclose(found.confidence, [NAN, 0.5, 0.95])
  np.testing.assert_allclose(found.accuracy, [NAN, 0.5, 0.5])
  assert math.isclose(found.ece, (2 * 0 + 2 * 0.45) / 4)


def test_a_bin_includes_its_upper_edge():
  probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [1, 0]])
  hits = np.ones(3, bool)
  assert metrics.reliability(probabilities, hits, bins=4).count.tolist() == [0, 1, 1, 1]
  assert len(metrics.reliability(probabilities, hits).count) == 15
  assert math.isnan(metrics.reliability(np.zeros((0, 3)), np.zeros(0, bool)).ece)


def test_average_precision_by_hand():
  scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.3, 0.5], [0.6, 0.4, 0.5]])
  labels = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]], bool)
  found = metrics.average_precision(scores, labels)
  np.testing.assert_allclose(found, [(1 / 1 + 2 / 3) / 2, NAN, 1 / 4])   # nobody; all tied: last


def test_a_positive_that_was_never_scored_adds_nothing():
  scores = np.array([[0.9], [0.8], [-INF]])
  found = metrics.average_precision(scores, np.array([[0], [1], [1]], bool))
  np.testing.assert_allclose(found, [(1 / 2 + 0) / 2])


# Three videos; captions 0 and 1 are of video 0, caption 2 of video 1, caption 3 of video 2.
SIMILARITY = np.array([[0.9, 0.1, 0.5, 0.3], [0.2, 0.4, 0.5, 0.6], [0.3, 0.3, 0.1, 0.2]])
OWNER = np.array([0, 0, 1, 2])


def test_ranks_of_retrieval_by_hand_in_both_directions():
  # Caption 2 scores .5 with videos 0 and 1 alike, which is no success.
  assert metrics.text_to_video_ranks(SIMILARITY, OWNER).tolist() == [1, 3, 2, 3]
  # Video 0: caption 0 beats all. Video 1: caption 3 beats it. Video 2: captions 0 and 1 beat it.
  assert metrics.video_to_text_ranks(SIMILARITY, OWNER).tolist() == [1, 2, 3]


def test_captions_of_one_video_do_not_compete():
  similarity = np.array([[0.5, 0.9, 0.7], [0.1, 0.2, 0.3]])
  assert metrics.video_to_text_ranks(similarity, np.array([0, 0, 1])).tolist() == [1, 1]
  similarity[0, 2] = 0.9                                       # a tie with the other video's
  assert metrics.video_to_text_ranks(similarity, np.array([0, 0, 1])).tolist() == [2, 1]


def test_recalls_and_ranks_by_hand_with_what_is_missing():
  found = metrics.retrieval(np.array([1, 2, 5, 6, 11]), expected=6)
  want = {'r1': 1 / 5, 'r5': 3 / 5, 'r10': 4 / 5, 'median_rank': 5, 'mean_rank': 5,
          'r1_of_expected': 1 / 6, 'r5_of_expected': 3 / 6, 'r10_of_expected': 4 / 6}
  assert found.keys() == want.keys()
  assert all(math.isclose(found[k], want[k]) for k in want)
  assert metrics.retrieval(np.array([1, 4]), 2)['median_rank'] == 2.5


def test_splits_and_halves_are_summed_up_by_hand():
  mean, deviation = metrics.mean_and_deviation([0.4, 0.5, 0.6])
  assert math.isclose(mean, 0.5) and math.isclose(deviation, math.sqrt(0.02 / 3))
  assert math.isclose(metrics.harmonic_mean(0.6, 0.3), 0.4)
  assert metrics.harmonic_mean(0, 0) == 0 and metrics.harmonic_mean(1, 0) == 0
  assert math.isnan(metrics.harmonic_mean(NAN, 0.5))


def test_the_bootstrap_is_that_of_all_resamples():
  # Four videos: all 4**4 resamples can be listed.
  a, b = np.array([1, 0, 0, 0], bool), np.array([0, 1, 1, 0], bool)
  each = np.array(b, int) - a
  every = np.array([np.mean(x) for x in itertools.product(each, repeat=4)])
  found = metrics.paired_bootstrap(a, b, resamples=200_000)
  assert (found.a, found.b, found.only_a, found.only_b) == (0.25, 0.5, 1, 2)
  assert (found.low, found.high) == tuple(np.percentile(every, [2.5, 97.5])) == (-0.5, 1)
  assert abs(found.p_value - 2 * np.mean(every <= 0)) < 0.01


def test_the_bootstrap_is_sure_of_what_is_sure_and_of_nothing_else():
  rng = np.random.default_rng(0)
  a = rng.random(1000) < 0.5
  better = a | (rng.random(1000) < 0.2)
  found = metrics.paired_bootstrap(a, better)
  assert found.p_value == 2 / 10_001 and found.low > 0
  assert math.isclose(found.difference, better.mean() - a.mean())
  same = metrics.paired_bootstrap(a, a)
  assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
  few = [metrics.paired_bootstrap(a, better, 50, seed=seed) for seed in (0, 0, 1)]
  assert few[0] == few[1] != few[2]
  swapped = metrics.paired_bootstrap(better, a)
  assert swapped.difference == -found.difference and swapped.p_value == found.p_value
  with pytest.raises(ValueError, match='two arrays'):
    metrics.paired_bootstrap(a, a[1:])
