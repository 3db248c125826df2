"""Reads at computed positions give in onnxruntime what they give in JAX."""

import jax.numpy as jnp
import numpy as np
import pytest
from conversion import assert_same, convert
from jax import lax

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (2, 3, 7, 5, 3)).astype(np.uint8)
LARGER = RNG.integers(0, 256, (3, 2, 9, 11, 3)).astype(np.uint8)
TABLE = RNG.standard_normal((10, 4)).astype(np.float32)


def test_embeddings_are_looked_up():
  ids = np.array([[0, 9, 3], [-1, 2, 2]], np.int32)
  assert_same(lambda ids: (jnp.take(TABLE, ids, axis=0), jnp.asarray(TABLE)[ids]),
              (ids,), (ids[:1, :2],), free='BS')


def test_what_lies_outside_is_filled_or_clipped_as_in_jax():
  ids = np.array([0, 9, 10, 99, -10, -11], np.int32)
  assert_same(lambda ids: (jnp.take(TABLE, ids, axis=0), jnp.take(TABLE, ids, axis=0, mode='clip'),
                           jnp.take(jnp.arange(10), ids, mode='fill'),
                           jnp.asarray(TABLE).at[ids, ids].get(mode='fill')), (ids,), free='B')
  assert_same(lambda x: jnp.take(x, jnp.array([0, 7, -1]), axis=0), (TABLE,), (TABLE[:5],),
              free='B')


def test_rows_and_columns_are_taken_by_index():
  def function(x):
    H, W = x.shape[2:4]
    rows, columns = ((2 * jnp.arange(4) + 1) * size // 8 for size in (H, W))
    taken = jnp.take(jnp.take(x, rows, axis=2, mode='clip'), columns, axis=3, mode='clip')
    return taken, x[:, 0], x[:, :, -1], x[:, -1:], x[:, :, 1:3], jnp.take(x, rows[1], axis=2)
  assert_same(function, (FRAMES,), (LARGER,), free='BTHW')


def test_one_element_of_each_row():
  def function(x, index):
    B = x.shape[0]
    return (x[jnp.arange(B), index], x[jnp.arange(B), :, index],
            jnp.take_along_axis(x, index[:, None, None], axis=1),
            jnp.take_along_axis(x, jnp.argmax(x, axis=2, keepdims=True), axis=2))
  calls = [(RNG.standard_normal((B, 3, 3)).astype(np.float32), np.arange(B, dtype=np.int32) % 3)
           for B in (2, 5)]
  assert_same(function, *calls, free='B,B')


def test_blocks_at_computed_positions():
  def function(x, at):
    return (lax.dynamic_slice(x, (0, at, 0), (x.shape[0], 1, 2)), x[:, at], x[:, at, 1],
            lax.dynamic_index_in_dim(x, at, axis=1, keepdims=False))
  x = RNG.standard_normal((2, 5, 3)).astype(np.float32)
  calls = [(x, 1), (x[:1], 4), (x, -2), (np.concatenate([x, x], 1), 7)]
  assert_same(function, *((x, np.array(at, np.int32)) for x, at in calls), free='BH')
  x = np.zeros((4, 3, 5), np.float32) + np.arange(5, dtype=np.float32)
  assert_same(lambda x, at: lax.dynamic_slice(x, (at, 0, at), (2, 3, 2)),
              *((x, np.array(at, np.int32)) for at in (0, 2, 9)))


def test_equal_elements_keep_their_order_in_a_sort():
  x = RNG.integers(0, 4, (3, 6, 2)).astype(np.int32)
  assert_same(lambda x: (jnp.argsort(x, axis=1), jnp.sort(x, axis=1), jnp.sort(x * 0.5, axis=0)),
              (x,), (x[:2],), free='B')


def test_elements_are_written_at_indices():
  def function(x, into):
    rows = jnp.arange(x.shape[0])[:, None]
    return (x.at[rows, into].add(x[:, :2]), x.at[rows, :, into].set(7), x.at[:, 1::2].set(3),
            x.at[:, into[0, 0]].set(5))
  calls = [(RNG.standard_normal((B, 4, 3)).astype(np.float32),
            RNG.integers(0, 3, (B, 2)).astype(np.int32)) for B in (2, 3)]
  into = calls[0][1]
  into[:, 1] = (into[:, 0] + 1) % 3          # equal ones would be written in any order
  calls[1][1][:, 1] = calls[1][1][:, 0]
  assert_same(lambda x, into: function(x, into)[:1], *calls, free='B,B')
  assert_same(function, calls[0], free='B,B')


def test_several_blocks_are_refused():
  with pytest.raises(NotImplementedError, match='gather reads blocks'):
    convert(lambda x, at: lax.gather(
      x, at, lax.GatherDimensionNumbers((1,), (), (0,)), (2,)), np.zeros(5, np.float32),
      np.array([[0], [1]], np.int32))
