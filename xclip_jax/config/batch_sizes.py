"""Divisors of a training batch: shards, micro-batches, and rows of each video."""

from typing import Any

from xclip_jax.errors import ConfigError


def check_train_batch(config: Any, shards: int) -> None:
  """Raises ConfigError unless shards and micro-batches divide a batch into equal parts.

  `augment.repeats` must divide it too, and `augment.blend_rows` leave every row a partner.

  Args:
    config: config of a run, of which the fields by themselves are right.
    shards: number of parts that the devices cut a batch into; 1 before the devices are known.
  """
  size, parts, repeats = config.train.batch_size, config.train.accumulation, config.augment.repeats
  unit = shards * parts
  if size < 1 or size % unit:
    fewer = [n for n in range(1, parts) if size > 0 and size % (shards * n) == 0]
    lower = f'lower config.train.accumulation to {fewer[-1]}, or ' if fewer else ''
    below = max(size // unit, 0) * unit
    nearest = ' or '.join(str(n) for n in (below, below + unit) if n)
    raise ConfigError(
      f'config.train.batch_size={size} does not divide by {shards} shards x '
      f'train.accumulation={parts}; {lower}set config.train.batch_size to a multiple of {unit}, '
      f'such as {nearest}')
  if size % repeats:
    raise ConfigError(
      f'config.train.batch_size={size} must be a multiple of config.augment.repeats={repeats}, '
      'the rows of each video')
  blend_rows = config.augment.blend_rows
  if blend_rows < 0 or blend_rows == 1:
    raise ConfigError(
      f'config.augment.blend_rows={blend_rows} must be 2 or more, or 0 for all rows of a '
      'micro-batch: a clip alone has no partner (to blend nothing, set augment.mixup and '
      'augment.cutmix to 0)')
