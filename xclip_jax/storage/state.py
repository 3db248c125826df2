"""The state of a run: what a checkpoint holds."""

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
  """All that changes from step to step; random numbers and data follow from `step`."""

  step: jax.Array          # int32 [], updates applied
  params: Any
  opt_state: Any
  average: Any = None      # of the parameters so far, where a run keeps one

  @property
  def weights(self) -> Any:
    """What is evaluated and used: the average where there is one, else the parameters.

    Projectors, which exist in training only, are not among them.
    """
    params = self.params if self.average is None else self.average
    return {name: x for name, x in params.items() if name != PROJECTORS}

  def start_from(self, params: Any) -> 'TrainState':
    """The same state with other parameters; an average starts from them too."""
    kept = {k: x for k, x in self.params.items() if k == PROJECTORS}
    params = params | kept
    # Copied: a step is given both to overwrite.
    average = None if self.average is None else jax.tree.map(jnp.copy, params)
    return self.replace(params=params, average=average)


def create(
  params: Any, tx: optax.GradientTransformation, keep_average: bool = False
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params),
    average=jax.tree.map(jnp.copy, params) if keep_average else None,
  )


def draw_params(model: XCLIP, key: jax.Array, projectors: bool = False) -> Any:
  """Draws all that is trained: the model's parameters, and projectors if there are any."""
  params = init_params(model, key)
  if projectors:
    params[PROJECTORS] = init_projectors(
      model.config.embed_dim, jax.random.fold_in(key, 1))
  return params


def abstract(
  model: XCLIP, tx: optax.GradientTransformation, keep_average: bool = False,
  projectors: bool = False,
) -> TrainState:
  """Shapes and dtypes of the state; allocates nothing."""
  return jax.eval_shape(
    lambda: create(draw_params(model, jax.random.key(0), projectors), tx, keep_average))


def init(
  model: XCLIP, tx: optax.GradientTransformation, seed: int, shardings: Any,
  scale: Sequence[tuple[str, float]] = (('.*', 1.0),), keep_average: bool = False,
  projectors: bool = False,
) -> TrainState:
  """Draws a state whose arrays are born where they belong.

  Args:
    model: to be initialised.
    tx: its optimizer.
    seed: of the parameters.
    shardings: of every leaf of the state.
    scale: (regex over parameter names, multiple of the drawn values), first match wins.
    keep_average: the state holds an average of the parameters.
    projectors: the state holds those of models/projectors.py.

  Raises:
    ValueError: a parameter that no rule matches, or a rule that is no parameter's first match.
  """
  scale = tuple(scale)

  def create_state(key):
    params = draw_params(model, key, projectors)
    tree_names.check_used(scale, tree_names.flatten(params), 'config.train.init_scale')
    params = tree_names.map_with_names(lambda name, x: x * tree_names.match(name, scale), params)
    return create(params, tx, keep_average)

  return jax.jit(create_state, out_shardings=shardings)(jax.random.key(seed))
