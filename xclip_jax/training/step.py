"""The training step: loss, gradients, optimizer, new state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state as state_lib
from xclip_jax.text import prompts
from xclip_jax.training import optimizer
from xclip_jax.training.objectives import anchoring, objective
from xclip_jax.training.start_weights import drop_projectors

# (state, batch, text, key[, anchor]) -> (state, metrics)
Step = Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class StepParts:
  """The parts that a training step is made of.

  Fields:
    model: the network.
    tx: its optimizer, from `optimizer.make`.
    config: config of the run.
    classes: the K classes of the training videos; none for captions.
    average: maps the number of updates done to the weight of the new parameters in the running
      average; None without one.
    class_prompts: the texts of classes that have several; None if each class has one.
  """

  model: XCLIP
  tx: optax.GradientTransformation
  config: Any
  classes: ClassList
  average: optimizer.Average | None = None
  class_prompts: prompts.Prompts | None = None


@dataclasses.dataclass(frozen=True)
class MicroBatches:
  """The number of micro-batches of a batch, and the functions that each goes through.

  Fields:
    count: micro-batches a batch.
    loss_fn: (params, micro-batch, text, key, *anchor) -> (loss, metrics).
    encode_text: (params, text, key) -> (features, token ids), which `loss_fn` then takes for
      `text`; None: `loss_fn` takes `text` itself.
  """

  count: int
  loss_fn: Callable[..., Any]
  encode_text: Callable[..., tuple[jax.Array, jax.Array]] | None = None


def make_train_step(parts: StepParts) -> Step:
  """Builds step(state, batch, text, key[, anchor]) -> (state, metrics); to be jitted.

  `batch` and `text` are as in objective.make_forward. `key` is that of the run; the random numbers
  of a step follow from it and state.step. `anchor` is the initial weights, if the loss keeps the
  run near them. With accumulation the batch is worked through in `config.train.accumulation`
  micro-batches, each blended by itself, and gradients are averaged; see `accumulate_gradients`.
  """
  train = parts.config.train
  forward = objective.make_forward(
    parts.model, parts.config, parts.classes, parts.class_prompts)
  loss_fn = (anchoring.wrap(forward, parts.model, parts.config) if anchoring.is_on(train) else
             lambda *arguments: forward(*arguments)[:2])
  grad_fn = jax.grad(loss_fn, has_aux=True)
  # All micro-batches share the texts of the classes and the parameters that encode them, unless the
  # regulariser interpolates these parameters anew for each micro-batch.
  shares_texts = not (
    train.freeze_text or train.task == 'captions' or train.interpolate_up_to)
  micro_batches = MicroBatches(
    train.accumulation, loss_fn,
    objective.make_text_encoder(parts.model, parts.class_prompts) if shares_texts else None)

  def step(state, batch, text, key, *anchor):
    key = jax.random.fold_in(key, state.step)
    if train.accumulation == 1:
      grads, metrics = grad_fn(state.params, batch, text, key, *anchor)
    else:
      grads, metrics = accumulate_gradients(
        micro_batches, state.params, batch, text, key, *anchor)
    updates, opt_state = parts.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics['grad_norm'] = optax.tree.norm(grads)
    average = parts.average and optimizer.add_to_average(
      state.average, params, parts.average(state.step + 1))
    return state_lib.TrainState(state.step + 1, params, opt_state, average), metrics

  return step


def jit_train_step(parts: StepParts, shardings: Any, mesh: Any) -> Step:
  """Builds `make_train_step` jitted for a mesh.

  Args:
    parts: of the step.
    shardings: of every leaf of the state, whose buffers the step overwrites.
    mesh: from `parallel.mesh.make_mesh`.
  """
  everywhere = mesh_lib.replicated(mesh)
  anchor = (
    (drop_projectors(shardings.params),) if anchoring.is_on(parts.config.train) else ())
  return jax.jit(
    make_train_step(parts), donate_argnums=0,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh), everywhere, everywhere, *anchor),
    out_shardings=(shardings, everywhere),
  )


def accumulate_gradients(
  micro_batches: MicroBatches, params: Any, batch: Any, text: Any, key: jax.Array, *anchor: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """Returns the gradients and the metrics of a batch, averaged over its micro-batches.

  With `encode_text` the text tower runs forward and backward once: gradients are linear, so those
  with respect to the text features are summed over the micro-batches before they are pulled back
  through the tower.

  Args:
    micro_batches: their number, loss and text encoder.
    params: as in `make_train_step`; so are batch, text and anchor.
    batch: arrays [B, ...].
    text: token ids or features of the classes.
    key: rng, from which each micro-batch gets a key of its own.
    *anchor: the initial weights, or nothing.
  """
  count = micro_batches.count
  variables, pull_back, ids = (params,), None, None
  if micro_batches.encode_text is not None:
    encode = micro_batches.encode_text
    features, pull_back, ids = jax.vjp(
      lambda tower: encode(params | {'text': tower}, text, key), params['text'], has_aux=True)
    variables = params, features
  # A micro-batch takes one row of every `count` successive rows: each device splits its own rows.
  split = lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
  parts = jax.tree.map(split, batch), jax.random.split(key, count)

  def compute_loss(variables, batch, key):
    params, *features = variables
    text_or_features = (*features, ids) if features else text
    return micro_batches.loss_fn(params, batch, text_or_features, key, *anchor)

  grad_fn = jax.grad(compute_loss, has_aux=True)
  add = lambda total, part: (jax.tree.map(jnp.add, total, grad_fn(variables, *part)), None)
  shapes = jax.eval_shape(grad_fn, variables, *jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, parts)
  (grads, *of_features), metrics = jax.tree.map(lambda x: x / count, total)
  if pull_back:
    grads = grads | {'text': jax.tree.map(jnp.add, grads['text'], *pull_back(*of_features))}
  return grads, metrics
