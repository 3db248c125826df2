"""The `xclip` command: which label fits a video, and what videos and texts look like as vectors."""

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
from xclip_jax import (
  answers,
  compilation_cache,
  data_cli,
  eval_cli,
  finetune_cli,
  plan_cli,
  weights_cli,
)

# Nothing else at the top: whoever asks for --help, or mistypes a name, should not wait for JAX.

_NOT_FINITE = 'the model answers with NaN or infinity; its weights are damaged'
# Arguments that are no paths; and those that may be in a bucket, unless they are of `xclip data`.
_TEXTS = ('labels', 'template', 'coordinator')
_MAY_BE_REMOTE = ('weights', 'first', 'second', 'labels_file', 'templates_file', 'list', 'lists',
                  'classes', 'base', 'base_classes')
_EXAMPLES = """examples:
  xclip classify clip.mp4 --weights runs/demo --labels "a dog running, a cat asleep"
  xclip classify videos/ 'more/*.avi' --weights microsoft/xclip-base-patch32 \\
      --labels-file labels.txt --template 'a video of {}' --csv answers.csv
  xclip embed videos/ --weights microsoft/xclip-base-patch32 -o videos.npz
  xclip weights
"""


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> None:
    raise answers.Refused(f'{message} (see {self.prog} --help)')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Returns:
    0 if all went well, 1 if some video could not be used, 2 if what was asked for cannot be done.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):      # a label must not fail where the locale is ASCII
      stream.reconfigure(errors='backslashreplace')
  # Importing and tracing make objects that stay. Looking through them for garbage is a seventh of
  # the time to the first answer; from then on it is done as ever.
  gc.disable()
  try:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if any(x.startswith('-') for x in rest) or (rest and not hasattr(arguments, 'videos')):
      parser.error(f'unrecognized arguments: {" ".join(rest)}')
    if rest:                                      # videos after options, which argparse leaves
      arguments.videos += rest
    _check_places(arguments)
    return arguments.run(arguments)
  except answers.Refused as error:
    _say(error)
    return 2
  except KeyboardInterrupt:
    _say('stopped; nothing was written')
    return 130
  except BrokenPipeError:                         # `| head`, and it has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  finally:
    gc.enable()


def classify(arguments: argparse.Namespace) -> int:
  """Prints the best labels of every video."""
  started = time.perf_counter()
  if arguments.top < 1:
    raise answers.Refused(f'--top must be at least 1, got {arguments.top}')
  labels = _labels(arguments)
  files = _files(arguments.videos)
  with contextlib.ExitStack() as stack:
    csv_output, json_output = (
      stack.enter_context(answers.Output(path, arguments.overwrite))
      for path in (arguments.csv, arguments.json)
    )
    if arguments.csv and arguments.json and csv_output.target == json_output.target:
      raise answers.Refused(f'--csv and --json both write to {arguments.csv}')
    table = answers.Table(files) if '-' not in (arguments.csv, arguments.json) else None
    classifier, times = _load(arguments)
    with answers.refusing():
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
    csv_output.write(answers.to_csv(found))
    json_output.write(answers.to_json({
      'weights': arguments.weights, 'template': classifier.template, 'labels': labels,
      'videos': [
        {'path': file, 'top': [{'label': x, 'probability': round(p, 6)} for x, p in top]}
        for file, top in found
      ],
      'failed': [{'path': file, 'reason': reason} for file, reason in failed],
    }))
  if arguments.timings:
    times['total'] = time.perf_counter() - started
    _say('timings ' + json.dumps({name: round(x, 3) for name, x in times.items()}))
  return _conclude(failed, len(files))


def embed(arguments: argparse.Namespace) -> int:
  """Writes features of videos, of texts, or of both."""
  has_labels = arguments.labels is not None or arguments.labels_file is not None
  labels = _labels(arguments) if has_labels else []
  if not arguments.videos and not labels:
    raise answers.Refused('no videos and no labels; give a file, a folder, a glob, or --labels')
  files = _files(arguments.videos) if arguments.videos else []
  if arguments.output == '-':
    raise answers.Refused('-o must be a file; features are not written to standard output')
  with answers.Output(arguments.output, arguments.overwrite) as output:
    classifier, _ = _load(arguments)
    import numpy as np

    arrays, failed, paths, rows = {}, [], [], []
    if labels:
      with answers.refusing():
        arrays |= {'text_features': classifier.embed_text(labels), 'labels': np.array(labels, str)}
        if not np.isfinite(arrays['text_features']).all():
          raise ValueError(f'{arguments.weights}: {_NOT_FINITE}')
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
  with answers.Output(arguments.csv, arguments.overwrite) as output:
    classifier, _ = _load(arguments)
    from xclip_jax import windows as windows_lib

    rows = []
    with answers.refusing():
      for window in windows_lib.classify(
          classifier, arguments.video, labels, arguments.every, arguments.stride,
          arguments.exact):
        gc.enable()
        top = window.answer.top(arguments.top)
        rows.append((f'{window.begin:.2f}-{window.end:.2f}', top))
        if arguments.csv != '-':
          shown = ', '.join(f'{answers.printable(x)} {p:.1%}' for x, p in top)
          print(f'{window.begin:8.2f} - {window.end:.2f} s  {shown}', flush=True)
    output.write(answers.to_csv(rows))
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='xclip', description='X-CLIP: say what a video shows, in your own words.',
    epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=f'xclip {xclip_jax.__version__}')
  commands = parser.add_subparsers(metavar='COMMAND', required=True)

  model = _Parser(add_help=False)
  model.add_argument('--weights', required=True, metavar='W',
                     help='workdir of a run, a folder or file with weights, or a name')
  model.add_argument('--frames', type=int, metavar='T',
                     help='frames of a clip, if not as the weights were trained')
  model.add_argument('--heads', choices=('file', 'reference'), help='head counts to follow where '
                     'a config beside the weights disagrees with the reference (default: file)')
  model.add_argument('--dtype', choices=('float32', 'bfloat16', 'int8'), help='of matrix products; '
                     'bfloat16 is faster, int8 also holds kernels in 8 bits (default: as the '
                     'weights say, mostly float32)')
  model.add_argument('--merge-tokens', type=int, metavar='N', help='merge N pairs of similar '
                     'patches in each block of the vision tower: faster, less exact (default: 0)')
  model.add_argument('--labels', metavar='"A, B"', help='labels, separated by commas')
  model.add_argument('--labels-file', metavar='F',
                     help='labels, one a line (# starts a comment); or a CSV with id,name')
  model.add_argument('--template', help='text around every label, {} stands for it '
                     '(default: as the weights were trained)')
  model.add_argument('--overwrite', action='store_true', help='replace files that are there')
  model.add_argument('--quiet', action='store_true', help='no progress bar')
  videos_help = 'files, folders (searched for videos at any depth) and globs'

  command = commands.add_parser('classify', parents=[model], help='say which labels fit videos',
                                description=classify.__doc__)
  command.add_argument('videos', nargs='+', metavar='VIDEO', help=videos_help)
  command.add_argument('--top', type=int, default=5, metavar='N', help='labels shown (default: 5)')
  command.add_argument('--csv', metavar='FILE', help="also write a CSV; '-' is standard output")
  command.add_argument('--json', metavar='FILE', help="also write JSON; '-' is standard output")
  command.add_argument('--timings', action='store_true', help='say on stderr what took how long')
  command.set_defaults(run=classify)

  command = commands.add_parser('embed', parents=[model], help='turn videos or texts into vectors',
                                description=embed.__doc__)
  command.add_argument('videos', nargs='*', metavar='VIDEO', help=videos_help)
  command.add_argument('-o', '--output', required=True, metavar='FILE', help='.npz to write')
  command.set_defaults(run=embed)

  command = commands.add_parser('windows', parents=[model], description=windows.__doc__,
                                help='say what a long video shows from moment to moment')
  command.add_argument('video', metavar='VIDEO')
  command.add_argument('--every', type=int, default=8, metavar='N',
                       help='of how many frames one is taken (default: 8)')
  command.add_argument('--stride', type=int, default=1, metavar='N',
                       help='frames taken that the next window begins later (default: 1)')
  command.add_argument('--exact', action='store_true', help='encode every window by itself')
  command.add_argument('--top', type=int, default=1, metavar='N', help='labels shown (default: 1)')
  command.add_argument('--csv', metavar='FILE', help="also write a CSV; '-' is standard output")
  command.set_defaults(run=windows)

  finetune_cli.add_commands(commands, compilation_cache.enable)
  weights_cli.add_commands(commands, compilation_cache.enable)
  data_cli.add_commands(commands)
  eval_cli.add_commands(commands, compilation_cache.enable)
  plan_cli.add_commands(commands)
  return parser


def _load(arguments: argparse.Namespace) -> tuple[Any, dict[str, float]]:
  """Opens the weights; also seconds it took, by what was done."""
  start = time.perf_counter()
  if arguments.template is not None and '{}' not in arguments.template:
    raise answers.Refused(f'--template {arguments.template!r} must hold {{}} for the label')
  if arguments.frames is not None and arguments.frames < 1:
    raise answers.Refused(f'--frames must be at least 1, got {arguments.frames}')
  compilation_cache.enable()
  from xclip_jax import inference

  imported = time.perf_counter()
  options = {'heads': arguments.heads, 'num_frames': arguments.frames,
             'dtype': arguments.dtype, 'merge_tokens': arguments.merge_tokens}
  with answers.refusing():
    classifier = inference.load(
      arguments.weights, **{k: x for k, x in options.items() if x is not None}
    )
  if arguments.template is not None:
    classifier = dataclasses.replace(classifier, template=arguments.template)
  return classifier, {'import': imported - start, 'load': time.perf_counter() - imported}


def _labels(arguments: argparse.Namespace) -> list[str]:
  """Reads --labels or --labels-file."""
  if (arguments.labels is None) == (arguments.labels_file is None):
    raise answers.Refused('give either --labels or --labels-file')
  if arguments.labels is not None:
    where, labels = '--labels', [label.strip() for label in arguments.labels.split(',')]
  else:
    where = arguments.labels_file
    try:
      from xclip_jax.data import source
      lines = source.read_content(where).decode('utf-8-sig').splitlines()
    except ValueError as error:
      raise answers.Refused(f'{where} cannot be read as UTF-8 text: {error}') from error
    header = [name.strip() for name in lines[0].split(',')] if lines else []
    if where.lower().endswith('.csv') or {'id', 'name'} <= set(header):
      with answers.refusing():
        labels = source.read_classes(where).names
    else:
      labels = [line.strip() for line in lines if not line.lstrip().startswith('#')]
  labels = [label for label in labels if label]
  if not labels:
    raise answers.Refused(f'{where} holds no labels')
  repeated = sorted({label for label in labels if labels.count(label) > 1})
  if repeated:
    raise answers.Refused(f'{where} holds {repeated[0]!r} more than once')
  return labels


def _check_places(arguments: argparse.Namespace) -> None:
  """Refuses paths such as s3://..., and gs://... for videos and for what is written."""
  for name, value in vars(arguments).items():
    for place in value if isinstance(value, list) else [value]:
      if name not in _TEXTS and isinstance(place, str) and ':/' in place:
        from xclip_jax import files

        bucket = name in _MAY_BE_REMOTE and arguments.run.__module__ != data_cli.__name__
        with answers.refusing():
          files.check_scheme(place, name.replace('_', '-'), bucket)


def _files(places: Sequence[str]) -> list[str]:
  """Finds the videos of files, folders and globs, each once, in the order they were named."""
  from xclip_jax.data import formats

  found = []
  for place in map(os.path.expanduser, places):
    if not os.path.lexists(place) and glob.has_magic(place):
      matches = sorted(glob.glob(place, recursive=True))
      if not matches:
        raise answers.Refused(f'no videos found: nothing matches {place}')
    else:
      matches = [place]
    for match in matches:
      inside = _videos_in(match, formats.SUFFIXES) if os.path.isdir(match) else [match]
      if not inside and len(matches) == 1:
        raise answers.Refused(
          f'no videos found in {match}: no file in it ends in {" ".join(formats.SUFFIXES)}'
        )
      found += inside
  once = {}
  for file in found:
    once.setdefault(os.path.abspath(file), file)
  if not once:
    raise answers.Refused(f'no videos found in {", ".join(places)}')
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


def _say(text: Any) -> None:
  answers.print_past_bar(f'xclip: {text}', sys.stderr)


def _failure(file: str, error: Exception) -> tuple[str, str]:
  _say(answers.printable(str(error)))
  return file, str(error).removeprefix(f'{file}: ')


def _conclude(failed: Sequence[Any], total: int) -> int:
  if failed:
    _say(f'{len(failed)} of {total} videos could not be used')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
