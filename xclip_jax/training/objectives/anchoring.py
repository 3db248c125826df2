"""Losses that keep a run near its initial weights: interpolated weights, feature distillation.

The anchor is the parameters that `config.train.init_from` names; they are constants.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from xclip_jax.models.config import FRAME_MEAN
from xclip_jax.models.matmul import AnyArray
from xclip_jax.models.training_options.projectors import PROJECTORS, Projectors
from xclip_jax.models.xclip import XCLIP, l2_normalize
from xclip_jax.training.objectives.objective import Forward


def is_on(train: Any) -> bool:
  """Tells whether `config.train` asks for a loss that needs the initial weights."""
  return bool(train.interpolate_up_to or train.distill)


def wrap(forward: Forward, model: XCLIP, config: Any) -> Callable[..., Any]:
  """Builds objective(params, batch, text, key, anchor) -> (loss, metrics).

  `interpolate_up_to` = u and `interpolate_weight` = C: Open-VCLIP's interpolated weight
  regularisation (Weng et al., ICML 2023, Sec. 3.3). With r drawn from U(0, u), the same loss of the
  parameters r * anchor + (1 - r) * params is added, times C / (1 - r), so that its gradient with
  respect to params has the weight C whatever r is, as in the authors' code. Both losses share the
  batch, its blending and the dropped paths and patches.

  `distill` = b: residual feature distillation (FROSTER; Huang et al., ICLR 2024), with the formula
  of the authors' code. The teacher is the anchor as a CLIP, which encodes every frame by itself:
  no messages, integration or prompts. The student's features of each frame (the input of the
  integration transformer), and of each text if the text tower is trained, are normalised and go
  through `Projectors`. One minus their cosine with the teacher's, mean over frames and videos, plus
  the same, mean over texts, is the metric `distance`; the loss grows by b times the distance.

  Differences from the authors' code: their student is a CLIP whose logits are averaged over
  frames, ours is any X-CLIP; they always train the text tower; their projectors learn as fast as
  the rest, ours as the rule `distill/.*` of `config.optim.groups` says, ten times as fast by
  default; rows without a video do not count.

  Args:
    forward: from objective.make_forward.
    model: the network that is trained.
    config: config of the run.
  """
  train = config.train
  up_to, weight, distill = train.interpolate_up_to, train.interpolate_weight, train.distill
  clip = XCLIP(replace(model.config, **FRAME_MEAN, logit_bias=False, patch_dropout=0.0,
                       drop_path=0.0))

  def objective(params, batch, text, key, anchor):
    loss, metrics, forward_pass = forward(params, batch, text, key)
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
      teacher_video: Any = clip.apply(teacher, forward_pass.video, method='encode_video')
      projected: Any = Projectors().apply(
        {'params': params[PROJECTORS]}, forward_pass.frame_features, forward_pass.text_features)
      student_frames, student_texts = projected
      distance = _mean_distance(
        student_frames, teacher_video.frame_features, forward_pass.mask[:, None])
      if not train.freeze_text:
        teacher_texts: Any = clip.apply(teacher, forward_pass.token_ids, method='encode_text')
        text_mask = (forward_pass.mask if train.task == 'captions' else
                     jnp.ones(len(teacher_texts), bool))
        distance += _mean_distance(student_texts, teacher_texts, text_mask)
      loss += distill * distance
      metrics |= {'distance': distance}
    return loss, metrics | {'loss': loss}

  return objective


def _mean_distance(
  student: Float[AnyArray, '*rows E'], teacher: Float[AnyArray, '*rows E'],
  mask: Bool[AnyArray, '#*rows'],
) -> Float[AnyArray, '']:
  """Returns the mean of 1 - cosine over features [..., E] whose mask [...] (or [B, 1]) is set."""
  distances = 1 - jnp.sum(l2_normalize(student) * l2_normalize(teacher), axis=-1)
  mask = jnp.broadcast_to(mask, distances.shape)
  return jnp.sum(jnp.where(mask, distances, 0)) / jnp.maximum(mask.sum(), 1)
