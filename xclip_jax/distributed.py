"""Several processes as one program: how they find each other, and what they tell each other."""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar('T')
PATIENCE = 300         # seconds that the first waits for the last
_PACKET = 4096         # bytes of each process that `exchange` sends at once


def join(
  mode: str = 'off', coordinator: str | None = None, num_processes: int | None = None,
  process_id: int | None = None,
) -> tuple[int, int]:
  """Joins the other processes of a run; before anything else is asked of JAX.

  Args:
    mode: 'off'; or 'auto', where the others are known from the surroundings: TPU pods, Slurm, MPI.
    coordinator: HOST:PORT of process 0, with the next two, where they are not.
    num_processes: of the run.
    process_id: which this is, from 0.

  Returns:
    which process this is, and how many there are.

  Raises:
    ValueError: some of the three and not all, or ones that cannot be.

  The process ends with one message if the others do not come within `PATIENCE` seconds.
  """
  explicit = (coordinator, num_processes, process_id)
  if mode not in ('off', 'auto'):
    raise ValueError(f'distributed must be off or auto, got {mode!r}')
  if any(x is not None for x in explicit):
    if mode == 'auto':
      raise ValueError('give either distributed=auto or coordinator, num_processes and process_id')
    if None in explicit:
      raise ValueError('coordinator, num_processes and process_id belong together; give all three')
    if ':' not in coordinator or not coordinator.rpartition(':')[2].isdecimal():
      raise ValueError(f'coordinator must be HOST:PORT of process 0, got {coordinator!r}')
    if num_processes < 1 or not 0 <= process_id < num_processes:
      raise ValueError(
        f'process_id={process_id} must lie in 0..{num_processes - 1}, of {num_processes} processes')
  elif mode == 'off':
    return 0, 1
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  where = coordinator or 'the coordinator'

  def give_up():
    # JAX would abort with a stack of the C++ below it.
    print(f'error: the other processes did not come within {PATIENCE} s. Start the same command '
          f'on all of them; each must reach {where}.', file=sys.stderr, flush=True)
    os._exit(1)

  timer = threading.Timer(PATIENCE, give_up)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, initialization_timeout=PATIENCE + 60)
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:300]
    raise ValueError(f'the other processes cannot be joined at {where}: {reason}') from error
  finally:
    timer.cancel()
  return jax.process_index(), jax.process_count()


def exchange(value: Any) -> list[Any]:
  """Returns what each process has, in their order, on every process.

  Messages travel in packets of one size, so that one compiled program carries all of them, short
  or long.

  Args:
    value: of this process; what JSON can hold.
  """
  if jax.process_count() == 1:
    return [value]
  content = json.dumps(value).encode()
  message = np.frombuffer(len(content).to_bytes(8, 'little') + content, np.uint8)
  received, longest = [], 1
  while len(received) < longest:
    packet = np.zeros(_PACKET, np.uint8)
    part = message[len(received) * _PACKET:][:_PACKET]
    packet[:len(part)] = part
    received.append(multihost_utils.process_allgather(packet))           # [processes, _PACKET]
    if len(received) == 1:
      sizes = [int.from_bytes(row[:8].tobytes(), 'little') for row in received[0]]
      longest = -(-(max(sizes) + 8) // _PACKET)
  rows = np.concatenate(received, axis=1)
  return [json.loads(row[8:8 + size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def told_by_first(value: T) -> T:
  """What process 0 has."""
  return exchange(value)[0]


def merged(reasons: dict[int, str]) -> dict[int, str]:
  """Rows and reasons of all processes; of a row that several have, the first one's."""
  found: dict[int, str] = {}
  for part in exchange({str(row): reason for row, reason in reasons.items()}):
    found = {int(row): reason for row, reason in part.items()} | found
  return dict(sorted(found.items()))


def together(work: Callable[[], T]) -> T:
  """Does the same on every process; if it fails on one, all of them fail, with its message.

  Raises:
    ValueError: what was raised here, or where it was raised.
  """
  if jax.process_count() == 1:
    return work()
  result, error = None, None
  try:
    result = work()
  except (ValueError, RuntimeError, OSError) as found:
    error = found
  errors = exchange(None if error is None else str(error))
  if error is not None:
    raise error
  for process, message in enumerate(errors):
    if message is not None:
      raise ValueError(f'process {process}: {message}')
  return result


def stop_agreed() -> Callable[[], bool]:
  """Whether SIGTERM has come to any process: True on all of them at the same call.

  Each process must ask as often as the others. JAX's coordinator chooses the call.
  """
  calls, came = [0], []

  def stopped() -> bool:
    if not came:
      calls[0] += 1
      if multihost_utils.reached_preemption_sync_point(calls[0]):
        came.append(True)
    return bool(came)

  return stopped


def is_lost(error: BaseException) -> bool:
  """Whether an error is that of a process whose peers are gone."""
  words = ('gloo', 'connection', 'coordination', 'heartbeat', 'barrier', 'unavailable', 'socket',
           'preempt', 'peer', 'deadline')
  text = f'{type(error).__name__} {error}'.lower()
  return jax.process_count() > 1 and any(word in text for word in words)


def leave(message: str) -> None:
  """Ends this process at once: a barrier at the end would wait for those that are gone."""
  print(f'error: {message}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(1)
