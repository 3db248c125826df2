"""What a run is made of: the numbers that its report opens with."""

from typing import Any

import jax
from jax.sharding import Mesh

from xclip_jax.models.config import XCLIPConfig


def facts(
  config: Any, model: XCLIPConfig, params: Any, videos: int, mesh: Mesh, step: int,
  seconds: float | None,
) -> dict[str, str]:
  """What the table of a report says about a run."""
  found = {
    'Parameters': f'{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} million',
    'Input': f'{model.num_frames} frames of {model.image_size} x {model.image_size} pixels',
    'Training clips': str(videos),
    'Updates': f'{step}, of {config.train.batch_size} clips',
    'Devices': f'{mesh.size} x {jax.devices()[0].device_kind}',
  }
  if seconds:
    found['Training time'] = f'{seconds / 60:.1f} minutes in this process, evaluations left out'
  return found
