"""Cluster environments: which launcher started this process, beside which others, on which GPUs."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping

from xclip_jax.errors import UserError

LOOKED_FOR = 'a TPU pod, Slurm (srun), Open MPI 4 (mpirun) or a Kubernetes Job'
_IN_A_STEP = ('SLURM_STEP_ID', 'SLURM_STEPID', 'SLURM_STEP_NUM_TASKS', 'SLURM_STEP_NODELIST')
_VISIBLE = ('CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES')


@dataclasses.dataclass(frozen=True)
class Task:
  """One of the tasks that a launcher started together."""

  launcher: str        # 'Slurm', 'Open MPI' or 'MPI'
  rank: int            # of this task, from 0
  tasks: int           # in all
  local_rank: int      # among the tasks of this node
  local_tasks: int     # on this node


def launched_task(environment: Mapping[str, str] = os.environ) -> Task | None:
  """Returns the task that this process is, None without a launcher.

  A batch script of Slurm that runs Python without srun is no task: sbatch sets SLURM_NTASKS and
  SLURM_PROCID=0 for the script, too, but no variable of a step.
  """
  number = lambda name, other=None: _number(environment, name, other)
  size = number('OMPI_COMM_WORLD_SIZE')
  if size is not None:
    local = number('OMPI_COMM_WORLD_LOCAL_SIZE', 1)
    return Task('Open MPI', number('OMPI_COMM_WORLD_RANK', 0), size,
                number('OMPI_COMM_WORLD_LOCAL_RANK', 0), local)
  if number('SLURM_PROCID') is not None and (
    any(name in environment for name in _IN_A_STEP) or number('SLURM_PROCID') > 0):
    tasks = number('SLURM_STEP_NUM_TASKS', number('SLURM_NTASKS', 1))
    return Task('Slurm', number('SLURM_PROCID'), tasks, number('SLURM_LOCALID', 0),
                _slurm_local_tasks(environment, tasks))
  if number('PMI_SIZE') is not None and number('PMI_RANK') is not None:   # MPICH, Intel MPI
    return Task('MPI', number('PMI_RANK'), number('PMI_SIZE'), number('MPI_LOCALRANKID', 0),
                number('MPI_LOCALNRANKS', 1))
  return None


def local_device_ids(environment: Mapping[str, str] = os.environ) -> list[int] | None:
  """Returns the GPUs of this process, as indices into those that it sees.

  JAX gives a task of Slurm or Open MPI one GPU, the one with the task's number on its node. That is
  right for one task a GPU only: a task that is alone on its node takes all GPUs that it sees, and
  several tasks share what they all see evenly. `JAX_LOCAL_DEVICE_IDS` wins over everything.

  Returns:
    The indices; an empty list for all that are visible; None without a launcher.

  Raises:
    ValueError: JAX_LOCAL_DEVICE_IDS is no list of numbers.
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
    return []          # the launcher shows each task its own only (--gpus-per-task, --gpu-bind)
  share = max((visible or 0) // task.local_tasks, 1)
  return list(range(task.local_rank * share, (task.local_rank + 1) * share))


def _visible_gpus(environment: Mapping[str, str]) -> int | None:
  for name in _VISIBLE:
    if name in environment:
      return len([x for x in environment[name].split(',') if x.strip() not in ('', 'NoDevFiles')])
  return None


def _slurm_local_tasks(environment: Mapping[str, str], tasks: int) -> int:
  """Returns how many tasks of the step run on this node.

  srun writes one number a node, repeated ones as '8(x2)'. SLURM_NTASKS_PER_NODE is what was asked
  of sbatch, which srun may have been told otherwise, so it counts last.
  """
  node = _number(environment, 'SLURM_NODEID', 0)
  for name in ('SLURM_STEP_TASKS_PER_NODE', 'SLURM_TASKS_PER_NODE', 'SLURM_NTASKS_PER_NODE'):
    counts = _repeated(environment.get(name, ''))
    if not counts:
      continue
    count = counts[node] if node < len(counts) else max(counts)
    if count <= tasks:                        # else it is of the whole job, not of this step
      return count
  return math.ceil(tasks / (_number(environment, 'SLURM_STEP_NUM_NODES') or _number(
    environment, 'SLURM_NNODES') or 1))


def _repeated(text: str) -> list[int]:
  """Expands '2(x3),1' to [2, 2, 2, 1]; empty if the text is of another form."""
  found = []
  for part in text.replace(' ', '').split(','):
    match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    if not match:
      return []
    found += [int(match[1])] * int(match[2] or 1)
  return found


def _number(environment: Mapping[str, str], name: str, other: int | None = None) -> int | None:
  value = environment.get(name, '')
  return int(value) if value.isdecimal() else other
