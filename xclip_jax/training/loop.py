"""The loop of a run: batches in; updates, log rows, evaluations and checkpoints out."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from xclip_jax.data import bad_files
from xclip_jax.data.clips import pipeline, sampling
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes, stop_signals
from xclip_jax.storage import metrics_log
from xclip_jax.storage import workdir as workdir_lib
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.training import step as step_lib
from xclip_jax.training.job import Job, train_transform
from xclip_jax.training.monitoring import Clock, MetricsBuffer, Profile, Progress, stop_signal
from xclip_jax.training.objectives import objective, targets
from xclip_jax.training.start_weights import Start

_ON_DEVICE = ('video', 'label', 'mask', 'colors')     # arrays of a batch that a step takes


class Loop:
  """The updates of a run, from where it starts to its end; made by `open_loop`.

  Fields:
    state: the state after the last update.
    clock: time spent training.
  """

  def __init__(self, job: Job, start: Start, checkpoints: Checkpoints):
    self.job, self.state, self.clock = job, start.state, Clock(start.step)
    self._start, self._checkpoints = start, checkpoints
    config, mesh = job.config, job.mesh
    everywhere = mesh_lib.replicated(mesh)
    text = job.evaluation.token_ids['train']
    if config.train.freeze_text and text is not None:
      text = job.evaluation.encode_text(start.state.params, 'train')
    self._text = jax.device_put(text, everywhere)
    self._key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=everywhere)()
    parts = step_lib.StepParts(
      job.model, start.tx, config, job.splits['train'].classes, start.average,
      job.evaluation.prompts['train'])
    self._step_fn = step_lib.jit_train_step(parts, job.shardings, mesh)
    self._learning_rate = jax.jit(start.schedule)
    self._anchor = () if start.anchor is None else (start.anchor,)
    self._bad_files = bad_files.BadFiles(job.num_videos, config.data.max_bad_share)
    self._bad_files.add({int(k): v for k, v in start.host_state['bad_files'].items()})
    self._metrics = MetricsBuffer(
      start.host_state['window'], job.splits['train'].videos, checkpoints)

  @contextlib.contextmanager
  def opened(self) -> Iterator['Loop']:
    """Opens batches, log, progress, profiler and stop signal, and closes them at the end."""
    job, config, first = self.job, self.job.config, self._start.step
    with (
      contextlib.closing(
        metrics_log.MetricsWriter(job.workdir, first, jax.process_index() == 0)) as self._writer,
      read_batches(job, first) as self._batches,
      Progress(job.total, first) as self._progress,
      Profile(config.profile, job.workdir) as self._profile,
      stop_signal() as self._stopped,
      jax.set_mesh(job.mesh),
    ):
      self._evaluated = set(processes.broadcast_from_first(
        [row['step'] for row in self._writer.rows if job.evaluation.metric in row]))
      self.clock = Clock(first)
      yield self

  def steps(self) -> Iterator[int]:
    """Yields the step that the run starts from, then the number of each update."""
    yield from range(self._start.step, self.job.total + 1)

  def stopping(self) -> bool:
    """Tells whether the run is asked to stop; every process must ask equally often."""
    return self._stopped()

  def update(self, step: int) -> None:
    """Reads a batch and updates the state; metrics stay on the device."""
    if step == self._start.step + 1:
      self._progress.say('compiling the training step (this can take a minute)')
    batch = next(self._batches)
    self._bad_files.update(batch, check=jax.process_count() == 1)
    rows = {name: batch[name] for name in _ON_DEVICE if name in batch}
    rows |= targets.select_targets(self.job.training_targets, batch['index'])
    on_device = mesh_lib.put_batch(rows, self.job.mesh)
    if step == 1 and self._start.initialise_bias:
      self.state = self._initialise_bias(on_device)
    with self._profile.update(step):
      self.state, metrics = self._step_fn(
        self.state, on_device, self._text, self._key, *self._anchor)
    self._profile.done(step, metrics)
    stop_signals.postpone()                  # from now on there is an update to save
    self._metrics.add(step, metrics, batch['index'])
    self._progress.update()

  def write_log(self, step: int) -> None:
    """Writes the mean metrics since the last log row; waits for the device."""
    self._agree_on_bad_files()
    lr = jax.device_get(self._learning_rate(jax.device_put(np.int32(step - 1))))
    row = self._metrics.mean() | {'lr': lr, 'unreadable_files': self._bad_files.count}
    speed = self.clock.rate(step) * self.job.config.train.batch_size
    self._writer.write(step, row, {'videos_per_second': speed})
    self._progress.log(step, row['loss'], float(row['lr']), speed)

  def must_evaluate(self, step: int) -> bool:
    """Tells whether the evaluation after a step is due and was not done before an interruption."""
    return bool(step) and self.job.is_evaluation_due(step) and step not in self._evaluated

  def evaluate(self, step: int) -> None:
    """Evaluates the weights, and saves them with the result; gives up if the run is to stop."""
    self._metrics.fetch()                    # raises if a loss is not finite
    with self.clock.paused():
      row = self.job.evaluation.during_training(self.state.weights, self._stopped)
    if row:
      self._writer.write(step, row)
      self.save(step, row[self.job.evaluation.metric])

  def save(self, step: int, metric: float | None = None) -> None:
    """Saves a checkpoint; with the metric of an evaluation it may be kept as one of the best."""
    self._metrics.fetch()
    self._agree_on_bad_files()
    host_state = {'bad_files': self._bad_files.items, 'window': self._metrics.rows}
    self._checkpoints.save(step, self.state, host_state, metric)

  def say_stopped(self, step: int) -> None:
    """Tells the user that the run stopped after a step, and how it goes on."""
    self._progress.say(
      f'stopped at step {step}, which is saved; the same command goes on from there')

  def finish(self) -> dict[str, float]:
    """Waits for the last checkpoint, and evaluates the final weights at length."""
    self._checkpoints.wait()
    stop_signals.exit_at_once(stop_signals.TRAINED)
    job = self.job
    workdir_lib.write_bad_files(job.workdir, self._bad_files)
    weights = jax.device_put(self.state.weights, mesh_lib.replicated(job.mesh))
    return job.evaluation.finish(weights, job.workdir, job.total, self.clock.seconds)

  def _agree_on_bad_files(self) -> None:
    """Merges the unreadable videos of all processes; stops the run if they are too many."""
    self._bad_files.add(processes.merge_failures(self._bad_files.take_new()))
    self._bad_files.check()

  def _initialise_bias(self, batch: dict[str, jax.Array]) -> Any:
    """Returns the state with the logit bias that fits the first batch."""
    job = self.job

    def with_bias(state, batch, text):
      return state.start_from(state.params | {'logit_bias': objective.compute_initial_bias(
        job.model, job.config, state.params, batch, text, job.evaluation.prompts['train'])})

    return jax.jit(with_bias, donate_argnums=0, out_shardings=job.shardings)(
      self.state, batch, self._text)


def open_loop(
  job: Job, start: Start, checkpoints: Checkpoints
) -> contextlib.AbstractContextManager[Loop]:
  """Opens the loop of a run: its batches, log, progress, profiler and stop signal."""
  return Loop(job, start, checkpoints).opened()


def read_batches(job: Job, first: int) -> pipeline.Batches:
  """Opens the training batches of this host, from update `first` + 1 on."""
  config, size = job.config, job.config.train.batch_size
  return pipeline.train_batches(
    job.splits['train'].rows, train_transform(config, job.model),
    sampling.ClipSampler(
      job.model.config.num_frames, config.data.sampling, config.data.stride),
    pipeline.HostShare(size, mesh_lib.host_rows(job.mesh, size)),
    pipeline.TrainStream(config.seed, first, config.augment.repeats),
    pipeline.Reading(config.data.workers, config.data.threads, config.data.clip_seconds,
                     config.data.square_pixels),
  )
