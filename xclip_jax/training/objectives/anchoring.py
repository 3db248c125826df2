"""Training that does not forget: what a run adds to its loss to stay near what it started from.

The anchor is the parameters that the run started from (`config.train.init_from`); they are
constants.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from xclip_jax.errors import UserError
from xclip_jax.models.config import FRAME_MEAN
from xclip_jax.models.training_options.projectors import PROJECTORS, Projectors
from xclip_jax.models.xclip import XCLIP, l2_normalize
from xclip_jax.training.objectives.objective import Forward


def is_on(train: Any) -> bool:
  """Whether `config.train` asks for an anchor.

  Raises:
    ValueError: a value that is none, or a run that starts from nothing.
  """
  up_to, weight, distill = train.interpolate_up_to, train.interpolate_weight, train.distill
  if not 0 <= up_to < 1:
    raise UserError(f'config.train.interpolate_up_to must lie in [0, 1), got {up_to}')
  for name, value in (('interpolate_weight', weight), ('distill', distill)):
    if value < 0:
      raise UserError(f'config.train.{name} must be 0 or more, got {value}')
  used = [name for name in ('interpolate_up_to', 'distill') if train[name]]
  if used and not train.init_from:
    raise UserError(
      f'config.train.{used[0]}={train[used[0]]} keeps a run near the weights that it starts from; '
      'set config.train.init_from to some')
  return bool(used)


def wrap(forward: Forward, model: XCLIP, config: Any) -> Callable[..., Any]:
  """Builds objective(params, batch, text, key, anchor) -> (loss, metrics).

  `interpolate_up_to` = u and `interpolate_weight` = C: Open-VCLIP's interpolated weight
  regularisation (Weng et al., ICML 2023, Sec. 3.3). With r drawn from U(0, u), the same loss of the
  parameters r * anchor + (1 - r) * params is added, times C / (1 - r), so that its gradient with
  respect to params has the weight C whatever r is, as in the authors' code. Batch, blending and
  what is dropped are the same for both.

  `distill` = b: residual feature distillation (FROSTER; Huang et al., ICLR 2024), with the formula
  of the authors' code. The teacher is the anchor as a CLIP, which encodes every frame by itself:
  no messages, integration or prompts. The student's features of each frame (those that integration
  starts from), and of each text if that tower is trained, are normalised and go through
  `Projectors`. One minus their cosine with the teacher's, mean over frames and videos, plus the
  same, mean over texts, is the metric `distance`; b times it is added to the loss.

  What differs from the authors' code: their student is a CLIP whose logits are averaged over
  frames, ours is any X-CLIP; they always train the text tower; their projectors learn as fast as
  the rest, ours as the rule `distill/.*` of `config.optim.groups` says, ten times as fast by
  default; rows without a video do not count.

  Args:
    forward: from objective.make_forward.
    model: that is trained.
    config: of the run.
  """
  train = config.train
  up_to, weight, distill = train.interpolate_up_to, train.interpolate_weight, train.distill
  clip = XCLIP(replace(model.config, **FRAME_MEAN, logit_bias=False, patch_dropout=0.0,
                       drop_path=0.0))

  def objective(params, batch, text, key, anchor):
    loss, metrics, seen = forward(params, batch, text, key)
    metrics = metrics | {'task_loss': loss}
    if up_to:
      r = jax.random.uniform(jax.random.fold_in(key, 1), (), maxval=up_to)
      mixed = jax.tree.map(lambda a, p: r * a + (1 - r) * p, anchor,
                           {name: params[name] for name in anchor})
      between, _, _ = forward(mixed, batch, text, key)
      loss += weight / (1 - r) * between
      metrics |= {'between_loss': between}
    if distill:
      teacher = {'params': jax.lax.stop_gradient(anchor)}
      wanted = clip.apply(teacher, seen.video, method='encode_video').frame_features
      found = Projectors().apply({'params': params[PROJECTORS]}, seen.frame_features,
                                 seen.text_features)
      distance = _distance(found[0], wanted, seen.mask[:, None])
      if not train.freeze_text:
        words = clip.apply(teacher, seen.token_ids, method='encode_text')
        there = seen.mask if train.task == 'captions' else jnp.ones(len(words), bool)
        distance += _distance(found[1], words, there)
      loss += distill * distance
      metrics |= {'distance': distance}
    return loss, metrics | {'loss': loss}

  return objective


def _distance(found: jax.Array, wanted: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the mean of 1 - cosine over the features that count; mask is cast to their shape."""
  apart = 1 - jnp.sum(l2_normalize(found) * l2_normalize(wanted), axis=-1)
  mask = jnp.broadcast_to(mask, apart.shape)
  return jnp.sum(jnp.where(mask, apart, 0)) / jnp.maximum(mask.sum(), 1)
