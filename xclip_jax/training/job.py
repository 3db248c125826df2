"""The preparation of a run: everything that can be wrong with it is found here."""

import dataclasses
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from xclip_jax import config as config_lib
from xclip_jax import files
from xclip_jax.config import batch_sizes, validation
from xclip_jax.config.duration import ends_pass, passes, run_length
from xclip_jax.data import Split, open_splits
from xclip_jax.data.clips import augment
from xclip_jax.errors import ConfigError, UserError
from xclip_jax.evaluation import view_batches
from xclip_jax.models.config import config_of_run
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes
from xclip_jax.storage import state as state_lib
from xclip_jax.training import evaluate_run, optimizer
from xclip_jax.training.objectives import targets


@dataclasses.dataclass(frozen=True)
class Job:
  """A run whose config, data and devices fit together.

  Fields:
    config: config of the run, resolved.
    workdir: its folder.
    splits: 'train', 'val' and perhaps 'zero_shot'.
    mesh: its devices.
    model: the network.
    total: updates of the run.
    warmup: updates of warm-up.
    evaluation: the evaluations of the run.
    training_targets: arrays with a row for each training video, from `targets.build_targets`.
    abstract: shapes and dtypes of the state.
    shardings: sharding of every leaf of the state.
  """

  config: Any
  workdir: files.AnyPath
  splits: dict[str, Split]
  mesh: Mesh
  model: XCLIP
  total: int
  warmup: float
  evaluation: Any
  training_targets: dict[str, Any]
  abstract: state_lib.TrainState
  shardings: Any

  @property
  def num_videos(self) -> int:
    """Number of training videos."""
    return len(self.splits['train'].videos)

  def make_optimizer(self, accumulation: int) -> tuple[
    optax.GradientTransformation, optax.Schedule]:
    """Builds the optimizer and the schedule of its base learning rate.

    Args:
      accumulation: micro-batches an update when the run began, the unit of `optim.lag_steps`.
    """
    return optimizer.make(
      self.config.optim, self.abstract.params, self.total, self.warmup, accumulation,
      self.config.train.freeze_text)

  def is_due(self, step: int, every: int) -> bool:
    """Tells whether something that happens every so many updates is due after update `step`."""
    return step % every == 0 or step == self.total

  def is_evaluation_due(self, step: int) -> bool:
    """Tells whether the evaluation after update `step` is due."""
    every = self.config.eval.every_steps
    if every:
      return self.is_due(step, every)
    return step == self.total or ends_pass(self.config, self.num_videos, step)


def check_config(config: Any) -> None:
  """Raises ConfigError unless a config is right by itself, without its data and devices.

  Args:
    config: ConfigDict of the fields of `config.fields.Run`.
  """
  config_lib.validate(config)
  try:
    make_model(resolve_config(config))
  except UserError as error:
    raise ConfigError(f'config.model: {error}') from error


def prepare(config: Any, workdir: files.AnyPath, mode: str = 'train') -> Job:
  """Opens the data and devices of a run, and checks that they fit the config.

  Args:
    config: config of the run, of which `check_config` has seen all.
    workdir: its folder.
    mode: 'train', or 'eval' to evaluate a checkpoint, which needs no length of the run.

  Raises:
    ValueError: The data, the devices and the config do not fit together.
  """
  config = resolve_config(config)
  splits = processes.run_on_all_processes(lambda: open_splits(config.data, config.train.task))
  mesh = mesh_lib.make_mesh(config.mesh)
  model = make_model(config)
  check_sizes(config, model, mesh)
  train_transform(config, model)
  if config.augment.reverse:
    targets.check_reverse(splits['train'].classes)
  total, warmup = run_length(config, len(splits['train'].videos)) if mode == 'train' else (1, 0)
  projectors = bool(config.train.distill)
  params = state_lib.abstract(model, optax.identity(), projectors=projectors).params
  tx, _ = optimizer.make(
    config.optim, params, total, warmup, config.train.accumulation, config.train.freeze_text)
  keep_average = optimizer.make_average(config.train, total) is not None
  abstract = state_lib.abstract(model, tx, keep_average, projectors)
  return Job(
    config=config, workdir=workdir, splits=splits, mesh=mesh, model=model, total=total,
    warmup=warmup,
    shardings=mesh_lib.infer(abstract, config.sharding, mesh),
    evaluation=evaluate_run.Evaluation(config, model, mesh, splits),
    training_targets=targets.build_targets(
      splits['train'], config.train.task, model.config.context_length,
      config.data.truncate_captions),
    abstract=abstract,
  )


def make_model(config: Any) -> XCLIP:
  """Builds the module of `config.model`."""
  return XCLIP(config_of_run(config.model))


def resolve_config(config: Any) -> Any:
  """Returns the config with what follows from it: the sigmoid loss needs a bias of the logits."""
  needs_bias = validation.resolve_loss(config.train) == 'sigmoid'
  if needs_bias and not config.model.fields.get('logit_bias'):
    config = config.copy_and_resolve_references()
    config.model.fields = dict(config.model.fields) | {'logit_bias': True}
  return config


def check_sizes(config: Any, model: XCLIP, mesh: Mesh) -> None:
  """Raises ValueError unless a mesh divides batches and model, and has the attention asked for."""
  platform, dtype = mesh.devices.flat[0].platform, model.config.dtype
  if model.config.attention == 'cudnn' and (
    platform not in ('gpu', 'cuda') or dtype != 'bfloat16'):
    raise ConfigError(
      "config.model.attention='cudnn' needs an NVIDIA GPU and model.dtype='bfloat16', got "
      f"{platform} and {dtype!r}; set it to 'xla'")
  shards = mesh_lib.batch_shards(mesh)
  batch_sizes.check_train_batch(config, shards)
  try:
    view_batches.sizes(config.eval.batch_size, config.eval.clips * config.eval.crops, shards)
  except UserError as error:
    raise ConfigError(f'config.eval.batch_size={error}') from error
  c = model.config
  towers = ('vision', 'text', *(name for name in ('mit', 'prompt') if getattr(c, name)))
  mesh_lib.check_widths(
    {field: getattr(c, field) for name in towers for field in (f'{name}_heads', f'{name}_mlp')
     if hasattr(c, field)}, mesh)


def train_transform(config: Any, model: XCLIP) -> augment.TrainTransform:
  """Returns the part of the augmentation that happens on the host."""
  a = config.augment
  on_cpu = jax.default_backend() == 'cpu'            # where OpenCV is five times as fast as XLA
  color_on = a.color_on if a.color_on != 'auto' else 'host' if on_cpu else 'device'
  return augment.TrainTransform(
    model.config.image_size, a.crop, a.flip, a.color_jitter, a.grayscale, a.rand_augment,
    a.rand_magnitude, a.erase, color_on,
  )


def announce(job: Job, step: int) -> None:
  """Prints in one line what a run is about to do, and warns of what can hardly learn.

  Args:
    job: the run.
    step: updates that are done.
  """
  if jax.process_index():
    return
  videos = ', '.join(f'{split.count} {name}' for name, split in job.splits.items())
  classes = len(job.splits['train'].classes)
  often = passes(job.config, job.num_videos, job.total)
  print(
    f'{videos} videos, {f"{classes} classes" if classes else "each with a caption"}; '
    f'{job.mesh.size} {jax.devices()[0].platform} device(s); steps {step + 1} to {job.total}: '
    f'{job.total} updates of {job.config.train.batch_size} videos, {often:.4g} passes over the '
    f'training videos, {job.warmup:.4g} updates of warm-up', flush=True)
  if warning := optimizer.explain_small_rate(job.config, job.model.config, job.total):
    print(f'warning: {warning}', flush=True)
  if job.config.train.freeze_text and not job.config.train.init_from:
    print('warning: config.train.freeze_text=True fixes a text tower of random weights; set it to '
          'False, or config.train.init_from to trained weights', flush=True)
