"""The optimizer of a run: AdamW in groups, each with its learning rate and weight decay."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xclip_jax import paths

FROZEN_TEXT = (r'text/.*|logit_scale', 0.0)


def make_schedule(
  lr: float, floor: float, warmup_steps: float, total_steps: int, lag: float
) -> optax.Schedule:
  """Linear warm-up to lr, then a cosine down to floor. Takes the number of updates done.

  The cosine starts at step 0, not at the end of the warm-up, so the rate drops a little there: that
  is the reference's schedule (timm's). `lag` updates are subtracted first: the reference sets the
  rate after each (micro-)step for the next one, so it lags one behind, and its first two are 0.
  """
  def schedule(step):
    t = jnp.maximum(step - lag, 0)
    warm = lr * t / max(warmup_steps, 1)
    progress = jnp.minimum(t / max(total_steps, 1), 1)
    cosine = floor + 0.5 * (lr - floor) * (1 + jnp.cos(math.pi * progress))
    return jnp.where(t < warmup_steps, warm, cosine)

  return schedule


def make(
  optim: Any, params: Any, total_steps: int, warmup_steps: float, accumulation: int = 1,
  freeze_text: bool = False,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer from `config.optim`.

  Args:
    optim: see configs/base.py.
    params: the (abstract) parameters; only their names count.
    total_steps: updates in the run.
    warmup_steps: updates of warm-up.
    accumulation: micro-batches an update, the unit of `optim.lag_steps`.
    freeze_text: the text tower and the logit scale do not move.

  Returns:
    The transformation, and the schedule of the group with multiple 1.

  Raises:
    ValueError: a parameter that no rule matches, or a rule that is no parameter's first match.
  """
  names = list(paths.flatten(params))
  groups = ((FROZEN_TEXT,) if freeze_text else ()) + tuple(optim.groups)
  for field, rules in (('groups', tuple(optim.groups)), ('decay', tuple(optim.decay))):
    paths.check_used(rules, names, f'config.optim.{field}')

  def schedule(multiple: float) -> optax.Schedule:
    return make_schedule(
      optim.lr * multiple, optim.lr * optim.floor, warmup_steps, total_steps,
      optim.lag_steps / accumulation,
    )

  def label(name: str, _) -> str:
    multiple = paths.match(name, groups)
    return f'lr {multiple} decay {paths.match(name, optim.decay)}' if multiple else 'frozen'

  def adamw(name: str) -> optax.GradientTransformation:
    _, multiple, _, decay = name.split()
    return optax.adamw(
      schedule(float(multiple)), optim.b1, optim.b2, optim.eps,
      weight_decay=optim.weight_decay * float(decay),
    )

  labels = paths.map_with_names(label, params)
  used = sorted(set(jax.tree.leaves(labels)) - {'frozen'})
  if not used:
    raise ValueError('config.optim.groups freezes every parameter; nothing would be trained')
  update = optax.partition({u: adamw(u) for u in used} | {'frozen': optax.set_to_zero()}, labels)
  if optim.clip_norm:
    # Frozen gradients must not count in the norm.
    trained = optax.partition(
      {u: optax.identity() for u in used} | {'frozen': optax.set_to_zero()}, labels
    )
    update = optax.chain(trained, optax.clip_by_global_norm(optim.clip_norm), update)
  return update, schedule(1.0)
