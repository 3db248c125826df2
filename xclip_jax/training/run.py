"""A run: from a config and a folder to trained weights, numbers and a report."""

import os
from typing import Any

from xclip_jax.errors import UserError
from xclip_jax.parallel import stop_signals
from xclip_jax.storage import run_lock
from xclip_jax.storage import workdir as workdir_lib
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.training.job import announce, check_config, prepare
from xclip_jax.training.loop import open_loop
from xclip_jax.training.start_weights import load_for_evaluation, resume_or_initialise


def run(config: Any, workdir: str | os.PathLike, mode: str = 'train') -> dict[str, float]:
  """Trains (or only evaluates) the model of a config; continues an interrupted run.

  Args:
    config: ConfigDict of `xclip_jax.config.get_config()` with changed values; every field is
      explained in xclip_jax/config/fields.py.
    workdir: folder for config.json, checkpoints/, metrics.jsonl, tensorboard/, predictions and
      report/; a folder holds one run.
    mode: 'train', or 'eval' to evaluate a checkpoint of the folder.

  Returns:
    Results of the last evaluation; empty if the run was asked to stop (SIGTERM) before.

  Raises:
    ConfigError: A field is unknown, wrong or contradicts another; nothing was done.
    ValueError: Data, devices or workdir do not fit the config, or another run holds the workdir.
    NonFiniteLossError: The loss is NaN or infinite; names the step and the videos.
    CheckpointError: A checkpoint could not be written or read; says what is safe.
  """
  if mode not in ('train', 'eval'):
    raise UserError(f'mode must be train or eval, got {mode!r}')
  check_config(config)
  workdir = workdir_lib.open_folder(config, workdir)
  keep = config.checkpoint
  with run_lock.hold(workdir):
    job = prepare(config, workdir, mode)               # everything that can be wrong is found here
    with Checkpoints(workdir, keep.keep_latest, keep.keep_best) as checkpoints:
      if mode == 'eval':
        weights, step = load_for_evaluation(job, checkpoints)
        stop_signals.exit_at_once(stop_signals.EVALUATING)
        return job.evaluation.finish(weights, workdir, step)
      start = resume_or_initialise(job, checkpoints)
      announce(job, start.step)
      with open_loop(job, start, checkpoints) as loop:
        for step in loop.steps():                      # the first one is already done
          if step > start.step:
            loop.update(step)
            if job.is_due(step, config.log_steps):
              loop.write_log(step)
          if loop.must_evaluate(step) and not loop.stopping():
            loop.evaluate(step)
          if step > start.step and (job.is_due(step, keep.every_steps) or loop.stopping()):
            loop.save(step)
          if loop.stopping():
            loop.say_stopped(step)
            return {}
      return loop.finish()
