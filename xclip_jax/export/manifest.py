"""The manifest of an export: what the folder holds, from which weights, and how to call it."""

import datetime
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax

import xclip_jax
from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.export.graphs import stablehlo
from xclip_jax.export.graphs.functions import Graph, describe
from xclip_jax.weights import native

FILE = 'manifest.json'
FORMAT, VERSION = 'xclip-jax export', 1
PARAMETERS = 'parameters.npz'
TOKENIZER = 'tokenizer.json'
SUFFIXES = {'stablehlo': '.stablehlo', 'onnx': '.onnx'}
_JSON_NAMES = {int: 'a whole number', list: 'a list', dict: 'an object'}
_REQUIRED = {'num_frames': int, 'image_size': int, 'context_length': int, 'template': list,
             'labels': list, 'graphs': dict, 'preprocess': dict}


def write(
  folder: Path, weights: native.Weights, graphs: tuple[Graph, ...], targets: tuple[str, ...]
) -> dict[str, Any]:
  """Writes manifest.json into a folder that holds the graphs; returns its content.

  Args:
    folder: of the export, complete but for this file and the proof.
    weights: that the graphs were made from.
    graphs: in the folder.
    targets: 'stablehlo' and 'onnx', as far as they were written.
  """
  config, now = weights.config, datetime.datetime.now(datetime.UTC)
  source = weights.source
  content: dict[str, Any] = {
    'format': FORMAT, 'version': VERSION, 'created': now.isoformat(timespec='seconds'),
    'weights': {
      'source': Path(source).name if Path(source).exists() else source,
      'sha256': native.fingerprint(weights.params), 'licence': weights.licence},
    'model': config.__dict__, 'num_frames': config.num_frames, 'image_size': config.image_size,
    'context_length': config.context_length, 'dtype': config.dtype,
    'preprocess': weights.preprocess.__dict__,
    'template': [weights.template] if isinstance(weights.template, str) else list(weights.template),
    'labels': list(weights.labels), 'tokenizer': TOKENIZER,
    'versions': {'xclip-jax': xclip_jax.__version__, 'jax': jax.__version__},
  }
  if 'stablehlo' in targets:
    content['stablehlo'] = {
      'platforms': list(stablehlo.PLATFORMS), 'parameters': PARAMETERS,
      'expires': (now + stablehlo.LIFETIME).date().isoformat()}
  if 'onnx' in targets:
    from xclip_jax.export.onnx import convert

    content['onnx'] = {'opset': convert.OPSET}
    content['versions'] |= {
      name: importlib.metadata.version(name) for name in ('onnx', 'onnxruntime')}
  content['graphs'] = {
    graph.name: {'summary': graph.summary, 'inputs': describe(graph.inputs),
                 'outputs': describe(graph.outputs)}
    | {target: graph.name + SUFFIXES[target] for target in targets}
    for graph in graphs}
  content['files'] = {
    file.name: {'bytes': file.stat().st_size, 'sha256': files.sha256(file)}
    for file in sorted(folder.iterdir()) if file.is_file() and file.name != FILE}
  files.write_json(folder / FILE, content)
  return content


def is_export(folder: Path) -> bool:
  """Tells whether a folder is an export."""
  try:
    content = json.loads((folder / FILE).read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(content, dict) and content.get('format') == FORMAT


def read(folder: Path) -> dict[str, Any]:
  """Reads the manifest of an export.

  Raises:
    UserError: names the file, and what is missing in it or not understood.
  """
  file = folder / FILE
  content = native.read_json(file)
  if content.get('format') != FORMAT:
    raise UserError(f'{file} is not the manifest of an export: its format must be {FORMAT!r}, '
                    f'found {content.get("format")!r}')
  if content.get('version') != VERSION:
    raise UserError(f'{file} has version {content.get("version")!r}, and this program reads '
                    f'{VERSION}; export the model again, or update xclip-jax')
  missing = [name for name in _REQUIRED if name not in content]
  if missing:
    raise UserError(f'{file} lacks {", ".join(missing)}; export the model again')
  for name, kind in _REQUIRED.items():
    if not isinstance(content[name], kind):
      raise UserError(f'{name} in {file} must be {_JSON_NAMES[kind]}, found {content[name]!r:.60}; '
                      'export the model again')
  return content


def preprocess_of(content: dict[str, Any], file: Path) -> native.Preprocess:
  """Returns the preprocessing that the graphs hold.

  Raises:
    UserError: it is damaged.
  """
  try:
    return native.Preprocess(**content['preprocess'])
  except TypeError as error:
    raise UserError(f'{file}: preprocess has other fields ({error}); export again') from error
