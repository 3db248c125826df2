"""Files that a run could not read: which, why, and when there are too many of them."""

import numpy as np

from xclip_jax.errors import UserError


def failures(batch: dict[str, np.ndarray]) -> dict[int, str]:
  """Returns the rows of the source that a batch could not read, each with path and reason."""
  return {int(batch['failed'][i]): batch['error'][i].decode(errors='replace')
          for i in np.flatnonzero(batch['failed'] >= 0)}


class BadFiles:
  """Counts the files that could not be read, and stops a run that has too many.

  Each of several processes meets other files. What `take_new` returns on each of them is exchanged,
  and `add` takes what they have agreed on; then `items` is the same on all.

  Fields:
    items: row of the source -> path and reason.
  """

  def __init__(self, source_len: int, max_share: float):
    self._source_len = source_len
    self._max_share = max_share
    self._agreed: set[int] = set()   # rows that all processes know
    self.items: dict[int, str] = {}

  @property
  def count(self) -> int:
    """Distinct files so far."""
    return len(self.items)

  def update(self, batch: dict[str, np.ndarray], check: bool = True) -> None:
    """Notes a batch's failures, and checks."""
    for row, reason in failures(batch).items():
      self.items.setdefault(row, reason)
    if check:
      self.check()

  def take_new(self) -> dict[int, str]:
    """Returns the failures that the other processes do not know yet."""
    return {row: reason for row, reason in self.items.items() if row not in self._agreed}

  def add(self, agreed: dict[int, str]) -> None:
    """Adds failures that all processes agree on; of a row agreed on before, the old reason stays.

    Args:
      agreed: what `take_new` returned on all of them, merged; or what a checkpoint holds.
    """
    self.items |= {row: why for row, why in agreed.items() if row not in self._agreed}
    self.items = dict(sorted(self.items.items()))
    self._agreed |= agreed.keys()

  def check(self) -> None:
    """Raises ValueError once their share of the source is too large."""
    if self.count > self._max_share * self._source_len:
      shown = '\n  '.join(list(self.items.values())[:5])
      raise UserError(
        f'{self.count} of {self._source_len} videos cannot be read, more than '
        f'data.max_bad_share={self._max_share} allows; repair or delist them:\n  {shown}'
      )
