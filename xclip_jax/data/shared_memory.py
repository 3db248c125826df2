"""Check that shared memory (/dev/shm) has room for the batches of decoding processes."""

import math
import os

from xclip_jax.errors import UserError

FOLDER = '/dev/shm'
_BATCHES_PER_WORKER = 4    # grain 0.2.18: two batches on the worker's side, two on the reader's


def bytes_needed(workers: int, batch_bytes: int) -> int:
  """Returns the most bytes that `workers` processes and the reader's batch need."""
  return (_BATCHES_PER_WORKER * workers + 1) * batch_bytes


def check(workers: int, batch_bytes: int, free: int | None = None) -> None:
  """Checks that shared memory has room for the batches of all decoding processes.

  Without room the kernel kills a worker in the middle of the training. Docker gives a container
  64 MB.

  Args:
    workers: number of decoding processes.
    batch_bytes: size of one batch of this host.
    free: free bytes in /dev/shm; None: ask the system.

  Raises:
    UserError: shared memory is too small; the message is one line.
  """
  if free is None:
    free = _free_bytes()
  needed = bytes_needed(workers, batch_bytes)
  if not workers or free is None or free >= needed:
    return
  gigabytes = math.ceil(1.25 * needed / 2**30)
  raise UserError(
    f'{FOLDER} has {free / 1e6:.0f} MB free, but config.data.workers={workers} processes keep '
    f'up to {_BATCHES_PER_WORKER * workers + 1} batches of {batch_bytes / 1e6:.1f} MB there, '
    f'{needed / 1e6:.0f} MB; start the container with --shm-size={gigabytes}g (or --ipc=host), or '
    'set config.data.workers=0, which decodes in threads')


def _free_bytes() -> int | None:
  """Returns the free bytes of shared memory, None where it is no folder (macOS)."""
  try:
    status = os.statvfs(FOLDER)
  except OSError:
    return None
  return status.f_bavail * status.f_frsize
