"""The length of a run: updates, warm-up, and passes over the training videos."""

from typing import Any

from xclip_jax.errors import ConfigError


def passes(config: Any, num_videos: int, updates: int) -> float:
  """Returns how often each training video is drawn in a number of updates.

  Every video that is drawn fills `augment.repeats` rows of the batch.
  """
  return updates * config.train.batch_size / (num_videos * config.augment.repeats)


def ends_pass(config: Any, num_videos: int, update: int) -> bool:
  """Tells whether an update completes a pass over the training videos; updates count from 1."""
  rows, batch = num_videos * config.augment.repeats, config.train.batch_size
  return update * batch // rows > (update - 1) * batch // rows


def check_length(config: Any) -> None:
  """Raises ConfigError if a config gives its run no length, whatever the number of videos."""
  train = config.train
  if not (train.steps or train.epochs):
    raise ConfigError('the run has no steps: set config.train.epochs or config.train.steps')


def run_length(config: Any, num_videos: int) -> tuple[int, float]:
  """Converts epochs into updates; `train.steps` and `optim.warmup_steps` override them.

  An epoch is a pass over the training videos, num_videos * repeats / batch_size updates, which need
  not be whole: the stream of batches goes on across passes. (The reference drops the videos that
  are left at the end of an epoch, so its epoch is floor(num_videos / batch_size) updates.)

  Returns:
    Updates of the run, at least 1, and updates of its warm-up.

  Raises:
    ConfigError: The run has no length, or its warm-up takes more than half of it.
  """
  check_length(config)
  train, optim = config.train, config.optim
  epoch = num_videos * config.augment.repeats / train.batch_size
  total = train.steps or max(round(train.epochs * epoch), 1)
  warmup = optim.warmup_steps or optim.warmup_epochs * epoch
  if warmup > (total + 1) / 2:                    # + 1: both are rounded
    field = (f'config.optim.warmup_steps={optim.warmup_steps}' if optim.warmup_steps else
             f'config.optim.warmup_epochs={optim.warmup_epochs} is {warmup:.4g} updates, which')
    raise ConfigError(
      f'{field} is more than half of the run, which has {total} updates: set '
      f'config.optim.warmup_steps to {max(total // 2, 1)} or less')
  return total, warmup
