"""Meshes, where each array of a run lives, and how batches get there."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xclip_jax import paths

AXES = ('data', 'fsdp')      # every axis splits the batch; 'fsdp' splits large parameters too


def make_mesh(axes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
  """Builds the device mesh of a run.

  Args:
    axes: size of each axis in AXES; at most one may be -1, it takes the devices that are left.
    devices: default: all devices of all hosts.

  Raises:
    ValueError: unknown axis, or sizes whose product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  unknown = set(axes) - set(AXES)
  if unknown:
    raise ValueError(f'config.mesh has unknown axes {sorted(unknown)}; known: {AXES}')
  sizes = [int(axes.get(name, 1)) for name in AXES]
  if sizes.count(-1) == 1:
    rest = -int(np.prod(sizes))
    sizes[sizes.index(-1)] = max(len(devices) // rest, 1) if rest else 1
  if min(sizes) < 1 or np.prod(sizes) != len(devices):
    raise ValueError(
      f'config.mesh {dict(axes)} does not cover the {len(devices)} devices there are: the product '
      'of its axes must be that number (one axis may be -1: what is left)'
    )
  return jax.make_mesh(
    tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  )


def shard_batch(x: jax.Array) -> jax.Array:
  """Pins x's leading axis to every mesh axis; a no-op without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(mesh.axis_names))


def gather_batch(x: jax.Array) -> jax.Array:
  """Gives every device all rows of x; a no-op without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def infer(tree: Any, rules: paths.Rules, mesh: Mesh) -> Any:
  """Gives every leaf of an abstract state its sharding.

  Args:
    tree: pytree of arrays or ShapeDtypeStructs, e.g. a whole TrainState.
    rules: (regex, 'replicate' | 'fsdp') over path names, first match wins. Optimizer moments end
      in the names of their parameters, so one rule places both.
    mesh: from `make_mesh`.

  Raises:
    ValueError: a leaf that no rule matches, or an unknown rule.
  """
  def place(name, leaf):
    rule = paths.match(name, rules)
    if rule not in ('replicate', 'fsdp'):
      raise ValueError(f'config.sharding: rule {rule!r} of {name!r} is not replicate or fsdp')
    spec = fsdp_spec(leaf.shape, mesh.shape['fsdp']) if rule == 'fsdp' else P()
    return NamedSharding(mesh, spec)

  return paths.map_with_names(place, tree)


def fsdp_spec(shape: tuple[int, ...], size: int) -> P:
  """Splits the largest axis that `size` devices divide; replicates when there is none."""
  divisible = [n if n % size == 0 else 0 for n in shape]
  if size == 1 or not any(divisible):
    return P()
  axis = int(np.argmax(divisible))
  return P(*(('fsdp' if i == axis else None) for i in range(axis + 1)))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Moves this host's rows of a batch to its devices, as one global array per leaf.

  Args:
    batch: pytree of numpy arrays [rows of this host, ...].

  Raises:
    ValueError: the rows do not divide by the devices.
  """
  rows, devices = len(jax.tree.leaves(batch)[0]), mesh.local_mesh.size
  if rows % devices:
    raise ValueError(
      f'a batch of {rows} videos does not divide by the {devices} devices of this host; '
      f'choose a batch size that is a multiple of {mesh.size}'
    )
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
