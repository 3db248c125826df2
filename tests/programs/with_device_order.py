"""Runs a program of the project on a mesh whose devices stand in another order.

  with_device_order.py 0,1,0,1 train.py ...        a script
  with_device_order.py 0,1,0,1 -m xclip_jax.cli ...    a module

The first argument names the process of each device along the mesh. A CPU's devices stand process by
process; those of TPU slices do not, and this is how their order comes to processes on one machine.
"""

import runpy
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from xclip_jax.parallel import mesh as mesh_lib

order = [int(process) for process in sys.argv[1].split(',')]
make_mesh = mesh_lib.make_mesh


def make_permuted_mesh(axes, devices=None):
  """Fills the shape of the real mesh with the next device of each process in turn."""
  shape = make_mesh(axes, devices).devices.shape
  waiting = {}
  for device in jax.devices():
    waiting.setdefault(device.process_index, []).append(device)
  grid = np.array([waiting[process].pop(0) for process in order])
  return Mesh(grid.reshape(shape), mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(shape))


if __name__ == '__main__':
  mesh_lib.make_mesh = make_permuted_mesh
  if sys.argv[2] == '-m':
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name='__main__')
  else:
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name='__main__')
