"""The unreadable files of a run: their paths and reasons, and the share that stops the run."""

import numpy as np

from xclip_jax.errors import UserError

_MAX_BYTES = 200  # length of a reason in a batch


def escape_undecodable(text: str) -> str:
  """Returns text whose undecodable bytes, as in names of files, are written as \\xff."""
  try:
    return text.encode(errors='surrogateescape').decode(errors='backslashreplace')
  except UnicodeEncodeError:                     # surrogates that stand for no byte
    return text.encode(errors='backslashreplace').decode()


def encode_reason(text: str) -> np.ndarray:
  """Returns the end of a path and reason, the part that names file and fault, as bytes: S200."""
  return np.array(escape_undecodable(text).encode()[-_MAX_BYTES:], f'S{_MAX_BYTES}')


def failures(batch: dict[str, np.ndarray]) -> dict[int, str]:
  """Returns path and reason of each row of the source that a batch could not read."""
  return {int(batch['failed'][i]): batch['error'][i].decode(errors='replace')
          for i in np.flatnonzero(batch['failed'] >= 0)}


class BadFiles:
  """Counts the files that could not be read, and stops a run that has too many.

  Every process meets files of its own. The processes exchange the results of `take_new`, and `add`
  takes the merged result; then `items` is the same on all processes.

  Fields:
    items: row of the source -> path and reason.
  """

  def __init__(self, source_len: int, max_share: float):
    self._source_len = source_len
    self._max_share = max_share
    self._agreed: set[int] = set()   # rows that all processes know of
    self.items: dict[int, str] = {}

  @property
  def count(self) -> int:
    """Returns the number of distinct unreadable files so far."""
    return len(self.items)

  def update(self, batch: dict[str, np.ndarray], check: bool = True) -> None:
    """Adds the failures of a batch; with `check`, raises UserError if they are too many."""
    for row, reason in failures(batch).items():
      self.items.setdefault(row, reason)
    if check:
      self.check()

  def take_new(self) -> dict[int, str]:
    """Returns the failures that the other processes do not know of yet."""
    return {row: reason for row, reason in self.items.items() if row not in self._agreed}

  def add(self, agreed: dict[int, str]) -> None:
    """Adds failures that all processes agree on; a row that was added before keeps its reason.

    Args:
      agreed: reasons by row: the merged results of `take_new` of all processes, or those of a
        checkpoint.
    """
    self.items |= {row: reason for row, reason in agreed.items() if row not in self._agreed}
    self.items = dict(sorted(self.items.items()))
    self._agreed |= agreed.keys()

  def check(self) -> None:
    """Raises UserError if the share of unreadable files is larger than `max_share`."""
    if self.count > self._max_share * self._source_len:
      shown = '\n  '.join(list(self.items.values())[:5])
      raise UserError(
        f'{self.count} of {self._source_len} videos cannot be read, more than '
        f'data.max_bad_share={self._max_share} allows; repair or delist them:\n  {shown}'
      )
