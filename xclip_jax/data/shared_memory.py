"""Room for the batches that decoding processes hand over in shared memory (/dev/shm)."""

import math
import os

from xclip_jax.errors import UserError

FOLDER = '/dev/shm'
_HELD_BY_A_WORKER = 4      # grain 0.2.18: two batches on the worker's side, two on the reader's


def bytes_needed(workers: int, batch_bytes: int) -> int:
  """Returns how much `workers` processes hold at most: their batches, and the one that is read."""
  return (_HELD_BY_A_WORKER * workers + 1) * batch_bytes


def check(workers: int, batch_bytes: int, free: int | None = None) -> None:
  """Checks that shared memory holds the batches of all decoding processes.

  Where it does not, the kernel kills a worker in the middle of the training. Docker gives a
  container 64 MB.

  Args:
    workers: number of decoding processes.
    batch_bytes: size of one batch of this host.
    free: bytes that are free in /dev/shm; asked of the system if not given.

  Raises:
    ValueError: it does not; the message is one line.
  """
  if free is None:
    free = _free_bytes()
  needed = bytes_needed(workers, batch_bytes)
  if not workers or free is None or free >= needed:
    return
  gigabytes = math.ceil(1.25 * needed / 2**30)
  raise UserError(
    f'{FOLDER} has {free / 1e6:.0f} MB free, but config.data.workers={workers} processes keep '
    f'up to {_HELD_BY_A_WORKER * workers + 1} batches of {batch_bytes / 1e6:.1f} MB there, '
    f'{needed / 1e6:.0f} MB; start the container with --shm-size={gigabytes}g (or --ipc=host), or '
    'set config.data.workers=0, which decodes in threads')


def _free_bytes() -> int | None:
  """Returns what is free, None where shared memory is no folder (macOS)."""
  try:
    found = os.statvfs(FOLDER)
  except OSError:
    return None
  return found.f_bavail * found.f_frsize
