"""Shapes in signatures are checked in the tests, and in the tests alone."""

import pathlib
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest

from xclip_jax.models import vision, xclip
from xclip_jax.models.attention import dot_product_attention


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
