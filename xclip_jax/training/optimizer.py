"""The optimizer of a run: groups of parameters, learning rates, weight decay, averages."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xclip_jax.config.fields import OPTIMIZERS
from xclip_jax.errors import ConfigError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.parallel import tree_names

PUBLISHED_RATE = 8e-6           # of B/32, B/16 and L/14, with batches of 256 videos
SMALL_WIDTH = 512               # vision_width below which a model is smaller than those
SMALL_RATE = 2e-4               # to fine-tune weights narrower than that
LEAST_DISTANCE = 1e-4           # that some parameter must be able to move in a run
FROZEN_TEXT = (r'text/.*|logit_scale', 0.0)    # the rule of `train.freeze_text`
# Maps the number of updates done to the weight of the new parameters in the running average.
Average = Callable[[jax.Array], jax.Array]


def fit_learning_rate(model: XCLIPConfig, batch_size: int) -> float:
  """Returns the peak learning rate that fits fine-tuning weights of a size.

  Models of the published sizes take the published rate, 8e-6 x batch / 256. Narrower ones, such as
  that of configs/demo.py, are trained with rates a hundred times as large, and need them again.
  """
  if model.vision_width >= SMALL_WIDTH:
    return PUBLISHED_RATE * batch_size / 256
  return SMALL_RATE


def explain_small_rate(config: Any, model: XCLIPConfig, total_steps: int) -> str | None:
  """Returns a warning if the learning rates of a run are too small for it to learn; else None.

  An update of Adam or Lion moves a parameter by about the learning rate, so the sum of all rates
  bounds how far any parameter can move.

  Args:
    config: config of the run.
    model: size of its network.
    total_steps: updates of the run.
  """
  lr = config.optim.lr
  if 0 < lr < SMALL_RATE / 4 and model.vision_width < SMALL_WIDTH:
    return (f'config.optim.lr={lr:g} fits models of the published sizes; this one is '
            f'{model.vision_width} wide and hardly learns with it; try {SMALL_RATE:g}')
  most = max(multiple for _, multiple in config.optim.groups)
  distance = lr * most * total_steps / 2                # the mean of a cosine is half of its peak
  if 0 < distance < LEAST_DISTANCE:
    return (f'config.optim.lr={lr:g} over {total_steps} updates moves no weight by more than '
            f'{distance:.1g}, too little to learn from; train longer, or raise it')
  return None


def make_schedule(
  lr: float, floor: float, warmup_steps: float, total_steps: int, lag: float
) -> optax.Schedule:
  """Builds a linear warm-up to lr followed by a cosine down to floor.

  The cosine starts at step 0, not at the end of the warm-up, so the rate drops a little there, as
  in the reference (timm's schedule). `lag` updates are subtracted first: the reference sets the
  rate after each (micro-)step for the next one, so its rate lags one step behind and its first two
  rates are 0.

  Args:
    lr: peak learning rate.
    floor: learning rate at the end.
    warmup_steps: updates of warm-up.
    total_steps: updates of the run.
    lag: updates that the rate lags behind.

  Returns:
    A function from the number of updates done to the learning rate.
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

  All rules decouple weight decay and multiply it by the learning rate.

  adamw: Loshchilov & Hutter 2019. lion: Chen et al. 2023, the sign of a momentum. adafactor:
  Shazeer & Stern 2018 as Zhai et al. 2022 ("Scaling Vision Transformers", Sec. 3.4) use it: with a
  momentum, without scaling by the norm of a parameter, so that learning rates are comparable with
  those of adamw, and with the memory of the second moment limited to b2.
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
  raise ConfigError(f'config.optim.name={optim.name!r} must be one of {", ".join(OPTIMIZERS)}')


def make(
  optim: Any, params: Any, total_steps: int, warmup_steps: float, accumulation: int = 1,
  freeze_text: bool = False,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer from `config.optim`.

  Args:
    optim: `config.optim`.
    params: the (abstract) parameters, of which only the names are used.
    total_steps: updates of the run.
    warmup_steps: updates of warm-up.
    accumulation: micro-batches an update when the run began, the unit of `optim.lag_steps`.
    freeze_text: fix the text tower and the logit scale.

  Returns:
    The transformation, and the schedule of groups with multiple 1.

  Raises:
    ValueError: A parameter that no rule matches, or a rule that is no parameter's first match.
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

  def group_of(name: str, _: Any) -> str:
    multiple = tree_names.match(name, groups)
    return f'lr {multiple} decay {tree_names.match(name, optim.decay)}' if multiple else 'frozen'

  def rule_of(group: str) -> optax.GradientTransformation:
    _, multiple, _, decay = group.split()
    return make_rule(optim, schedule(float(multiple)), optim.weight_decay * float(decay))

  group_names = tree_names.map_with_names(group_of, params)
  used = sorted(set(jax.tree.leaves(group_names)) - {'frozen'})
  if not used:
    raise ConfigError('config.optim.groups freezes every parameter; nothing would be trained')
  frozen: dict[Hashable, optax.GradientTransformation] = {'frozen': optax.set_to_zero()}
  update = optax.partition({group: rule_of(group) for group in used} | frozen, group_names)
  if optim.clip_norm:
    # The gradients of frozen parameters must not count in the norm.
    trained = optax.partition({group: optax.identity() for group in used} | frozen, group_names)
    update = optax.chain(trained, optax.clip_by_global_norm(optim.clip_norm), update)
  return update, schedule(1.0)


def make_average(train: Any, total_steps: int) -> Average | None:
  """Builds the average of parameters that `config.train` asks for; None if it asks for none.

  With `ema` = d: average = d * average + (1 - d) * params after every update, from the initial
  parameters on. With `average_from` = s: the plain mean of the parameters after each of the updates
  beyond s * total_steps (stochastic weight averaging, Izmailov et al. 2018); before, the parameters
  themselves.
  """
  ema, since = train.ema, train.average_from
  assert not ema or since == 1, 'config.validate refuses both averages'
  if ema:
    return lambda step: jnp.float32(1 - ema)
  if since < 1:
    first = min(math.floor(since * total_steps), total_steps - 1)
    return lambda step: 1 / jnp.maximum(step - first, 1).astype(jnp.float32)
  return None


def add_to_average(average: Any, params: Any, share: jax.Array) -> Any:
  """Moves an average a share of the way towards the parameters; a share of 1 copies them."""
  move = lambda mean, x: jnp.where(share == 1, x, mean + share.astype(x.dtype) * (x - mean))
  return jax.tree.map(move, average, params)
