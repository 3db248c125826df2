"""What each video of a list is taught with, where that is more than one class."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xclip_jax.data import Split
from xclip_jax.errors import UserError
from xclip_jax.text.captions import caption_ids

TASKS = ('single-label', 'multi-label', 'captions')
LOSSES = ('softmax', 'sigmoid')


def resolve_loss(train: Any) -> str:
  """The loss of `config.train`, 'softmax' or 'sigmoid'.

  Raises:
    ValueError: an unknown task or loss, or a loss that the task cannot have.
  """
  if train.task not in TASKS:
    raise UserError(f'config.train.task={train.task!r} is none of {", ".join(TASKS)}')
  if train.loss not in ('auto', *LOSSES):
    raise UserError(f'config.train.loss={train.loss!r} is none of auto, {", ".join(LOSSES)}')
  several = train.task == 'multi-label'
  if several and train.loss == 'softmax':
    raise UserError(
      "config.train.loss='softmax' makes classes compete, and in task multi-label several are "
      "right at once; set it to 'sigmoid' or 'auto'")
  return ('sigmoid' if several else 'softmax') if train.loss == 'auto' else train.loss


def check_augmentation(config: Any) -> None:
  """Raises ValueError if the augmentation has no meaning for `config.train.task`."""
  task, augment = config.train.task, config.augment
  wrong = []
  if task == 'captions':
    wrong = [name for name in ('mixup', 'cutmix', 'label_smoothing') if augment[name]]
  if wrong:
    raise UserError(
      f'config.augment.{wrong[0]}={augment[wrong[0]]} mixes or smooths classes, and captions are '
      f'none; set {", ".join(f"config.augment.{name}" for name in wrong)} to 0')
  if task != 'single-label' and augment.reverse:
    raise UserError(
      'config.augment.reverse says what one class becomes when played backwards; '
      f'with config.train.task={task!r} set it to False')


def build_targets(split: Split, task: str, context_length: int, truncate: bool) -> dict[str, np.ndarray]:
  """Arrays with a row for each video of a split, to be looked up by `index`.

  Returns:
    for 'multi-label' labels, bool [R, K]; for 'captions' token_ids, int32 [R, S], and video, int32
    [R], which rows are of one file; else nothing.

  Raises:
    ValueError: a caption is too long, and `truncate` is False.
  """
  if task == 'multi-label':
    return {'labels': split.labels}
  if task == 'captions':
    return {'token_ids': caption_ids(split, context_length, truncate),
            'video': split.file_numbers}
  return {}


def select_targets(rows: Mapping[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
  """The rows of a batch; those of padding (-1) are the last row's, and must not count."""
  found = {name: array[index] for name, array in rows.items() if name != 'video'}
  if 'video' in rows:
    found['file'] = rows['video'][index]
  return found
