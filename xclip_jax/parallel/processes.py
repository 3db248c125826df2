"""Joining the processes of a run, and messages between them."""

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # client and state; as of jax 0.10.2
from jax.experimental import multihost_utils

from xclip_jax.errors import UserError, is_shown_in_one_line
from xclip_jax.parallel import cluster, process_exit, stop_signals

T = TypeVar('T')
PATIENCE = 300             # seconds that the first process waits for the last one
HEARTBEAT_TIMEOUT = 60     # seconds of silence after which JAX counts a process as dead
_PACKET = 4096             # bytes of each process that `all_gather_json` sends at once


def join(
  mode: str | None = None, coordinator: str | None = None, num_processes: int | None = None,
  process_id: int | None = None, timeout: int | None = None,
) -> tuple[int, int]:
  """Joins the other processes of a run; must be called before JAX is used.

  With several processes, any uncaught exception ends all of them from now on (see `process_exit`),
  and SIGTERM is served in a thread (see `stop_signals`).

  Args:
    mode: 'auto' asks the launcher for the other processes (TPU pods, Slurm, Open MPI); 'off' runs
      alone; None runs alone, but raises if a launcher started more than one task.
    coordinator: HOST:PORT of process 0, if no launcher knows it; needs the next two.
    num_processes: number of processes of the run.
    process_id: number of this process, from 0.
    timeout: seconds to wait for the other processes (default: PATIENCE); then this process ends
      with a message.

  Returns:
    The number of this process, and the number of processes.

  Raises:
    UserError: the arguments contradict each other or the launcher, or no launcher is found.
  """
  timeout = PATIENCE if timeout is None else timeout
  _check_arguments(mode, coordinator, num_processes, process_id, timeout)
  if coordinator is None and mode != 'auto':
    return 0, 1
  devices = cluster.local_device_ids()
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  address = coordinator or 'process 0'
  stop_signals.serve()
  # JAX aborts with a stack of C++ when its own timeout runs out, so ours is shorter.
  timer = threading.Timer(timeout, lambda: process_exit.exit_now(
    f'the other processes did not come within {timeout} s. Start the same command on all of them; '
    f'each must reach {address}.'))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, local_device_ids=devices,
      cluster_detection_method='deactivate' if coordinator else None,
      initialization_timeout=timeout + 60, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
  except (RuntimeError, ValueError, TypeError) as error:
    raise UserError(_join_error(error, address)) from error
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
  """Raises UserError if the arguments of `join` contradict each other or the launcher."""
  explicit = (coordinator, num_processes, process_id)
  if mode not in (None, 'off', 'auto'):
    raise UserError(f'distributed must be off or auto, got {mode!r}')
  if timeout < 1:
    raise UserError(f'join_timeout must be at least 1 second, got {timeout}')
  if any(x is not None for x in explicit):
    if mode == 'auto':
      raise UserError('give either distributed=auto or coordinator, num_processes and process_id')
    if coordinator is None or num_processes is None or process_id is None:
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


def _join_error(error: Exception, address: str) -> str:
  """Returns the message of a failed `join`: why the other processes were not found or reached."""
  if jax_distributed.global_state.coordinator_address is not None:
    reason = str(error).strip().splitlines()[0][:300]
    return f'the other processes cannot be joined at {address}: {reason}'
  task = cluster.launched_task()
  numbers = '--num_processes=N --process_id=I (I from 0 to N - 1)' if task is None else (
    f'--num_processes={task.tasks} --process_id={task.rank}')
  launcher = '' if task is None else (
    f' {task.launcher} started this process as task {task.rank} of {task.tasks}, but does not say '
    'where task 0 runs.')
  return (f'--distributed=auto found no cluster: looked for {cluster.LOOKED_FOR}.{launcher} Give '
          f'--coordinator=HOST:PORT (of process 0) {numbers} instead, on every host.')


def all_gather_json(value: Any) -> list[Any]:
  """Returns the values of all processes, in order of process number, on every process.

  Messages are sent in packets of one size, so that one compiled program serves short and long ones.

  Args:
    value: value of this process, representable in JSON.
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
  """Returns process 0's value on every process."""
  return all_gather_json(value)[0]


def merge_failures(reasons: dict[int, str]) -> dict[int, str]:
  """Merges the unreadable rows of all processes; the lowest process wins a tie.

  Args:
    reasons: maps rows that this process could not read to the reason.
  """
  merged: dict[int, str] = {}
  for part in all_gather_json({str(row): reason for row, reason in reasons.items()}):
    merged = {int(row): reason for row, reason in part.items()} | merged
  return dict(sorted(merged.items()))


def run_on_all_processes(work: Callable[[], T]) -> T:
  """Runs work on every process. If it fails on one, raises that error on all.

  Raises:
    UserError: `work` failed on another process in a way that the user can mend.
    RuntimeError: it failed there by a bug. On that process its own exception is raised.
  """
  if jax.process_count() == 1:
    return work()
  result, error = None, None
  try:
    result = work()
  except Exception as raised:                 # raised again below, once all processes know of it
    error = raised
  is_users = isinstance(error, UserError | OSError) and is_shown_in_one_line(error)
  failures = all_gather_json(None if error is None else {
    'message': str(error) if is_users else f'{type(error).__name__}: {error}',
    'is_users': is_users})
  if error is not None:
    raise error
  for process, failure in enumerate(failures):
    if failure is not None:
      kind = UserError if failure['is_users'] else RuntimeError
      raise kind(f'process {process}: {failure["message"]}')
  return cast(T, result)


def agreed_stop_signal() -> Callable[[], bool]:
  """Returns a predicate that turns True on all processes at the same call after a SIGTERM to any.

  Each process must call the predicate equally often. JAX's coordinator chooses the call.
  """
  calls, has_stopped = 0, False

  def is_stop_requested() -> bool:
    nonlocal calls, has_stopped
    if not has_stopped:
      calls += 1
      has_stopped = bool(multihost_utils.reached_preemption_sync_point(calls))
    return has_stopped

  return is_stop_requested
