"""The state of a run: the arrays that a checkpoint holds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from xclip_jax.models.training_options.projectors import PROJECTORS, init_projectors
from xclip_jax.models.xclip import XCLIP, init_params
from xclip_jax.parallel import tree_names


@flax.struct.dataclass
class TrainState:
  """Arrays that change from step to step; random numbers and data follow from `step`.

  Fields:
    step: int32 [], number of updates done.
    params: parameters, float32.
    opt_state: state of the optimizer.
    average: running average of the parameters; None if the run keeps none.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  average: Any = None

  @property
  def weights(self) -> Any:
    """Parameters to evaluate and export: their average if the run keeps one.

    Distillation projectors, which exist in training only, are left out.
    """
    params = self.params if self.average is None else self.average
    return {name: x for name, x in params.items() if name != PROJECTORS}

  def start_from(self, params: Any) -> 'TrainState':
    """Returns this state with other parameters; the running average starts from them too."""
    params = params | {k: x for k, x in self.params.items() if k == PROJECTORS}
    # A copy, because the training step overwrites both `params` and `average` in place.
    average = None if self.average is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(self, params=params, average=average)


def create(
  params: Any, tx: optax.GradientTransformation, keep_average: bool = False
) -> TrainState:
  """Returns the state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params),
    average=jax.tree.map(jnp.copy, params) if keep_average else None,
  )


def draw_params(model: XCLIP, key: jax.Array, projectors: bool = False) -> Any:
  """Draws the model's parameters, and those of the distillation projectors if asked for."""
  params = init_params(model, key)
  if projectors:
    params[PROJECTORS] = init_projectors(
      model.config.embed_dim, jax.random.fold_in(key, 1))
  return params


def abstract(
  model: XCLIP, tx: optax.GradientTransformation, keep_average: bool = False,
  projectors: bool = False,
) -> TrainState:
  """Returns shapes and dtypes of the state before the first step; allocates nothing."""
  return jax.eval_shape(
    lambda: create(draw_params(model, jax.random.key(0), projectors), tx, keep_average))


def init(
  model: XCLIP, tx: optax.GradientTransformation, seed: int, shardings: Any,
  scale: Sequence[tuple[str, float]] = (('.*', 1.0),),
) -> TrainState:
  """Draws the state before the first step, each array on the devices of its sharding.

  Args:
    model: model to initialise.
    tx: optimizer.
    seed: seed of the parameters.
    shardings: TrainState with the sharding of every leaf; it has an average and projectors if the
      state shall have them.
    scale: rows of (regex over parameter names, factor for the drawn values), first match wins.

  Raises:
    UserError: a parameter that no rule matches, or a rule that no parameter matches first.
  """
  scale = tuple(scale)
  keep_average, projectors = shardings.average is not None, PROJECTORS in shardings.params

  def create_state(key):
    params = draw_params(model, key, projectors)
    tree_names.check_used(scale, tree_names.flatten(params), 'config.train.init_scale')
    params = tree_names.map_with_names(lambda name, x: x * tree_names.match(name, scale), params)
    return create(params, tx, keep_average)

  return jax.jit(create_state, out_shardings=shardings)(jax.random.key(seed))
