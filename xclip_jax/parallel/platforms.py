"""What a program does on each kind of device, and the switch that makes it the same on all."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

_portable = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """Makes programs traced inside of the block take the default branch of every `by_platform`.

  Such a program computes the same function everywhere, perhaps slower, and its arrays may have
  symbolic sizes: exported graphs are traced so.
  """
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def by_platform(*operands: Any, default: Callable[..., Any], **branches: Callable[..., Any]) -> Any:
  """Applies the branch of the platform that a program is compiled for.

  Args:
    *operands: arguments of the branch.
    default: for platforms without a branch, and for all of them within `portable`.
    **branches: functions by platform: cpu, cuda, rocm, tpu.
  """
  if _portable.get():
    return default(*operands)
  return jax.lax.platform_dependent(*operands, default=default, **branches)
