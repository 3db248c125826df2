"""What a run is: from a config and a folder to trained weights, numbers and a report."""

import contextlib
import os
from typing import Any

import jax
import numpy as np
import optax
import tqdm
from jax.sharding import Mesh

from xclip_jax import compilation_cache, files
from xclip_jax.config import batch_sizes
from xclip_jax.config.duration import ends_pass, passes, run_length
from xclip_jax.data import Split, bad_files, open_splits
from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.errors import UserError
from xclip_jax.evaluation import view_batches
from xclip_jax.models.config import config_of_run
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes, stop_signals
from xclip_jax.storage import metrics_log as metrics_lib
from xclip_jax.storage import run_lock
from xclip_jax.storage import state as state_lib
from xclip_jax.storage import workdir as workdir_lib
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.training import evaluate_lists, evaluate_run, optimizer
from xclip_jax.training.monitoring import Clock, MetricsBuffer, Profile, stop_signal
from xclip_jax.training.objectives import anchoring, objective, targets
from xclip_jax.training.start_weights import drop_projectors, load_params, place_params, read_params
from xclip_jax.training.step import jit_train_step
from xclip_jax.weights import native


def make_model(config: Any) -> XCLIP:
  """Builds the module of `config.model`."""
  return XCLIP(config_of_run(config.model))


def run(config: Any, workdir: str | os.PathLike, mode: str = 'train') -> dict[str, float]:
  """Trains (or only evaluates) what config says, in workdir; goes on where it was interrupted.

  Args:
    config: see config.py.
    workdir: holds config.json, checkpoints/, metrics.jsonl, tensorboard/, predictions and report/.
    mode: 'train', or 'eval' for the checkpoint that is there.

  Returns:
    The numbers of the last evaluation; empty if the run was asked to stop (SIGTERM) before.

  Raises:
    ValueError: something in config, data or workdir is not as it must be, or another run holds it.
    progress.NonFiniteLossError, CheckpointError: see there.
  """
  if mode not in ('train', 'eval'):
    raise UserError(f'mode must be train or eval, got {mode!r}')
  workdir = workdir_lib.open_folder(config, workdir)
  with run_lock.hold(workdir):
    return _run(config, workdir, mode)


def _run(config: Any, workdir: files.AnyPath, mode: str) -> dict[str, float]:
  """Does what `run` says, in a workdir that nobody else uses."""
  config = resolve_config(config)
  splits = processes.run_on_all_processes(lambda: open_splits(config.data, config.train.task))
  mesh = mesh_lib.make_mesh(config.mesh)
  model = make_model(config)
  check_sizes(config, model, mesh)
  num_videos = len(splits['train'].videos)
  total, warmup = run_length(config, num_videos) if mode == 'train' else (1, 0)

  near = anchoring.is_on(config.train)        # the weights that it starts from
  projectors = bool(config.train.distill)
  abstract_params = state_lib.abstract(model, optax.identity(), projectors=projectors).params
  make_optimizer = lambda accumulation: optimizer.make(
    config.optim, abstract_params, total, warmup, accumulation, config.train.freeze_text)
  tx, _ = make_optimizer(config.train.accumulation)
  average = optimizer.make_average(config.train, total)
  abstract = state_lib.abstract(model, tx, average is not None, projectors)
  shardings = mesh_lib.infer(abstract, config.sharding, mesh)
  make_evaluation = evaluate_run.Evaluation if config.train.task == 'single-label' else (
    evaluate_lists.ListEvaluation)
  evaluator = make_evaluation(config, model, mesh, splits)
  taught = targets.build_targets(
    splits['train'], config.train.task, model.config.context_length, config.data.truncate_captions)

  with Checkpoints(workdir, config.checkpoint.keep_latest, config.checkpoint.keep_best) as ckpt:
    start = ckpt.latest_step()
    if mode == 'eval':
      step = ckpt.best_step() if config.eval.checkpoint == 'best' else start
      if step is None:
        raise UserError(f'{workdir} holds no checkpoint to evaluate; train first')
      compilation_cache.enable(workdir)
      params = processes.run_on_all_processes(lambda: ckpt.restore_weights(
        step, drop_projectors(abstract.params), mesh_lib.replicated(mesh)))
      stop_signals.exit_at_once(stop_signals.EVALUATING)
      return evaluator.finish(params, workdir, step)

    anchor = read_params(config, model, mesh) if near else None
    began = processes.run_on_all_processes(lambda: workdir_lib.claim(
      config, workdir, splits, start is None, anchor and native.fingerprint(anchor), start or 0))
    # What changed since then moves neither the lag of learning rates nor the start of an average.
    tx, schedule = make_optimizer(began.accumulation)
    average = optimizer.make_average(config.train, began.updates)
    compilation_cache.enable(workdir)
    host = {'bad_files': {}, 'window': []}
    if start is not None:                                   # 1 continue this run
      start, state, host = ckpt.restore_latest(abstract, shardings)
    else:                                                   # 2 from scratch
      state = state_lib.init(
        model, tx, config.seed, shardings, config.train.init_scale, average is not None, projectors)
      if config.train.init_from:                            # 3 from weights
        state = state.start_from(load_params(config, model, shardings, mesh))
    anchor = () if anchor is None else (place_params(anchor, shardings),)
    starts_bias = start is None and model.config.logit_bias and not float(
      state.params['logit_bias'])
    start = start or 0
    announce(config, splits, mesh, (total, warmup), start)

    text = evaluator.token_ids['train']
    if config.train.freeze_text and text is not None:
      text = evaluator.encode_text(state.params, 'train')
    text = jax.device_put(text, mesh_lib.replicated(mesh))
    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=mesh_lib.replicated(mesh))()
    step_fn = jit_train_step(
      model, tx, config, splits['train'].classes, shardings, mesh, average,
      evaluator.prompts['train'])
    save_steps = config.checkpoint.every_steps
    due = lambda step, every: step % every == 0 or step == total
    eval_due = lambda step: due(step, config.eval.every_steps) if config.eval.every_steps else (
      step == total or ends_pass(config, num_videos, step))

    bad = bad_files.BadFiles(len(splits['train'].videos), config.data.max_bad_share)
    bad.add({int(k): v for k, v in host['bad_files'].items()})
    window = MetricsBuffer(host['window'], splits['train'].videos, ckpt)
    rate = jax.jit(schedule)

    def start_bias(state, batch):
      find = lambda state, batch, text: state.start_from(state.params | {
        'logit_bias': objective.start_bias(
          model, config, state.params, batch, text, evaluator.prompts['train'])})
      return jax.jit(find, donate_argnums=0, out_shardings=shardings)(state, batch, text)

    def agree_on_bad_files():
      bad.add(processes.merge_failures(bad.take_new()))
      bad.check()

    def save(step, metric=None):
      window.fetch()
      agree_on_bad_files()
      ckpt.save(step, state, {'bad_files': bad.items, 'window': window.rows}, metric)

    with (
      contextlib.closing(
        metrics_lib.MetricsWriter(workdir, start, jax.process_index() == 0)) as writer,
      pipeline.train_batches(
        splits['train'].rows, train_transform(config, model),
        sampling.ClipSampler(model.config.num_frames, config.data.sampling, config.data.stride),
        pipeline.HostShare(
          config.train.batch_size, mesh_lib.host_rows(mesh, config.train.batch_size)),
        pipeline.TrainStream(config.seed, start, config.augment.repeats),
        pipeline.Reading(config.data.workers, config.data.threads, config.data.clip_seconds),
      ) as batches,
      tqdm.tqdm(total=total, initial=start, unit='step', desc='training', dynamic_ncols=True,
                disable=jax.process_index() > 0) as bar,
      Profile(config.profile, workdir) as profile,
      stop_signal() as stopped,
      jax.set_mesh(mesh),
    ):
      evaluated = set(processes.broadcast_from_first(
        [row['step'] for row in writer.rows if evaluator.metric in row]))
      clock = Clock(start)
      for step in range(start, total + 1):
        if step > start:
          batch = next(batches)
          bad.update(batch, check=jax.process_count() == 1)
          on_device = {k: batch[k] for k in ('video', 'label', 'mask', 'colors') if k in batch}
          on_device = mesh_lib.put_batch(on_device | targets.select_targets(taught, batch['index']), mesh)
          if step == 1 and starts_bias:
            state = start_bias(state, on_device)
          with profile.update(step):
            state, metrics = step_fn(state, on_device, text, key, *anchor)
          profile.done(step, metrics)
          stop_signals.postpone()                  # from now on there is an update to save
          window.add(step, metrics, batch['index'])
          bar.update()
          if due(step, config.log_steps):
            agree_on_bad_files()
            lr = jax.device_get(rate(jax.device_put(np.int32(step - 1))))
            row = window.mean() | {'lr': lr, 'unreadable_files': bad.count}
            speed = clock.rate(step) * config.train.batch_size
            writer.write(step, row, {'videos_per_second': speed})
            bar.set_postfix_str(
              f'loss {row["loss"]:.3f}, lr {float(row["lr"]):.1e}, {speed:.0f} videos/s'
            )
        # A run that was stopped between a step and its evaluation makes up for it here.
        if step and eval_due(step) and step not in evaluated and not stopped():
          window.fetch()                       # what is not finite is not worth evaluating
          with clock.paused():
            found = evaluator.during_training(state.weights, stopped)
          if found:
            writer.write(step, found)
            save(step, found[evaluator.metric])
        if step > start and (due(step, save_steps) or stopped()):
          save(step)
        if stopped():
          bar.write(f'stopped at step {step}, which is saved; the same command goes on from there')
          return {}
    ckpt.wait()
    stop_signals.exit_at_once(stop_signals.TRAINED)
    workdir_lib.write_bad_files(workdir, bad)
    params = jax.device_put(state.weights, mesh_lib.replicated(mesh))
    return evaluator.finish(params, workdir, total, clock.seconds)


def resolve_config(config: Any) -> Any:
  """The config with what follows from it: a sigmoid loss comes with a bias of the logits."""
  if targets.resolve_loss(config.train) == 'sigmoid' and not config.model.fields.get('logit_bias'):
    config = config.copy_and_resolve_references()
    config.model.fields = dict(config.model.fields) | {'logit_bias': True}
  return config


def check_sizes(config: Any, model: XCLIP, mesh: Mesh) -> None:
  """Raises ValueError unless batches and the model divide by the mesh, and by micro-batches.

  And unless its devices have the attention that is asked for, and blending groups have partners.
  """
  place, dtype = mesh.devices.flat[0].platform, model.config.dtype
  if model.config.attention == 'cudnn' and (place not in ('gpu', 'cuda') or dtype != 'bfloat16'):
    raise UserError(
      f"config.model.attention='cudnn' needs an NVIDIA GPU and model.dtype='bfloat16', got {place} "
      f"and {dtype!r}; set it to 'xla'")
  shards = mesh_lib.batch_shards(mesh)
  batch_sizes.check_train_batch(config, shards)
  try:
    view_batches.sizes(
      config.eval.batch_size, max(config.eval.clips * config.eval.crops, 1), shards)
  except ValueError as error:
    raise UserError(f'config.eval.batch_size={error}') from error
  c = model.config
  towers = ('vision', 'text', *(name for name in ('mit', 'prompt') if getattr(c, name)))
  mesh_lib.check_widths(
    {field: getattr(c, field) for name in towers for field in (f'{name}_heads', f'{name}_mlp')
     if hasattr(c, field)}, mesh)


def train_transform(config: Any, model: XCLIP) -> augment.TrainTransform:
  """The host's part of the augmentation."""
  a = config.augment
  if a.color_on not in ('auto', 'host', 'device'):
    raise UserError(f'config.augment.color_on={a.color_on!r} is none of auto, host, device')
  on_cpu = jax.default_backend() == 'cpu'            # where OpenCV is five times as fast as XLA
  color_on = a.color_on if a.color_on != 'auto' else 'host' if on_cpu else 'device'
  return augment.TrainTransform(
    model.config.image_size, a.crop, a.flip, a.color_jitter, a.grayscale, a.rand_augment,
    a.rand_magnitude, a.erase, color_on,
  )


def announce(
  config: Any, splits: dict[str, Split], mesh: Mesh, length: tuple[int, float], start: int
) -> None:
  """Prints what is about to happen, in one line.

  Args:
    config: of the run.
    splits: what it reads.
    mesh: its devices.
    length: updates and warm-up, from `run_length`.
    start: updates that are done.
  """
  if jax.process_index() == 0:
    videos = ', '.join(f'{split.count} {name}' for name, split in splits.items())
    classes = len(splits['train'].classes)
    total, warmup = length
    often = passes(config, len(splits['train'].videos), total)
    print(
      f'{videos} videos, {f"{classes} classes" if classes else "each with a caption"}; {mesh.size} '
      f'{jax.devices()[0].platform} device(s); steps {start + 1} to {total}: {total} updates of '
      f'{config.train.batch_size} videos, {often:.4g} passes over the training videos, '
      f'{warmup:.4g} updates of warm-up', flush=True
    )
