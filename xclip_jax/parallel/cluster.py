"""Cluster environments: the launcher, the task number and the GPUs of this process."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping

from xclip_jax.errors import UserError

LOOKED_FOR = 'a TPU pod, Slurm (srun), Open MPI 4 (mpirun) or a Kubernetes Job'
_STEP_VARIABLES = ('SLURM_STEP_ID', 'SLURM_STEPID', 'SLURM_STEP_NUM_TASKS', 'SLURM_STEP_NODELIST')
_VISIBILITY_VARIABLES = ('CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES')


@dataclasses.dataclass(frozen=True)
class Task:
  """A process as its launcher numbers it.

  Fields:
    launcher: 'Slurm', 'Open MPI' or 'MPI'.
    rank: number of the task, from 0.
    tasks: number of tasks on all nodes.
    local_rank: number of the task among those of its node, from 0.
    local_tasks: number of tasks on its node.
  """

  launcher: str
  rank: int
  tasks: int
  local_rank: int
  local_tasks: int


def launched_task(environment: Mapping[str, str] = os.environ) -> Task | None:
  """Returns the launcher's task for this process, None without a launcher.

  A batch script of Slurm that runs Python without srun is no task: sbatch sets SLURM_NTASKS and
  SLURM_PROCID=0 for the script, too, but no variable of a step.
  """
  number = lambda name: _number(environment, name)
  or_else = lambda name, default: _number_or(environment, name, default)
  size = number('OMPI_COMM_WORLD_SIZE')
  if size is not None:
    return Task('Open MPI', or_else('OMPI_COMM_WORLD_RANK', 0), size,
                or_else('OMPI_COMM_WORLD_LOCAL_RANK', 0), or_else('OMPI_COMM_WORLD_LOCAL_SIZE', 1))
  rank = number('SLURM_PROCID')
  if rank is not None and (rank > 0 or any(name in environment for name in _STEP_VARIABLES)):
    tasks = or_else('SLURM_STEP_NUM_TASKS', or_else('SLURM_NTASKS', 1))
    return Task('Slurm', rank, tasks, or_else('SLURM_LOCALID', 0),
                _slurm_local_tasks(environment, tasks))
  rank, size = number('PMI_RANK'), number('PMI_SIZE')                     # MPICH, Intel MPI
  if rank is not None and size is not None:
    return Task('MPI', rank, size, or_else('MPI_LOCALRANKID', 0), or_else('MPI_LOCALNRANKS', 1))
  return None


def local_device_ids(environment: Mapping[str, str] = os.environ) -> list[int] | None:
  """Returns the GPUs of this process, as indices into its visible GPUs.

  JAX gives a task of Slurm or Open MPI one GPU, the one with the task's number on its node. That is
  right for one task per GPU only. Here a task that is alone on its node takes all visible GPUs, and
  tasks that see the same GPUs share them evenly. `JAX_LOCAL_DEVICE_IDS` overrides both rules.

  Returns:
    Indices of GPUs; an empty list for all visible GPUs; None without a launcher.

  Raises:
    UserError: JAX_LOCAL_DEVICE_IDS is no list of numbers.
  """
  chosen = environment.get('JAX_LOCAL_DEVICE_IDS')
  if chosen:
    if not re.fullmatch(r'\s*\d+\s*(,\s*\d+\s*)*', chosen):
      raise UserError(
        f'JAX_LOCAL_DEVICE_IDS must hold numbers of GPUs, as 0,1,2,3; found {chosen!r}')
    return [int(x) for x in chosen.split(',')]
  task = launched_task(environment)
  if task is None:
    return None
  if task.local_tasks == 1:
    return []
  on_node = _number(environment, 'SLURM_GPUS_ON_NODE')
  visible = _visible_gpus(environment)
  if visible is None:
    visible = on_node
  elif visible < task.local_tasks or (on_node is not None and visible < on_node):
    return []          # the launcher shows each task only its own GPUs: --gpus-per-task, --gpu-bind
  share = max((visible or 0) // task.local_tasks, 1)
  return list(range(task.local_rank * share, (task.local_rank + 1) * share))


def _visible_gpus(environment: Mapping[str, str]) -> int | None:
  """Counts the GPUs that the environment lets this process see; None if it does not say."""
  for name in _VISIBILITY_VARIABLES:
    if name in environment:
      return len([x for x in environment[name].split(',') if x.strip() not in ('', 'NoDevFiles')])
  return None


def _slurm_local_tasks(environment: Mapping[str, str], tasks: int) -> int:
  """Counts the tasks of a Slurm step that run on this node.

  srun writes one number per node, repeated ones as '8(x2)'. SLURM_NTASKS_PER_NODE is the request to
  sbatch, which options of srun override, so it is read last.
  """
  node = _number_or(environment, 'SLURM_NODEID', 0)
  for name in ('SLURM_STEP_TASKS_PER_NODE', 'SLURM_TASKS_PER_NODE', 'SLURM_NTASKS_PER_NODE'):
    counts = _expand_repeats(environment.get(name, ''))
    if not counts:
      continue
    count = counts[node] if node < len(counts) else max(counts)
    if count <= tasks:                        # else the number is of the whole job, not of the step
      return count
  return math.ceil(tasks / (_number(environment, 'SLURM_STEP_NUM_NODES') or _number(
    environment, 'SLURM_NNODES') or 1))


def _expand_repeats(text: str) -> list[int]:
  """Expands '2(x3),1' to [2, 2, 2, 1]; returns an empty list for a text of another form."""
  counts = []
  for part in text.replace(' ', '').split(','):
    match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    if not match:
      return []
    counts += [int(match[1])] * int(match[2] or 1)
  return counts


def _number(environment: Mapping[str, str], name: str) -> int | None:
  value = environment.get(name, '')
  return int(value) if value.isdecimal() else None


def _number_or(environment: Mapping[str, str], name: str, default: int) -> int:
  number = _number(environment, name)
  return default if number is None else number
