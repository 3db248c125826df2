"""Meshes, where each array of a run lives, and how batches get there."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xclip_jax import paths

# dcn: slices of a TPU, or hosts, with a slow network between them; data: chips that hold the same
# parameters; fsdp: chips that share the large ones; tensor: chips that share heads and MLPs.
AXES = ('dcn', 'data', 'fsdp', 'tensor')
BATCH_AXES = AXES[:3]                 # every one of these splits the batch; 'tensor' repeats it
RULES = ('replicate', 'fsdp', 'column', 'row')


def make_mesh(axes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
  """Builds the device mesh of a run.

  Args:
    axes: size of each axis in AXES; at most one may be -1, it takes the devices that are left.
    devices: default: all devices of all hosts.

  Raises:
    ValueError: unknown axis, sizes whose product is not the number of devices, slices of a TPU that
      are not those of `dcn`, or a `tensor` axis across hosts.
  """
  devices = jax.devices() if devices is None else list(devices)
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
  slices = len({getattr(d, 'slice_index', None) or 0 for d in devices})
  if slices > 1 and sizes[0] != slices:
    raise ValueError(
      f'the devices lie in {slices} slices, and config.mesh.dcn={sizes[0]}: set it to {slices}'
    )
  kinds = (AxisType.Auto,) * len(AXES)
  if slices > 1:
    inside, between = (1, *sizes[1:]), (slices, 1, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(inside, between, devices)
    mesh = Mesh(grid, AXES, axis_types=kinds)
  elif sizes[0] > 1:                              # hosts in their order
    mesh = Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=kinds)
  else:
    mesh = jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)
  for group in mesh.devices.reshape(-1, sizes[-1]):
    if len({d.process_index for d in group}) > 1:
      raise ValueError(
        f'config.mesh.tensor={sizes[-1]} reaches across hosts; it must divide the number of '
        'devices of each'
      )
  return mesh


def single_device() -> bool:
  """Whether there is no mesh around this code, or one of a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def splits_heads() -> bool:
  """Whether the mesh around this code shares heads and MLPs among chips."""
  return dict(jax.sharding.get_abstract_mesh().shape).get('tensor', 1) > 1


def batch_shards(mesh: Mesh | None = None) -> int:
  """The number of parts that a batch is cut into; default: on the mesh that is set, 1 without."""
  mesh = mesh or jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[name] for name in BATCH_AXES if name in mesh.shape)


def shard_batch(x: jax.Array, tensor_axis: int | None = None) -> jax.Array:
  """Pins x's leading axis to the batch axes of the mesh, and another one to 'tensor'.

  A no-op without a mesh, or on one whose axes are not those of `make_mesh`. Rows that do not divide
  are left to the compiler; so is a 'tensor' axis that does not.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if set(mesh.axis_names) != set(AXES):
    return x
  spec = [None] * x.ndim
  spec[0] = BATCH_AXES if x.shape[0] % batch_shards(mesh) == 0 else P.UNCONSTRAINED
  if tensor_axis is not None:
    divides = x.shape[tensor_axis] % mesh.shape['tensor'] == 0
    spec[tensor_axis] = 'tensor' if divides else P.UNCONSTRAINED
  return jax.lax.with_sharding_constraint(x, P(*spec))


def gather_batch(x: jax.Array) -> jax.Array:
  """Gives every device all rows of x; a no-op without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def infer(tree: Any, rules: paths.Rules, mesh: Mesh) -> Any:
  """Gives every leaf of an abstract state its sharding.

  Args:
    tree: pytree of arrays or ShapeDtypeStructs, e.g. a whole TrainState.
    rules: (regex, one of RULES) over path names, first match wins. Optimizer moments end in the
      names of their parameters, so one rule places both.
    mesh: from `make_mesh`.

  Raises:
    ValueError: a leaf that no rule matches, or an unknown rule.
  """
  def place(name, leaf):
    rule = paths.match(name, rules)
    if rule not in RULES:
      raise ValueError(
        f'config.sharding: rule {rule!r} of {name!r} is not one of {", ".join(RULES)}')
    return NamedSharding(mesh, spec_of(rule, leaf.shape, mesh.shape))

  return paths.map_with_names(place, tree)


def spec_of(rule: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
  """Says which mesh axis splits which axis of an array.

  Args:
    rule: 'replicate': none. 'fsdp': its largest axis by 'fsdp'. 'column' and 'row', which kernels
      [D, features] of a layer that is shared by chips have (Shoeybi et al., "Megatron-LM", 2019):
      the last or the first axis by 'tensor', and the largest other one by 'fsdp'.
    shape: of the array. An axis that does not divide is not split.
    sizes: of the mesh axes.
  """
  names = [None] * len(shape)
  splits = lambda axis, name: sizes[name] > 1 and shape[axis] % sizes[name] == 0
  if rule in ('column', 'row') and shape:
    axis = len(shape) - 1 if rule == 'column' else 0
    names[axis] = 'tensor' if splits(axis, 'tensor') else None
  if rule != 'replicate' and len(shape) > (rule != 'fsdp'):       # the bias of a column stays whole
    free = [i for i, name in enumerate(names) if name is None and splits(i, 'fsdp')]
    if free:
      names[max(free, key=lambda i: shape[i])] = 'fsdp'
  while names and names[-1] is None:
    names.pop()
  return P(*names)


def check_widths(widths: Mapping[str, int], mesh: Mesh) -> None:
  """Raises ValueError unless 'tensor' divides each width, given by the name of its field."""
  size = mesh.shape['tensor']
  for field, width in widths.items():
    if width % size:
      raise ValueError(
        f'config.mesh.tensor={size} does not divide {field}={width} of the model: heads and MLPs '
        'are split evenly'
      )


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Moves this host's rows of a batch to its devices, as one global array per leaf.

  Args:
    batch: pytree of numpy arrays [rows of this host, ...].

  Raises:
    ValueError: the rows do not divide by the devices.
  """
  rows, shards = len(jax.tree.leaves(batch)[0]), batch_shards(mesh.local_mesh)
  if rows % shards:
    raise ValueError(
      f'a batch of {rows} videos does not divide by the {shards} shards of this host; choose a '
      f'batch size that is a multiple of {batch_shards(mesh)}'
    )
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
