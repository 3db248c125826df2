"""The weights that a run starts from."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.models.config import COMPUTE_FIELDS
from xclip_jax.models.training_options.projectors import PROJECTORS
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes
from xclip_jax.storage import state as state_lib
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.weights import hub, rules


def load_params(config: Any, model: XCLIP, shardings: Any, mesh: Mesh | None = None) -> Any:
  """Reads the parameters that `config.train.init_from` names, onto this run's mesh."""
  return place_params(read_params(config, model, mesh), shardings)


def place_params(params: Any, shardings: Any) -> Any:
  return jax.device_put(params, drop_projectors(shardings.params))


def drop_projectors(params: Any) -> Any:
  """Of what is trained, the model."""
  return {name: x for name, x in params.items() if name != PROJECTORS}


def read_params(config: Any, model: XCLIP, mesh: Mesh | None = None) -> Any:
  """Reads the parameters that `config.train.init_from` names, into the memory of each host.

  `mesh`: of the run, where that has several processes.

  Raises:
    ValueError, CheckpointError: there are none, or they are of another model; lists what differs.
  """
  source = config.train.init_from
  abstract = state_lib.abstract(model, optax.identity()).params
  folder = files.as_path(source, 'config.train.init_from')
  if files.exists(folder / 'checkpoints'):
    with Checkpoints(folder) as ckpt:
      step = ckpt.best_step()
      if step is None:
        raise UserError(f'config.train.init_from={source!r} holds no checkpoint')
      want = match_logit_bias(abstract, 'logit_bias' in ckpt.parameter_names(step))
      everywhere = mesh and mesh_lib.replicated(mesh)
      params = processes.run_on_all_processes(
        lambda: jax.device_get(ckpt.restore_weights(step, want, everywhere)))
  else:
    want = model.config
    size = dict(num_frames=want.num_frames, image_size=want.image_size)
    try:
      weights = hub.read(
        source, seed=config.seed, new_modules=want, **(size if config.train.init_resample else {})
      )
    except ValueError as error:
      raise UserError(f'config.train.init_from: {error}') from error
    if weights.config.logit_bias != want.logit_bias:
      weights = dataclasses.replace(
        weights, config=dataclasses.replace(weights.config, logit_bias=want.logit_bias))
    if weights.dialect in rules.CLIP_DIALECTS:         # their frame count is free
      weights = hub.resample(weights, want.num_frames, None)
    found, wanted = (
      {k: v for k, v in vars(c).items() if k not in COMPUTE_FIELDS} for c in (weights.config, want)
    )
    differ = [f'{k}: {v} there, {wanted[k]} here' for k, v in found.items() if v != wanted[k]]
    if differ:
      raise UserError(
        f'config.train.init_from={source!r} is another model:\n  ' + '\n  '.join(differ)
        + '\nSet config.model to fit it; other values of num_frames and image_size are possible '
        'with config.train.init_resample=True, which interpolates positions.'
      )
    if jax.process_index() == 0:
      for note in weights.notes:
        print(f'{source}: {note}')
    params = weights.params
  return match_logit_bias(params, 'logit_bias' in abstract)


def match_logit_bias(params: Any, wanted: bool) -> Any:
  """Parameters with a logit bias, of 0 where they have none, or without."""
  rest = {k: v for k, v in params.items() if k != 'logit_bias'}
  zero = np.zeros((), np.float32)
  return rest | {'logit_bias': params.get('logit_bias', zero)} if wanted else rest
