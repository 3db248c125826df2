"""Targets, blending and the loss; all of it runs on device, inside the training step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Blending(NamedTuple):
  """How clips and labels are mixed; a Beta parameter of 0 turns that way off."""

  mixup: float
  cutmix: float
  cutmix_share: float


def normalize(video: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Maps uint8 [..., 3] to float32, (pixels - mean) / std with mean and std in 0..255."""
  return (video.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)


def soft_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
  """One-hot [B, K] with `smoothing` spread evenly over all classes."""
  return (1 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes


def add_reversed(batch: dict[str, jax.Array], reverse: tuple[int, ...]) -> dict[str, jax.Array]:
  """Puts every clip played backwards beside it, as the class that it then shows.

  Args:
    batch: video [B, T, H, W, 3], label [B], mask [B].
    reverse: for each class, the class that it becomes.

  Returns:
    The same names, 2B rows: each clip and its reversal next to each other.
  """
  pair = lambda x, y: jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
  return {
    'video': pair(batch['video'], batch['video'][:, ::-1]),
    'label': pair(batch['label'], jnp.asarray(reverse)[batch['label']]),
    'mask': pair(batch['mask'], batch['mask']),
  }


def mixup(x: jax.Array, partner: jax.Array, lam: jax.Array) -> jax.Array:
  """lam * x + (1 - lam) * x[partner], along axis 0."""
  return lam * x + (1 - lam) * x[partner]


def cutmix_box(lam: jax.Array, cy: jax.Array, cx: jax.Array, H: int, W: int) -> jax.Array:
  """Pastes where: bool [H, W], a box of about (1 - lam) of the area around (cy, cx), clipped."""
  side = jnp.sqrt(1 - lam)
  half_h, half_w = (jnp.floor(H * side) // 2, jnp.floor(W * side) // 2)
  rows, columns = jnp.arange(H)[:, None], jnp.arange(W)[None, :]
  inside = lambda x, center, half: (x >= center - half) & (x < center + half)
  return inside(rows, cy, half_h) & inside(columns, cx, half_w)


def cutmix(
  video: jax.Array, targets: jax.Array, partner: jax.Array, box: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Pastes the partner's pixels where box [H, W] is set; targets mix by the area that is left."""
  video = jnp.where(box[..., None], video[partner], video)
  return video, mixup(targets, partner, 1 - box.mean())


def blend(
  key: jax.Array, video: jax.Array, targets: jax.Array, options: Blending
) -> tuple[jax.Array, jax.Array]:
  """Mixes each clip with another one of the batch: CutMix or Mixup, one draw for the whole batch.

  As in the reference, one coin, one lambda, one permutation and one box serve all clips and all
  their frames.

  Args:
    key: rng.
    video: [B, T, H, W, 3], pixels of any dtype.
    targets: float32 [B, K].
    options: Beta parameters and the share of CutMix.

  Returns:
    video float32, targets float32.
  """
  B, _, H, W, _ = video.shape
  which, permutation, draw, center_y, center_x = jax.random.split(key, 5)
  partner = jax.random.permutation(permutation, B)       # often on another device: bytes are moved

  def by_mixup(_):
    lam = jax.random.beta(draw, options.mixup, options.mixup)
    return mixup(video, partner, lam).astype(jnp.float32), mixup(targets, partner, lam)

  def by_cutmix(_):
    lam = jax.random.beta(draw, options.cutmix, options.cutmix)
    cy = jax.random.randint(center_y, (), 0, H)
    cx = jax.random.randint(center_x, (), 0, W)
    mixed, targets_mixed = cutmix(video, targets, partner, cutmix_box(lam, cy, cx, H, W))
    return mixed.astype(jnp.float32), targets_mixed

  if options.mixup and options.cutmix:
    coin = jax.random.bernoulli(which, options.cutmix_share)
    return jax.lax.cond(coin, by_cutmix, by_mixup, None)
  if options.cutmix:
    return by_cutmix(None)
  return by_mixup(None) if options.mixup else (video.astype(jnp.float32), targets)


def multi_hot(labels: jax.Array, smoothing: float) -> jax.Array:
  """Targets of several labels, bool [B, K] to float32: 1 - s + s / K where set, s / K elsewhere.

  As `soft_targets` has it for one label, so that a list with one label each has the same targets.
  """
  return (1 - smoothing) * labels.astype(jnp.float32) + smoothing / labels.shape[-1]


def cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean over the rows of mask [B] of -sum_k targets * log softmax(logits), both [B, K]."""
  losses = -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
  return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(mask.sum(), 1)


def sigmoid_cross_entropy(
  logits: jax.Array, targets: jax.Array, mask: jax.Array, columns: jax.Array | None = None
) -> jax.Array:
  """Every (video, text) pair is a question of its own: yes or no.

  The sum over texts of -t log sigmoid(x) - (1 - t) log sigmoid(-x), mean over videos: SigLIP's loss
  (Zhai et al., ICCV 2023, Eq. 2, whose labels are 1 and -1 for t = 1 and 0).

  Args:
    logits: [B, K].
    targets: [B, K], 0 to 1.
    mask: bool [B], which videos count.
    columns: bool [K], which texts do; None: all.
  """
  logits = logits.astype(jnp.float32)
  losses = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
  if columns is not None:
    losses = jnp.where(columns, losses, 0)
  return jnp.sum(jnp.where(mask, losses.sum(-1), 0)) / jnp.maximum(mask.sum(), 1)


def contrastive(logits: jax.Array, positives: jax.Array, mask: jax.Array) -> jax.Array:
  """CLIP's symmetric loss (Radford et al., ICML 2021): find the text of a video, and the reverse.

  The mean of both directions' cross entropies. Where a row has several positives its target is
  spread evenly over them.

  Args:
    logits: [B, B], videos by texts.
    positives: bool [B, B], which belong together; the diagonal does.
    mask: bool [B], which rows count, as videos and as texts.
  """
  both = mask[:, None] & mask[None, :]
  logits = jnp.where(both, logits.astype(jnp.float32), -1e9)
  positives = jnp.where(both, positives, False).astype(jnp.float32)

  def one_way(logits, positives):
    targets = positives / jnp.maximum(positives.sum(-1, keepdims=True), 1)
    return cross_entropy(logits, targets, mask)

  return (one_way(logits, positives) + one_way(logits.T, positives.T)) / 2
