"""Devices are an arrangement: what is computed does not depend on how many there are."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from xclip_jax.parallel import mesh as mesh_lib

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_eight_devices_compute_what_one_computes():
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  done = subprocess.run(
    [sys.executable, PROGRAMS / 'meshes_of_eight_devices.py'], cwd=ROOT, capture_output=True,
    text=True,
    env=os.environ | tiny.SIMULATED | {
      'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'all is well' in done.stdout


@pytest.mark.parametrize(('rule', 'shape', 'fsdp', 'tensor', 'want'), [
  ('fsdp', (64, 32), 4, 1, ('fsdp',)),
  ('fsdp', (32, 64), 4, 2, (None, 'fsdp')),
  ('fsdp', (3, 16, 16, 66), 4, 1, (None, 'fsdp')),    # the largest axis does not divide
  ('fsdp', (7, 9), 4, 1, ()),
  ('fsdp', (64, 32), 1, 1, ()),
  ('fsdp', (), 4, 1, ()),
  ('column', (64, 32), 4, 2, ('fsdp', 'tensor')),
  ('column', (64, 32), 4, 1, ('fsdp',)),              # as if it were fsdp
  ('column', (32,), 4, 2, ('tensor',)),
  ('column', (32,), 4, 1, ()),
  ('row', (64, 32), 4, 2, ('tensor', 'fsdp')),
  ('row', (64, 32), 1, 2, ('tensor',)),
  ('row', (63, 32), 4, 2, (None, 'fsdp')),            # 2 does not divide 63
  ('replicate', (64, 32), 4, 2, ()),
])
def test_a_rule_splits_the_axes_that_divide(rule, shape, fsdp, tensor, want):
  assert tuple(mesh_lib.spec_of(rule, shape, {'fsdp': fsdp, 'tensor': tensor})) == want


@dataclasses.dataclass(frozen=True)
class Chip:
  """Stands for a device of a topology that this machine lacks: the attributes that a mesh reads."""

  id: int
  process_index: int
  slice_index: int = 0
  platform: str = 'tpu'
  device_kind: str = 'none'
  coords: tuple[int, ...] = ()
  core_on_chip: int = 0


def chips(count, *, per_host=4, slices=1, platform='tpu'):
  """Chips of a slice that JAX arranges by no rule of its own, hosts and chips in any order."""
  found = [Chip(i, i // per_host, i * slices // count, platform) for i in range(count)]
  return [found[i] for i in np.random.default_rng(0).permutation(count)]


def test_slices_and_hosts_that_do_not_fit_the_mesh_are_errors():
  with pytest.raises(ValueError, match=r'in 2 slices, and config.mesh.dcn=1: set it to 2'):
    mesh_lib.make_mesh({'data': 4}, [Chip(i, 0, i // 2) for i in range(4)])
  mesh = mesh_lib.make_mesh({'dcn': 2, 'data': 2}, [Chip(i, 0, i // 2) for i in range(4)])
  assert [[d.slice_index for d in part.flat] for part in mesh.devices] == [[0, 0], [1, 1]]
  for axes, slices in (({'tensor': 4, 'dcn': 2}, 2), ({'tensor': 4, 'data': 2}, 1)):
    with pytest.raises(ValueError, match=r'config.mesh.tensor=4 reaches across hosts.*of each: '
                       r'8 devices, 2 on each of 4 hosts allow .*tensor one of 1, 2, and'):
      mesh_lib.make_mesh(axes, chips(8, per_host=2, slices=slices))


@pytest.mark.parametrize('axes', [
  {}, {'fsdp': 2}, {'fsdp': 8}, {'tensor': 2}, {'tensor': 4}, {'fsdp': 2, 'tensor': 2}])
@pytest.mark.parametrize('slices', [1, 2])
def test_rows_are_read_once_wherever_a_hosts_devices_stand(axes, slices):
  dcn = {'dcn': slices} if slices > 1 else {}
  mesh = mesh_lib.make_mesh({'data': -1} | axes | dcn, chips(16, slices=slices))
  rows = [mesh_lib.host_rows(mesh, 32, host) for host in range(4)]
  assert sorted(np.concatenate(rows).tolist()) == list(range(32))
  for group in mesh.devices.reshape(-1, mesh.shape['tensor']):
    assert len({d.process_index for d in group}) == 1
  for part in mesh.devices if slices > 1 else ():
    assert len({d.slice_index for d in part.flat}) == 1


def test_gpus_of_several_hosts_need_no_dcn():
  """JAX gives the GPUs of each host a slice number of their own."""
  devices = chips(8, slices=2, platform='gpu')
  mesh = mesh_lib.make_mesh({'data': -1, 'tensor': 2}, devices)
  assert dict(mesh.shape) == {'dcn': 1, 'data': 4, 'fsdp': 1, 'tensor': 2}
  assert [mesh_lib.host_rows(mesh, 8, host).tolist() for host in (0, 1)] == [
    [0, 1, 2, 3], [4, 5, 6, 7]]


def test_gpus_of_one_host_share_a_model_across_processes():
  """With one process for each GPU, as Slurm starts them: both of a group read its rows."""
  devices = chips(8, per_host=1, slices=2, platform='gpu')
  mesh = mesh_lib.make_mesh({'data': -1, 'tensor': 2}, devices)
  rows = [mesh_lib.host_rows(mesh, 4, process).tolist() for process in range(8)]
  assert sorted(rows) == [[0], [0], [1], [1], [2], [2], [3], [3]]
  for group in mesh.devices.reshape(-1, 2):
    assert len({d.slice_index for d in group}) == 1


def test_unknown_and_missing_rules_are_errors():
  mesh = mesh_lib.make_mesh({}, jax.devices()[:1])
  tree = {'a': {'kernel': np.zeros((4, 4))}}
  with pytest.raises(ValueError, match=r"rule 'shard' of 'a/kernel' is not one of replicate, fsdp"):
    mesh_lib.infer(tree, (('.*', 'shard'),), mesh)
  with pytest.raises(ValueError, match=r"no rule matches 'a/kernel'"):
    mesh_lib.infer(tree, (('b/.*', 'fsdp'),), mesh)


def test_shard_batch_does_nothing_without_a_mesh_of_ours():
  x = jnp.ones((3, 2))
  assert mesh_lib.shard_batch(x) is x
  with jax.set_mesh(jax.make_mesh((1,), ('model',), devices=jax.devices()[:1])):
    assert mesh_lib.shard_batch(x) is x and mesh_lib.batch_shards() == 1
