"""Primitives that work element by element are those of JAX in onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conversion import assert_same, convert
from jax import lax

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((3, 4)).astype(np.float32)
POSITIVE = np.abs(FLOATS) + np.float32(0.1)
INTEGERS = RNG.integers(-40, 40, (3, 4)).astype(np.int32)
COUNTS = RNG.integers(1, 40, (3, 4)).astype(np.int32)
PIXELS = RNG.integers(0, 256, (3, 4)).astype(np.uint8)
FLAGS, OTHER_FLAGS = (RNG.integers(0, 2, (3, 4)).astype(np.int32) for _ in range(2))
ARITHMETIC = (lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, lax.rem)
EACH = pytest.mark.parametrize('x', [FLOATS, INTEGERS, PIXELS], ids=['float', 'int', 'uint8'])


def all_of(*functions):
  """Returns a function that returns what each of several ones does."""
  return lambda *arrays: tuple(function(*arrays) for function in functions)


def test_functions_of_one_number():
  function = all_of(
    lax.neg, lax.exp, lax.tanh, lax.logistic, lax.erf, lax.erfc, lax.abs, lax.sign, lax.floor,
    lax.ceil, lax.sin, lax.cos, lax.exp2, lax.square, lax.is_finite, lax.stop_gradient, lax.expm1,
    lambda x: lax.erfc(-x))
  assert_same(function, (FLOATS,), (FLOATS[:2],), free='B')


def test_functions_of_positive_numbers():
  powers = (lambda x, power=power: lax.integer_pow(x, power)
            for power in (-3, -1, 0, 1, 2, 3, 4, 7))
  assert_same(all_of(lax.log, lax.sqrt, lax.rsqrt, lax.log1p, jnp.log2, lambda x: lax.pow(x, 1 - x),
                     *powers), (POSITIVE,), (POSITIVE[:2],), free='B')


def test_arithmetic_of_floats():
  assert_same(all_of(*ARITHMETIC), (FLOATS, POSITIVE), free='B.,B.')


def test_arithmetic_of_integers_rounds_as_jax():
  assert_same(all_of(*ARITHMETIC, jnp.floor_divide, jnp.mod), (INTEGERS, COUNTS), free='B.,B.')


def test_arithmetic_of_pixels_wraps_at_256():
  assert_same(all_of(*ARITHMETIC), (PIXELS, np.maximum(PIXELS[::-1], 1)), free='B.,B.')


@EACH
def test_comparisons(x):
  y = x.copy()
  y[1:] = x[:-1]
  assert_same(all_of(lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge), (x, y), free='B.,B.')


def test_logic_of_booleans():
  logic = (lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor, lax.eq)
  assert_same(lambda x, y: (*all_of(*logic)(x > 0, y > 0), ~(x > 0),
                            jnp.where(x > 0, y > 0, x == y)), (FLAGS, OTHER_FLAGS))


def test_halves_round_to_even_or_away_from_zero():
  halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 3.2], np.float32)
  assert_same(lambda x: (jnp.round(x), lax.round(x)), (halves,))


@EACH
def test_limits_and_choice(x):
  low, high = x.dtype.type(1), x.dtype.type(20)
  assert_same(lambda x: (jnp.clip(x, low, high), jnp.where(x > low, x, high)), (x,), free='B')


def test_shifts_of_integers_are_exact_for_negative_ones():
  shifts = (lax.shift_right_arithmetic, lax.shift_right_logical, lax.shift_left)
  assert_same(lambda x: [shift(x, jnp.int32(bits)) for shift in shifts for bits in (0, 1, 5, 22)],
              (INTEGERS * 100_001,))


def test_low_bits_of_integers():
  assert_same(lambda x, y: (x & 255, x & 1, y & np.uint8(15), y >> 3), (INTEGERS * 1001, PIXELS))


@pytest.mark.parametrize('x', [np.abs(FLOATS) * 9, COUNTS, PIXELS], ids=['float', 'int', 'uint8'])
def test_conversions_of_dtypes(x):
  dtypes = ('int32', 'uint8', 'float32', 'bool')
  assert_same(lambda x: [x.astype(dtype) for dtype in dtypes], (x,), free='B')


def test_calls_are_read_through():
  def function(x):
    x = jax.jit(jnp.sin)(x)
    x = jax.checkpoint(lambda x: jnp.cos(x) * 2)(x)
    return jax.nn.relu(x), jax.nn.gelu(x, approximate=False), jax.nn.silu(x)
  assert_same(function, (FLOATS,), free='B')


def test_an_unknown_primitive_is_named_with_the_line_that_uses_it():
  with pytest.raises(NotImplementedError, match=r'lgamma has no conversion.*test_elementwise\.py:'):
    convert(lambda x: lax.lgamma(x), FLOATS)


@pytest.mark.parametrize('function', [lambda x: x ^ 3, lambda x: x >> x, lambda x: x & 5,
                                      lambda x: lax.population_count(x)])
def test_what_would_be_wrong_is_refused(function):
  with pytest.raises(NotImplementedError, match='no conversion to ONNX'):
    convert(function, INTEGERS)
