"""The runtimes that call the graphs of an export, all in one way."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.export import manifest as manifest_lib
from xclip_jax.export.graphs import stablehlo

# Packages beyond those that xclip-jax itself needs.
NEEDS = {'stablehlo': ('flatbuffers',), 'onnx': ('onnx', 'onnxruntime')}


class StableHlo:
  """Calls graphs by jax, on its default device; each size of the inputs is compiled once."""

  def __init__(self, folder: Path):
    check_installed('stablehlo')
    self._folder, self._content = folder, manifest_lib.read(folder)
    self._graphs: dict[str, Any] = {}
    described = self._content.get('stablehlo')
    if not described:
      raise UserError(f'{folder} holds no StableHLO; export the model again with --to stablehlo')
    self._expires = str(described.get('expires', ''))
    self._params = jax.device_put(
      stablehlo.read_parameters(folder / str(described.get('parameters'))))

  def __call__(self, name: str, *inputs: Any) -> list[np.ndarray]:
    """Calls the graph of a name; returns its outputs."""
    if name not in self._graphs:
      file = self._folder / graph_file(self._content, self._folder, name, 'stablehlo')
      self._graphs[name] = jax.jit(stablehlo.read(file, self._expires).call)
    check_inputs(self._content['graphs'][name], name, inputs)
    return [np.asarray(x) for x in self._graphs[name](self._params, *inputs)]


class Onnx:
  """Calls graphs by onnxruntime, on the CPU."""

  def __init__(self, folder: Path):
    check_installed('onnx')
    self._folder, self._content = folder, manifest_lib.read(folder)
    self._sessions: dict[str, Any] = {}

  def __call__(self, name: str, *inputs: Any) -> list[np.ndarray]:
    """Calls the graph of a name; returns its outputs."""
    import onnxruntime

    if name not in self._sessions:
      file = self._folder / graph_file(self._content, self._folder, name, 'onnx')
      self._sessions[name] = onnxruntime.InferenceSession(
        file, providers=['CPUExecutionProvider'])
    check_inputs(self._content['graphs'][name], name, inputs)
    session = self._sessions[name]
    ports = [port.name for port in session.get_inputs()]
    return session.run(None, dict(zip(ports, map(np.asarray, inputs), strict=True)))


RUNTIMES = {'stablehlo': StableHlo, 'onnx': Onnx}


def graph_file(content: dict[str, Any], folder: Path, name: str, target: str) -> str:
  """Returns the file of a graph; raises UserError if the export has none."""
  found = content['graphs'].get(name, {}).get(target)
  if not found:
    raise UserError(f'{folder} holds no graph {name!r} for {target}; it has '
                    f'{", ".join(content["graphs"]) or "none"}')
  return str(found)


def check_inputs(described: dict[str, Any], name: str, inputs: Sequence[Any]) -> None:
  """Raises UserError unless arrays are what a graph takes.

  Args:
    described: the graph in the manifest.
    name: of the graph.
    inputs: arrays in its order.
  """
  ports = described['inputs']
  if len(inputs) != len(ports):
    raise UserError(f'graph {name} takes {len(ports)} inputs '
                    f'({", ".join(port["name"] for port in ports)}), got {len(inputs)}')
  sizes: dict[str, int] = {}
  for port, array in zip(ports, inputs, strict=True):
    shape = np.shape(array)
    known = dict(sizes)
    fits = len(shape) == len(port['shape']) and str(array.dtype) == port['dtype'] and all(
      size == (want if isinstance(want, int) else sizes.setdefault(want, size))
      for size, want in zip(shape, port['shape'], strict=True)) and 0 not in shape
    if not fits:
      wanted = ', '.join(
        f'{size} = {known[size]}' if size in known else str(size) for size in port['shape'])
      raise UserError(f'input {port["name"]} of graph {name} must be {port["dtype"]} [{wanted}], '
                      f'got {array.dtype} {list(shape)}')


def check_installed(target: str) -> None:
  """Raises UserError if a package that a runtime needs is not installed."""
  missing = [name for name in NEEDS[target] if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(f'{target} needs the package {" and ".join(missing)}, which is not installed: '
                    "pip install 'xclip-jax[export]'")
