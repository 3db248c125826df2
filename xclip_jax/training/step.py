"""One update of a run: loss, gradients, optimizer, new state."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state as state_lib
from xclip_jax.text import prompts
from xclip_jax.training import accumulation, optimizer
from xclip_jax.training.objectives import anchoring, objective
from xclip_jax.training.start_weights import drop_projectors


def make_train_step(
  model: XCLIP, tx: optax.GradientTransformation, config: Any, classes: ClassList,
  average: optimizer.Average | None = None, several: prompts.Prompts | None = None,
) -> Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]:
  """Builds step(state, batch, text, key[, anchor]) -> (state, metrics); to be jitted.

  `batch`, `text` and `several` are as objective.make says. `key` is the run's: what is random in a
  step follows from it and state.step. With accumulation the batch is worked through in
  `config.train.accumulation` micro-batches, each blended by itself, and gradients are averaged; see
  `accumulation.gradients`.
  `average`, if there is one, says what new parameters count in the average of all so far. `anchor`,
  where a run stays near the weights that it started from, is those.
  """
  train = config.train
  forward = objective.make_forward(model, config, classes, several)
  loss_fn = (anchoring.wrap(forward, model, config) if anchoring.is_on(train) else
             lambda *arguments: forward(*arguments)[:2])
  grad_fn = jax.grad(loss_fn, has_aux=True)
  # Texts of classes are the same in all micro-batches, and so are the parameters that encode them,
  # unless the regulariser interpolates them anew for each.
  shares_texts = not (
    train.freeze_text or train.task == 'captions' or train.interpolate_up_to)
  encode = objective.make_text_encoder(model, several) if shares_texts else None

  def step(state, batch, text, key, *anchor):
    key = jax.random.fold_in(key, state.step)
    if train.accumulation == 1:
      grads, metrics = grad_fn(state.params, batch, text, key, *anchor)
    else:
      grads, metrics = accumulation.gradients(
        loss_fn, encode, train.accumulation, state.params, batch, text, key, *anchor)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics['grad_norm'] = optax.tree.norm(grads)
    mean = average and optimizer.add_to_average(state.average, params, average(state.step + 1))
    return state_lib.TrainState(state.step + 1, params, opt_state, mean), metrics

  return step


def jit_train_step(
  model: XCLIP, tx: optax.GradientTransformation, config: Any, classes: ClassList, shardings: Any,
  mesh: Any, average: optimizer.Average | None = None, several: prompts.Prompts | None = None,
) -> Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]:
  """`make_train_step`, jitted for a mesh; `shardings` are the state's, which it overwrites."""
  everywhere = mesh_lib.replicated(mesh)
  anchor = (drop_projectors(shardings.params),) if anchoring.is_on(config.train) else ()
  return jax.jit(
    make_train_step(model, tx, config, classes, average, several), donate_argnums=0,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh), everywhere, everywhere, *anchor),
    out_shardings=(shardings, everywhere),
  )
