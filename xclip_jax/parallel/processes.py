"""Several processes as one program: how they find each other, and what they tell each other."""

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # client and state; as of jax 0.10.2
from jax.experimental import multihost_utils

from xclip_jax.errors import UserError
from xclip_jax.parallel import cluster, process_exit, stop_signals

T = TypeVar('T')
PATIENCE = 300             # seconds that the first process waits for the last one
HEARTBEAT_TIMEOUT = 60     # seconds of silence after which JAX counts a process as dead
_PACKET = 4096                     # bytes of each process that `all_gather_json` sends at once


def join(
  mode: str | None = None, coordinator: str | None = None, num_processes: int | None = None,
  process_id: int | None = None, timeout: int | None = None,
) -> tuple[int, int]:
  """Joins the other processes of a run; to be called before anything else is asked of JAX.

  With several processes, any uncaught exception ends all of them from now on (see `ending`), and
  SIGTERM is served in a thread (see `stopping`).

  Args:
    mode: 'auto' asks the launcher for the other processes (TPU pods, Slurm, Open MPI); 'off' runs
      alone; None, too, but refuses to where a launcher started several tasks.
    coordinator: HOST:PORT of process 0, where no launcher knows it; with the next two.
    num_processes: processes of the run.
    process_id: number of this process, from 0.
    timeout: seconds to wait for the other processes, PATIENCE if not given; then this process ends
      with a message.

  Returns:
    The number of this process, and how many processes there are.

  Raises:
    ValueError: the arguments contradict each other or the launcher, or there is none.
  """
  timeout = PATIENCE if timeout is None else timeout
  _check_arguments(mode, coordinator, num_processes, process_id, timeout)
  if coordinator is None and mode != 'auto':
    return 0, 1
  devices = cluster.local_device_ids()
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  where = coordinator or 'process 0'
  stop_signals.serve()
  # JAX would abort with a stack of C++ when its own time ran out, so ours runs out first.
  timer = threading.Timer(timeout, lambda: process_exit.exit_now(
    f'the other processes did not come within {timeout} s. Start the same command on all of them; '
    f'each must reach {where}.'))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, local_device_ids=devices,
      cluster_detection_method='deactivate' if coordinator else None,
      initialization_timeout=timeout + 60, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
  except (RuntimeError, ValueError, TypeError) as error:
    raise UserError(_join_error(error, where)) from error
  finally:
    timer.cancel()
  state = jax_distributed.global_state
  if state.preemption_sync_manager is not None:
    stop_signals.serve_instead_of_jax()
  if state.num_processes > 1:
    process_exit.watch(state.client, state.process_id, state.num_processes)
  return jax.process_index(), jax.process_count()


def _check_arguments(
  mode: str | None, coordinator: str | None, num_processes: int | None, process_id: int | None,
  timeout: int,
) -> None:
  explicit = (coordinator, num_processes, process_id)
  if mode not in (None, 'off', 'auto'):
    raise UserError(f'distributed must be off or auto, got {mode!r}')
  if timeout < 1:
    raise UserError(f'join_timeout must be at least 1 second, got {timeout}')
  if any(x is not None for x in explicit):
    if mode == 'auto':
      raise UserError('give either distributed=auto or coordinator, num_processes and process_id')
    if None in explicit:
      raise UserError('coordinator, num_processes and process_id belong together; give all three')
    if ':' not in coordinator or not coordinator.rpartition(':')[2].isdecimal():
      raise UserError(f'coordinator must be HOST:PORT of process 0, got {coordinator!r}')
    if num_processes < 1 or not 0 <= process_id < num_processes:
      raise UserError(
        f'process_id={process_id} must lie in 0..{num_processes - 1}, of {num_processes} processes')
    return
  task = cluster.launched_task()
  if mode is None and task and task.tasks > 1:
    raise UserError(
      f'{task.launcher} started this process as task {task.rank} of {task.tasks}, but it was not '
      'told to join the others, so each would do all of the work and write over what the others '
      'write. Add --distributed=auto; or --distributed=off if they are separate runs with workdirs '
      'of their own.')


def _join_error(error: Exception, where: str) -> str:
  """Says why the other processes were not found or not joined."""
  if jax_distributed.global_state.coordinator_address is not None:
    reason = str(error).strip().splitlines()[0][:300]
    return f'the other processes cannot be joined at {where}: {reason}'
  task = cluster.launched_task()
  ours = '--num_processes=N --process_id=I (I from 0 to N - 1)' if task is None else (
    f'--num_processes={task.tasks} --process_id={task.rank}')
  found = '' if task is None else (
    f' {task.launcher} started this process as task {task.rank} of {task.tasks}, but does not say '
    'where task 0 runs.')
  return (f'--distributed=auto found no cluster: looked for {cluster.LOOKED_FOR}.{found} Give '
          f'--coordinator=HOST:PORT (of process 0) {ours} instead, on every host.')


def all_gather_json(value: Any) -> list[Any]:
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


def broadcast_from_first(value: T) -> T:
  """What process 0 has."""
  return all_gather_json(value)[0]


def merge_failures(reasons: dict[int, str]) -> dict[int, str]:
  """Rows and reasons of all processes; of a row that several have, the first one's."""
  found: dict[int, str] = {}
  for part in all_gather_json({str(row): reason for row, reason in reasons.items()}):
    found = {int(row): reason for row, reason in part.items()} | found
  return dict(sorted(found.items()))


def run_on_all_processes(work: Callable[[], T]) -> T:
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
  errors = all_gather_json(None if error is None else str(error))
  if error is not None:
    raise error
  for process, message in enumerate(errors):
    if message is not None:
      raise UserError(f'process {process}: {message}')
  return result


def agreed_stop_signal() -> Callable[[], bool]:
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
