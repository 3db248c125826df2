"""Primitives that work element by element are those of JAX in onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conversion import assert_same, convert
from jax import lax

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((3, 4)).astype(np.float32)
POSITIVE = np.abs(FLOATS) + 0.1
INTEGERS = RNG.integers(-40, 40, (3, 4)).astype(np.int32)
COUNTS = RNG.integers(1, 40, (3, 4)).astype(np.int32)
PIXELS = RNG.integers(0, 256, (3, 4)).astype(np.uint8)
HALVES = np.array([[-2.5, -1.5, -0.5, 0.5], [1.5, 2.5, 0.49999997, 3.2]], np.float32)
FLAGS, OTHER_FLAGS = (RNG.integers(0, 2, (3, 4)).astype(bool).astype(np.int32) for _ in range(2))


@pytest.mark.parametrize('function', [
  lax.neg, lax.exp, lax.tanh, lax.logistic, lax.erf, lax.erfc, lax.abs, lax.sign, lax.floor,
  lax.ceil, lax.sin, lax.cos, lax.exp2, lax.square, lax.is_finite, lax.stop_gradient,
  lambda x: lax.erfc(-x)], ids=str)
def test_functions_of_one_number(function):
  assert_same(function, (FLOATS,), (FLOATS[:2],), free='B')


@pytest.mark.parametrize('function', [lax.log, lax.sqrt, lax.rsqrt, lax.log1p,
                                      lambda x: lax.pow(x, 1 - x)], ids=str)
def test_functions_of_positive_numbers(function):
  assert_same(function, (POSITIVE,), (POSITIVE[:2],), free='B')


@pytest.mark.parametrize('function', [lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, lax.rem],
                         ids=str)
def test_arithmetic_of_floats(function):
  assert_same(function, (FLOATS, POSITIVE), free='B.,B.')


@pytest.mark.parametrize('function', [lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, lax.rem,
                                      jnp.floor_divide, jnp.mod], ids=str)
def test_arithmetic_of_integers_rounds_as_jax(function):
  assert_same(function, (INTEGERS, COUNTS), free='B.,B.')


@pytest.mark.parametrize('function', [lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, lax.rem],
                         ids=str)
def test_arithmetic_of_pixels_wraps_at_256(function):
  assert_same(function, (PIXELS, np.maximum(PIXELS[::-1], 1)), free='B.,B.')


@pytest.mark.parametrize('function', [lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge], ids=str)
@pytest.mark.parametrize('x', [FLOATS, INTEGERS, PIXELS], ids=['float', 'int', 'uint8'])
def test_comparisons(function, x):
  y = x.copy()
  y[1:] = x[:-1]
  assert_same(function, (x, y), free='B.,B.')


@pytest.mark.parametrize('function', [lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor, lax.eq],
                         ids=str)
def test_logic_of_booleans(function):
  assert_same(lambda x, y: function(x > 0, y > 0), (FLAGS, OTHER_FLAGS))


def test_not_and_choice_among_booleans():
  assert_same(lambda x, y: (~(x > 0), jnp.where(x > 0, y > 0, x == y)), (FLAGS, OTHER_FLAGS))


@pytest.mark.parametrize('power', [-3, -1, 0, 1, 2, 3, 4, 7])
def test_integer_powers(power):
  assert_same(lambda x: lax.integer_pow(x, power), (POSITIVE,))


def test_halves_round_to_even_or_away_from_zero():
  assert_same(lambda x: (jnp.round(x), lax.round(x)), (HALVES,))


@pytest.mark.parametrize('x', [FLOATS, INTEGERS, PIXELS], ids=['float', 'int', 'uint8'])
def test_limits_and_choice(x):
  low, high = x.dtype.type(1), x.dtype.type(20)
  assert_same(lambda x: (jnp.clip(x, low, high), jnp.where(x > low, x, high)), (x,), free='B')


@pytest.mark.parametrize('bits', [0, 1, 5, 22])
def test_shifts_of_integers_are_exact_for_negative_ones(bits):
  assert_same(lambda x: (lax.shift_right_arithmetic(x, jnp.int32(bits)),
                         lax.shift_right_logical(x, jnp.int32(bits)),
                         lax.shift_left(x, jnp.int32(bits))), (INTEGERS * 100_001,))


def test_low_bits_of_integers():
  assert_same(lambda x: (x & 255, x & 1), (INTEGERS * 1001,))
  assert_same(lambda x: (x & np.uint8(15), x >> 3), (PIXELS,))


@pytest.mark.parametrize('to', ['int32', 'uint8', 'float32', 'bool'])
@pytest.mark.parametrize('x', [np.abs(FLOATS) * 9, COUNTS, PIXELS], ids=['float', 'int', 'uint8'])
def test_conversions_of_dtypes(x, to):
  assert_same(lambda x: x.astype(to), (x,), free='B')


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
