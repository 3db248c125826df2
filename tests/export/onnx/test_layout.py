"""Primitives that move, join, cut and reduce arrays are those of JAX in onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conversion import assert_same, convert, run, session
from jax import lax

RNG = np.random.default_rng(0)


def draw(*shape, dtype=np.float32):
  return RNG.integers(0, 200, shape).astype(dtype)


def pair(*shape, dtype=np.float32):
  """Returns two calls: arrays of this shape, and of one where each size is larger by one."""
  return (draw(*shape, dtype=dtype),), (draw(*(size + 1 for size in shape), dtype=dtype),)


def test_reshapes_of_free_sizes():
  def function(x):
    B, T, H, W = x.shape
    return (x.reshape(B * T, H, W), x.reshape(B, T * H, W), x.reshape(B * T, H * W), x.ravel(),
            x.reshape(B, 1, T, 1, H * W), x.reshape(1, B, T, H, W).squeeze(0))
  assert_same(function, *pair(2, 3, 4, 5), free='BTHW')


def test_broadcast_arrays_have_their_full_size_where_it_matters():
  def function(x):
    B, K = x.shape
    rows = jnp.broadcast_to(x[:, :, None], (B, K, 5))
    return (rows, rows.reshape(B * K, 5), rows.sum(2), rows.max(2), rows.sum(0), rows.argmax(1),
            jnp.concatenate([rows, rows + 1], axis=2), rows[:, :, ::-1], rows[:, :, 1:3],
            rows.transpose(2, 1, 0), rows * 2, jnp.ones((B, 3)) @ jnp.ones((3, K)),
            rows.reshape(B, K, 5, 1), rows.cumsum(2), rows @ jnp.arange(10.).reshape(5, 2))
  assert_same(function, *pair(2, 3), free='BK')


def test_axes_are_moved_added_and_dropped():
  def function(x):
    return (x.transpose(2, 0, 1), x.transpose(2, 0, 1).transpose(1, 2, 0), x[:, None, :, None],
            x.swapaxes(0, 1)[None], lax.expand_dims(x, (0, 2)), x[:1].squeeze(0), x[:, :, ::-1])
  assert_same(function, *pair(2, 3, 4), free='BTH')


@pytest.mark.parametrize('dtype', ['float32', 'int32', 'uint8', 'bool'])
def test_arrays_are_joined_cut_and_padded(dtype):
  x = draw(2, 4, 6, dtype='int32') % 2

  def function(x):
    x = x.astype(dtype)
    B, H, W = x.shape
    return (jnp.concatenate([x, x[:, :1]], axis=1), jnp.stack([x, x], axis=1), x[:, 1:],
            jnp.split(x, 2, axis=1), x[:, 3], lax.slice(x, (0, 0, W - 1), (B, H, W)),
            lax.slice(x, (0, 1, 0), (B, H, W), (1, 2, 1)), jnp.tile(x, (1, 2, 3)),
            jnp.pad(x, ((0, 0), (1, 2), (0, 3))), jnp.unstack(x, axis=1))
  assert_same(function, (x,), (np.concatenate([x, x], axis=2),), free='B.W')


def test_sizes_are_numbers_of_the_graph():
  def function(x):
    B, H, W = x.shape
    side = jnp.minimum(H, W)
    index = (2 * jnp.arange(4) + 1) * H // 8
    return (jnp.asarray(H), side, index, jnp.arange(H * 2), jnp.arange(W, dtype=jnp.float32),
            lax.broadcasted_iota(jnp.int32, (H, W), 1), jnp.full((B, W // 2 + H % 3), 7),
            jnp.zeros((jax.core.max_dim(H - 9, 0) + 1, B * B)), jnp.asarray(H // 2 - W))
  assert_same(function, *pair(2, 7, 5), (draw(1, 20, 3),), free='BHW')


@pytest.mark.parametrize('dtype', ['float32', 'int32', 'uint8'])
def test_reductions(dtype):
  def function(x):
    return (x.sum(1), x.max((1, 2)), x.min(-1), x.sum((0, 2), keepdims=True), x.argmax(2),
            x.argmin(0), (x > 5).any(1), (x < 190).all((0, 1)), x[:, :1].mean(1))
  assert_same(function, *pair(2, 5, 4, dtype=dtype), free='BTH')


def test_of_equal_values_the_first_is_the_highest():
  assert_same(lambda x: (x.argmax(1), x.argmin(1)), (np.array([[1, 7, 7], [2, 1, 1]], np.int32),))


def test_running_sums():
  assert_same(lambda x: (x.cumsum(1), lax.cumsum(x, axis=0, reverse=True)), *pair(2, 5), free='BH')


@pytest.mark.parametrize(('spec', 'shapes'), [
  ('BLD,DE->BLE', ((2, 3, 4), (4, 5))), ('BLD,ED->BLE', ((2, 3, 4), (5, 4))),
  ('BD,DE->BE', ((2, 4), (4, 5))), ('BLNF,BMNF->BNLM', ((2, 3, 4, 5), (2, 6, 4, 5))),
  ('BNLM,BMNF->BLNF', ((2, 4, 3, 6), (2, 6, 4, 5))), ('BE,BKE->BK', ((2, 4), (2, 3, 4))),
  ('BKE,BE->BK', ((2, 3, 4), (2, 4))), ('BLNF,NFE->BLE', ((2, 3, 4, 5), (4, 5, 6))),
  ('DB,ELD->BEL', ((4, 2), (3, 5, 4))), ('D,D->', ((4,), (4,))),
  ('BHW,SW->BHS', ((2, 3, 4), (5, 4))), ('RH,BHS->BRS', ((5, 3), (2, 3, 4))),
  ('B,K->BK', ((2,), (3,)))])
def test_products(spec, shapes):
  arrays = [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]
  other = [np.concatenate([x, x], axis=spec.split(',')[i].index('B')) if 'B' in s else x
           for i, (x, s) in enumerate(zip(arrays, spec.split('->')[0].split(','), strict=True))]
  free = ','.join(''.join(letter if letter in 'BKLM' else '.' for letter in term)
                  for term in spec.split('->')[0].split(','))
  product = lambda x, y: jnp.einsum(spec, x, y, precision='highest')
  assert_same(product, tuple(arrays), tuple(other), free=free)
  constant = lambda x: jnp.einsum(spec, x, arrays[1], precision='highest')
  if 'B' not in spec.split(',')[1].split('->')[0]:
    assert_same(constant, (arrays[0],), (other[0],), free=free.split(',')[0])


def test_products_of_integers():
  assert_same(lambda x, y: jnp.einsum('BD,DE->BE', x, y), (draw(2, 3, dtype='int32'),
                                                           draw(3, 4, dtype='int32')))


def test_a_product_with_a_matrix_is_one_node():
  weights = RNG.standard_normal((5, 4)).astype(np.float32)
  model = convert(lambda x: jnp.einsum('BLD,ED->BLE', x, weights), draw(2, 3, 4), free='BL')
  assert [node.op_type for node in model.graph.node] == ['MatMul']


def test_negative_and_inner_padding_is_refused():
  for config in ((-1, 0, 0), (0, 0, 1)):
    with pytest.raises(NotImplementedError, match='pad'):
      convert(lambda x, config=config: lax.pad(x, np.float32(0), [config]), draw(4))


def test_results_may_be_inputs_constants_and_one_array_twice():
  model = convert(lambda x: (x, x + 1, x + 1, np.float32([1, 2])), draw(3), free='B')
  results = run(session(model), np.float32([5, 6]))
  np.testing.assert_array_equal(np.stack(results), [[5, 6], [6, 7], [6, 7], [1, 2]])
