"""Targets, blending and loss are the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goldens_io import load_npz
from xclip_jax.models import vision
from xclip_jax.training.objectives import losses

blend = jax.jit(losses.blend, static_argnums=3)
BOTH = losses.Blending(mixup=0.8, cutmix=1.0, cutmix_share=0.5)


@pytest.fixture(scope='module')
def golden():
  data = load_npz('reference/ref_blending.npz')
  ours = lambda x: np.moveaxis(x, 2, -1)     # [B, T, 3, H, W] -> [B, T, H, W, 3]
  return {k: ours(x) if k.endswith('images') else x for k, x in data.items()}


@pytest.fixture(scope='module')
def batch():
  video = np.random.default_rng(0).integers(0, 256, (6, 2, 8, 10, 3), dtype=np.uint8)
  return jnp.asarray(video), losses.soft_targets(jnp.arange(6), 7, 0.1)


def close(got, want):
  np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)


def test_targets_are_smoothed_as_in_the_reference(golden):
  close(losses.soft_targets(golden['labels'], 5, 0.1), golden['onehot'])


def test_targets_without_smoothing_are_one_hot():
  np.testing.assert_array_equal(losses.soft_targets(jnp.array([2, 0]), 3, 0.0), np.eye(3)[[2, 0]])


@pytest.mark.parametrize('lam', [0.3, 0.9])
def test_mixup_matches_the_reference(golden, lam):
  close(losses.mixup(golden['images'], golden['perm'], lam), golden[f'mixup_lam{lam}.images'])
  close(losses.mixup(golden['onehot'], golden['perm'], lam), golden[f'mixup_lam{lam}.targets'])


@pytest.mark.parametrize(('lam', 'cx', 'cy'), [(0.3, 4, 6), (0.75, 0, 0), (0.75, 9, 7)])
def test_cutmix_matches_the_reference(golden, lam, cx, cy):
  box = losses.cutmix_box(lam, cy, cx, *golden['images'].shape[2:4])
  video, targets = losses.cutmix(golden['images'], golden['onehot'], golden['perm'], box)
  close(video, golden[f'cutmix_lam{lam}_cx{cx}_cy{cy}.images'])
  close(targets, golden[f'cutmix_lam{lam}_cx{cx}_cy{cy}.targets'])


def test_every_golden_blend_is_compared(golden):
  assert len(golden) == 4 + 2 * (2 + 3)


def test_blending_follows_from_the_key(batch):
  draw = lambda seed: blend(jax.random.key(seed), *batch, BOTH)
  for a, b in zip(draw(3), draw(3), strict=True):
    np.testing.assert_array_equal(a, b)
  assert any(np.any(draw(3)[0] != draw(seed)[0]) for seed in (4, 5))


@pytest.fixture(scope='module')
def draws(batch):
  """Blends of the same batch under 200 keys."""
  keys = jax.random.split(jax.random.key(0), 200)
  return jax.jit(jax.vmap(lambda key: blend(key, *batch, BOTH)))(keys)


def test_blended_targets_sum_to_one(draws):
  np.testing.assert_allclose(draws[1].sum(-1), 1, atol=1e-6)
  assert draws[1].min() >= 0


def test_cutmix_and_mixup_take_turns_by_their_share(batch, draws):
  # Pixels that CutMix leaves or pastes are whole numbers of the batch; those of Mixup are not.
  pasted = np.all(np.asarray(draws[0]) % 1 == 0, axis=(1, 2, 3, 4, 5))
  assert abs(pasted.mean() - 0.5) < 0.15       # 4 sigma


def test_targets_follow_the_share_of_pixels():
  """Counts the pixels of blended clips and compares the targets with their shares."""
  number = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1, 1)
  flat = np.broadcast_to(number, (6, 2, 8, 10, 3))
  one_hot = jnp.eye(6)
  for options in (BOTH._replace(mixup=0.0), BOTH._replace(cutmix=0.0)):
    for seed in range(5):
      video, targets = blend(jax.random.key(seed), flat, one_hot, options)
      close(video[:, 0], video[:, 1])
      mean = np.asarray(video).mean(axis=(1, 2, 3, 4))
      np.testing.assert_allclose(mean, np.asarray(targets) @ np.arange(6), atol=1e-5)


@pytest.mark.slow
def test_each_way_of_blending_can_be_switched_off(batch):
  video, targets = batch
  off = losses.Blending(0.0, 0.0, 0.5)
  same = blend(jax.random.key(0), video, targets, off)
  np.testing.assert_array_equal(same[0], video)
  np.testing.assert_array_equal(same[1], targets)
  assert same[0].dtype == jnp.float32
  for seed in range(5):
    pasted, _ = blend(jax.random.key(seed), video, targets, BOTH._replace(mixup=0.0))
    assert np.all(np.asarray(pasted) % 1 == 0)
  mixed = [blend(jax.random.key(seed), video, targets, BOTH._replace(cutmix=0.0))[0]
           for seed in range(5)]
  assert all(np.any(np.asarray(x) % 1 != 0) for x in mixed)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
  pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 4, 3), dtype=np.uint8)
  mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  got = vision.normalize(pixels, mean, std)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, (pixels - np.array(mean)) / np.array(std), atol=1e-6)


def test_cross_entropy_is_the_mean_over_the_rows_that_count():
  logits, targets = np.random.default_rng(2).normal(size=(2, 4, 5)).astype(np.float32)
  targets = jax.nn.softmax(targets)
  mask = np.array([True, False, True, True])
  rows = optax.softmax_cross_entropy(logits, targets)
  np.testing.assert_allclose(
    losses.cross_entropy(logits, targets, mask), np.asarray(rows)[mask].mean(), rtol=1e-6
  )
  assert losses.cross_entropy(logits, targets, np.zeros(4, bool)) == 0
  half = losses.cross_entropy(jnp.asarray(logits, jnp.bfloat16), targets, mask)
  assert half.dtype == jnp.float32


def test_masked_rows_have_no_gradient():
  logits, targets = np.random.default_rng(3).normal(size=(2, 4, 5)).astype(np.float32)
  mask = np.array([True, False, True, False])
  grads = jax.grad(losses.cross_entropy)(logits, jax.nn.softmax(targets), mask)
  np.testing.assert_array_equal(grads[~mask], 0)
  assert np.all(np.abs(grads[mask]).max(axis=1) > 1e-3)
