"""What a run is: from a config and a folder to trained weights, numbers and a report."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import tqdm
from jax.sharding import Mesh

from xclip_jax import (
  accumulation,
  batch_sizes,
  compilation_cache,
  distributed,
  evaluate,
  evaluate_lists,
  files,
  objective,
  optim,
  prompts,
  regularize,
  run_lock,
  sharding,
  stopping,
  targets,
  view_batches,
)
from xclip_jax import metrics as metrics_lib
from xclip_jax import state as state_lib
from xclip_jax import workdir as workdir_lib
from xclip_jax.checkpoint import Checkpoints
from xclip_jax.data import Split, augment, open_splits, pipeline
from xclip_jax.data.source import ClassList
from xclip_jax.duration import ends_pass, passes, run_length
from xclip_jax.models.projectors import PROJECTORS
from xclip_jax.models.xclip import COMPUTE_FIELDS, XCLIP, config_of_run
from xclip_jax.progress import Clock, Profile, Window, stop_signal
from xclip_jax.weights import hub, native, rules


def make_model(config: Any) -> XCLIP:
  """Builds the module of `config.model`."""
  return XCLIP(config_of_run(config.model))


def make_train_step(
  model: XCLIP, tx: optax.GradientTransformation, config: Any, classes: ClassList,
  average: optim.Average | None = None, several: prompts.Prompts | None = None,
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
  loss_fn = (regularize.wrap(forward, model, config) if regularize.is_on(train) else
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
    mean = average and optim.add_to_average(state.average, params, average(state.step + 1))
    return state_lib.TrainState(state.step + 1, params, opt_state, mean), metrics

  return step


def jit_train_step(
  model: XCLIP, tx: optax.GradientTransformation, config: Any, classes: ClassList, shardings: Any,
  mesh: Any, average: optim.Average | None = None, several: prompts.Prompts | None = None,
) -> Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]:
  """`make_train_step`, jitted for a mesh; `shardings` are the state's, which it overwrites."""
  everywhere = sharding.replicated(mesh)
  anchor = (without_projectors(shardings.params),) if regularize.is_on(config.train) else ()
  return jax.jit(
    make_train_step(model, tx, config, classes, average, several), donate_argnums=0,
    in_shardings=(shardings, sharding.batch_sharding(mesh), everywhere, everywhere, *anchor),
    out_shardings=(shardings, everywhere),
  )


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
    raise ValueError(f'mode must be train or eval, got {mode!r}')
  workdir = workdir_lib.open_folder(config, workdir)
  with run_lock.hold(workdir):
    return _run(config, workdir, mode)


def _run(config: Any, workdir: files.AnyPath, mode: str) -> dict[str, float]:
  """Does what `run` says, in a workdir that nobody else uses."""
  config = resolved(config)
  splits = distributed.together(lambda: open_splits(config.data, config.train.task))
  mesh = sharding.make_mesh(config.mesh)
  model = make_model(config)
  check_sizes(config, model, mesh)
  num_videos = len(splits['train'].videos)
  total, warmup = run_length(config, num_videos) if mode == 'train' else (1, 0)

  near = regularize.is_on(config.train)        # the weights that it starts from
  projectors = bool(config.train.distill)
  abstract_params = state_lib.abstract(model, optax.identity(), projectors=projectors).params
  make_optimizer = lambda accumulation: optim.make(
    config.optim, abstract_params, total, warmup, accumulation, config.train.freeze_text)
  tx, _ = make_optimizer(config.train.accumulation)
  average = optim.make_average(config.train, total)
  abstract = state_lib.abstract(model, tx, average is not None, projectors)
  shardings = sharding.infer(abstract, config.sharding, mesh)
  make_evaluation = evaluate.Evaluation if config.train.task == 'single-label' else (
    evaluate_lists.ListEvaluation)
  evaluator = make_evaluation(config, model, mesh, splits)
  taught = targets.of_rows(
    splits['train'], config.train.task, model.config.context_length, config.data.truncate_captions)

  with Checkpoints(workdir, config.checkpoint.keep_latest, config.checkpoint.keep_best) as ckpt:
    start = ckpt.latest_step()
    if mode == 'eval':
      step = ckpt.best_step() if config.eval.checkpoint == 'best' else start
      if step is None:
        raise ValueError(f'{workdir} holds no checkpoint to evaluate; train first')
      compilation_cache.enable(workdir)
      params = distributed.together(lambda: ckpt.restore_weights(
        step, without_projectors(abstract.params), sharding.replicated(mesh)))
      stopping.leave_at_once(stopping.EVALUATING)
      return evaluator.finish(params, workdir, step)

    anchor = read_params(config, model, mesh) if near else None
    began = distributed.together(lambda: workdir_lib.claim(
      config, workdir, splits, start is None, anchor and native.fingerprint(anchor), start or 0))
    # What changed since then moves neither the lag of learning rates nor the start of an average.
    tx, schedule = make_optimizer(began.accumulation)
    average = optim.make_average(config.train, began.updates)
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
    text = jax.device_put(text, sharding.replicated(mesh))
    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(mesh))()
    step_fn = jit_train_step(
      model, tx, config, splits['train'].classes, shardings, mesh, average,
      evaluator.prompts['train'])
    save_steps = config.checkpoint.every_steps
    due = lambda step, every: step % every == 0 or step == total
    eval_due = lambda step: due(step, config.eval.every_steps) if config.eval.every_steps else (
      step == total or ends_pass(config, num_videos, step))

    bad = pipeline.BadFiles(len(splits['train'].videos), config.data.max_bad_share)
    bad.add({int(k): v for k, v in host['bad_files'].items()})
    window = Window(host['window'], splits['train'].videos, ckpt)
    rate = jax.jit(schedule)

    def start_bias(state, batch):
      find = lambda state, batch, text: state.start_from(state.params | {
        'logit_bias': objective.start_bias(
          model, config, state.params, batch, text, evaluator.prompts['train'])})
      return jax.jit(find, donate_argnums=0, out_shardings=shardings)(state, batch, text)

    def agree_on_bad_files():
      bad.add(distributed.merged(bad.take_new()))
      bad.check()

    def save(step, metric=None):
      window.fetch()
      agree_on_bad_files()
      ckpt.save(step, state, {'bad_files': bad.items, 'window': window.rows}, metric)

    with (
      contextlib.closing(
        metrics_lib.MetricsWriter(workdir, start, jax.process_index() == 0)) as writer,
      pipeline.train_batches(
        splits['train'].rows, train_transform(config, model), num_frames=model.config.num_frames,
        batch_size=config.train.batch_size, seed=config.seed, start_step=start,
        workers=config.data.workers, threads=config.data.threads,
        rows=sharding.host_rows(mesh, config.train.batch_size),
        sampling=config.data.sampling, stride=config.data.stride, repeats=config.augment.repeats,
        clip_seconds=config.data.clip_seconds,
      ) as batches,
      tqdm.tqdm(total=total, initial=start, unit='step', desc='training', dynamic_ncols=True,
                disable=jax.process_index() > 0) as bar,
      Profile(config.profile, workdir) as profile,
      stop_signal() as stopped,
      jax.set_mesh(mesh),
    ):
      evaluated = set(distributed.told_by_first(
        [row['step'] for row in writer.rows if evaluator.metric in row]))
      clock = Clock(start)
      for step in range(start, total + 1):
        if step > start:
          batch = next(batches)
          bad.update(batch, check=jax.process_count() == 1)
          on_device = {k: batch[k] for k in ('video', 'label', 'mask', 'colors') if k in batch}
          on_device = sharding.put_batch(on_device | targets.look_up(taught, batch['index']), mesh)
          if step == 1 and starts_bias:
            state = start_bias(state, on_device)
          with profile.update(step):
            state, metrics = step_fn(state, on_device, text, key, *anchor)
          profile.done(step, metrics)
          stopping.postpone()                  # from now on there is an update to save
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
    stopping.leave_at_once(stopping.TRAINED)
    workdir_lib.write_bad_files(workdir, bad)
    params = jax.device_put(state.weights, sharding.replicated(mesh))
    return evaluator.finish(params, workdir, total, clock.seconds)


def resolved(config: Any) -> Any:
  """The config with what follows from it: a sigmoid loss comes with a bias of the logits."""
  if targets.loss_of(config.train) == 'sigmoid' and not config.model.fields.get('logit_bias'):
    config = config.copy_and_resolve_references()
    config.model.fields = dict(config.model.fields) | {'logit_bias': True}
  return config


def check_sizes(config: Any, model: XCLIP, mesh: Mesh) -> None:
  """Raises ValueError unless batches and the model divide by the mesh, and by micro-batches.

  And unless its devices have the attention that is asked for, and blending groups have partners.
  """
  place, dtype = mesh.devices.flat[0].platform, model.config.dtype
  if model.config.attention == 'cudnn' and (place not in ('gpu', 'cuda') or dtype != 'bfloat16'):
    raise ValueError(
      f"config.model.attention='cudnn' needs an NVIDIA GPU and model.dtype='bfloat16', got {place} "
      f"and {dtype!r}; set it to 'xla'")
  shards = sharding.batch_shards(mesh)
  batch_sizes.check_train_batch(config, shards)
  try:
    view_batches.sizes(
      config.eval.batch_size, max(config.eval.clips * config.eval.crops, 1), shards)
  except ValueError as error:
    raise ValueError(f'config.eval.batch_size={error}') from error
  c = model.config
  towers = ('vision', 'text', *(name for name in ('mit', 'prompt') if getattr(c, name)))
  sharding.check_widths(
    {field: getattr(c, field) for name in towers for field in (f'{name}_heads', f'{name}_mlp')
     if hasattr(c, field)}, mesh)


def train_transform(config: Any, model: XCLIP) -> augment.TrainTransform:
  """The host's part of the augmentation."""
  a = config.augment
  if a.color_on not in ('auto', 'host', 'device'):
    raise ValueError(f'config.augment.color_on={a.color_on!r} is none of auto, host, device')
  on_cpu = jax.default_backend() == 'cpu'            # where OpenCV is five times as fast as XLA
  color_on = a.color_on if a.color_on != 'auto' else 'host' if on_cpu else 'device'
  return augment.TrainTransform(
    model.config.image_size, a.crop, a.flip, a.color_jitter, a.grayscale, a.rand_augment,
    a.rand_magnitude, a.erase, color_on,
  )


def load_params(config: Any, model: XCLIP, shardings: Any, mesh: Mesh | None = None) -> Any:
  """Reads the parameters that `config.train.init_from` names, onto this run's mesh."""
  return place_params(read_params(config, model, mesh), shardings)


def place_params(params: Any, shardings: Any) -> Any:
  return jax.device_put(params, without_projectors(shardings.params))


def without_projectors(params: Any) -> Any:
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
        raise ValueError(f'config.train.init_from={source!r} holds no checkpoint')
      want = with_logit_bias(abstract, 'logit_bias' in ckpt.parameter_names(step))
      everywhere = mesh and sharding.replicated(mesh)
      params = distributed.together(
        lambda: jax.device_get(ckpt.restore_weights(step, want, everywhere)))
  else:
    want = model.config
    size = dict(num_frames=want.num_frames, image_size=want.image_size)
    try:
      weights = hub.read(
        source, seed=config.seed, new_modules=want, **(size if config.train.init_resample else {})
      )
    except ValueError as error:
      raise ValueError(f'config.train.init_from: {error}') from error
    if weights.config.logit_bias != want.logit_bias:
      weights = dataclasses.replace(
        weights, config=dataclasses.replace(weights.config, logit_bias=want.logit_bias))
    if weights.dialect in rules.CLIP_DIALECTS:         # their frame count is free
      weights = hub.resampled(weights, want.num_frames, None)
    found, wanted = (
      {k: v for k, v in vars(c).items() if k not in COMPUTE_FIELDS} for c in (weights.config, want)
    )
    differ = [f'{k}: {v} there, {wanted[k]} here' for k, v in found.items() if v != wanted[k]]
    if differ:
      raise ValueError(
        f'config.train.init_from={source!r} is another model:\n  ' + '\n  '.join(differ)
        + '\nSet config.model to fit it; other values of num_frames and image_size are possible '
        'with config.train.init_resample=True, which interpolates positions.'
      )
    if jax.process_index() == 0:
      for note in weights.notes:
        print(f'{source}: {note}')
    params = weights.params
  return with_logit_bias(params, 'logit_bias' in abstract)


def with_logit_bias(params: Any, wanted: bool) -> Any:
  """Parameters with a logit bias, of 0 where they have none, or without."""
  rest = {k: v for k, v in params.items() if k != 'logit_bias'}
  zero = np.zeros((), np.float32)
  return rest | {'logit_bias': params.get('logit_bias', zero)} if wanted else rest


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
