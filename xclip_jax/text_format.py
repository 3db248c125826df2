"""Numbers and texts formatted for people."""

import math

_JOINERS_AND_SPACES = '\u200c\u200d\xa0\u3000'      # of scripts and emoji; harmless


def printable(text: str, keep: str = '') -> str:
  """Escapes what could move the cursor of a terminal or hide text, and bytes that are no text.

  Texts of files (names of tensors, labels, templates, paths) are printed through this alone.

  Args:
    text: anything.
    keep: characters to leave, such as line breaks of our own.
  """
  keep += _JOINERS_AND_SPACES
  return ''.join(
    x if x.isprintable() or x in keep else x.encode('unicode_escape').decode('ascii')
    for x in text)


def percent(share: float, digits: int = 1) -> str:
  """Formats a share such as 0.123 as '12.3%', and a share that is not finite as 'n/a'."""
  return f'{100 * share:.{digits}f}%' if math.isfinite(share) else 'n/a'


def points(difference: float) -> str:
  """Returns a difference of shares in percentage points, with its sign; n/a if it is not finite."""
  return f'{100 * difference:+.1f}' if math.isfinite(difference) else 'n/a'
