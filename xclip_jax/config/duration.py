"""How long a run is: updates, warm-up, and passes over the training videos."""

from typing import Any

from xclip_jax.errors import UserError


def passes(config: Any, num_videos: int, updates: int) -> float:
  """Returns how often each training video is drawn in that many updates.

  Every video that is drawn fills `augment.repeats` rows of the batch.
  """
  return updates * config.train.batch_size / (num_videos * config.augment.repeats)


def ends_pass(config: Any, num_videos: int, update: int) -> bool:
  """Tells whether an update completes a pass over the training videos; updates count from 1."""
  rows, batch = num_videos * config.augment.repeats, config.train.batch_size
  return update * batch // rows > (update - 1) * batch // rows


def run_length(config: Any, num_videos: int) -> tuple[int, float]:
  """Turns epochs into updates; `train.steps` and `optim.warmup_steps` override them.

  An epoch is a pass over the training videos, num_videos * repeats / batch_size updates, which need
  not be whole: the stream of batches goes on across passes. (The reference drops the videos that
  are left at the end of an epoch, so its epoch is floor(num_videos / batch_size) updates.)

  Returns:
    the updates of the run, at least 1, and those of warm-up.

  Raises:
    ValueError: the run has no length, or its warm-up takes more than half of it.
  """
  train, optim = config.train, config.optim
  for field, value in (
    ('train.steps', train.steps), ('train.epochs', train.epochs),
    ('optim.warmup_steps', optim.warmup_steps), ('optim.warmup_epochs', optim.warmup_epochs),
  ):
    if value < 0:
      raise UserError(f'config.{field} must be 0 or more, got {value}')
  if not (train.steps or train.epochs):
    raise UserError('the run has no steps: set config.train.epochs or config.train.steps')
  epoch = num_videos * config.augment.repeats / train.batch_size
  total = train.steps or max(round(train.epochs * epoch), 1)
  warmup = optim.warmup_steps or optim.warmup_epochs * epoch
  if warmup > (total + 1) / 2:                    # + 1: epochs of both are rounded
    said = (f'config.optim.warmup_steps={optim.warmup_steps}' if optim.warmup_steps else
            f'config.optim.warmup_epochs={optim.warmup_epochs} is {warmup:.4g} updates, which')
    raise UserError(
      f'{said} is more than half of the run, which has {total} updates: set '
      f'config.optim.warmup_steps to {max(total // 2, 1)} or less')
  return total, warmup
