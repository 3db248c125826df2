"""What a training step makes small: from a batch and its texts to a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xclip_jax import colors, losses, prompts
from xclip_jax.data.source import ClassList
from xclip_jax.models.xclip import XCLIP

# (params, batch, text, key) -> (loss, metrics)
Objective = Callable[[Any, dict[str, jax.Array], jax.Array, jax.Array],
                     tuple[jax.Array, dict[str, jax.Array]]]


def make(
  model: XCLIP, config: Any, classes: ClassList, several: prompts.Prompts | None = None
) -> Objective:
  """Builds objective(params, batch, text, key) -> (loss, metrics), all float32 scalars.

  `batch` holds uint8 video [B, T, H, W, 3], label [B] and mask [B]; and, to change colours here,
  colors [B, T, 9]. `text` is int32 token ids
  [K, S], or float32 features [K, E] where the text tower is frozen. With `config.augment.reverse`
  every clip is shown twice, forwards and backwards: the two differ in nothing but order, so that is
  what is learnt. `several`, if classes have several texts, are those in `text`, and one of each
  class is drawn; where the text tower is frozen, `text` is their average instead. `key` decides all
  that is random.

  Raises:
    ValueError: clips are to be reversed, and a class does not say what it then is.
  """
  data, train = config.data, config.train
  if config.augment.reverse and None in classes.reverse:
    raise ValueError(
      'config.augment.reverse needs a class list that names for every class what it is when played '
      f'backwards (column reverse); {classes.names[classes.reverse.index(None)]!r} has none'
    )
  smoothing = config.augment.label_smoothing
  blending = losses.Blending(
    config.augment.mixup, config.augment.cutmix, config.augment.cutmix_share
  )

  def objective(params, batch, text, key):
    blend_key, drop_key = jax.random.split(key)
    if 'colors' in batch:
      batch = batch | {'video': colors.apply(batch['video'], batch['colors'])}
    if config.augment.reverse:
      batch = losses.add_reversed(batch, classes.reverse)
    targets = losses.soft_targets(batch['label'], len(classes), smoothing)
    video, targets = losses.blend(blend_key, batch['video'], targets, blending)
    variables = {'params': params}
    if not train.freeze_text:
      if several:
        text = text[several.draw(jax.random.fold_in(drop_key, 2))]
      text = model.apply(variables, text, method='encode_text')
    logits = model.apply(
      variables, losses.normalize(video, data.mean, data.std), text, False, method='classify',
      rngs={'drop_path': drop_key, 'patch_dropout': jax.random.fold_in(drop_key, 1)},
    ).logits
    loss = losses.cross_entropy(logits, targets, batch['mask'])
    hits = jnp.where(batch['mask'], logits.argmax(-1) == batch['label'], False)
    return loss, {'loss': loss, 'accuracy': hits.sum() / jnp.maximum(batch['mask'].sum(), 1)}

  return objective
