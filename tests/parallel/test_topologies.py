"""Every TPU slice that libtpu's compiler knows gets a mesh; needs the extra `tpu`, but no TPU."""

import importlib.util
import json
import subprocess
import sys

import pytest
from test_pod_order import ORDERS

import tiny

# Hosts in turn, as JAX 0.10 arranges this slice, are the harder order, and the one rehearsed.
SINCE_JAX_0_12 = {'v5p:2x2x2': [0, 0, 0, 0, 1, 1, 1, 1]}

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs the extra tpu'),
]


@pytest.fixture(scope='module')
def table():
  done = subprocess.run(
    [sys.executable, str(tiny.REPO / 'tests/programs/topologies.py')], capture_output=True,
    text=True, env=tiny.environment(), timeout=600, check=False)
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_slice_has_a_mesh_or_is_told_which_sizes_it_can_have(table):
  assert {row['chips'] for row in table} == {8, 16, 32, 64, 128, 256}
  for row in table:
    per_host, axes = row['chips'] // row['hosts'], row['axes']
    fixed = axes.get('fsdp', 1) * axes.get('tensor', 1) * axes.get('dcn', 1)
    assert ('refused' in row) == (row['chips'] % fixed > 0), row
    if 'refused' in row:
      assert f'{per_host} on each of {row["hosts"]} hosts' in row['refused'], row
      assert 'tensor one of 1, 2, 4' in row['refused'], row


def test_the_hosts_of_every_slice_read_every_row_once(table):
  for row in table:
    assert 'refused' in row or (row['rows_once'] and row['tensor_within_hosts']), row
  # The fault that this holds off: hosts whose rows are no run do exist.
  assert not all(row.get('blocks', True) for row in table)


def test_the_orders_that_are_rehearsed_are_those_of_jax(table):
  found = {row['topology']: row['jax_order'] for row in table if row.get('jax_order')}
  for name, order in ORDERS.items():
    assert found[name] in (order, SINCE_JAX_0_12.get(name)), name
