"""Gradients of one update, summed over its micro-batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def gradients(
  loss_fn: Callable[..., Any], encode: Callable[..., tuple[jax.Array, jax.Array]] | None,
  micro_batches: int, params: Any, batch: Any, text: Any, key: jax.Array, *anchor: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """Returns the gradients and the metrics of a batch, averaged over its micro-batches.

  Args:
    loss_fn: (params, micro-batch, text, key, *anchor) -> (loss, metrics).
    encode: (params, text, key) -> (features, token ids), which `loss_fn` then takes for `text`. The
      text tower runs forward and backward once: gradients are linear, so those with respect to
      the features are summed over the micro-batches before they are pulled back through the tower.
      None: `loss_fn` takes `text` itself.
    micro_batches: how many the batch is cut into.
    params, batch, text, key, anchor: as of `train.make_train_step`; `key` decides what is random,
      each micro-batch gets a key of its own.
  """
  variables, pull_back, ids = (params,), None, None
  if encode is not None:
    features, pull_back, ids = jax.vjp(
      lambda tower: encode(params | {'text': tower}, text, key), params['text'], has_aux=True)
    variables = params, features
  # Row a of every group of `micro_batches` rows: each device splits the rows that it has.
  split = lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)
  parts = jax.tree.map(split, batch), jax.random.split(key, micro_batches)

  def loss_of(variables, batch, key):
    params, *features = variables
    return loss_fn(params, batch, (*features, ids) if features else text, key, *anchor)

  grad_fn = jax.grad(loss_of, has_aux=True)
  add = lambda total, part: (jax.tree.map(jnp.add, total, grad_fn(variables, *part)), None)
  shapes = jax.eval_shape(grad_fn, variables, *jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, parts)
  (grads, *of_features), metrics = jax.tree.map(lambda x: x / micro_batches, total)
  if pull_back:
    grads = grads | {'text': jax.tree.map(jnp.add, grads['text'], *pull_back(*of_features))}
  return grads, metrics
