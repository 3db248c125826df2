"""Training targets for multi-label and caption data, and the classes of reversed clips."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from xclip_jax.data import Split
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.errors import UserError
from xclip_jax.text.captions import caption_ids


def check_reverse(classes: ClassList) -> None:
  """Raises ValueError unless every class names the class of its clips played backwards."""
  if None in classes.reverse:
    raise UserError(
      'config.augment.reverse needs a class list that names for every class what it is when played '
      f'backwards (column reverse); {classes.names[classes.reverse.index(None)]!r} has none')


def build_targets(
  split: Split, task: str, context_length: int, truncate: bool
) -> dict[str, np.ndarray]:
  """Builds arrays with a row for each video of a split, which `select_targets` looks up.

  Args:
    split: R training videos.
    task: `config.train.task`.
    context_length: S, longest text of the model in tokens.
    truncate: cut captions that are too long.

  Returns:
    For 'multi-label' labels, bool [R, K]; for 'captions' token_ids, int32 [R, S], and video, int32
    [R], equal for rows of the same file; for 'single-label' nothing.

  Raises:
    ValueError: A caption is too long, and `truncate` is False.
  """
  if task == 'multi-label':
    return {'labels': split.labels}
  if task == 'captions':
    return {'token_ids': caption_ids(split, context_length, truncate),
            'video': split.file_numbers}
  return {}


def select_targets(
  rows: Mapping[str, np.ndarray], index: Int[np.ndarray, ' B']
) -> dict[str, np.ndarray]:
  """Selects the targets of a batch by the rows of its videos, int [B].

  Padding has row -1 and gets the targets of the last row, which the mask of the batch leaves out.
  """
  selected = {name: array[index] for name, array in rows.items() if name != 'video'}
  if 'video' in rows:
    selected['file'] = rows['video'][index]
  return selected
