"""A run that starts again compiles nothing again that takes long."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from test_several_processes import end, free_port

import tiny
from xclip_jax import compilation_cache

PROGRAMS = pathlib.Path(__file__).parents[0] / 'programs'
LARGE = ('jit_step', 'jit_predict')


def start(root, workdir, cache, stop, *process):
  hidden = {name for name in os.environ if name.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT'))}
  environment = {k: v for k, v in tiny.environment().items() if k not in hidden}
  return subprocess.Popen(
    [sys.executable, PROGRAMS / 'restarted_run.py', root, workdir, str(stop), *map(str, process)],
    env=environment | {
      'PYTHONPATH': f'{tiny.REPO}:{tiny.REPO / "tests"}', 'XCLIP_CACHE': str(cache)}, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def restarted(run, folder):
  """Runs twice; hits of the second run on each process."""
  codes, said = end(run(stop=2))
  assert not any(codes), said
  first = {path.name for path in folder.iterdir()}
  assert all(any(name.startswith(large) for name in first) for large in LARGE), first
  codes, said = end(run(stop=0))
  assert not any(codes), said
  new = {path.name for path in folder.iterdir()} - first
  assert not [name for name in new if name.startswith(LARGE) and not name.endswith('-atime')], new
  return [json.loads(text.splitlines()[-1])[0] for text in said]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


@pytest.mark.slow
def test_a_run_that_starts_again_has_its_programs_in_the_cache_of_the_command_line(root, tmp_path):
  run = lambda stop: [start(root, tmp_path / 'run', tmp_path / 'cache', stop)]
  (hits,) = restarted(run, tmp_path / 'cache' / 'compiled')
  assert hits >= len(LARGE)
  assert not (tmp_path / 'run' / 'compiled').exists()


@pytest.mark.slow
def test_several_processes_have_their_cache_in_their_workdir(root, tmp_path):
  def run(stop):
    where = f'localhost:{free_port()}'
    return [start(root, tmp_path / 'run', tmp_path / f'cache{i}', stop, where, 2, i)
            for i in range(2)]

  hits = restarted(run, tmp_path / 'run' / 'compiled')
  # Process 0 writes. On CPUs the others have keys of their own, as JAX hashes the topology that
  # each process sees, so that they find nothing.
  assert hits[0] >= len(LARGE), hits
  assert not (tmp_path / 'cache0').exists()


def test_what_the_environment_chooses_stays(tmp_path, monkeypatch):
  for name, value, wanted in (
    ('JAX_COMPILATION_CACHE_DIR', tmp_path / 'mine', tmp_path / 'mine'),
    ('XCLIP_CACHE', tmp_path / 'ours', tmp_path / 'ours' / 'compiled'),
  ):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    monkeypatch.setenv(name, str(value))
    program = [sys.executable, PROGRAMS / 'compilation_folder.py', tmp_path / 'run']
    done = subprocess.run(program, env=os.environ | {
      'PYTHONPATH': str(tiny.REPO)}, text=True, capture_output=True, timeout=120, check=True)
    assert done.stdout.strip() == str(wanted)
  assert compilation_cache.enable() is None
