"""Device meshes, shardings of a run's arrays, and batches on the devices of a mesh."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xclip_jax.errors import UserError
from xclip_jax.parallel import tree_names

# dcn: slices of a TPU, or hosts, with a slow network between them; data: chips with the same
# parameters; fsdp: chips that share the large parameters; tensor: chips that share heads and MLPs.
AXES = ('dcn', 'data', 'fsdp', 'tensor')
BATCH_AXES = AXES[:3]                 # these axes split the batch; 'tensor' repeats it
_GPUS = ('gpu', 'cuda', 'rocm')
RULES = ('replicate', 'fsdp', 'column', 'row')
Device = Any                          # jax.Device, or a description of one in a topology


def make_mesh(axes: Mapping[str, int], devices: list[Device] | None = None) -> Mesh:
  """Builds the device mesh of a run.

  Devices are in JAX's own arrangement, which follows the network between TPU chips, if that keeps
  hosts together; otherwise in blocks of whole hosts. Every group of `tensor` lies within a host.
  The mesh decides which host reads which rows of a batch (`host_rows`), so the order of devices
  changes no result.

  Args:
    axes: size of each axis in AXES; one may be -1 and then takes the remaining devices.
    devices: default: all devices of all hosts.

  Raises:
    UserError: unknown axis, sizes whose product is not the number of devices, a `dcn` that is not
      the number of TPU slices, or a `tensor` axis that cannot lie within hosts; the message says
      which sizes are possible.
  """
  devices = jax.devices() if devices is None else list(devices)
  unknown = set(axes) - set(AXES)
  if unknown:
    raise UserError(f'config.mesh has unknown axes {sorted(unknown)}; known: {AXES}')
  sizes = [int(axes.get(name, 1)) for name in AXES]
  if sizes.count(-1) == 1:
    rest = -int(np.prod(sizes))
    sizes[sizes.index(-1)] = max(len(devices) // rest, 1) if rest else 1
  slices = _group_by(_slice_index, devices)
  if min(sizes) < 1 or np.prod(sizes) != len(devices):
    raise UserError(
      f'config.mesh {dict(axes)} does not cover the {len(devices)} devices there are: the product '
      'of its axes must be that number (one axis may be -1: what is left); '
      + _possible_sizes(devices, len(slices)))
  is_tpu = devices[0].platform == 'tpu'
  if len(slices) > 1 and sizes[0] != len(slices) and (is_tpu or sizes[0] > 1):
    raise UserError(
      f'the devices lie in {len(slices)} slices, and config.mesh.dcn={sizes[0]}: '
      f'set it to {len(slices)}')
  if sizes[0] == len(slices) and is_tpu:
    grid = np.stack([_arrange_slice(sizes[1:], part) for part in slices])
  elif sizes[0] > 1 or len(slices) > 1:                # slices, or GPU hosts, in their order
    grid = np.array([d for part in slices for d in part]).reshape(sizes)
  else:
    grid = _arrange_slice(sizes[1:], devices)[None]
  if not _tensor_within_hosts(grid):
    raise UserError(
      f'config.mesh.tensor={sizes[-1]} reaches across hosts; it must divide the number of devices '
      'of each: ' + _possible_sizes(devices, len(slices)))
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice_index(device: Device) -> int:
  """Returns the slice of a device: devices of one slice share a fast network.

  Multislice TPUs number their slices; JAX numbers GPU hosts as if each were a slice.
  """
  for name in ('partition_index', 'slice_index'):      # the newer name first
    if (index := getattr(device, name, None)) is not None:
      return index
  return 0


def _host_index(device: Device) -> int:
  """Returns the host of a device. GPUs of one host may belong to several processes."""
  if device.platform in _GPUS and (
      hasattr(device, 'partition_index') or hasattr(device, 'slice_index')):
    return _slice_index(device)
  return device.process_index


def _group_by(key: Callable[[Device], int], devices: Sequence[Device]) -> list[list]:
  """Groups devices by key; groups are in the order of keys, devices in that of the list."""
  groups: dict[int, list[Device]] = {}
  for device in devices:
    groups.setdefault(key(device), []).append(device)
  return [groups[k] for k in sorted(groups)]


def _tensor_within_hosts(grid: np.ndarray) -> bool:
  """Tells whether each group along the last axis of a device grid lies on one host."""
  groups = grid.reshape(-1, grid.shape[-1])
  return all(len({_host_index(d) for d in group}) == 1 for group in groups)


def _possible_sizes(devices: Sequence[Device], slices: int) -> str:
  """Describes the mesh sizes that are possible on these devices."""
  hosts = _group_by(_host_index, devices)
  smallest = math.gcd(*map(len, hosts))
  tensor = ', '.join(str(n) for n in range(1, smallest + 1) if smallest % n == 0)
  dcn = f'dcn={slices}, ' if slices > 1 and devices[0].platform == 'tpu' else ''
  per_host = f', {len(hosts[0])} on each of {len(hosts)} hosts' if len(hosts) > 1 else ''
  return (f'{len(devices)} devices{per_host} allow {dcn}tensor one of {tensor}, and any data and '
          f'fsdp with dcn x data x fsdp x tensor = {len(devices)}')


def _arrange_slice(sizes: Sequence[int], devices: Sequence[Device]) -> np.ndarray:
  """Arranges the devices of one slice as [data, fsdp, tensor].

  Returns the first arrangement whose hosts are blocks of the grid: a host then reads consecutive
  rows, and JAX's own functions for host-local data work. If no arrangement has such blocks, the
  first whose `tensor` groups lie within hosts.
  """
  names = AXES[1:]
  kinds = (AxisType.Auto,) * len(names)
  grids = []
  for arrange_with_jax in (
    lambda: jax.make_mesh(tuple(sizes), names, axis_types=kinds, devices=devices).devices,
    # A physical axis of the network may have to be split between two mesh axes: hosts of 2x2 chips.
    lambda: mesh_utils.create_device_mesh(
      tuple(sizes), devices, allow_split_physical_axes=True),
  ):
    try:
      grids.append(arrange_with_jax())
    except (NotImplementedError, ValueError, AssertionError):   # JAX has no such arrangement
      continue
    if _hosts_are_blocks(grids[-1]):
      return grids[-1]
  grids.append(_arrange_hosts(sizes, devices))
  if _hosts_are_blocks(grids[-1]):
    return grids[-1]
  return next(filter(_tensor_within_hosts, grids), grids[-1])


def _hosts_are_blocks(grid: np.ndarray) -> bool:
  """Tells whether the devices of each host form a rectangular block of a device grid."""
  if not _tensor_within_hosts(grid):
    return False
  hosts = np.vectorize(_host_index)(grid)
  for host in np.unique(hosts):
    where = np.argwhere(hosts == host)
    if np.prod(where.max(0) - where.min(0) + 1) != len(where):
      return False
  return True


def _arrange_hosts(sizes: Sequence[int], devices: Sequence[Device]) -> np.ndarray:
  """Arranges devices as [data, fsdp, tensor]: tensor fills a host first, then fsdp, then data."""
  position = lambda d: (tuple(getattr(d, 'coords', ())), getattr(d, 'core_on_chip', 0), d.id)
  hosts = [sorted(host, key=position) for host in _group_by(_host_index, devices)]
  hosts.sort(key=lambda host: position(host[0]))
  in_order = np.array([d for host in hosts for d in host])
  data, fsdp, tensor = sizes
  per_host = len(hosts[0])
  if per_host % tensor or any(len(host) != per_host for host in hosts):
    return in_order.reshape(sizes)                     # `tensor` groups reach across hosts
  fsdp_inside = math.gcd(fsdp, per_host // tensor)
  data_inside = per_host // tensor // fsdp_inside
  blocks = in_order.reshape(
    data // data_inside, fsdp // fsdp_inside, data_inside, fsdp_inside, tensor)
  return blocks.swapaxes(1, 2).reshape(sizes)


def is_single_device() -> bool:
  """Tells whether the current mesh has one device, or no mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def splits_heads() -> bool:
  """Tells whether the current mesh splits heads and MLPs among chips."""
  return dict(jax.sharding.get_abstract_mesh().shape).get('tensor', 1) > 1


def batch_shards(mesh: Mesh | AbstractMesh | None = None) -> int:
  """Returns the number of parts that a mesh cuts a batch into; default: the current mesh."""
  mesh = mesh or jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[name] for name in BATCH_AXES if name in mesh.shape)


def shard_batch(x: jax.Array, tensor_axis: int | None = None) -> jax.Array:
  """Constrains x's first axis to the batch axes of the mesh, and `tensor_axis` to 'tensor'.

  Returns x itself without a mesh of `make_mesh`. An axis that the mesh does not divide is left to
  the compiler.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if set(mesh.axis_names) != set(AXES):
    return x
  spec: list[Any] = [None] * x.ndim
  spec[0] = BATCH_AXES if x.shape[0] % batch_shards(mesh) == 0 else P.UNCONSTRAINED
  if tensor_axis is not None:
    divides = x.shape[tensor_axis] % mesh.shape['tensor'] == 0
    spec[tensor_axis] = 'tensor' if divides else P.UNCONSTRAINED
  return jax.lax.with_sharding_constraint(x, P(*spec))


def gather_batch(x: jax.Array) -> jax.Array:
  """Replicates x on every device of the current mesh; returns x itself without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: rows split over the batch axes."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def infer(tree: Any, rules: tree_names.Rules, mesh: Mesh) -> Any:
  """Returns the sharding of every leaf of a pytree.

  Args:
    tree: pytree of arrays or ShapeDtypeStructs, e.g. a whole TrainState.
    rules: (regex, one of RULES) over path names, first match wins. Optimizer moments end in the
      names of their parameters, so one rule covers both.
    mesh: from `make_mesh`.

  Raises:
    UserError: a leaf that no rule matches, or an unknown rule.
  """
  def sharding(name, leaf):
    rule = tree_names.match(name, rules)
    if rule not in RULES:
      raise UserError(
        f'config.sharding: rule {rule!r} of {name!r} is not one of {", ".join(RULES)}')
    return NamedSharding(mesh, spec_of(rule, leaf.shape, mesh.shape))

  return tree_names.map_with_names(sharding, tree)


def spec_of(rule: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
  """Returns the PartitionSpec of an array: the mesh axis that splits each of its axes.

  Args:
    rule: 'replicate' splits no axis. 'fsdp' splits the largest axis by 'fsdp'. 'column' and 'row',
      for kernels [D, features] that chips share (Shoeybi et al., "Megatron-LM", 2019), split the
      last or the first axis by 'tensor' and the largest other axis by 'fsdp'.
    shape: shape of the array; an axis that the mesh axis does not divide is not split.
    sizes: size of each mesh axis.
  """
  names: list[str | None] = [None] * len(shape)
  splits = lambda axis, name: sizes[name] > 1 and shape[axis] % sizes[name] == 0
  if rule in ('column', 'row') and shape:
    axis = len(shape) - 1 if rule == 'column' else 0
    names[axis] = 'tensor' if splits(axis, 'tensor') else None
  # 'fsdp' does not split the bias of a 'column' or 'row' layer.
  if rule != 'replicate' and len(shape) > (rule != 'fsdp'):
    free = [i for i, name in enumerate(names) if name is None and splits(i, 'fsdp')]
    if free:
      names[max(free, key=lambda i: shape[i])] = 'fsdp'
  while names and names[-1] is None:
    names.pop()
  return P(*names)


def check_widths(widths: Mapping[str, int], mesh: Mesh) -> None:
  """Raises UserError unless the 'tensor' axis divides each width, given by its field's name."""
  size = mesh.shape['tensor']
  for field, width in widths.items():
    if width % size:
      raise UserError(
        f'config.mesh.tensor={size} does not divide {field}={width} of the model: heads and MLPs '
        'are split evenly'
      )


def host_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
  """Returns the rows of a global batch that the devices of one process hold, int32, ascending.

  The rows are read from the sharding of the batch: on TPU slices the devices of a host need not be
  neighbours in the mesh, so its rows need not be consecutive. Processes that share a group of
  `tensor` hold the same rows.

  Args:
    mesh: from `make_mesh`.
    batch_size: number of rows of the global batch.
    process: number of a process; default: this one.

  Raises:
    UserError: batch_size is no multiple of the batch's shards.
  """
  shards = batch_shards(mesh)
  if batch_size < 1 or batch_size % shards:
    raise UserError(
      f'a batch of {batch_size} rows does not divide by the {shards} shards of the mesh; choose a '
      f'batch size that is a multiple of {shards}')
  process = jax.process_index() if process is None else process
  held = {
    index[0].indices(batch_size)[:2]
    for device, index in batch_sharding(mesh).devices_indices_map((batch_size,)).items()
    if index is not None and device.process_index == process
  }
  return np.concatenate([np.arange(*part, dtype=np.int32) for part in sorted(held)])


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Moves this host's rows of a batch to its devices, as one global array per leaf.

  Args:
    batch: pytree of numpy arrays [rows of this host, ...], in the order of `host_rows`; leaves may
      differ in their number of rows.
    mesh: from `make_mesh`.

  Raises:
    UserError: the rows of a leaf do not divide by the devices.
  """
  total, sharding = batch_shards(mesh), batch_sharding(mesh)
  shards = len(host_rows(mesh, total))                  # shards that this process holds

  def to_devices(x: np.ndarray) -> jax.Array:
    if len(x) % shards:
      raise UserError(
        f'a batch of {len(x)} videos does not divide by the {shards} shards of this host; choose a '
        f'batch size that is a multiple of {total}'
      )
    size = len(x) // shards * total
    held, shape = host_rows(mesh, size), (size, *x.shape[1:])
    parts = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
      assert index is not None
      start, stop, _ = index[0].indices(size)
      first = int(np.searchsorted(held, start))
      parts[device] = x[first:first + stop - start]
    # jax_transfer_guard forbids implicit transfers only.
    arrays = jax.device_put(list(parts.values()), list(parts))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)

  return jax.tree.map(to_devices, batch)
