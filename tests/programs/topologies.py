"""Makes the meshes of libtpu's topologies and says, as JSON lines, who reads which rows.

  topologies.py [NAME ...]       with libtpu installed; no TPU is needed

A line for each topology and mesh: {"topology", "axes", "chips", "hosts"} and either "refused", the
message, or "mesh", "rows_once" (every row is read by one host), "tensor_within_hosts" and "blocks"
(the rows of each host are a run); "jax_order": the hosts along JAX's own arrangement of data=-1.
"""

import json
import os
import sys

os.environ |= {
  'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'none',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

import jax
import numpy as np

from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.planning import plan

TOPOLOGIES = (
  'v4:2x2x2', 'v4:2x2x4', 'v4:4x4x4', 'v4:4x4x8', 'v4:4x8x8',
  'v5e:2x4', 'v5e:4x4', 'v5e:4x8', 'v5e:8x8', 'v5e:8x16', 'v5e:16x16',
  'v5p:2x2x2', 'v5p:2x2x4', 'v5p:4x4x4', 'v5p:4x4x8', 'v5p:4x8x8',
  'v6e:2x4', 'v6e:4x4', 'v6e:4x8', 'v6e:8x8', 'v6e:8x16', 'v6e:16x16',
  'v4:2x2x2*2', 'v5e:2x4*2', 'v5e:4x4*2', 'v5p:2x2x2*2', 'v6e:4x8*2',
)
AXES = ({}, {'fsdp': 2}, {'fsdp': 4}, {'fsdp': 8}, {'tensor': 2}, {'tensor': 4},
        {'fsdp': 2, 'tensor': 2}, {'fsdp': 4, 'tensor': 4})


def describe(devices, axes):
  mesh = mesh_lib.make_mesh(axes, devices)
  hosts = sorted({d.process_index for d in devices})
  batch = 2 * mesh_lib.batch_shards(mesh)
  rows = [mesh_lib.host_rows(mesh, batch, host) for host in hosts]
  groups = mesh.devices.reshape(-1, mesh.shape['tensor'])
  return {
    'mesh': list(mesh.devices.shape),
    'rows_once': np.sort(np.concatenate(rows)).tolist() == list(range(batch)),
    'tensor_within_hosts': all(len({d.process_index for d in group}) == 1 for group in groups),
    'blocks': all((np.diff(part) == 1).all() for part in rows),
  }


def main(names):
  for name in names or TOPOLOGIES:
    devices = plan.devices(name)
    slices = len({getattr(d, 'slice_index', 0) for d in devices}) if '*' in name else 1
    order = None if slices > 1 else [
      d.process_index for d in jax.make_mesh((len(devices),), ('data',), devices=devices)
      .devices.flat]
    for axes in AXES:
      axes = {'data': -1} | axes | ({'dcn': slices} if slices > 1 else {})
      row = {'topology': name, 'axes': axes, 'chips': len(devices),
             'hosts': len({d.process_index for d in devices})}
      try:
        row |= describe(devices, axes)
      except ValueError as error:
        row['refused'] = str(error)
      if axes == {'data': -1}:
        row['jax_order'] = order
      print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
