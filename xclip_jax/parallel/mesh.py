"""Meshes, where each array of a run lives, and how batches get there."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xclip_jax.errors import UserError
from xclip_jax.parallel import tree_names

# dcn: slices of a TPU, or hosts, with a slow network between them; data: chips that hold the same
# parameters; fsdp: chips that share the large ones; tensor: chips that share heads and MLPs.
AXES = ('dcn', 'data', 'fsdp', 'tensor')
BATCH_AXES = AXES[:3]                 # every one of these splits the batch; 'tensor' repeats it
_GPUS = ('gpu', 'cuda', 'rocm')
RULES = ('replicate', 'fsdp', 'column', 'row')


def make_mesh(axes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
  """Builds the device mesh of a run.

  JAX's own arrangement, which follows the network between TPU chips, is taken where it exists and
  keeps hosts together; otherwise blocks of whole hosts. Every group of `tensor` lies within a host.
  Rows of a batch are placed by the mesh (`host_rows`), so the order of devices changes no result.

  Args:
    axes: size of each axis in AXES; at most one may be -1, it takes the devices that are left.
    devices: default: all devices of all hosts.

  Raises:
    ValueError: unknown axis, sizes whose product is not the number of devices, slices of a TPU
      that are not those of `dcn`, or a `tensor` axis that cannot lie within hosts; the message
      says which sizes are possible.
  """
  devices = jax.devices() if devices is None else list(devices)
  unknown = set(axes) - set(AXES)
  if unknown:
    raise UserError(f'config.mesh has unknown axes {sorted(unknown)}; known: {AXES}')
  sizes = [int(axes.get(name, 1)) for name in AXES]
  if sizes.count(-1) == 1:
    rest = -int(np.prod(sizes))
    sizes[sizes.index(-1)] = max(len(devices) // rest, 1) if rest else 1
  slices = _groups(devices, _slice)
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
  elif sizes[0] > 1 or len(slices) > 1:                # hosts in their order
    grid = np.array([d for part in slices for d in part]).reshape(sizes)
  else:
    grid = _arrange_slice(sizes[1:], devices)[None]
  if not _tensor_within_hosts(grid):
    raise UserError(
      f'config.mesh.tensor={sizes[-1]} reaches across hosts; it must divide the number of devices '
      'of each: ' + _possible_sizes(devices, len(slices)))
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice(device: jax.Device) -> int:
  """Returns the slice of a device: devices of one slice share a fast network.

  Multislice TPUs number their slices; JAX gives the GPUs of each host a number of their own.
  """
  for name in ('partition_index', 'slice_index'):      # the newer name first
    if (index := getattr(device, name, None)) is not None:
      return index
  return 0


def _host(device: jax.Device) -> int:
  """Returns the host of a device. GPUs of one host may belong to several processes."""
  is_numbered = hasattr(device, 'partition_index') or hasattr(device, 'slice_index')
  return _slice(device) if device.platform in _GPUS and is_numbered else device.process_index


def _groups(devices: Sequence[jax.Device], key: Callable[[jax.Device], int]) -> list[list]:
  """Groups devices by key, in the order of keys and, within a group, of the list."""
  groups: dict[int, list[jax.Device]] = {}
  for device in devices:
    groups.setdefault(key(device), []).append(device)
  return [groups[k] for k in sorted(groups)]


def _tensor_within_hosts(grid: np.ndarray) -> bool:
  return all(len({_host(d) for d in group}) == 1 for group in grid.reshape(-1, grid.shape[-1]))


def _possible_sizes(devices: Sequence[jax.Device], slices: int) -> str:
  """Says which mesh sizes some devices can have."""
  hosts = _groups(devices, _host)
  smallest = math.gcd(*map(len, hosts))
  tensor = ', '.join(str(n) for n in range(1, smallest + 1) if smallest % n == 0)
  dcn = f'dcn={slices}, ' if slices > 1 and devices[0].platform == 'tpu' else ''
  per_host = f', {len(hosts[0])} on each of {len(hosts)} hosts' if len(hosts) > 1 else ''
  return (f'{len(devices)} devices{per_host} allow {dcn}tensor one of {tensor}, and any data and '
          f'fsdp with dcn x data x fsdp x tensor = {len(devices)}')


def _arrange_slice(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
  """Arranges the devices of one slice as [data, fsdp, tensor].

  Takes the first arrangement whose hosts are blocks of the grid: a host then reads a run of rows,
  and JAX's own helpers for host-local data work. Where none has that, `tensor` groups within hosts
  are enough.
  """
  names = AXES[1:]
  kinds = (AxisType.Auto,) * len(names)
  grids = []
  for arrange in (
    lambda: jax.make_mesh(tuple(sizes), names, axis_types=kinds, devices=devices).devices,
    # Splits a physical axis of the network among two mesh axes, as chips of 2x2 hosts may need.
    lambda: mesh_utils.create_device_mesh(
      tuple(sizes), devices, allow_split_physical_axes=True),
    lambda: _arrange_hosts(sizes, devices),
  ):
    try:
      grid = arrange()
    except (NotImplementedError, ValueError, AssertionError):   # no such arrangement, says JAX
      continue
    if _hosts_are_blocks(grid):
      return grid
    grids.append(grid)
  return next(filter(_tensor_within_hosts, grids), grids[-1])


def _hosts_are_blocks(grid: np.ndarray) -> bool:
  if not _tensor_within_hosts(grid):
    return False
  hosts = np.vectorize(_host)(grid)
  for host in np.unique(hosts):
    where = np.argwhere(hosts == host)
    if np.prod(where.max(0) - where.min(0) + 1) != len(where):
      return False
  return True


def _arrange_hosts(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
  """Arranges devices as [data, fsdp, tensor]: tensor fills a host first, then fsdp, then data."""
  place = lambda d: (tuple(getattr(d, 'coords', ())), getattr(d, 'core_on_chip', 0), d.id)
  hosts = [sorted(part, key=place) for part in _groups(devices, _host)]
  hosts.sort(key=lambda part: place(part[0]))
  in_order = np.array([d for part in hosts for d in part])
  data, fsdp, tensor = sizes
  each = len(hosts[0])
  if each % tensor or any(len(part) != each for part in hosts):
    return in_order.reshape(sizes)                     # groups reach across hosts
  fsdp_inside = math.gcd(fsdp, each // tensor)
  data_inside = each // tensor // fsdp_inside
  blocks = in_order.reshape(
    data // data_inside, fsdp // fsdp_inside, data_inside, fsdp_inside, tensor)
  return blocks.swapaxes(1, 2).reshape(sizes)


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


def infer(tree: Any, rules: tree_names.Rules, mesh: Mesh) -> Any:
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
    rule = tree_names.match(name, rules)
    if rule not in RULES:
      raise UserError(
        f'config.sharding: rule {rule!r} of {name!r} is not one of {", ".join(RULES)}')
    return NamedSharding(mesh, spec_of(rule, leaf.shape, mesh.shape))

  return tree_names.map_with_names(place, tree)


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
      raise UserError(
        f'config.mesh.tensor={size} does not divide {field}={width} of the model: heads and MLPs '
        'are split evenly'
      )


def host_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
  """Returns the rows of a global batch that the devices of one process hold, int32, ascending.

  They are read from the sharding of the batch itself: on TPU slices the devices of a host are not
  neighbours in a mesh, so its rows need not be a run. Processes that share a group of `tensor` hold
  the same rows.

  Args:
    mesh: from `make_mesh`.
    batch_size: rows of the global batch.
    process: default: this one.

  Raises:
    ValueError: batch_size is no multiple of the batch's shards.
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
    if device.process_index == process
  }
  return np.concatenate([np.arange(*part, dtype=np.int32) for part in sorted(held)])


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Moves this host's rows of a batch to its devices, as one global array per leaf.

  Args:
    batch: pytree of numpy arrays [rows of this host, ...], in the order of `host_rows`; leaves may
      differ in their number of rows.

  Raises:
    ValueError: the rows of a leaf do not divide by the devices.
  """
  total, sharding = batch_shards(mesh), batch_sharding(mesh)
  shards = len(host_rows(mesh, total))                  # that this process holds

  def place(x: np.ndarray) -> jax.Array:
    if len(x) % shards:
      raise UserError(
        f'a batch of {len(x)} videos does not divide by the {shards} shards of this host; choose a '
        f'batch size that is a multiple of {total}'
      )
    size = len(x) // shards * total
    held, shape = host_rows(mesh, size), (size, *x.shape[1:])
    parts = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
      start, stop, _ = index[0].indices(size)
      first = int(np.searchsorted(held, start))
      parts[device] = x[first:first + stop - start]
    # An explicit transfer, which jax_transfer_guard lets pass.
    arrays = jax.device_put(list(parts.values()), list(parts))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)

  return jax.tree.map(place, batch)
