"""Tests of processes that join, with the environments of srun and mpirun and without."""

import os
import subprocess
import sys

import pytest
from test_process_exit import PROGRAMS, end, free_port

import tiny
from xclip_jax.parallel import cluster, processes

JOB = {'SLURM_JOB_ID': '4242', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_ID': '0'}
EIGHT = '0,1,2,3,4,5,6,7'


def srun(tasks, rank, local, **more):
  """Returns the variables that srun sets for each task."""
  return JOB | {
    'SLURM_NTASKS': str(tasks), 'SLURM_STEP_NUM_TASKS': str(tasks), 'SLURM_PROCID': str(rank),
    'SLURM_LOCALID': str(local)} | more


def mpirun(tasks, rank, local_tasks, local):
  return {
    'OMPI_COMM_WORLD_SIZE': str(tasks), 'OMPI_COMM_WORLD_RANK': str(rank),
    'OMPI_COMM_WORLD_LOCAL_SIZE': str(local_tasks), 'OMPI_COMM_WORLD_LOCAL_RANK': str(local)}


def run(program, *arguments, **environment):
  clean = {name: value for name, value in tiny.environment().items()
           if not name.startswith(('SLURM_', 'OMPI_', 'PMI_', 'JAX_LOCAL_', 'CUDA_'))}
  return subprocess.Popen(
    [sys.executable, *map(str, (program, *arguments))], env=clean | environment, text=True,
    cwd=tiny.REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


# --- GPUs of a task ------------------------------------------------------------------------------


@pytest.mark.parametrize(('environment', 'devices'), [
  # One task a node takes all GPUs, however srun says that it is alone.
  (srun(1, 0, 0), []),
  (srun(4, 3, 0, SLURM_NODEID='3', SLURM_STEP_TASKS_PER_NODE='1(x4)'), []),
  (srun(4, 3, 0, SLURM_NODEID='3', SLURM_STEP_NUM_NODES='4'), []),
  (srun(4, 3, 0, SLURM_NTASKS_PER_NODE='1'), []),
  # sbatch was asked for 8 a node, srun for 1.
  (srun(2, 1, 0, SLURM_NODEID='1', SLURM_STEP_TASKS_PER_NODE='1(x2)', SLURM_NTASKS_PER_NODE='8'),
   []),
  # One task a GPU takes its own, of those that all tasks of the node see.
  (srun(16, 11, 3, SLURM_NODEID='1', SLURM_STEP_TASKS_PER_NODE='8(x2)', CUDA_VISIBLE_DEVICES=EIGHT,
        SLURM_GPUS_ON_NODE='8'), [3]),
  (srun(8, 5, 5, SLURM_NTASKS_PER_NODE='8'), [5]),
  (srun(3, 2, 0, SLURM_NODEID='1', SLURM_STEP_TASKS_PER_NODE='2,1', CUDA_VISIBLE_DEVICES='0,1'),
   []),
  # --gpus-per-task, --gpu-bind: each task sees its own only, whatever number it has.
  (srun(8, 5, 5, SLURM_STEP_TASKS_PER_NODE='8', CUDA_VISIBLE_DEVICES='5', SLURM_GPUS_ON_NODE='8'),
   []),
  (srun(2, 1, 1, SLURM_STEP_TASKS_PER_NODE='2', CUDA_VISIBLE_DEVICES='0,1,2,3',
        SLURM_GPUS_ON_NODE='8'), []),
  # Two tasks that both see eight.
  (srun(2, 1, 1, SLURM_STEP_TASKS_PER_NODE='2', CUDA_VISIBLE_DEVICES=EIGHT), [4, 5, 6, 7]),
  (mpirun(8, 5, 4, 1), [1]),
  (mpirun(2, 1, 1, 0), []),
  (srun(1, 0, 0, JAX_LOCAL_DEVICE_IDS='0,1,2,3'), [0, 1, 2, 3]),
  (srun(8, 5, 5, SLURM_NTASKS_PER_NODE='8', JAX_LOCAL_DEVICE_IDS='2'), [2]),
  ({}, None),
])
def test_a_task_takes_the_gpus_that_are_its_own(environment, devices):
  assert cluster.local_device_ids(environment) == devices


def test_device_numbers_that_are_none_are_refused():
  with pytest.raises(ValueError, match=r'JAX_LOCAL_DEVICE_IDS must hold numbers of GPUs.*0-3'):
    cluster.local_device_ids({'JAX_LOCAL_DEVICE_IDS': '0-3'})


@pytest.mark.parametrize(('environment', 'devices'), [
  (srun(1, 0, 0, SLURM_STEP_NUM_NODES='1'), 'all'),
  pytest.param(srun(1, 0, 0, JAX_LOCAL_DEVICE_IDS='0,1'), '0,1', marks=pytest.mark.slow),
])
def test_jax_is_told_so(environment, devices):
  process = run(PROGRAMS / 'join_auto.py', JAX_COORDINATOR_PORT=str(free_port()), **environment)
  codes, said = end([process])
  assert codes == [0] and f'0 of 1, GPUs {devices}' in said[0], said


@pytest.mark.parametrize('local_tasks', ['2', pytest.param('1(x2)', marks=pytest.mark.slow)])
def test_two_tasks_of_slurm_join(local_tasks):
  port = str(free_port())
  alone = local_tasks != '2'
  codes, said = end([
    run(PROGRAMS / 'join_auto.py', JAX_COORDINATOR_PORT=port, **srun(
      2, i, 0 if alone else i, SLURM_NODEID=str(i if alone else 0),
      SLURM_STEP_TASKS_PER_NODE=local_tasks))
    for i in range(2)])
  assert codes == [0, 0], said
  for i, text in enumerate(said):
    assert f'{i} of 2, GPUs {"all" if alone else i}' in text, said


@pytest.mark.slow
def test_two_ranks_of_open_mpi_join():
  port = str(free_port())
  codes, said = end([
    run(PROGRAMS / 'join_auto.py', JAX_COORDINATOR_PORT=port,
        OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://127.0.0.1:34911', **mpirun(2, i, 2, i))
    for i in range(2)])
  assert codes == [0, 0], said
  assert all(f'{i} of 2, GPUs {i}' in text for i, text in enumerate(said)), said


# --- starts that go wrong ------------------------------------------------------------------------


@pytest.mark.parametrize('environment', [
  srun(2, 1, 1), srun(2, 0, 0), {'SLURM_NTASKS': '2', 'SLURM_PROCID': '1'}, mpirun(2, 0, 2, 0),
  {'PMI_SIZE': '4', 'PMI_RANK': '3'},
])
def test_one_of_several_tasks_is_told_to_join(environment, monkeypatch):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=r'as task \d of \d.*Add --distributed=auto'):
    processes.join()
  assert processes.join('off') == (0, 1)             # somebody who means it


@pytest.mark.parametrize('environment', [
  # A batch script that runs Python without srun, and the shell that salloc opens.
  {'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0',
   'SLURM_NTASKS_PER_NODE': '8', 'SLURM_TASKS_PER_NODE': '8'},
  srun(8, 0, 0, SLURM_STEP_NUM_TASKS='1', SLURM_STEP_ID='4294967290'),
  srun(1, 0, 0), {},
])
def test_a_batch_script_is_no_task(environment, monkeypatch):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert processes.join() == (0, 1)


@pytest.mark.parametrize('command', [
  ('train.py', '--config=configs/demo.py', '--workdir=RUN'),
  ('-m', 'xclip_jax.cli', 'eval', 'supervised', 'no.csv', '--weights', 'W', '-o', 'RUN'),
])
def test_both_programs_refuse_to_be_one_of_several_alone(command, tmp_path):
  arguments = [x.replace('RUN', str(tmp_path / 'run')) for x in command]
  codes, said = end([run(*arguments, **srun(2, 1, 1))])
  assert codes[0] in (1, 2) and 'Add --distributed=auto' in said[0], said
  assert 'Traceback' not in said[0] and not list(tmp_path.iterdir())


def test_no_cluster_is_said_in_our_words():
  codes, said = end([run(PROGRAMS / 'join_auto.py')])
  assert codes == [1] and 'Traceback' not in said[0], said
  assert 'found no cluster: looked for a TPU pod, Slurm' in said[0]
  assert '--coordinator=HOST:PORT (of process 0) --num_processes=N --process_id=I' in said[0]


@pytest.mark.slow
def test_ranks_of_an_mpi_that_names_no_address_get_their_flags():
  """Open MPI 5 sets no OMPI_MCA_orte_hnp_uri."""
  codes, said = end([run(PROGRAMS / 'join_auto.py', **mpirun(4, 2, 2, 0))])
  assert codes == [1] and '--num_processes=4 --process_id=2' in said[0], said


@pytest.mark.parametrize('process', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_who_waits_in_vain_says_so_in_time(process, tmp_path):
  command = tiny.command(
    tmp_path / 'run', tmp_path, f'--coordinator=localhost:{free_port()}', '--num_processes=2',
    f'--process_id={process}', '--join_timeout=3')
  codes, said = end([run(*command[1:])])
  assert codes == [1] and 'error: the other processes did not come within 3 s' in said[0], said
  assert 'stack trace' not in said[0] and 'Traceback' not in said[0]


def test_a_join_timeout_is_a_time(monkeypatch):
  monkeypatch.delenv('SLURM_PROCID', raising=False)
  with pytest.raises(ValueError, match='join_timeout must be at least 1 second, got 0'):
    processes.join('off', 'localhost:1', 2, 0, 0)
  assert 'SLURM_PROCID' not in os.environ
