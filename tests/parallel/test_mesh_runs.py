"""Every mesh trains the same model: 20 updates on 8 simulated devices equal those of one device."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import quick
import tiny

PROGRAMS = pathlib.Path(__file__).parents[1] / 'programs'


def eight_devices(program, *arguments):
  """Runs a program, and sees to it that XLA does not give all of an array to all, to move it."""
  flags = f'--xla_force_host_platform_device_count=8 {quick.FLAGS}'
  done = subprocess.run(
    [sys.executable, PROGRAMS / program, *arguments], cwd=tiny.REPO, capture_output=True, text=True,
    env=os.environ | tiny.SIMULATED | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu',
                      'PYTHONPATH': f'{tiny.REPO}:{tiny.REPO / "tests"}'})
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'nvoluntary full rematerialization' not in done.stderr, done.stderr[-3000:]
  return done.stdout.splitlines()


def train(size, meshes):
  lines = eight_devices('train_on_meshes.py', size, *meshes)
  assert len(lines) == len(meshes)
  for line in lines:
    words = line.split()
    assert float(words[words.index('losses') + 1]) < 1e-5, line
    assert float(words[-1]) < 1e-5, line


@pytest.mark.slow
def test_twenty_updates_on_a_mixed_mesh_equal_those_of_one_device():
  train('tiny', ['data=2,fsdp=2,tensor=2'])


@pytest.mark.slow
@pytest.mark.parametrize('size', ['tiny', 'B/16'])
def test_twenty_updates_on_any_mesh_equal_those_of_one_device(size):
  train(size, ['data=8', 'data=1,fsdp=8', 'data=2,tensor=4', 'data=2,fsdp=4',
               'dcn=2,data=2,tensor=2', 'dcn=2,data=1,fsdp=2,tensor=2'])


@pytest.mark.slow
def test_twenty_updates_with_heads_a_few_at_a_time_equal_those_of_one_device():
  train('B/16 chunked', ['data=2,fsdp=4', 'data=2,tensor=4'])


@pytest.mark.slow
def test_a_whole_run_on_a_tensor_mesh_equals_that_of_one_device(tmp_path):
  root, losses = tiny.write_data(tmp_path / 'data'), []
  for name, options in (('one', {}), ('four', dict(devices=4, mesh__tensor=2))):
    done = tiny.finish(tmp_path / name, root, **options)
    assert done.returncode == 0, done.stdout[-3000:]
    rows = [json.loads(x) for x in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    losses.append([x['loss'] for x in rows if 'loss' in x])
  assert len(losses[0]) == 6
  np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)


# What one device exchanges in a training step of two vision layers, at most: how often, and KiB.
# data: the gradients together, and nothing of the batch: clips are blended with those of the same
# device. fsdp: each kernel forwards and backwards. tensor: a sum after each attention and each MLP,
# forwards and backwards. dcn: as data. (XLA:CPU all-reduces the gradients of split kernels, and
# then cuts.)
EXCHANGED = {
  'data=8': {'all-reduce': (2, 780)},
  'data=2,fsdp=4': {'all-gather': (43, 774), 'all-reduce': (5, 970), 'all-to-all': (3, 3)},
  'data=2,tensor=4': {'all-reduce': (21, 684)},
  'dcn=2,data=1,fsdp=2,tensor=2': {
    'all-gather': (60, 672), 'all-reduce': (32, 687), 'all-to-all': (3, 6),
    'collective-permute': (16, 246)},
}


@pytest.mark.slow
@pytest.mark.parametrize('meshes', [
  ('data=8', 'data=2,fsdp=4'),
  pytest.param(('data=2,tensor=4', 'dcn=2,data=1,fsdp=2,tensor=2'), marks=pytest.mark.slow)])
def test_meshes_exchange_what_they_must_and_nothing_else(meshes):
  fields = dict(tiny.FIELDS, vision_layers=2, vision_heads=4, mit_heads=4, prompt_heads=4,
                vision_width=64, vision_mlp=256, text_heads=4)
  found_lines = eight_devices('plan_meshes.py', json.dumps(fields), *meshes)
  for mesh, line in zip(meshes, found_lines, strict=True):
    found, most = json.loads(line), EXCHANGED[mesh]
    assert found.keys() == most.keys(), (mesh, found)
    for kind, (count, size) in found.items():
      assert count <= most[kind][0] and size / 1024 <= most[kind][1], (mesh, kind, count, size)
