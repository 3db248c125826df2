"""Converts functions and runs them in onnxruntime: a neighbour of the tests."""

import jax
import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='comes with the extra `export`')
onnxruntime = pytest.importorskip('onnxruntime', reason='comes with the extra `export`')

from xclip_jax.export.onnx.convert import to_model  # noqa: E402
from xclip_jax.export.onnx.values import Value  # noqa: E402


def session(model) -> 'onnxruntime.InferenceSession':
  """Checks a model, types and shapes too, and loads it."""
  onnx.checker.check_model(model, full_check=True)
  return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def convert(function, *arrays: np.ndarray, free: str = '', half: str = 'float16'):
  """Converts a function of such arrays; returns the model and the names of its inputs.

  Args:
    function: takes the arrays, returns one or a tuple.
    *arrays: of the shapes and dtypes to convert for.
    free: the names of free sizes of each array: 'B.,.K' frees axis 0 of the first, 1 of the second.
  """
  letters = (free.split(',') if free else []) + [''] * len(arrays)
  inputs = [
    Value(f'x{i}', tuple(name if name.isalpha() else size for name, size in zip(
      letters[i].ljust(x.ndim, '.'), x.shape, strict=True)), str(x.dtype))
    for i, x in enumerate(arrays)]
  as_tuple = lambda *x: tuple(jax.tree.leaves(function(*x)))
  count = len(jax.tree.leaves(jax.eval_shape(function, *arrays)))
  return to_model(as_tuple, inputs, [f'y{i}' for i in range(count)], half)


def run(loaded, *arrays: np.ndarray) -> list[np.ndarray]:
  """Returns what a loaded model computes of arrays."""
  names = [value.name for value in loaded.get_inputs()]
  return loaded.run(None, dict(zip(names, arrays, strict=True)))


def assert_same(function, *calls: tuple[np.ndarray, ...], free: str = '', rtol: float = 2e-6):
  """Asserts that one converted model gives what JAX gives, in value, shape and dtype.

  Args:
    function: takes arrays, returns one or a tuple.
    *calls: arrays of each call; those of the first one are converted for, with free sizes.
    free: see `convert`.
    rtol: of the largest value; integers have to be equal.

  Returns:
    the model.
  """
  model = convert(function, *calls[0], free=free)
  loaded = session(model)
  for arrays in calls:
    expected = [np.asarray(x) for x in jax.tree.leaves(jax.jit(function)(*arrays))]
    results = run(loaded, *arrays)
    for result, want in zip(results, expected, strict=True):
      assert (result.shape, result.dtype) == (want.shape, want.dtype)
      if np.issubdtype(want.dtype, np.floating):
        finite = want[np.isfinite(want)]
        scale = float(np.abs(finite).max()) if finite.size else 1.
        np.testing.assert_allclose(result, want, rtol=rtol, atol=rtol * scale)
      else:
        np.testing.assert_array_equal(result, want)
  return model
