"""Training objectives: from a batch and its texts to a loss and metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from xclip_jax.config import validation
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.models import vision
from xclip_jax.models.matmul import AnyArray
from xclip_jax.models.xclip import XCLIP, classify_pixels, compare
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.text import prompts, text_features
from xclip_jax.training.objectives import color_jitter, losses

# (params, batch, text, key) -> (loss, metrics)
Objective = Callable[[Any, dict[str, jax.Array], jax.Array, jax.Array],
                     tuple[jax.Array, dict[str, jax.Array]]]


class ForwardPass(NamedTuple):
  """Inputs and features of a forward pass, for losses that need more than the logits."""

  video: jax.Array                # float [B, T, H, W, 3], blended and normalised
  mask: jax.Array                 # bool [B], batch rows that count
  token_ids: jax.Array | None     # int32 [K, S]; None if the text tower did not run
  frame_features: jax.Array       # [B, T, E], before frames are integrated
  text_features: jax.Array        # [K, E]


# (params, batch, text, key) -> (loss, metrics, ForwardPass)
Forward = Callable[[Any, dict[str, jax.Array], jax.Array, jax.Array],
                   tuple[jax.Array, dict[str, jax.Array], ForwardPass]]


def make(
  model: XCLIP, config: Any, classes: ClassList, class_prompts: prompts.Prompts | None = None
) -> Objective:
  """Builds objective(params, batch, text, key) -> (loss, metrics); see `make_forward`."""
  forward = make_forward(model, config, classes, class_prompts)
  return lambda *arguments: forward(*arguments)[:2]


def make_forward(
  model: XCLIP, config: Any, classes: ClassList, class_prompts: prompts.Prompts | None = None
) -> Forward:
  """Builds forward(params, batch, text, key) -> (loss, metrics, ForwardPass).

  Arguments of forward:
    params: parameters of the model.
    batch: uint8 video [B, T, H, W, 3], bool mask [B], the targets of `config.train.task` (label
      [B]; labels [B, K]; token_ids [B, S] and file [B]), and, to change colours on the device,
      colors [B, T, 9].
    text: int32 token ids [K, S] of the classes; or their float32 features [K, E], if the text tower
      is frozen; or both, (features, token ids), from `make_text_encoder`. Captions ignore it.
    key: rng of everything random.

  The loss and the metrics are float32 scalars. With `config.augment.reverse` every clip is shown
  twice, forwards and backwards: the two differ in order alone, so order is what is learnt.

  Args:
    model: the network.
    config: config of the run.
    classes: its K classes; with `augment.reverse` each names its reverse.
    class_prompts: the texts behind token ids of classes with several texts, of which one is drawn
      for each class; features in `text` are taken as they are.
  """
  if config.train.task == 'captions':
    return _make_caption_forward(model, config)
  return _make_class_forward(model, config, classes, class_prompts)


def _make_class_forward(
  model: XCLIP, config: Any, classes: ClassList, class_prompts: prompts.Prompts | None
) -> Forward:
  """Builds the forward pass of the tasks single-label and multi-label."""
  data, train, smoothing = config.data, config.train, config.augment.label_smoothing
  one_label = train.task == 'single-label'
  loss_fn = (losses.sigmoid_cross_entropy if validation.resolve_loss(train) == 'sigmoid' else
             losses.cross_entropy)
  reverse = tuple(k for k in classes.reverse if k is not None)
  assert not config.augment.reverse or len(reverse) == len(classes), 'see targets.check_reverse'
  blending = losses.Blending(
    config.augment.mixup, config.augment.cutmix, config.augment.cutmix_share,
    config.augment.blend_rows)

  def forward(params, batch, text, key):
    blend_key, drop_key = jax.random.split(key)
    if 'colors' in batch:
      batch = batch | {'video': color_jitter.apply(batch['video'], batch['colors'])}
    if config.augment.reverse:
      batch = losses.add_reversed(batch, reverse)
    targets = (losses.soft_targets(batch['label'], len(classes), smoothing) if one_label else
               losses.multi_hot(batch['labels'], smoothing))
    video, targets = losses.blend(blend_key, batch['video'], targets, blending)
    ids = None
    if isinstance(text, tuple):
      text, ids = text
    elif jnp.issubdtype(text.dtype, jnp.integer):
      ids = _draw_texts(class_prompts, text, key)
      text = text_features.encode(model, params, ids)
    video = vision.normalize(video, data.mean, data.std)
    out = compare(model, params, video, text, drop_key)
    logits = out.logits
    loss = loss_fn(logits, targets, batch['mask'])
    best = logits.argmax(-1)
    hits = best == batch['label'] if one_label else (
      jnp.take_along_axis(batch['labels'], best[:, None], axis=1)[:, 0])
    metrics = {'loss': loss, 'accuracy': _mean_hits(hits, batch['mask'])}
    return loss, metrics, ForwardPass(video, batch['mask'], ids, out.frame_features, text)

  return forward


def make_text_encoder(
  model: XCLIP, class_prompts: prompts.Prompts | None = None
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """Builds encode(params, token_ids, key) -> (features float32 [K, E], token ids int32 [K, S]).

  The features are those that a forward pass with the same arguments computes: of the texts of
  `class_prompts`, `key` draws the same one for each class. The token ids are those of the texts
  drawn.
  """
  def encode(params, token_ids, key):
    drawn = _draw_texts(class_prompts, token_ids, key)
    return text_features.encode(model, params, drawn), drawn

  return encode


def _draw_texts(
  class_prompts: prompts.Prompts | None, token_ids: Int[AnyArray, 'texts S'], key: jax.Array
) -> Int[AnyArray, 'K S']:
  """Draws one text for each class: int32 [K, S]."""
  if class_prompts is None:
    return token_ids
  _, drop_key = jax.random.split(key)
  return token_ids[class_prompts.draw(jax.random.fold_in(drop_key, 2))]


def _make_caption_forward(model: XCLIP, config: Any) -> Forward:
  """Builds the forward pass of captions: every video of the batch with every caption of it."""
  data, train = config.data, config.train
  sigmoid = validation.resolve_loss(train) == 'sigmoid'

  def forward(params, batch, _, key):
    _, drop_key = jax.random.split(key)
    video, mask = batch['video'], batch['mask']
    if 'colors' in batch:
      video = color_jitter.apply(video, batch['colors'])
    if train.freeze_text:
      params = params | {'text': jax.lax.stop_gradient(params['text'])}
    ids, file, all_rows = (
      mesh_lib.gather_batch(x) for x in (batch['token_ids'], batch['file'], mask))
    text: Any = model.apply({'params': params}, batch['token_ids'], method='encode_text')
    video = vision.normalize(video, data.mean, data.std)
    out = compare(model, params, video, mesh_lib.gather_batch(text), drop_key)
    logits = out.logits                                                              # [B, B]
    # A text or a video that is in the batch twice is right in both rows.
    same = (ids[:, None] == ids[None, :]).all(-1) | (file[:, None] == file[None, :])
    loss = (losses.sigmoid_cross_entropy(logits, same.astype(jnp.float32), mask, all_rows)
            if sigmoid else losses.contrastive(logits, same, all_rows))
    best = jnp.where(all_rows, logits, -jnp.inf).argmax(-1)
    hits = jnp.take_along_axis(same, best[:, None], axis=1)[:, 0]
    metrics = {'loss': loss, 'accuracy': _mean_hits(hits, mask)}
    return loss, metrics, ForwardPass(video, mask, batch['token_ids'], out.frame_features, text)

  return forward


def _mean_hits(hits: Bool[AnyArray, ' B'], mask: Bool[AnyArray, ' B']) -> Float[AnyArray, '']:
  """Returns the share of the rows of mask [B] that are hits, bool [B]."""
  return jnp.where(mask, hits, False).sum() / jnp.maximum(mask.sum(), 1)


def compute_initial_bias(
  model: XCLIP, config: Any, params: Any, batch: dict[str, AnyArray], text: AnyArray | None,
  class_prompts: prompts.Prompts | None = None,
) -> Float[AnyArray, '']:
  """Computes the logit bias that makes the mean logit the log-odds of a positive pair.

  SigLIP starts from -10 for the same reason: nearly all pairs are negative, and a model that does
  not know so spends its first steps on learning it. Here the share of positives and the mean logit
  are those of a batch; batch, text and class_prompts are as in `make_forward`.
  """
  train = config.train
  if train.task == 'captions':
    ids, file, mask = batch['token_ids'], batch['file'], batch['mask']
    same = (ids[:, None] == ids[None, :]).all(-1) | (file[:, None] == file[None, :])
    share = jnp.sum(same & mask & mask[:, None]) / jnp.maximum(mask.sum() ** 2, 1)
    text = text_features.encode(model, params, ids)
  else:
    assert text is not None                      # texts of classes, which captions have not
    share = (1 / text.shape[0] if class_prompts is None else 1 / len(class_prompts.counts)
             ) if train.task == 'single-label' else batch['labels'].mean()
    if not train.freeze_text:
      text = text_features.encode(
        model, params, text if class_prompts is None else text[class_prompts.rows[:, 0]])
  logits = classify_pixels(model, params, batch['video'], text, config.data).logits
  logits -= params['logit_bias']
  share = jnp.clip(share, 1e-4, 1 - 1e-4)
  mean = jnp.where(batch['mask'][:, None], logits, 0).sum() / jnp.maximum(
    batch['mask'].sum() * logits.shape[1], 1)
  return jnp.log(share / (1 - share)) - mean
