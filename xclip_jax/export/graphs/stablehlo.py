"""Graphs as StableHLO: one file that runs on CPUs, NVIDIA GPUs and TPUs with jax alone."""

import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.export.graphs.functions import Graph
from xclip_jax.parallel import platforms, tree_names

PLATFORMS = ('cpu', 'cuda', 'tpu')
# jax promises to read an export for six months after the version that wrote it.
LIFETIME = datetime.timedelta(days=180)


def serialize(graph: Graph, params: Any) -> bytes:
  """Writes a graph as StableHLO whose first argument is a dict of parameters by name.

  Args:
    graph: to write; sizes given as letters stay free.
    params: nested dicts of arrays, of which names, shapes and dtypes are taken.
  """
  def function(flat: dict[str, jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
    return graph.function(tree_names.unflatten(flat), *inputs)

  flat = {name: jax.ShapeDtypeStruct(x.shape, x.dtype)
          for name, x in tree_names.flatten(params).items()}
  letters = sorted({size for port in graph.inputs for size in port.shape if isinstance(size, str)})
  sizes: dict[Any, Any] = dict(zip(letters, jax.export.symbolic_shape(', '.join(letters)),
                                   strict=True))
  inputs = [
    jax.ShapeDtypeStruct(tuple(sizes.get(size, size) for size in port.shape), np.dtype(port.dtype))
    for port in graph.inputs]
  with platforms.portable():
    return bytes(jax.export.export(jax.jit(function), platforms=PLATFORMS)(
      flat, *inputs).serialize())


def read(file: Path, expires: str) -> jax.export.Exported:
  """Reads a graph.

  Args:
    file: the StableHLO.
    expires: ISO date until which jax promises to read it.

  Raises:
    UserError: the file is missing, damaged, or too old for this jax.
  """
  try:
    content = file.read_bytes()
  except FileNotFoundError as error:
    raise UserError(f'{file} is missing; export the model again with --to stablehlo') from error
  try:
    return jax.export.deserialize(bytearray(content))
  except Exception as error:                     # jax raises whatever its readers raise
    past = expires and datetime.date.today().isoformat() > expires
    reason = (f'it was written to be read until {expires}, and jax {jax.__version__} no longer '
              'does' if past else 'it is damaged, or written by a newer jax than '
              f'{jax.__version__}')
    raise UserError(f'{file} cannot be read: {reason}; export the model again') from error


def write_parameters(file: Path, params: Any) -> None:
  """Writes parameters by name; numpy stores bfloat16 as two bytes without a name (dtype V2)."""
  with file.open('wb') as opened:
    np.savez(opened, allow_pickle=False, **{
      name: np.asarray(x) for name, x in tree_names.flatten(params).items()})


def read_parameters(file: Path) -> dict[str, np.ndarray]:
  """Reads the parameters of `write_parameters`.

  Raises:
    UserError: the file is missing or damaged.
  """
  try:
    with np.load(file) as content:
      arrays = {name: content[name] for name in content.files}
  except Exception as error:                     # zipfile and numpy raise several kinds
    raise UserError(f'{file} cannot be read ({error}); export the model again') from error
  return {name: x.view(jax.numpy.bfloat16) if x.dtype.kind == 'V' else x
          for name, x in arrays.items()}
