"""What the size of a training batch must divide by: shards, micro-batches, blending groups."""

from typing import Any

from xclip_jax.errors import UserError


def check_train_batch(config: Any, shards: int) -> None:
  """Raises ValueError unless shards and micro-batches divide a batch into equal parts.

  And unless `augment.blend_rows` leaves every row a partner.

  Args:
    config: of the run.
    shards: parts that devices cut a batch into, from `sharding.batch_shards`.
  """
  size, parts, rows = config.train.batch_size, config.train.accumulation, config.augment.blend_rows
  for field, value in (('train.accumulation', parts), ('augment.repeats', config.augment.repeats)):
    if value < 1:
      raise UserError(f'config.{field} must be 1 or more, got {value}')
  unit = shards * parts
  if size < 1 or size % unit:
    fewer = [n for n in range(1, parts) if size > 0 and size % (shards * n) == 0]
    lower = f'lower config.train.accumulation to {fewer[-1]}, or ' if fewer else ''
    below = max(size // unit, 0) * unit
    near = ' or '.join(str(n) for n in (below, below + unit) if n)
    raise UserError(
      f'config.train.batch_size={size} does not divide by {shards} shards x '
      f'train.accumulation={parts}; {lower}set config.train.batch_size to a multiple of {unit}, '
      f'such as {near}')
  if rows < 0 or rows == 1:
    raise UserError(
      f'config.augment.blend_rows={rows} must be 2 or more, or 0 for all rows of a micro-batch: a '
      'clip alone has no partner (to blend nothing, set augment.mixup and augment.cutmix to 0)')
