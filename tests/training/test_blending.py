"""Mixup and CutMix draw once for each group of rows, as the reference does for each GPU's batch."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quick
import tiny
from configs import base
from xclip_jax.config import batch_sizes, published
from xclip_jax.training.objectives import losses

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'

MIXUP = losses.Blending(mixup=0.8, cutmix=0.0, cutmix_share=0.5)
BOTH = losses.Blending(mixup=0.8, cutmix=1.0, cutmix_share=0.5)
blend = jax.jit(losses.blend, static_argnums=3)


def shares(rows, options, seed=0, side=4):
  """Blends `rows` clips whose targets are their numbers: [rows, rows], who is in whom."""
  video = jnp.zeros((rows, 1, side, side, 3), jnp.uint8)
  return np.asarray(blend(jax.random.key(seed), video, jnp.eye(rows), options)[1])


def blocks(matrix, sizes):
  """The squares of the groups on the diagonal; asserts that nothing lies outside of them."""
  ends = np.cumsum(sizes)
  found = [matrix[end - size:end, end - size:end] for size, end in zip(sizes, ends, strict=True)]
  assert sum(x.sum() for x in found) == pytest.approx(matrix.sum())
  return found


def test_an_update_of_the_published_recipe_has_thirty_two_draws():
  c = published.load('k400_b16_8f')
  rows = c.train.batch_size // c.train.accumulation
  options = losses.Blending(c.augment.mixup, 0.0, c.augment.cutmix_share, c.augment.blend_rows)
  draws = set()
  for key in range(c.train.accumulation):
    for group in blocks(shares(rows, options, key), [8] * 8):
      own = np.unique(np.diag(group)[np.diag(group) < 1].round(5))
      assert len(own) == 1                      # one lambda for all, but for who is its own partner
      draws.add(float(own[0]))
  assert (rows, len(draws)) == (64, 32)


@pytest.mark.parametrize(('rows', 'size', 'sizes'), [
  (64, 8, [8] * 8), (12, 8, [6, 6]), (9, 8, [5, 4]), (5, 2, [3, 2]), (2, 8, [2]), (1, 8, [1]),
  *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in (
    (64, 4, [4] * 16), (64, 0, [64]), (17, 8, [6, 6, 5]), (5, 8, [5]), (3, 2, [3]))),
])
def test_partners_are_a_permutation_of_the_group(rows, size, sizes):
  for seed in range(4):
    for group in blocks(shares(rows, MIXUP._replace(rows=size), seed), sizes):
      np.testing.assert_allclose(group.sum(0), 1, atol=1e-6)      # each clip is a partner once,
      np.testing.assert_allclose(group.sum(1), 1, atol=1e-6)      # and each has one
      assert ((group > 0).sum(1) <= 2).all()


def test_no_group_is_a_single_row():
  for rows in range(2, 70):
    for size in range(2, 12):
      sizes = [len(x) for x in np.array_split(np.arange(rows), losses.num_groups(rows, size))]
      assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1
      assert max(sizes) <= max(size, 3)         # 3: an odd number in pairs


def test_groups_differ_in_coin_and_box_and_their_frames_do_not():
  """Rows of a group are alike, so pixels that are not their own say what was pasted or mixed."""
  rows = np.arange(64, dtype=np.uint8)
  video = np.broadcast_to(rows[:, None, None, None, None], (64, 3, 16, 20, 3))
  mixed, targets = blend(jax.random.key(5), video, jnp.eye(64), BOTH)
  np.testing.assert_array_equal(mixed[:, 0], mixed[:, 2])
  np.testing.assert_allclose(
    np.mean(mixed, axis=(1, 2, 3, 4)), np.asarray(targets) @ np.arange(64), atol=1e-4)
  mixed, found = np.asarray(mixed)[:, 0, :, :, 0].reshape(8, 8, 16, 20), set()
  for group, own in zip(mixed, rows.reshape(8, 8), strict=True):
    others = group != own[:, None, None]
    moved = others[others.any((1, 2))]
    if len(moved):
      np.testing.assert_array_equal(moved, np.broadcast_to(moved[0], moved.shape))     # one box
      pasted = (group % 1 == 0).all()
      found.add((pasted, moved[0].tobytes() if pasted else None))
  assert len({box for pasted, box in found if pasted}) >= 2 and (False, None) in found


@pytest.mark.slow
def test_a_group_draws_by_its_number_whatever_follows():
  """Neither the batch size nor other groups move a draw."""
  few, many = shares(16, BOTH, 3), shares(64, BOTH, 3)
  np.testing.assert_array_equal(many[:16, :16], few)


EIGHT_DEVICES = (PROGRAMS / 'blend_on_eight_devices.py').read_text()


@pytest.mark.slow
def test_nothing_crosses_devices_that_hold_whole_groups_and_any_number_draws_the_same():
  flags = f'--xla_force_host_platform_device_count=8 {quick.FLAGS}'
  done = subprocess.run(
    [sys.executable, '-c', EIGHT_DEVICES], cwd=tiny.REPO, capture_output=True, text=True,
    timeout=600, env=os.environ | tiny.SIMULATED | {
      'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(tiny.REPO)})
  assert done.returncode == 0, done.stderr[-3000:]
  whole_groups, two_rows_each = done.stdout.splitlines()
  assert whole_groups == '128 []' and 'all-gather' in two_rows_each


@pytest.mark.parametrize('rows', [-1, 1])
def test_a_group_that_leaves_a_clip_alone_is_refused(rows):
  c = base.get_config()
  c.augment.blend_rows = rows
  with pytest.raises(ValueError, match=rf'augment.blend_rows={rows} must be 2 or more, or 0 for'):
    batch_sizes.check_train_batch(c, 1)


@pytest.mark.parametrize(('name', 'rows'), [
  ('k400_b32_8f', 8), ('k400_b16_8f', 8), ('k400_b16_16f', 4), ('k400_l14_8f', 4),
  ('k600_b16_16f', 4), ('hmdb51_b16_32f', 4), ('ucf101_b16_32f', 4)])
def test_groups_are_what_a_gpu_of_the_original_held(name, rows):
  c = published.load(name)
  assert c.augment.blend_rows == rows == c.train.batch_size // c.train.accumulation // 8
