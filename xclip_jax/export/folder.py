"""Writes an export: a folder with graphs, manifest, tokenizer and proof, whole or not at all."""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from xclip_jax import files
from xclip_jax.errors import ExistsError, UserError
from xclip_jax.export import manifest, runtimes, tokenizer_json, triton, web
from xclip_jax.export.graphs import functions, stablehlo
from xclip_jax.export.proof import parity
from xclip_jax.inference.classifier import Classifier
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.parallel import tree_names
from xclip_jax.text import vocabulary

TARGETS = ('stablehlo', 'onnx', 'web')
_SCRIPTS = Path(__file__).parent / 'scripts'


@dataclasses.dataclass(frozen=True)
class ExportOptions:
  """What an export holds.

  Fields:
    targets: of TARGETS.
    labels: of a `classify` graph; empty: the labels stored with the weights, if any.
    videos: files of the user that the proof compares, too.
    overwrite: replace an export of that name.
    say: called with what is being done.
  """

  targets: tuple[str, ...] = ('stablehlo', 'onnx')
  labels: tuple[str, ...] = ()
  videos: tuple[str, ...] = ()
  overwrite: bool = False
  say: Callable[[str], Any] = lambda text: None


def export(classifier: Classifier, folder: str | os.PathLike, options: ExportOptions) -> Path:
  """Writes the graphs of a model, proves that they are equal to it, and returns the folder.

  Raises:
    UserError: a runtime is not installed, weights have what no graph has, or the graphs differ from
      the model by more than the bound.
    FileExistsError: there is something of that name.
  """
  check_request(folder, options)
  _check_weights(classifier.config, options)
  written = runtime_targets(options.targets)
  weights = classifier.weights
  if options.labels:
    weights = dataclasses.replace(weights, labels=options.labels)
  # The page has no use for a graph of fixed labels.
  labels = () if options.targets == ('web',) else weights.labels
  features = classifier.embed_text(labels) if labels else None
  graphs = functions.make_graphs(weights, features)
  config = functions.portable_config(weights.config)
  params = jax.device_put(cast_for_inference(weights.params, config))
  check_free = functools.partial(_check_free, overwrite=options.overwrite)
  with files.atomic_folder(folder, check_free) as temporary:
    for target in written:
      options.say(f'writing {len(graphs)} graphs for {target}')
      _WRITERS[target](temporary, graphs, params)
      shutil.copy(_SCRIPTS / f'run_{target}.py', temporary)
    if vocabulary.is_clips(config.vocab_size):
      content = tokenizer_json.tokenizer_json(config.context_length)
      files.write_text(temporary / manifest.TOKENIZER, json.dumps(content, separators=(',', ':')))
    if 'onnx' in options.targets:
      triton.write(temporary, graphs)
    if 'web' in options.targets:
      web.write_page(temporary)
    manifest.write(temporary, weights, graphs, written)
    options.say('comparing with the model')
    parity.prove(temporary, weights, written, options.videos)
  return Path(folder)


def check_request(folder: str | os.PathLike, options: ExportOptions) -> None:
  """Checks what can be wrong before weights are read.

  Raises:
    UserError: a target is unknown, or what it needs is not installed.
    FileExistsError: there is something of that name.
  """
  unknown = [target for target in options.targets if target not in TARGETS]
  if unknown or not options.targets:
    raise UserError(f'--to must name some of {", ".join(TARGETS)}, '
                    f'found {", ".join(unknown) or "none"}')
  for target in runtime_targets(options.targets):
    runtimes.check_installed(target)
  if 'web' in options.targets:
    web.check_built()
  path = Path(os.path.realpath(folder))
  if path.exists():
    _check_free(path, options.overwrite)


def _check_weights(config: XCLIPConfig, options: ExportOptions) -> None:
  """Raises UserError for a model that no graph can be."""
  for name in ('merge_tokens', 'int8_kernels'):
    if getattr(config, name):
      raise UserError(f'an export cannot have {name}; open the weights without it')
  if options.labels or 'web' in options.targets:
    vocabulary.check(config.vocab_size)


def runtime_targets(targets: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the graph formats of the targets; the page runs the ONNX graphs."""
  return tuple(name for name in ('stablehlo', 'onnx')
               if name in targets or (name == 'onnx' and 'web' in targets))


def _check_free(target: Path, overwrite: bool) -> None:
  if not overwrite:
    raise ExistsError(f'{target} exists; choose another name, or replace it with --overwrite')
  held = target.is_dir() and any(target.iterdir())
  if not target.is_dir() or (held and not manifest.is_export(target)):
    raise ExistsError(f'{target} is not an export, so it is not overwritten; remove it yourself')


def _write_stablehlo(folder: Path, graphs: tuple[functions.Graph, ...], params: Any) -> None:
  for graph in graphs:
    content = stablehlo.serialize(graph, params)
    (folder / (graph.name + manifest.SUFFIXES['stablehlo'])).write_bytes(content)
  stablehlo.write_parameters(folder / manifest.PARAMETERS, params)


def _write_onnx(folder: Path, graphs: tuple[functions.Graph, ...], params: Any) -> None:
  from xclip_jax.export.onnx import convert

  names = {id(x): name for name, x in tree_names.flatten(params).items()}
  for graph in graphs:
    model = convert.to_model(
      functools.partial(graph.function, params),
      [convert.Value(port.name, port.shape, port.dtype) for port in graph.inputs],
      [port.name for port in graph.outputs], names=names)
    convert.save(model, folder / (graph.name + manifest.SUFFIXES['onnx']))


_WRITERS = {'stablehlo': _write_stablehlo, 'onnx': _write_onnx}
