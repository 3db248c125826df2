"""The config.pbtxt with which NVIDIA's Triton Inference Server serves the ONNX graphs."""

from collections.abc import Sequence
from pathlib import Path

from xclip_jax import files
from xclip_jax.export.graphs.functions import Graph, Port

FOLDER = 'triton'
_TYPES = {'uint8': 'TYPE_UINT8', 'int32': 'TYPE_INT32', 'float32': 'TYPE_FP32'}


def write(folder: Path, graphs: Sequence[Graph]) -> None:
  """Writes triton/GRAPH/config.pbtxt for each graph of an export."""
  for graph in graphs:
    path = folder / FOLDER / graph.name
    path.mkdir(parents=True)
    files.write_text(path / 'config.pbtxt', config(graph))


def config(graph: Graph) -> str:
  """Returns the configuration of a graph: all sizes free that the graph leaves free.

  Triton batches by a first axis that all inputs share. A text and a video do not share one, so
  requests carry their batches themselves (max_batch_size 0).
  """
  return '\n'.join([
    f'name: "{graph.name}"', 'platform: "onnxruntime_onnx"', 'max_batch_size: 0',
    _ports('input', graph.inputs), _ports('output', graph.outputs), ''])


def _ports(kind: str, ports: Sequence[Port]) -> str:
  entries = []
  for port in ports:
    sizes = ', '.join('-1' if isinstance(size, str) else str(size) for size in port.shape)
    entries.append(
      f'  {{ name: "{port.name}" data_type: {_TYPES[port.dtype]} dims: [ {sizes} ] }}')
  return f'{kind} [\n' + ',\n'.join(entries) + '\n]'
