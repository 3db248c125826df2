"""A rehearsal of pods: real processes whose devices stand in the order that TPU slices have.

Fast tests of the same: test_mesh.py, whose eight simulated devices compute, save and restore in two
such orders, and whose hosts read every row once wherever their devices stand.
"""

import json
import signal
import sys

import numpy as np
import pytest
from test_several_processes import (
  end,
  evaluate,
  root,
  rows,
  same,
  start,
  videos_and_weights,
  wait_for_rows,
)

import tiny
from xclip_jax.evaluation import scores

__all__ = ['root', 'videos_and_weights']                # fixtures
PROGRAM = str(tiny.REPO / 'tests/programs/with_device_order.py')

# The process of each device along a mesh of data=-1, in JAX's own arrangement of libtpu topologies;
# tests/test_topologies.py holds that they are what JAX says.
ORDERS = {
  'v5p:2x2x2': [0, 1, 0, 1, 0, 1, 0, 1],
  'v5e:4x4': [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0],
  'v5e:4x8': [0, 0, 2, 2, 4, 4, 6, 6, 0, 0, 2, 2, 4, 4, 6, 6,
              1, 1, 3, 3, 5, 5, 7, 7, 1, 1, 3, 3, 5, 5, 7, 7],
}
# Smaller ones for this machine, with one device for each pair of neighbours, or two slices.
ON_FOUR = {
  'v5e:4x8': [process // 2 for process in ORDERS['v5e:4x8'][::2]],
  'two slices': [0, 1, 0, 1, 2, 3, 2, 3],
}
CHANGES = {'train__steps': 24, 'checkpoint__every_steps': 6, 'train__batch_size': 16,
           'eval__every_steps': 12, 'report': False}


def permuted(order, command):
  """A command line that runs under the program, on a mesh of that order."""
  listed = ','.join(map(str, order))
  python, *rest = command
  return [python, PROGRAM, listed, *rest]


def train(workdir, data, order, **changes):
  flags = lambda where, n, i: (
    f'--coordinator={where}', f'--num_processes={n}', f'--process_id={i}')
  count = max(order) + 1
  command = lambda *about: permuted(
    order, tiny.command(workdir, data, *flags(*about), **CHANGES | changes))
  return start([command] * count, devices=len(order) // count)


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  done = tiny.finish(workdir, root, **CHANGES)
  assert done.returncode == 0, done.stdout
  return workdir


@pytest.mark.slow
def test_a_run_moves_between_slices_and_computes_what_one_device_does(root, whole, tmp_path):
  """Trained and saved on 2 hosts of v5p:2x2x2, restored and ended on 4 of v5e:4x4."""
  run = tmp_path / 'run'
  processes = train(run, root, ORDERS['v5p:2x2x2'])
  wait_for_rows(run, 2, processes)
  processes[1].send_signal(signal.SIGTERM)
  codes, said = end(processes)
  assert codes == [0, 0], said
  assert len(rows(run)) < len(rows(whole))
  codes, said = end(train(run, root, ORDERS['v5e:4x4']))
  assert codes == [0] * 4, said
  same(run, whole)
  every_video_once(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'changes'), [
  ('v5e:4x8', {}), ('v5e:4x8', {'mesh__fsdp': 2}),
  ('two slices', {'mesh__dcn': 2}), ('two slices', {'mesh__dcn': 2, 'mesh__fsdp': 2}),
  ('v5e:4x8', {'augment__repeats': 4}),
])
def test_a_slice_computes_what_one_device_does(root, whole, tmp_path, name, changes):
  if 'augment__repeats' in changes:                     # copies of a video on several hosts
    whole = tmp_path / 'whole'
    assert tiny.finish(whole, root, **CHANGES | changes).returncode == 0
  codes, said = end(train(tmp_path / 'run', root, ON_FOUR[name], **changes))
  assert codes == [0] * 4, said
  same(tmp_path / 'run', whole)
  every_video_once(tmp_path / 'run', whole)


def every_video_once(run, whole):
  one, other = (scores.load(workdir / 'predictions_val.npz') for workdir in (run, whole))
  np.testing.assert_array_equal(one.index, other.index)
  assert one.index.tolist() == list(range(tiny.RECIPE.val))
  np.testing.assert_allclose(one.averaged, other.averaged, atol=1e-4)
  results = [json.loads((workdir / 'results.json').read_text()) for workdir in (run, whole)]
  assert results[0] == pytest.approx(results[1], nan_ok=True, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['v5p:2x2x2', 'v5e:4x4'])
def test_an_evaluation_does_not_depend_on_the_order_of_devices(videos_and_weights, tmp_path, name):
  data, order = videos_and_weights, ORDERS[name]
  count = max(order) + 1
  assert evaluate(data, tmp_path / 'one', 1)[0] == [1]               # 1: videos are missing
  command = lambda where, n, i: permuted(order, [
    sys.executable, '-m', 'xclip_jax.cli', 'eval', 'supervised', str(data / 'val.csv'),
    '--weights', str(data / 'weights'), '-o', str(tmp_path / 'pod'), '--batch-size', '8', '--quiet',
    '--coordinator', where, '--num-processes', str(n), '--process-id', str(i)])
  codes, said = end(start([command] * count, devices=len(order) // count))
  assert codes == [1] * count, said
  one, pod = (scores.load(tmp_path / x / 'predictions.npz') for x in ('one', 'pod'))
  np.testing.assert_allclose(pod.logits, one.logits, atol=1e-4)
  assert pod.index.tolist() == one.index.tolist() == [0, 1, 2, 4, 5]
  assert pod.failed == one.failed
