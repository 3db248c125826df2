"""What a training step makes small: from a batch and its texts to a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.errors import UserError
from xclip_jax.models import vision
from xclip_jax.models.xclip import XCLIP, classify_pixels, compare
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.text import prompts, text_features
from xclip_jax.training.objectives import color_jitter, losses, targets

# (params, batch, text, key) -> (loss, metrics)
Objective = Callable[[Any, dict[str, jax.Array], jax.Array, jax.Array],
                     tuple[jax.Array, dict[str, jax.Array]]]


class Seen(NamedTuple):
  """What a forward pass came across."""

  video: jax.Array                # float [B, T, H, W, 3], blended and normalised
  mask: jax.Array                 # bool [B], which rows count
  token_ids: jax.Array | None     # int32 [K, S], where texts were encoded
  frame_features: jax.Array       # [B, T, E], before frames are integrated
  text_features: jax.Array        # [K, E]


# (params, batch, text, key) -> (loss, metrics, Seen)
Forward = Callable[[Any, dict[str, jax.Array], jax.Array, jax.Array],
                   tuple[jax.Array, dict[str, jax.Array], Seen]]


def make(
  model: XCLIP, config: Any, classes: ClassList, several: prompts.Prompts | None = None
) -> Objective:
  """Builds objective(params, batch, text, key) -> (loss, metrics); see `make_forward`."""
  forward = make_forward(model, config, classes, several)
  return lambda *arguments: forward(*arguments)[:2]


def make_forward(
  model: XCLIP, config: Any, classes: ClassList, several: prompts.Prompts | None = None
) -> Forward:
  """Builds forward(params, batch, text, key) -> (loss, metrics, Seen); scalars are float32.

  `batch` holds uint8 video [B, T, H, W, 3], mask [B], what `config.train.task` is taught with
  (label [B]; labels [B, K]; token_ids [B, S] and file [B]), and, to change colours here, colors
  [B, T, 9].
  `text` is int32 token ids [K, S] of the classes; or their float32 features [K, E], where the text
  tower is frozen; or both, (features, token ids), where `make_text_encoder` has encoded them. For
  captions it is not looked at. With `config.augment.reverse` every clip is shown twice, forwards
  and backwards: the two differ in nothing but order, so that is what is learnt. `several`, if
  classes have several texts, are those in `text`, and one of each class is drawn; features in
  `text` are of classes, whatever they come from, and are taken as they are. `key` decides all that
  is random.

  Raises:
    ValueError: clips are to be reversed, and a class does not say what it then is; a loss or an
      augmentation that the task cannot have.
  """
  targets.check_augmentation(config)
  if config.train.task == 'captions':
    return _captions(model, config)
  return _classes(model, config, classes, several)


def _classes(
  model: XCLIP, config: Any, classes: ClassList, several: prompts.Prompts | None
) -> Forward:
  data, train, smoothing = config.data, config.train, config.augment.label_smoothing
  one_label = train.task == 'single-label'
  loss_of = losses.sigmoid_cross_entropy if targets.resolve_loss(train) == 'sigmoid' else (
    losses.cross_entropy)
  if config.augment.reverse and None in classes.reverse:
    raise UserError(
      'config.augment.reverse needs a class list that names for every class what it is when played '
      f'backwards (column reverse); {classes.names[classes.reverse.index(None)]!r} has none'
    )
  blending = losses.Blending(
    config.augment.mixup, config.augment.cutmix, config.augment.cutmix_share,
    config.augment.blend_rows)

  def forward(params, batch, text, key):
    blend_key, drop_key = jax.random.split(key)
    if 'colors' in batch:
      batch = batch | {'video': color_jitter.apply(batch['video'], batch['colors'])}
    if config.augment.reverse:
      batch = losses.add_reversed(batch, classes.reverse)
    wanted = (losses.soft_targets(batch['label'], len(classes), smoothing) if one_label else
              losses.multi_hot(batch['labels'], smoothing))
    video, wanted = losses.blend(blend_key, batch['video'], wanted, blending)
    ids = None
    if isinstance(text, tuple):
      text, ids = text
    elif jnp.issubdtype(text.dtype, jnp.integer):
      ids = _draw(several, text, key)
      text = text_features.encode(model, params, ids)
    video = vision.normalize(video, data.mean, data.std)
    out = compare(model, params, video, text, drop_key)
    logits = out.logits
    loss = loss_of(logits, wanted, batch['mask'])
    best = logits.argmax(-1)
    hits = best == batch['label'] if one_label else (
      jnp.take_along_axis(batch['labels'], best[:, None], axis=1)[:, 0])
    metrics = {'loss': loss, 'accuracy': _share(hits, batch['mask'])}
    return loss, metrics, Seen(video, batch['mask'], ids, out.frame_features, text)

  return forward


def make_text_encoder(
  model: XCLIP, several: prompts.Prompts | None = None
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """Builds encode(params, token_ids, key) -> (features float32 [K, E], token ids int32 [K, S]).

  The features of the classes are those that a forward pass with the same arguments computes by
  itself: with `several` texts a class, `key` draws the same one of each. The token ids returned are
  those of the texts drawn.
  """
  def encode(params, token_ids, key):
    drawn = _draw(several, token_ids, key)
    return text_features.encode(model, params, drawn), drawn

  return encode


def _draw(several: prompts.Prompts | None, token_ids: jax.Array, key: jax.Array) -> jax.Array:
  if several is None:
    return token_ids
  _, drop_key = jax.random.split(key)
  return token_ids[several.draw(jax.random.fold_in(drop_key, 2))]


def _captions(model: XCLIP, config: Any) -> Forward:
  """Every video of the batch, on whatever device, with every caption of it."""
  data, train = config.data, config.train
  sigmoid = targets.resolve_loss(train) == 'sigmoid'

  def forward(params, batch, text, key):
    del text
    _, drop_key = jax.random.split(key)
    video, mask = batch['video'], batch['mask']
    if 'colors' in batch:
      video = color_jitter.apply(video, batch['colors'])
    if train.freeze_text:
      params = params | {'text': jax.lax.stop_gradient(params['text'])}
    ids, file, there = (mesh_lib.gather_batch(x) for x in (batch['token_ids'], batch['file'], mask))
    text = model.apply({'params': params}, batch['token_ids'], method='encode_text')
    video = vision.normalize(video, data.mean, data.std)
    out = compare(model, params, video, mesh_lib.gather_batch(text), drop_key)
    logits = out.logits                                                              # [B, B]
    # The same text, or the same video, twice in a batch: no reason to tell them apart.
    same = (ids[:, None] == ids[None, :]).all(-1) | (file[:, None] == file[None, :])
    loss = (losses.sigmoid_cross_entropy(logits, same.astype(jnp.float32), mask, there) if sigmoid
            else losses.contrastive(logits, same, there))
    best = jnp.where(there, logits, -jnp.inf).argmax(-1)
    hits = jnp.take_along_axis(same, best[:, None], axis=1)[:, 0]
    metrics = {'loss': loss, 'accuracy': _share(hits, mask)}
    return loss, metrics, Seen(video, mask, batch['token_ids'], out.frame_features, text)

  return forward


def _share(hits: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.where(mask, hits, False).sum() / jnp.maximum(mask.sum(), 1)


def start_bias(
  model: XCLIP, config: Any, params: Any, batch: dict[str, jax.Array], text: jax.Array,
  several: prompts.Prompts | None = None,
) -> jax.Array:
  """The logit bias to start from: such that the mean logit is the log-odds of a positive.

  SigLIP starts from -10 for the same reason: nearly all pairs do not belong together, and a model
  that does not know it spends its first steps on learning it. Here the share of positives and the
  mean logit are those of a batch, as `objective` takes it.
  """
  train = config.train
  if train.task == 'captions':
    ids, file, mask = batch['token_ids'], batch['file'], batch['mask']
    same = (ids[:, None] == ids[None, :]).all(-1) | (file[:, None] == file[None, :])
    share = jnp.sum(same & mask & mask[:, None]) / jnp.maximum(mask.sum() ** 2, 1)
    text = text_features.encode(model, params, ids)
  else:
    share = (1 / text.shape[0] if several is None else 1 / len(several.counts)
             ) if train.task == 'single-label' else batch['labels'].mean()
    if not train.freeze_text:
      text = text_features.encode(
        model, params, text if several is None else text[several.rows[:, 0]])
  logits = classify_pixels(model, params, batch['video'], text, config.data).logits
  logits -= params['logit_bias']
  share = jnp.clip(share, 1e-4, 1 - 1e-4)
  mean = jnp.where(batch['mask'][:, None], logits, 0).sum() / jnp.maximum(
    batch['mask'].sum() * logits.shape[1], 1)
  return jnp.log(share / (1 - share)) - mean
