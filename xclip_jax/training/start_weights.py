"""The state that a run starts from: its newest checkpoint, random weights, or given ones."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from xclip_jax import compilation_cache, files
from xclip_jax.errors import UserError
from xclip_jax.models.config import COMPUTE_FIELDS, XCLIPConfig
from xclip_jax.models.training_options.projectors import PROJECTORS
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes
from xclip_jax.storage import state as state_lib
from xclip_jax.storage import workdir as workdir_lib
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.text_format import printable
from xclip_jax.training import optimizer
from xclip_jax.training.job import Job
from xclip_jax.training.objectives import anchoring
from xclip_jax.weights import hub, native, rules


@dataclasses.dataclass
class Start:
  """The point that a run starts or continues from.

  Fields:
    step: updates that are done.
    state: parameters, optimizer state and average.
    host_state: what a checkpoint holds beside them: bad_files, by row, and window, the metrics
      since the last log row.
    tx: the optimizer, with the learning rates that the run began with.
    schedule: maps the number of updates done to the base learning rate.
    average: weights of the running average, from `optimizer.make_average`; None without one.
    anchor: the initial weights, if the loss keeps the run near them.
    initialise_bias: the logit bias is to be computed from the first batch.
  """

  step: int
  state: state_lib.TrainState
  host_state: dict[str, Any]
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  average: optimizer.Average | None
  anchor: Any
  initialise_bias: bool


def resume_or_initialise(job: Job, checkpoints: Checkpoints) -> Start:
  """Restores the newest checkpoint of a run, or initialises its state where there is none.

  The workdir is claimed for the config before anything is read into memory.

  Raises:
    ValueError: The workdir holds another run, or the weights of `train.init_from` do not fit.
    CheckpointError: No checkpoint can be read.
  """
  config, model, mesh, shardings = job.config, job.model, job.mesh, job.shardings
  newest = checkpoints.latest_step()
  anchor = read_params(config, model, mesh) if anchoring.is_on(config.train) else None
  began = processes.run_on_all_processes(lambda: workdir_lib.claim(
    config, job.workdir, job.splits, newest is None, anchor and native.fingerprint(anchor),
    newest or 0))
  # The lag of learning rates and the start of an average stay those that the run began with.
  tx, schedule = job.make_optimizer(began.accumulation)
  average = optimizer.make_average(config.train, began.updates)
  compilation_cache.enable(job.workdir)
  host_state: dict[str, Any] = {'bad_files': {}, 'window': []}
  step = 0
  if newest is not None:
    step, state, host_state = checkpoints.restore_latest(job.abstract, shardings)
  else:
    state = state_lib.init(model, tx, config.seed, shardings, config.train.init_scale)
    if config.train.init_from:
      state = state.start_from(load_params(config, model, shardings, mesh))
  initialise_bias = newest is None and model.config.logit_bias and not float(
    state.params['logit_bias'])
  return Start(
    step, state, host_state, tx, schedule, average,
    None if anchor is None else place_params(anchor, shardings), initialise_bias)


def load_for_evaluation(job: Job, checkpoints: Checkpoints) -> tuple[Any, int]:
  """Restores the weights that `config.eval.checkpoint` names, the latest or the best.

  Returns:
    Weights on every device, and their step.

  Raises:
    ValueError: The workdir holds no checkpoint.
    CheckpointError: The checkpoint cannot be read.
  """
  is_best = job.config.eval.checkpoint == 'best'
  step = checkpoints.best_step() if is_best else checkpoints.latest_step()
  if step is None:
    raise UserError(f'{job.workdir} holds no checkpoint to evaluate; train first')
  compilation_cache.enable(job.workdir)
  weights = processes.run_on_all_processes(lambda: checkpoints.restore_weights(
    step, drop_projectors(job.abstract.params), mesh_lib.replicated(job.mesh)))
  return weights, step


def load_params(config: Any, model: XCLIP, shardings: Any, mesh: Mesh | None = None) -> Any:
  """Reads the parameters that `config.train.init_from` names, onto the mesh of the run."""
  return place_params(read_params(config, model, mesh), shardings)


def place_params(params: Any, shardings: Any) -> Any:
  """Moves parameters to the devices of the run."""
  return jax.device_put(params, drop_projectors(shardings.params))


def drop_projectors(params: Any) -> Any:
  """Drops the distillation projectors, which exist only during training."""
  return {name: x for name, x in params.items() if name != PROJECTORS}


def read_params(config: Any, model: XCLIP, mesh: Mesh | None = None) -> Any:
  """Reads the parameters that `config.train.init_from` names, into the memory of each host.

  Args:
    config: config of the run.
    model: its network.
    mesh: its devices, needed with several processes.

  Raises:
    ValueError, CheckpointError: Nothing can be read, or another model; lists what differs.
  """
  source = config.train.init_from
  has_bias = 'logit_bias' in state_lib.abstract(model, optax.identity()).params
  folder = files.as_path(source, 'config.train.init_from')
  if files.exists(folder / 'checkpoints'):
    params = _read_checkpoint(folder, source, model, mesh)
  else:
    params = _read_weights(config, model.config)
  return match_logit_bias(params, has_bias)


def _read_checkpoint(
  folder: files.AnyPath, source: str, model: XCLIP, mesh: Mesh | None
) -> Any:
  """Reads the weights of the best checkpoint of another run."""
  abstract = state_lib.abstract(model, optax.identity()).params
  with Checkpoints(folder) as checkpoints:
    step = checkpoints.best_step()
    if step is None:
      raise UserError(f'config.train.init_from={source!r} holds no checkpoint')
    saved = match_logit_bias(abstract, 'logit_bias' in checkpoints.parameter_names(step))
    everywhere = mesh and mesh_lib.replicated(mesh)
    return processes.run_on_all_processes(
      lambda: jax.device_get(checkpoints.restore_weights(step, saved, everywhere)))


def _read_weights(config: Any, model: XCLIPConfig) -> Any:
  """Reads a file, a folder or a public name of weights, and checks that they are of this model."""
  source = config.train.init_from
  frames, size = (
    (model.num_frames, model.image_size) if config.train.init_resample else (None, None))
  try:
    weights = hub.read(
      source, seed=config.seed, new_modules=model, num_frames=frames, image_size=size)
  except UserError as error:
    raise UserError(f'config.train.init_from: {error}') from error
  if weights.config.logit_bias != model.logit_bias:
    weights = dataclasses.replace(
      weights, config=dataclasses.replace(weights.config, logit_bias=model.logit_bias))
  if weights.dialect in rules.CLIP_DIALECTS:         # an image model has no frame count of its own
    weights = hub.resample(weights, model.num_frames, None)
  theirs, ours = (
    {k: v for k, v in vars(c).items() if k not in COMPUTE_FIELDS} for c in (weights.config, model)
  )
  differ = [f'{k}: {v} there, {ours[k]} here' for k, v in theirs.items() if v != ours[k]]
  if differ:
    raise UserError(
      f'config.train.init_from={source!r} is another model:\n  ' + '\n  '.join(differ)
      + '\nSet config.model to fit it; other values of num_frames and image_size are possible '
      'with config.train.init_resample=True, which interpolates positions.'
    )
  if jax.process_index() == 0:
    for note in weights.notes:
      print(printable(f'{source}: {note}'))
  return weights.params


def match_logit_bias(params: Any, has_bias: bool) -> Any:
  """Returns parameters with a logit bias, 0 where they have none, or without one."""
  rest = {k: v for k, v in params.items() if k != 'logit_bias'}
  if not has_bias:
    return rest
  return rest | {'logit_bias': params.get('logit_bias', np.zeros((), np.float32))}
