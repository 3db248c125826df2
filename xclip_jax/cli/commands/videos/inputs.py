"""Videos, labels and weights as they are named on the command line."""

import argparse
import glob
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output, startup
from xclip_jax.errors import UserError

NOT_FINITE = 'the model answers with NaN or infinity; its weights are damaged'


def open_classifier(
  arguments: argparse.Namespace, exports: bool = False
) -> tuple[Any, dict[str, float]]:
  """Opens the weights, or an export of them.

  Args:
    arguments: of `options.add_model_options`, and `template`.
    exports: whether the command can run the folder of an `xclip export`, too.

  Returns:
    an `xclip_jax.Classifier` or an `export.exported.ExportedModel`; and the seconds that importing
    and loading took.
  """
  start = time.perf_counter()
  with startup.paused_collector():
    startup.prepare_compilation(arguments.quiet)
    if _is_export(arguments.weights):
      if not exports:
        raise UserError(f'{arguments.weights} is an export, which `xclip classify` runs; for this '
                        'command name the weights that it was made from (see its manifest.json)')
      from xclip_jax.export import exported as opener
    else:
      from xclip_jax.inference import classifier as opener

    imported = time.perf_counter()
    classifier = opener.load(
      arguments.weights, template=arguments.template, **options.open_options(arguments))
  return classifier, {'import': imported - start, 'load': time.perf_counter() - imported}


def _is_export(weights: str) -> bool:
  """Tells whether weights are an export; folders of other programs have a manifest.json, too."""
  if not os.path.isfile(os.path.join(weights, 'manifest.json')):
    return False
  from xclip_jax.export import manifest  # imported for exports alone: it takes a moment

  return manifest.is_export(Path(weights))


def read_labels(arguments: argparse.Namespace) -> list[str]:
  """Returns the labels of --labels or --labels-file; an empty list if neither is given."""
  if arguments.labels is not None and arguments.labels_file is not None:
    raise UserError('give either --labels or --labels-file')
  if arguments.labels is not None:
    source, labels = '--labels', [label.strip() for label in arguments.labels.split(',')]
  elif arguments.labels_file is not None:
    source, labels = arguments.labels_file, _read_labels_file(arguments.labels_file)
  else:
    return []
  labels = [label for label in labels if label]
  if not labels:
    raise UserError(f'{source} holds no labels')
  repeated = sorted({label for label in labels if labels.count(label) > 1})
  if repeated:
    raise UserError(f'{source} holds {repeated[0]!r} more than once')
  return labels


def stored_labels(classifier: Any) -> list[str]:
  """Returns the labels stored with the weights."""
  if not classifier.labels:
    raise UserError('give either --labels or --labels-file; these weights hold no labels')
  return list(classifier.labels)


def _read_labels_file(path: str) -> list[str]:
  from xclip_jax.data.datasets import annotations

  try:
    lines = annotations.read_content(path).decode('utf-8-sig').splitlines()
  except ValueError as error:
    raise UserError(f'{path} cannot be read as UTF-8 text: {error}') from error
  header = [name.strip() for name in lines[0].split(',')] if lines else []
  if path.lower().endswith('.csv') or {'id', 'name'} <= set(header):
    return list(annotations.read_classes(path).names)
  return [line.strip() for line in lines if not line.lstrip().startswith('#')]


def find_videos(paths: Sequence[str]) -> list[str]:
  """Returns the videos of files, folders and globs, each once, in the order of their naming."""
  from xclip_jax.data.datasets import folders

  videos: dict[str, str] = {}                    # absolute path -> path as it was named
  left_out: list[str] = []
  for path in map(os.path.expanduser, paths):
    matches = [path]
    if not os.path.lexists(path) and glob.has_magic(path):
      matches = folders.match(path)
      if not matches:
        raise UserError(f'no videos found: nothing matches {path}')
    for match in matches:
      found = folders.find_videos(match) if os.path.isdir(match) else folders.Found([match], [])
      inside = found.videos
      left_out += found.left_out
      if not inside and len(matches) == 1:
        raise UserError(
          f'no videos found in {match}: no file in it ends in {" ".join(folders.SUFFIXES)}')
      for file in inside:
        videos.setdefault(os.path.abspath(file), file)
  if not videos:
    raise UserError(f'no videos found in {", ".join(paths)}')
  if left_out:
    output.say(output.printable(folders.describe_left_out(left_out)))
  return list(videos.values())


def say_failure(file: str, error: Exception) -> tuple[str, str]:
  """Prints why a video could not be used; returns its path and the reason without the path."""
  output.say(output.printable(str(error)))
  return file, str(error).removeprefix(f'{file}: ')


def conclude(failed: Sequence[Any], total: int) -> int:
  """Prints how many videos could not be used; returns the exit code."""
  if failed:
    output.say(f'{len(failed)} of {total} videos could not be used')
  return output.FAILED_IN_PART if failed else 0
