"""x"""

import argparse
import contextlib
import dataclasses
import gc
import glob
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import xclip_jax
from xclip_jax import compilation_cache, errors
from xclip_jax.cli import output as output_lib
from xclip_jax.errors import UserError

_NOT_FINITE = 'the model answers with NaN or infinity; its weights are damaged'


def classify(arguments: argparse.Namespace) -> int:
  """Prints the best labels of every video."""
  started = time.perf_counter()
  if arguments.top < 1:
    raise errors.UserError(f'--top must be at least 1, got {arguments.top}')
  labels = _labels(arguments)
  files = _files(arguments.videos)
  with contextlib.ExitStack() as stack:
    csv_output, json_output = (
      stack.enter_context(output_lib.Output(path, arguments.overwrite))
      for path in (arguments.csv, arguments.json)
    )
    if arguments.csv and arguments.json and csv_output.target == json_output.target:
      raise errors.UserError(f'--csv and --json both write to {arguments.csv}')
    table = output_lib.Table(files) if '-' not in (arguments.csv, arguments.json) else None
    classifier, times = _load(arguments)
    labels = labels or _stored_labels(classifier)
    with output_lib.show_user_errors():
      results = zip(files, classifier.classify_each(files, labels), strict=True)
    found, failed, begun = [], [], time.perf_counter()
    for file, answer in _progress(results, len(files), arguments.quiet):
      if not isinstance(answer, ValueError):
        top = answer.top(arguments.top)
        if not math.isnan(top[0][1]):
          found.append((file, top))
          times.setdefault('first answer', time.perf_counter() - begun)
          if table:
            table.show(file, top)
          continue
        answer = ValueError(f'{file}: {_NOT_FINITE}')
      failed.append(_failure(file, answer))
    csv_output.write(output_lib.to_csv(found))
    json_output.write(output_lib.to_json({
      'weights': arguments.weights, 'template': classifier.template, 'labels': labels,
      'videos': [
        {'path': file, 'top': [{'label': x, 'probability': round(p, 6)} for x, p in top]}
        for file, top in found
      ],
      'failed': [{'path': file, 'reason': reason} for file, reason in failed],
    }))
  if arguments.timings:
    times['total'] = time.perf_counter() - started
    output_lib.say('timings ' + json.dumps({name: round(x, 3) for name, x in times.items()}))
  return _conclude(failed, len(files))


def embed(arguments: argparse.Namespace) -> int:
  """Writes features of videos, of texts, or of both."""
  labels = _labels(arguments)
  if not arguments.videos and not labels:
    raise errors.UserError('no videos and no labels; give a file, a folder, a glob, or --labels')
  files = _files(arguments.videos) if arguments.videos else []
  if arguments.output == '-':
    raise errors.UserError('-o must be a file; features are not written to standard output')
  with output_lib.Output(arguments.output, arguments.overwrite) as output:
    classifier, _ = _load(arguments)
    import numpy as np

    arrays, failed, paths, rows = {}, [], [], []
    if labels:
      with output_lib.show_user_errors():
        arrays |= {'text_features': classifier.embed_text(labels), 'labels': np.array(labels, str)}
        if not np.isfinite(arrays['text_features']).all():
          raise UserError(f'{arguments.weights}: {_NOT_FINITE}')
    features = zip(files, classifier.embed_each(files), strict=True)
    for file, row in _progress(features, len(files), arguments.quiet):
      if isinstance(row, ValueError):
        failed.append(_failure(file, row))
      elif not np.isfinite(row).all():
        failed.append(_failure(file, ValueError(f'{file}: {_NOT_FINITE}')))
      else:
        paths.append(file)
        rows.append(row)
    if files:
      arrays |= {
        'video_features': np.array(rows, np.float32).reshape(-1, classifier.config.embed_dim),
        'paths': np.array(paths, str), 'failed': np.array([file for file, _ in failed], str),
      }
    about = {
      'weights': arguments.weights, 'template': classifier.template,
      'model': dataclasses.asdict(classifier.config),
      'preprocess': dataclasses.asdict(classifier.preprocess), 'version': xclip_jax.__version__,
    }
    content = io.BytesIO()
    np.savez(content, **arrays, config=np.array(json.dumps(about)))
    output.write(content.getvalue())
  if not arguments.quiet:
    shapes = ', '.join(f'{k} {list(arrays[k].shape)}' for k in arrays if k.endswith('_features'))
    print(f'{arguments.output}: {shapes}')
  return _conclude(failed, len(files))


def windows(arguments: argparse.Namespace) -> int:
  """Says what a long video shows from moment to moment, in windows that overlap.

  Each frame is encoded once, in runs that do not overlap, which makes answers approximate; --exact
  encodes every window by itself.
  """
  labels = _labels(arguments)
  with output_lib.Output(arguments.csv, arguments.overwrite) as output:
    classifier, _ = _load(arguments)
    labels = labels or _stored_labels(classifier)
    from xclip_jax.inference import long_video as windows_lib

    rows = []
    with output_lib.show_user_errors():
      for window in windows_lib.classify(
          classifier, arguments.video, labels, arguments.every, arguments.stride,
          arguments.exact):
        gc.enable()
        top = window.answer.top(arguments.top)
        rows.append((f'{window.begin:.2f}-{window.end:.2f}', top))
        if arguments.csv != '-':
          shown = ', '.join(f'{output_lib.printable(x)} {p:.1%}' for x, p in top)
          print(f'{window.begin:8.2f} - {window.end:.2f} s  {shown}', flush=True)
    output.write(output_lib.to_csv(rows))
  return 0


def _load(arguments: argparse.Namespace) -> tuple[Any, dict[str, float]]:
  """Opens the weights; also seconds it took, by what was done."""
  start = time.perf_counter()
  if arguments.template is not None and '{}' not in arguments.template:
    raise errors.UserError(f'--template {arguments.template!r} must hold {{}} for the label')
  if arguments.frames is not None and arguments.frames < 1:
    raise errors.UserError(f'--frames must be at least 1, got {arguments.frames}')
  compilation_cache.enable()
  from xclip_jax.inference import classifier as classifier_lib

  imported = time.perf_counter()
  options = {'heads': arguments.heads, 'num_frames': arguments.frames,
             'dtype': arguments.dtype, 'merge_tokens': arguments.merge_tokens}
  with output_lib.show_user_errors():
    classifier = classifier_lib.load(
      arguments.weights, **{k: x for k, x in options.items() if x is not None}
    )
  if arguments.template is not None:
    classifier = dataclasses.replace(classifier, template=arguments.template)
  return classifier, {'import': imported - start, 'load': time.perf_counter() - imported}


def _stored_labels(classifier: Any) -> list[str]:
  """Returns the labels stored with the weights."""
  if not classifier.labels:
    raise errors.UserError('give either --labels or --labels-file; these weights hold no labels')
  return list(classifier.labels)


def _labels(arguments: argparse.Namespace) -> list[str]:
  """Reads --labels or --labels-file; returns an empty list if neither is given."""
  if arguments.labels is None and arguments.labels_file is None:
    return []
  if arguments.labels is not None and arguments.labels_file is not None:
    raise errors.UserError('give either --labels or --labels-file')
  if arguments.labels is not None:
    where, labels = '--labels', [label.strip() for label in arguments.labels.split(',')]
  else:
    where = arguments.labels_file
    try:
      from xclip_jax.data.datasets import annotations
      lines = annotations.read_content(where).decode('utf-8-sig').splitlines()
    except ValueError as error:
      raise errors.UserError(f'{where} cannot be read as UTF-8 text: {error}') from error
    header = [name.strip() for name in lines[0].split(',')] if lines else []
    if where.lower().endswith('.csv') or {'id', 'name'} <= set(header):
      with output_lib.show_user_errors():
        labels = annotations.read_classes(where).names
    else:
      labels = [line.strip() for line in lines if not line.lstrip().startswith('#')]
  labels = [label for label in labels if label]
  if not labels:
    raise errors.UserError(f'{where} holds no labels')
  repeated = sorted({label for label in labels if labels.count(label) > 1})
  if repeated:
    raise errors.UserError(f'{where} holds {repeated[0]!r} more than once')
  return labels


def _files(places: Sequence[str]) -> list[str]:
  """Finds the videos of files, folders and globs, each once, in the order they were named."""
  from xclip_jax.data.datasets import public_formats

  found = []
  for place in map(os.path.expanduser, places):
    if not os.path.lexists(place) and glob.has_magic(place):
      matches = sorted(glob.glob(place, recursive=True))
      if not matches:
        raise errors.UserError(f'no videos found: nothing matches {place}')
    else:
      matches = [place]
    for match in matches:
      inside = _videos_in(match, public_formats.SUFFIXES) if os.path.isdir(match) else [match]
      if not inside and len(matches) == 1:
        raise errors.UserError(
          f'no videos found in {match}: no file in it ends in {" ".join(public_formats.SUFFIXES)}'
        )
      found += inside
  once = {}
  for file in found:
    once.setdefault(os.path.abspath(file), file)
  if not once:
    raise errors.UserError(f'no videos found in {", ".join(places)}')
  return list(once.values())


def _videos_in(folder: str, suffixes: tuple[str, ...]) -> list[str]:
  found = []
  for place, folders, names in os.walk(folder):
    folders[:] = [name for name in folders if not name.startswith('.')]
    found += [
      os.path.join(place, name) for name in names
      if name.lower().endswith(suffixes) and not name.startswith('.')
    ]
  return sorted(found)


def _progress(results: Iterable[Any], total: int, quiet: bool) -> Iterator[Any]:
  if not quiet and total > 1 and sys.stderr.isatty():
    import tqdm
    results = tqdm.tqdm(results, total=total, unit='video', dynamic_ncols=True, leave=False)
  for result in results:
    gc.enable()
    yield result


def _failure(file: str, error: Exception) -> tuple[str, str]:
  output_lib.say(output_lib.printable(str(error)))
  return file, str(error).removeprefix(f'{file}: ')


def _conclude(failed: Sequence[Any], total: int) -> int:
  if failed:
    output_lib.say(f'{len(failed)} of {total} videos could not be used')
  return 1 if failed else 0
