"""Rehearsal of a run on devices that are not here: the rows of each host, refused options."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from xclip_jax.evaluation import view_batches
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.training import job as job_lib


@dataclasses.dataclass(frozen=True)
class Rehearsal:
  """Division of a run's batches among its hosts.

  Fields:
    hosts: number of processes with devices.
    host_devices: number of devices of each host.
    mesh: size of each mesh axis.
    train_rows: rows of a training batch that each host reads, in the order of hosts.
    eval_videos: videos of an evaluation batch, over all devices.
    eval_rows: videos of an evaluation batch that each host reads.
    views: views of each video in the last evaluation.
    eval_views: views of a video that are predicted at once.
  """

  hosts: int
  host_devices: int
  mesh: dict[str, int]
  train_rows: tuple[int, ...]
  eval_videos: int
  eval_rows: tuple[int, ...]
  views: int
  eval_views: int

  @property
  def eval_clips(self) -> int:
    """Views that all devices predict in one step of the last evaluation, over all its videos."""
    return self.eval_videos * self.eval_views


def rehearse(config: Any, devices: Sequence[Any]) -> Rehearsal:
  """Makes the checks of a run's start on some devices, without its data and weights.

  Args:
    config: config of the run.
    devices: devices of all hosts, which may be those of a topology.

  Raises:
    UserError: a run would refuse this config: its mesh, its batch sizes, a model that the mesh does
      not divide, or options that contradict each other.
  """
  job_lib.check_config(config)
  config = job_lib.resolve_config(config)
  mesh = mesh_lib.make_mesh(config.mesh, list(devices))
  job_lib.check_sizes(config, job_lib.make_model(config), mesh)
  views = config.eval.clips * config.eval.crops
  sizes = view_batches.sizes(config.eval.batch_size, views, mesh_lib.batch_shards(mesh))
  hosts = Counter(d.process_index for d in mesh.devices.flat)
  return Rehearsal(
    hosts=len(hosts), host_devices=max(hosts.values()), mesh=dict(mesh.shape),
    train_rows=_rows(mesh, config.train.batch_size, sorted(hosts)),
    eval_videos=sizes.videos, eval_rows=_rows(mesh, sizes.videos, sorted(hosts)),
    views=views, eval_views=sizes.views)


def _rows(mesh: Mesh, batch_size: int, hosts: Sequence[int]) -> tuple[int, ...]:
  """Returns how many rows of a batch each host reads."""
  parts = [mesh_lib.host_rows(mesh, batch_size, host) for host in hosts]
  if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(batch_size)):
    raise RuntimeError(f'the hosts do not read every row of {batch_size} once: {parts}')
  return tuple(map(len, parts))
