"""Rehearses a run on machines that are not here: who reads which rows, what would be refused."""

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
  """What each host of a run does.

  Fields:
    hosts: processes that hold devices; host_devices: devices of each.
    mesh: size of each axis.
    train_rows: rows of a training batch that each host reads, in the order of hosts.
    eval_videos: videos of an evaluation batch, over all devices; eval_rows: those of each host.
    views: views of each video at the end of a run; eval_views: those that are predicted at once.
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
    """Clips, i.e. videos x views, that all devices predict in one step of the last evaluation."""
    return self.eval_videos * self.eval_views


def rehearse(config: Any, devices: Sequence[Any]) -> Rehearsal:
  """Goes through the start of a run of `config` on `devices`, without its data and weights.

  Args:
    config: see config.py.
    devices: of all hosts; those of a topology will do.

  Raises:
    ValueError: what a run would refuse: a mesh, a batch, a model that does not divide, options that
      contradict each other.
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
  parts = [mesh_lib.host_rows(mesh, batch_size, host) for host in hosts]
  if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(batch_size)):
    raise RuntimeError(f'the hosts do not read every row of {batch_size} once: {parts}')
  return tuple(map(len, parts))
