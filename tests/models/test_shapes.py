"""Shapes in signatures are checked in the tests, and in the tests alone."""

import pathlib
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest

from xclip_jax.evaluation import metrics
from xclip_jax.models import vision, xclip
from xclip_jax.models.attention import dot_product_attention
from xclip_jax.training.objectives import color_jitter, losses, targets


def floats(*shape):
  return np.zeros(shape, np.float32)


def test_a_wrong_shape_or_dtype_is_refused():
  assert xclip.class_probabilities(floats(2, 3)).shape == (2, 3)
  with pytest.raises(jaxtyping.TypeCheckError, match='logits'):
    xclip.class_probabilities(floats(2, 3, 4))
  with pytest.raises(jaxtyping.TypeCheckError, match='logits'):
    xclip.class_probabilities(np.zeros((2, 3), np.int32))
  with pytest.raises(jaxtyping.TypeCheckError, match='video'):
    vision.normalize(floats(2, 4), (0.0,) * 3, (1.0,) * 3)


def test_letters_mean_one_number_in_one_call():
  query, memory = floats(1, 2, 3, 4), floats(1, 5, 3, 4)
  assert dot_product_attention(query, memory, memory).shape == query.shape
  with pytest.raises(jaxtyping.TypeCheckError, match='value'):
    dot_product_attention(query, memory, floats(1, 6, 3, 4))


def test_wrong_shapes_of_objectives_are_refused():
  mask = np.ones(2, bool)
  assert losses.cross_entropy(floats(2, 3), floats(2, 3), mask).shape == ()
  for logits, target, rows, name in (
      (floats(2, 3), floats(2, 4), mask, 'targets'), (floats(2, 3), floats(2, 3), mask[:1], 'mask'),
      (floats(2, 3), floats(2, 3), floats(2), 'mask'), (floats(3), floats(3), mask, 'logits')):
    for loss in (losses.cross_entropy, losses.sigmoid_cross_entropy):
      with pytest.raises(jaxtyping.TypeCheckError, match=f"parameter '{name}'"):
        loss(logits, target, rows)
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'logits'"):
    losses.contrastive(floats(2, 3), np.ones((2, 3), bool), mask)
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'labels'"):
    losses.soft_targets(floats(2), 3, 0.1)
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'colors'"):
    color_jitter.apply(np.zeros((1, 2, 4, 4, 3), np.uint8), floats(1, 2, 8))
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'index'"):
    targets.select_targets({}, np.zeros((2, 2), int))


def test_wrong_shapes_of_metrics_are_refused():
  label, hits = np.array([0, 1]), np.array([True, False])
  assert metrics.label_ranks(floats(2, 3), label).shape == (2,)
  for function, arguments, name in (
      (metrics.average_views, (floats(2, 3), 'logits'), 'logits'),
      (metrics.label_ranks, (floats(3, 3), label), 'label'),
      (metrics.label_ranks, (floats(2, 3), hits), 'label'),
      (metrics.confusion, (floats(2, 3, 1), label), 'scores'),
      (metrics.class_accuracy, (hits[:1], label, 3), 'label'),
      (metrics.reliability, (floats(2, 3), label), 'hits'),
      (metrics.average_precision, (floats(2, 3), np.ones((2, 2), bool)), 'labels'),
      (metrics.text_to_video_ranks, (floats(2, 3), label), 'owner'),
      (metrics.video_to_text_ranks, (floats(2, 3), label), 'owner')):
    with pytest.raises(jaxtyping.TypeCheckError, match=f"parameter '{name}'"):
      function(*arguments)


def test_normal_use_checks_nothing_and_needs_no_checker():
  code = (
    'import sys, numpy as np\n'
    'from xclip_jax.models import xclip\n'
    'print(xclip.class_probabilities(np.zeros((2, 3, 4), np.float32)).shape)\n'
    'print("beartype" in sys.modules)')
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=pathlib.Path(__file__).parents[2], capture_output=True,
    text=True, check=False)
  assert done.stdout.splitlines() == ['(2, 3, 4)', 'False'], done.stderr[-2000:]
