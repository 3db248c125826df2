"""Numbers as people read them."""

import numpy as np


def percent(share: float, digits: int = 1) -> str:
  """Returns a share as people read it, n/a if it is none."""
  return f'{100 * share:.{digits}f}%' if np.isfinite(share) else 'n/a'
