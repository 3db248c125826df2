"""Soft targets, mixup and CutMix, and losses, all on the device inside the training step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num

from xclip_jax.models.matmul import AnyArray


class Blending(NamedTuple):
  """Options of mixup and CutMix.

  Fields:
    mixup: parameter of mixup's Beta distribution; 0: no mixup.
    cutmix: parameter of CutMix's Beta distribution; 0: no CutMix.
    cutmix_share: probability of CutMix where both are on.
    rows: batch rows that share one draw and are each other's partners; 0: the whole batch.
  """

  mixup: float
  cutmix: float
  cutmix_share: float
  rows: int = 8


def soft_targets(
  labels: Int[AnyArray, ' B'], num_classes: int, smoothing: float
) -> Float[AnyArray, 'B K']:
  """Returns one-hot targets, float32 [B, K], with `smoothing` spread evenly over all classes."""
  return (1 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes


def add_reversed(batch: dict[str, AnyArray], reverse: tuple[int, ...]) -> dict[str, AnyArray]:
  """Adds every clip played backwards, labelled with the reverse of its class.

  Args:
    batch: video [B, T, H, W, 3], label [B], mask [B].
    reverse: for each class, the class of its clips played backwards.

  Returns:
    The same names, 2B rows: each clip is followed by its reversal.
  """
  pair = lambda x, y: jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
  return {
    'video': pair(batch['video'], batch['video'][:, ::-1]),
    'label': pair(batch['label'], jnp.asarray(reverse)[batch['label']]),
    'mask': pair(batch['mask'], batch['mask']),
  }


def mixup(
  x: Num[AnyArray, ' B *rest'], partner: Int[AnyArray, ' B'], lam: AnyArray | float
) -> Float[AnyArray, ' B *rest']:
  """Returns lam * x + (1 - lam) * x[partner], along axis 0."""
  return lam * x + (1 - lam) * x[partner]


def cutmix_box(
  lam: Float[AnyArray, ''] | float, cy: Int[AnyArray, ''] | int, cx: Int[AnyArray, ''] | int,
  H: int, W: int,
) -> Bool[AnyArray, 'H W']:
  """Returns the pixels to paste, bool [H, W]: a clipped box of area (1 - lam) at (cy, cx)."""
  side = jnp.sqrt(1 - lam)
  half_h, half_w = (jnp.floor(H * side) // 2, jnp.floor(W * side) // 2)
  rows, columns = jnp.arange(H)[:, None], jnp.arange(W)[None, :]
  inside = lambda x, center, half: (x >= center - half) & (x < center + half)
  return inside(rows, cy, half_h) & inside(columns, cx, half_w)


def cutmix(
  video: Num[AnyArray, 'B T H W C'], targets: Float[AnyArray, 'B K'], partner: Int[AnyArray, ' B'],
  box: Bool[AnyArray, 'H W'],
) -> tuple[Float[AnyArray, 'B T H W C'], Float[AnyArray, 'B K']]:
  """Pastes the partner's pixels where box [H, W] is set; targets mix by the area that remains.

  CutMix is mixup with a weight for each pixel, 0 in the box and 1 outside. `blend` relies on that:
  one formula serves both.
  """
  return (mixup(video, partner, jnp.where(box, 0.0, 1.0)[..., None]),
          mixup(targets, partner, 1 - box.mean()))


def num_groups(batch_size: int, rows: int) -> int:
  """Returns the number of groups that `blend` forms of batch_size rows.

  Groups hold at most `rows` rows and differ in size by one at most. No group has a single row,
  which would be its own partner, unless the batch has one row: 3 rows in groups of 2 are one group
  of 3.
  """
  return max(min(-(-batch_size // rows), batch_size // 2), 1) if rows else 1


def blend(
  key: jax.Array, video: Num[AnyArray, 'B T H W C'], targets: Float[AnyArray, 'B K'],
  options: Blending,
) -> tuple[Float[AnyArray, 'B T H W C'], Float[AnyArray, 'B K']]:
  """Mixes each clip with another clip of its group by CutMix or mixup.

  Each group of `options.rows` successive rows draws one coin, one lambda, one permutation and one
  box for all its clips and all their frames. The reference draws them once for the batch of each
  GPU, which has 8 clips in its B/32 and B/16 recipes of 8 frames. The draws of a group depend on
  the key and the number of the group alone, not on devices or hosts. If the rows of a device are a
  multiple of `options.rows`, a group lies on one device and no pixel crosses devices. A batch that
  is no multiple of `options.rows` is cut as in `num_groups`.

  Args:
    key: rng.
    video: [B, T, H, W, C], pixels of any dtype.
    targets: float32 [B, K].
    options: Beta parameters, the share of CutMix, and the rows of a group.

  Returns:
    video float32, targets float32.
  """
  if not (options.mixup or options.cutmix):
    return video.astype(jnp.float32), targets
  B, _, H, W, _ = video.shape
  G = num_groups(B, options.rows)
  sizes = [len(rows) for rows in np.array_split(np.arange(B), G)]
  draw = lambda g: _draw(jax.random.fold_in(key, g), max(sizes), H, W, options)
  keep, share, order = jax.vmap(draw)(jnp.arange(G))            # [G, H, W], [G], [G, max(sizes)]
  if B % G == 0:           # gathering within groups [G, B / G] keeps indices within devices
    grouped = lambda x: x.reshape(G, B // G, *x.shape[1:])
    mixed = jax.vmap(mixup)(grouped(video), order, keep[:, None, None, :, :, None])
    mixed_targets = jax.vmap(mixup)(grouped(targets), order, share[:, None, None])
    return mixed.reshape(video.shape), mixed_targets.reshape(targets.shape)
  group, first = np.repeat(np.arange(G), sizes), np.cumsum([0, *sizes[:-1]])
  partner = jnp.concatenate([_below(order[g], size) + first[g] for g, size in enumerate(sizes)])
  return (mixup(video, partner, keep[group][:, None, :, :, None]),
          mixup(targets, partner, share[group][:, None]))


def _draw(
  key: jax.Array, rows: int, H: int, W: int, options: Blending
) -> tuple[Float[AnyArray, 'H W'], Float[AnyArray, ''], Int[AnyArray, ' rows']]:
  """Draws the numbers that the clips of one group share.

  Returns:
    The weight of a clip's own pixels, float32 [H, W]; the weight of its own target, float32 []; and
    the permutation that gives each row its partner, int32 [rows].
  """
  which, permutation, draw, center_y, center_x = jax.random.split(key, 5)
  share = options.cutmix_share if options.mixup and options.cutmix else float(options.mixup == 0)
  pastes = jax.random.bernoulli(which, share)
  parameter = jnp.where(pastes, options.cutmix or 1.0, options.mixup or 1.0)
  lam = jax.random.beta(draw, parameter, parameter)
  cy = jax.random.randint(center_y, (), 0, H)
  cx = jax.random.randint(center_x, (), 0, W)
  box = cutmix_box(lam, cy, cx, H, W)
  keep, share = jnp.where(pastes, ~box, lam), jnp.where(pastes, 1 - box.mean(), lam)
  return keep, share, jax.random.permutation(permutation, rows)


def _below(order: Int[AnyArray, ' rows'], size: int) -> Int[AnyArray, ' {size}']:
  """Returns the entries of a permutation below size, in order: a permutation of 0..size - 1."""
  return order[jnp.nonzero(order < size, size=size)[0]]


def multi_hot(labels: Bool[AnyArray, 'B K'], smoothing: float) -> Float[AnyArray, 'B K']:
  """Returns smoothed targets of labels, bool [B, K]: float32 1 - s + s / K where set, else s / K.

  A list with one label for each video gets the same targets as from `soft_targets`.
  """
  return (1 - smoothing) * labels.astype(jnp.float32) + smoothing / labels.shape[-1]


def cross_entropy(
  logits: Float[AnyArray, 'B K'], targets: Float[AnyArray, 'B K'], mask: Bool[AnyArray, ' B']
) -> Float[AnyArray, '']:
  """Returns the mean over the rows of mask [B] of -sum_k targets * log softmax(logits), [B, K]."""
  losses = -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
  return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(mask.sum(), 1)


def sigmoid_cross_entropy(
  logits: Float[AnyArray, 'B K'], targets: Float[AnyArray, 'B K'], mask: Bool[AnyArray, ' B'],
  columns: Bool[AnyArray, ' K'] | None = None,
) -> Float[AnyArray, '']:
  """Computes SigLIP's loss, which decides each (video, text) pair by itself.

  The loss is the sum over texts of -t log sigmoid(x) - (1 - t) log sigmoid(-x), mean over videos
  (Zhai et al., ICCV 2023, Eq. 2, whose labels are 1 and -1 for t = 1 and 0).

  Args:
    logits: [B, K].
    targets: [B, K], 0 to 1.
    mask: bool [B], videos that count.
    columns: bool [K], texts that count; None: all.
  """
  logits = logits.astype(jnp.float32)
  losses = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
  if columns is not None:
    losses = jnp.where(columns, losses, 0)
  return jnp.sum(jnp.where(mask, losses.sum(-1), 0)) / jnp.maximum(mask.sum(), 1)


def contrastive(
  logits: Float[AnyArray, 'B B'], positives: Bool[AnyArray, 'B B'], mask: Bool[AnyArray, ' B']
) -> Float[AnyArray, '']:
  """Computes CLIP's symmetric loss: find the text of a video, and the video of a text.

  The loss is the mean of both cross entropies (Radford et al., ICML 2021). The target of a row with
  several positives is spread evenly over them.

  Args:
    logits: [B, B], videos by texts.
    positives: bool [B, B], pairs that belong together; the diagonal is True.
    mask: bool [B], rows that count, as videos and as texts.
  """
  both = mask[:, None] & mask[None, :]
  logits = jnp.where(both, logits.astype(jnp.float32), -1e9)
  positives = jnp.where(both, positives, False).astype(jnp.float32)

  def one_way(logits, positives):
    targets = positives / jnp.maximum(positives.sum(-1, keepdims=True), 1)
    return cross_entropy(logits, targets, mask)

  return (one_way(logits, positives) + one_way(logits.T, positives.T)) / 2
