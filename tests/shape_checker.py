"""Checker of the annotated shapes, for the import hook of conftest.py."""

from collections.abc import Callable

import beartype

_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))    # 1 is a float


def check(function: Callable) -> Callable:
  """Checks arguments and results of a function, but for constructors.

  A dataclass that is a pytree is rebuilt by JAX with whatever a transformation puts into its
  leaves: shapes, shardings, None.
  """
  return function if function.__name__ == '__init__' else _check(function)
