"""Numbers formatted for people."""

import numpy as np


def percent(share: float, digits: int = 1) -> str:
  """Formats a share such as 0.123 as '12.3%', and a share that is not finite as 'n/a'."""
  return f'{100 * share:.{digits}f}%' if np.isfinite(share) else 'n/a'


def points(difference: float) -> str:
  """Returns a difference of shares in percentage points, with its sign; n/a if it is not finite."""
  return f'{100 * difference:+.1f}' if np.isfinite(difference) else 'n/a'
