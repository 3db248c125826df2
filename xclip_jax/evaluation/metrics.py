"""Arithmetic of evaluation protocols: from scores and labels to numbers, with NumPy alone.

Ties are never a success: an answer that scores exactly like the right one counts as better, and so
does an answer whose score is NaN.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from xclip_jax.errors import UserError

AVERAGES = ('probabilities', 'logits')


def average_views(
  logits: Num[np.ndarray, 'N V K'], average: str
) -> Float[np.ndarray, 'N K']:
  """Averages logits of views into probabilities of videos, float64 [N, K].

  Args:
    logits: float [N, V, K].
    average: 'probabilities' (the softmax of each view, then their mean, as the reference does) or
      'logits' (the mean of the logits, then its softmax).

  Raises:
    UserError: an average that is neither.
  """
  if average not in AVERAGES:
    raise UserError(f'average must be one of {", ".join(AVERAGES)}, got {average!r}')
  # In float64 the softmax of logits that are up to 700 apart is never 0, so it makes no ties.
  logits = np.asarray(logits, np.float64)
  if average == 'logits':
    return softmax(logits.mean(axis=1))
  return softmax(logits).mean(axis=1)


def softmax(x: Float[np.ndarray, '*rows K']) -> Float[np.ndarray, '*rows K']:
  """Returns the softmax over the last axis."""
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


# --- one label a video ----------------------------------------------------------------------------
def label_ranks(
  scores: Float[np.ndarray, 'N K'], label: Int[np.ndarray, ' N']
) -> Int[np.ndarray, ' N']:
  """Returns the rank [N], from 1, of the label [N] among the scores [N, K]."""
  label_score = np.take_along_axis(scores, np.asarray(label)[:, None].astype(np.int64), axis=1)
  return (~(scores < label_score)).sum(axis=1)


def mean(values: Shaped[np.ndarray, ' N']) -> float:
  """Returns the mean; nan for an empty array."""
  return float(np.mean(values)) if len(values) else float('nan')


def class_accuracy(
  hits: Bool[np.ndarray, ' N'], label: Int[np.ndarray, ' N'], K: int
) -> Float[np.ndarray, ' {K}']:
  """Returns the share of hits [N] among the videos of each class, [K]; nan without videos."""
  total = np.bincount(label, minlength=K)
  right = np.bincount(label, weights=hits, minlength=K)
  return right / np.where(total, total, np.nan)


def confusion(
  scores: Float[np.ndarray, 'N K'], label: Int[np.ndarray, ' N']
) -> Int[np.ndarray, 'K K']:
  """Returns counts, int [K, K], true class by predicted class, of scores [N, K].

  Of equal scores the right class comes last, as in `label_ranks`.
  """
  K, rows = scores.shape[1], np.arange(len(label))
  scores = scores.astype(np.float64)                           # a copy
  tied = (scores == scores[rows, label][:, None]).sum(axis=1) > 1
  scores[rows[tied], label[tied]] = -np.inf
  pairs = np.stack([label, scores.argmax(axis=1)])
  return np.bincount(np.ravel_multi_index(tuple(pairs), (K, K)), minlength=K * K).reshape(K, K)


@dataclasses.dataclass(frozen=True)
class Reliability:
  """Accuracy of a model by bins of its confidence.

  Fields:
    count: int [bins], videos whose confidence lies in the bin.
    confidence: float [bins], their mean confidence; nan without videos.
    accuracy: float [bins], their share of right answers; nan without videos.
  """

  count: Int[np.ndarray, ' bins']
  confidence: Float[np.ndarray, ' bins']
  accuracy: Float[np.ndarray, ' bins']

  @property
  def ece(self) -> float:
    """Returns the expected calibration error: mean |accuracy - confidence| of the videos' bins."""
    if not self.count.sum():
      return float('nan')
    gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
    return float(np.sum(self.count * gaps) / self.count.sum())


def reliability(
  probabilities: Float[np.ndarray, 'N K'], hits: Bool[np.ndarray, ' N'], bins: int = 15
) -> Reliability:
  """Bins videos by their highest probability (Guo et al., 2017, Eq. 3).

  Args:
    probabilities: [N, K].
    hits: [N], whether the most probable class is right.
    bins: of equal width; bin m holds the confidences in (m / bins, (m + 1) / bins].
  """
  confidence = np.asarray(probabilities, np.float64).max(axis=1, initial=0)
  bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  count = np.bincount(bin_of, minlength=bins)
  total = np.where(count, count, np.nan)
  return Reliability(
    count,
    np.bincount(bin_of, weights=confidence, minlength=bins) / total,
    np.bincount(bin_of, weights=np.asarray(hits, np.float64), minlength=bins) / total,
  )


# --- several labels a video -----------------------------------------------------------------------
def average_precision(
  scores: Float[np.ndarray, 'N K'], labels: Bool[np.ndarray, 'N K']
) -> Float[np.ndarray, ' K']:
  """Returns the average precision of each class, [K]; nan for classes without a positive.

  Mean of the precision at the rank of each positive, without interpolation: the area that Charades
  and ActivityNet report. Of equal scores, negatives come first.

  Args:
    scores: [N, K]; -inf for a video that could not be scored, where a positive adds 0.
    labels: bool [N, K].
  """
  precisions = np.full(scores.shape[1], np.nan)
  for k in range(scores.shape[1]):
    score, positive = scores[:, k], np.asarray(labels[:, k], bool)
    if positive.any():
      order = np.lexsort((positive, -score))       # by score; of equal ones, negatives first
      hit, scored = positive[order], np.isfinite(score[order])
      precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
      precisions[k] = np.sum(precision[hit & scored]) / hit.sum()
  return precisions


# --- videos and captions --------------------------------------------------------------------------
def text_to_video_ranks(
  similarity: Float[np.ndarray, 'N K'], owner: Int[np.ndarray, ' K']
) -> Int[np.ndarray, ' K']:
  """Returns the rank, from 1, of the video of each of K captions, int [K].

  Args:
    similarity: [N, K], videos by captions.
    owner: int [K], the video that each caption describes.
  """
  right = similarity[owner, np.arange(len(owner))]
  return (~(similarity < right)).sum(axis=0)


def video_to_text_ranks(
  similarity: Float[np.ndarray, 'N K'], owner: Int[np.ndarray, ' K']
) -> Int[np.ndarray, ' N']:
  """Returns the rank, from 1, of the best caption of each of N videos, int [N].

  Captions of one video do not compete with each other. Arguments as of `text_to_video_ranks`; every
  video has at least one caption.
  """
  belongs = np.asarray(owner)[None] == np.arange(len(similarity))[:, None]        # [N, K]
  best = np.where(belongs, similarity, -np.inf).max(axis=1)
  return 1 + (~(similarity < best[:, None]) & ~belongs).sum(axis=1)


def retrieval(ranks: Int[np.ndarray, ' n'], expected: int) -> dict[str, float]:
  """Returns R@1, R@5, R@10 (shares), median and mean of ranks.

  Args:
    ranks: int [n], from 1, of the evaluated queries.
    expected: number of listed queries, at least n. Missing ones are no success in `r1_of_expected`
      and its like, and are left out of the other numbers.
  """
  row = {}
  for k in (1, 5, 10):
    row[f'r{k}'] = mean(ranks <= k)
    row[f'r{k}_of_expected'] = float(np.sum(ranks <= k) / expected) if expected else float('nan')
  row['median_rank'] = float(np.median(ranks)) if len(ranks) else float('nan')
  return row | {'mean_rank': mean(ranks)}


# --- several evaluations --------------------------------------------------------------------------
def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
  """Returns the mean and the population standard deviation (ddof=0, NumPy's default)."""
  return float(np.mean(values)), float(np.std(values))


def harmonic_mean(a: float, b: float) -> float:
  """Returns 2ab / (a + b), 0 if both are 0."""
  return 2 * a * b / (a + b) if a + b else 0.0 * (a + b)


@dataclasses.dataclass(frozen=True)
class Difference:
  """Difference of two accuracies over the same videos, b - a, and its significance.

  Fields:
    a, b: accuracies.
    only_a, only_b: videos that only one of the models gets right.
    low, high: 95 % interval of b - a.
  """

  a: float
  b: float
  only_a: int
  only_b: int
  low: float
  high: float
  p_value: float

  @property
  def difference(self) -> float:
    """Returns b - a."""
    return self.b - self.a


def paired_bootstrap(
  hits_a: Bool[np.ndarray, ' N'], hits_b: Bool[np.ndarray, ' _'], resamples: int = 10_000,
  seed: int = 0,
) -> Difference:
  """Compares two models over the same N videos (Efron and Tibshirani, 1993, chapters 13 and 15).

  Videos are drawn with replacement, with the results of both models. The interval reaches from the
  2.5th to the 97.5th percentile of the resampled differences. The p-value is twice the smaller
  share of resamples whose difference is at most, or at least, 0; the observed difference counts as
  one more resample of either kind, and the p-value is at most 1.

  Args:
    hits_a: bool [N], whether the first model was right.
    hits_b: bool [N], the second.
    resamples: number of resamples.
    seed: of the random numbers.

  Raises:
    ValueError: arrays of different lengths, or empty ones.
  """
  hits_a, hits_b = np.asarray(hits_a, bool), np.asarray(hits_b, bool)
  if hits_a.shape != hits_b.shape or not len(hits_a):
    raise ValueError(f'hits must be two arrays [N], N > 0, got {hits_a.shape} and {hits_b.shape}')
  n, only_a, only_b = len(hits_a), np.sum(hits_a & ~hits_b), np.sum(hits_b & ~hits_a)
  # The difference of one video is -1, 0 or 1, so a resample is a draw of three counts.
  shares = np.array([only_a, only_b, n - only_a - only_b]) / n
  drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
  differences = (drawn[:, 1] - drawn[:, 0]) / n
  tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
  low, high = np.percentile(differences, [2.5, 97.5])
  return Difference(
    a=float(hits_a.mean()), b=float(hits_b.mean()), only_a=int(only_a), only_b=int(only_b),
    low=float(low), high=float(high),
    p_value=float(min(1, 2 * (tail + 1) / (resamples + 1))),
  )


def finite(value: float) -> float | None:
  """Returns a number as JSON can hold it: None for nan and infinity."""
  return value if math.isfinite(value) else None
