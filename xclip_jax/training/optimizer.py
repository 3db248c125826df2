"""The optimizer of a run, in groups, each with its learning rate and weight decay."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xclip_jax.errors import UserError
from xclip_jax.parallel import tree_names

FROZEN_TEXT = (r'text/.*|logit_scale', 0.0)
Average = Callable[[jax.Array], jax.Array]     # updates done -> what the new parameters count
NAMES = ('adamw', 'lion', 'adafactor')


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


def make_rule(
  optim: Any, schedule: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
  """Builds the update rule `optim.name` of one group.

  Weight decay is decoupled and multiplied by the learning rate in all of them.

  adamw: Loshchilov & Hutter 2019. lion: Chen et al. 2023, the sign of a momentum. adafactor:
  Shazeer & Stern 2018 as Zhai et al. 2022 ("Scaling Vision Transformers", Sec. 3.4) use it: with a
  momentum, without scaling by the size of a parameter, so that the learning rate means what it
  does in adamw, and with the memory of the second moment limited to b2.

  Raises:
    ValueError: there is no rule of that name.
  """
  if optim.name == 'adamw':
    return optax.adamw(schedule, optim.b1, optim.b2, optim.eps, weight_decay=weight_decay)
  if optim.name == 'lion':
    return optax.lion(schedule, optim.b1, optim.b2, weight_decay=weight_decay)
  if optim.name == 'adafactor':
    memory = lambda step, power: jnp.minimum(1 - (step + 1.0) ** -power, optim.b2)
    return optax.chain(
      optax.scale_by_factored_rms(decay_rate_fn=memory),
      optax.clip_by_block_rms(1.0),
      optax.ema(optim.b1, debias=False),
      optax.add_decayed_weights(weight_decay),
      optax.scale_by_learning_rate(schedule),
    )
  raise UserError(f'config.optim.name={optim.name!r} is unknown; one of {list(NAMES)}')


def make(
  optim: Any, params: Any, total_steps: int, warmup_steps: float, accumulation: int = 1,
  freeze_text: bool = False,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer from `config.optim`.

  Args:
    optim: see config.py.
    params: the (abstract) parameters; only their names count.
    total_steps: updates in the run.
    warmup_steps: updates of warm-up.
    accumulation: micro-batches an update when the run began, the unit of `optim.lag_steps`.
    freeze_text: the text tower and the logit scale do not move.

  Returns:
    The transformation, and the schedule of the group with multiple 1.

  Raises:
    ValueError: an unknown name, a parameter that no rule matches, or a rule that is no parameter's
      first match.
  """
  names = list(tree_names.flatten(params))
  groups = ((FROZEN_TEXT,) if freeze_text else ()) + tuple(optim.groups)
  for field, rules in (('groups', tuple(optim.groups)), ('decay', tuple(optim.decay))):
    tree_names.check_used(rules, names, f'config.optim.{field}')

  def schedule(multiple: float) -> optax.Schedule:
    return make_schedule(
      optim.lr * multiple, optim.lr * optim.floor, warmup_steps, total_steps,
      optim.lag_steps / accumulation,
    )

  def label(name: str, _) -> str:
    multiple = tree_names.match(name, groups)
    return f'lr {multiple} decay {tree_names.match(name, optim.decay)}' if multiple else 'frozen'

  def rule(name: str) -> optax.GradientTransformation:
    _, multiple, _, decay = name.split()
    return make_rule(optim, schedule(float(multiple)), optim.weight_decay * float(decay))

  labels = tree_names.map_with_names(label, params)
  used = sorted(set(jax.tree.leaves(labels)) - {'frozen'})
  if not used:
    raise UserError('config.optim.groups freezes every parameter; nothing would be trained')
  update = optax.partition({u: rule(u) for u in used} | {'frozen': optax.set_to_zero()}, labels)
  if optim.clip_norm:
    # Frozen gradients must not count in the norm.
    trained = optax.partition(
      {u: optax.identity() for u in used} | {'frozen': optax.set_to_zero()}, labels
    )
    update = optax.chain(trained, optax.clip_by_global_norm(optim.clip_norm), update)
  return update, schedule(1.0)


def make_average(train: Any, total_steps: int) -> Average | None:
  """Builds the average of parameters that `config.train` asks for; None if none.

  With `ema` = d: average = d * average + (1 - d) * params after every update, from the initial
  parameters on. With `average_from` = s: the plain mean of the parameters after each of the updates
  beyond s * total_steps (stochastic weight averaging, Izmailov et al. 2018); before, the parameters
  themselves.

  Raises:
    ValueError: both are asked for, or a value outside [0, 1).
  """
  ema, since = train.ema, train.average_from
  for field, value, off in (('ema', ema, 0.0), ('average_from', since, 1.0)):
    if value != off and not 0 <= value < 1:
      raise UserError(f'config.train.{field} must lie in [0, 1), or be {off} (off), got {value}')
  if ema and since < 1:
    raise UserError(
      f'config.train.ema={ema} and config.train.average_from={since} are two ways to average; '
      'set one, and leave the other at 0.0 or 1.0'
    )
  if ema:
    return lambda step: jnp.float32(1 - ema)
  if since < 1:
    first = min(math.floor(since * total_steps), total_steps - 1)
    return lambda step: 1 / jnp.maximum(step - first, 1).astype(jnp.float32)
  return None


def add_to_average(average: Any, params: Any, share: jax.Array) -> Any:
  """Moves an average towards the parameters by a share of the way; exactly to them by 1."""
  move = lambda mean, x: jnp.where(share == 1, x, mean + share.astype(x.dtype) * (x - mean))
  return jax.tree.map(move, average, params)
