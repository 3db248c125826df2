"""The `xclip eval` commands: protocols that measure a model, and a comparison of two of them."""

import argparse
import contextlib
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xclip_jax import errors
from xclip_jax.cli import output
from xclip_jax.parallel import cluster

_EXAMPLES = """examples:
  xclip eval supervised val.csv --weights runs/k400 --clips 4 --crops 3 -o results/k400
  xclip eval zero-shot 1/val.csv 2/val.csv 3/val.csv --root /data/hmdb51 --weights W \\
      --template 'a video of {}' --template 'a person doing {}' -o results/hmdb51
  xclip eval base-novel halves/val_base.csv halves/val_novel.csv --root /data --weights W -o bn
  xclip eval retrieval captions.csv --weights W -o results/captions
  xclip eval average results/seed0 results/seed1 results/seed2 -o results/mean
  xclip eval compare results/a results/b -o results/difference
"""
_FILES = r'predictions(_\w+)?\.npz|results\.json|report\.md|{}'


def add_commands(commands: Any, keep_compilations: Callable[[], None]) -> None:
  """Adds `eval` and what belongs to it to the subcommands of `xclip`.

  Args:
    commands: where to.
    keep_compilations: called before anything is compiled.
  """
  group = commands.add_parser(
    'eval', help='measure a model by a protocol', description=__doc__, epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  ).add_subparsers(metavar='COMMAND', required=True)
  make = lambda *names: _command(group, keep_compilations, *names)

  command = make('supervised', supervised, 'top-1 and top-5 on a list of the classes trained on')
  command.add_argument('list', metavar='LIST', help='CSV with path,label, or .txt')
  _add_classes(command)

  command = make('zero-shot', zero_shot, 'new classes; several lists are splits or draws')
  command.add_argument('list', metavar='LIST', nargs='+', help='CSV with path,label, or .txt')
  _add_classes(command, nargs='+', more=', or one for each list')

  command = make('base-novel', base_novel, 'classes trained on and new ones, harmonic mean')
  command.add_argument('list', metavar='LIST', nargs=2, help='of base classes, of novel classes')
  command.add_argument('--classes', nargs=2, metavar='FILE', help='class lists of base and novel '
                       '(default: classes_base.csv and classes_novel.csv beside the lists)')

  command = make('multi-label', multi_label, 'mean average precision, several labels a video')
  command.add_argument('list', metavar='LIST', help='CSV with path,label; labels as a;b')
  _add_classes(command)
  command.set_defaults(average='logits')

  command = make('retrieval', retrieval, 'find videos by captions, and captions by videos')
  command.add_argument('list', metavar='CAPTIONS', help='CSV with path,caption')
  command.add_argument('--truncate', action='store_true',
                       help='cut captions that are too long for the model')

  command = group.add_parser('compare', help='which of two models is better, and is it chance',
                             description=compare.__doc__)
  command.add_argument('a', metavar='A', help='predictions file, or folder with predictions.npz')
  command.add_argument('b', metavar='B')
  command.add_argument('-o', '--output', metavar='FOLDER', help='write report and picture')
  command.add_argument('--overwrite', action='store_true', help='replace an older result')
  command.add_argument('--resamples', type=int, default=10_000, metavar='N', help='default: 10000')
  command.add_argument('--seed', type=int, default=0, help='of the resamples')
  command.set_defaults(run=compare)


  command = group.add_parser('average', help='mean over results: draws, seeds, splits',
                             description=average.__doc__)
  command.add_argument('results', metavar='RESULT', nargs='+', help='folders of `xclip eval`')
  command.add_argument('-o', '--output', metavar='FOLDER', help='write results and report')
  command.add_argument('--overwrite', action='store_true', help='replace an older result')
  command.set_defaults(run=average)


def supervised(arguments: argparse.Namespace) -> int:
  """Classifies the videos of a list; every one is counted once, missing ones are reported."""
  return _run(arguments, 'supervised', lambda: _sets(arguments, [arguments.list]))


def zero_shot(arguments: argparse.Namespace) -> int:
  """Classifies the videos of lists whose classes were not trained on.

  Several lists are official splits or draws of classes: mean and standard deviation over them.
  """
  return _run(arguments, 'zero-shot', lambda: _sets(arguments, arguments.list))


def base_novel(arguments: argparse.Namespace) -> int:
  """Classifies base classes among themselves, novel ones among themselves: harmonic mean."""
  if not arguments.classes:
    arguments.classes = [
      os.path.join(os.path.dirname(path), f'classes_{half}.csv')
      for path, half in zip(arguments.list, ('base', 'novel'), strict=True)
    ]
  return _run(
    arguments, 'base-novel', lambda: _sets(arguments, arguments.list, ['base', 'novel']))


def multi_label(arguments: argparse.Namespace) -> int:
  """Ranks the videos for every class: mean average precision."""
  return _run(
    arguments, 'multi-label', lambda: _sets(arguments, [arguments.list], several_labels=True))


def retrieval(arguments: argparse.Namespace) -> int:
  """Ranks videos for every caption, and captions for every video."""
  from xclip_jax.evaluation import video_lists

  def read():
    with output.show_user_errors():
      return [video_lists.captions(arguments.list, arguments.root)]

  return _run(arguments, 'retrieval', read)


def compare(arguments: argparse.Namespace) -> int:
  """Compares two models over the same videos: paired bootstrap, classes gained and lost."""
  from xclip_jax.evaluation import compare as compare_lib

  if arguments.resamples < 1:
    raise errors.UserError(f'--resamples must be at least 1, got {arguments.resamples}')
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(_folder(arguments)) if arguments.output else None
    with output.show_user_errors():
      comparison = compare_lib.compare(
        arguments.a, arguments.b, arguments.resamples, arguments.seed)
    if folder:
      from xclip_jax import files
      from xclip_jax.reports import evaluation_page

      files.write_json(folder.temporary / 'results.json', comparison.content())
      evaluation_page.write_comparison(folder.temporary, comparison)
      folder.keep()
  print(comparison.sentence())
  return 0


def average(arguments: argparse.Namespace) -> int:
  """Averages the numbers of several results of one protocol, with their standard deviation."""
  from xclip_jax.evaluation import average as average_lib

  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(_folder(arguments)) if arguments.output else None
    with output.show_user_errors():
      result = average_lib.average(arguments.results)
    if folder:
      from xclip_jax import files
      from xclip_jax.reports import evaluation_page

      files.write_json(folder.temporary / 'results.json', result)
      evaluation_page.write_average(folder.temporary, result)
      folder.keep()
  print('\n'.join(average_lib.summary_lines(result)))
  return 0


def _run(
  arguments: argparse.Namespace, protocol: str, read_sets: Callable[[], Sequence[Any]]
) -> int:
  """Evaluates; what is wrong on one of several processes must be found after they have joined."""
  templates = _templates(arguments)
  for name in ('clips', 'stride', 'batch_size', 'threads', 'frames'):
    value = getattr(arguments, name)
    if value is not None and value < 1:
      raise errors.UserError(f'--{name.replace("_", "-")} must be at least 1, got {value}')
  process, processes = _join(arguments)
  first = process == 0
  with contextlib.ExitStack() as stack:
    if processes > 1:
      from xclip_jax.parallel import process_exit

      stack.enter_context(process_exit.end_all_on_failure(_say_on_all))
    sets = read_sets()
    folder = stack.enter_context(_folder(arguments)) if first else None
    if folder and processes > 1:
      stack.callback(process_exit.on_exit(folder.discard))
    arguments.keep_compilations()
    from xclip_jax.evaluation import results, scorer
    from xclip_jax.parallel import mesh as mesh_lib
    from xclip_jax.reports import evaluation_page
    from xclip_jax.weights import opening

    options = {'heads': arguments.heads, 'num_frames': arguments.frames,
               'dtype': arguments.dtype, 'merge_tokens': arguments.merge_tokens}
    with output.show_user_errors():
      weights = opening.open_weights(
        arguments.weights, **{k: x for k, x in options.items() if x is not None})
      for note in weights.notes:
        print(f'{weights.source}: {note}', file=sys.stderr)
      views = scorer.Views(
        arguments.clips, arguments.crops, arguments.views, arguments.resize, arguments.sampling,
        arguments.stride)
      found = scorer.Scorer(
        weights, mesh_lib.make_mesh({'data': -1}), arguments.batch_size, arguments.threads)
      if templates is None:
        own = (weights.template,) if isinstance(weights.template, str) else weights.template
        templates = ['{}'] if protocol == 'retrieval' else list(own)
      gc.enable()
      scores = {
        x.name: x.score(found, templates, views, arguments.average, arguments.clip_seconds,
                        output.batch_bar('', arguments.quiet or not first),
                        getattr(arguments, 'truncate', False))
        for x in sets
      }
      if not first:
        return 1 if any(x.failed for x in scores.values()) else 0
      protocol_run = results.ProtocolRun(
        protocol, sets, scores, arguments.weights, weights,
        {'templates': templates, 'average': arguments.average, 'clips': arguments.clips,
         'crops': arguments.crops, 'views': arguments.views,
         'resize': found.resize_ratio(views), 'sampling': arguments.sampling,
         'stride': arguments.stride, 'batch_size': found.batch_size,
         'clip_seconds': arguments.clip_seconds, 'devices': found.mesh.size,
         'processes': processes,
         'truncate': getattr(arguments, 'truncate', False)},
      )
      result = results.write(folder.temporary, protocol_run)
      evaluation_page.write(
        folder.temporary, result.title, result.lines[-1], scores, result.facts)
    folder.keep()
  print('\n'.join(result.lines))
  print(f'report: {Path(arguments.output) / "report.md"}')
  missing = [f'{x.paths[row]}: {reason}' for x in scores.values()
             for row, reason in x.failed.items()]
  for line in missing[:5]:
    print(output.printable(f'xclip: {line}'), file=sys.stderr)
  if missing:
    total = sum(x.expected for x in scores.values())
    print(f'xclip: {len(missing)} of {total} videos could not be evaluated', file=sys.stderr)
  return 1 if missing else 0


def _join(arguments: argparse.Namespace) -> tuple[int, int]:
  """Joins the other processes; returns the number of this one and how many there are."""
  explicit = (arguments.coordinator, arguments.num_processes, arguments.process_id)
  if arguments.distributed is None and explicit == (None,) * 3 and not cluster.launched_task():
    return 0, 1                                   # and whoever mistyped does not wait for JAX
  from xclip_jax.parallel import processes as processes_lib

  with output.show_user_errors():
    return processes_lib.join(arguments.distributed, *explicit, arguments.join_timeout)


def _say_on_all(error: BaseException) -> int:
  """Prints why one of several processes failed, as `xclip` does; returns the exit code."""
  if isinstance(error, errors.UserError):
    output.print_past_bar(f'xclip: {error}', sys.stderr)
    return 2
  if isinstance(error, KeyboardInterrupt):
    output.print_past_bar('xclip: stopped; nothing was written', sys.stderr)
    return 130
  traceback.print_exception(error)
  return 1


def _sets(
  arguments: argparse.Namespace, lists: Sequence[str], names: Sequence[str] | None = None,
  several_labels: bool = False,
) -> list[Any]:
  from xclip_jax.evaluation import video_lists

  classes = arguments.classes or [None]
  classes = [classes] if isinstance(classes, str) else classes
  if len(classes) == 1:
    classes = classes * len(lists)
  if len(classes) != len(lists):
    raise errors.UserError(
      f'--classes names {len(classes)} files for {len(lists)} lists; give one, or one for each')
  names = names or video_lists.short_names(lists)
  with output.show_user_errors():
    return [
      video_lists.labelled(name, path, arguments.root, chosen, several_labels)
      for name, path, chosen in zip(names, lists, classes, strict=True)
    ]


def _templates(arguments: argparse.Namespace) -> list[str] | None:
  found = list(arguments.template or [])
  if arguments.templates_file:
    if found:
      raise errors.UserError('give either --template or --templates-file')
    try:
      from xclip_jax.data.datasets import annotations
      lines = annotations.read_content(arguments.templates_file).decode('utf-8-sig').splitlines()
    except ValueError as error:
      raise errors.UserError(f'{arguments.templates_file} cannot be read: {error}') from error
    found = [x.strip() for x in lines if x.strip() and not x.startswith('# ')]
    if not found:
      raise errors.UserError(f'{arguments.templates_file} holds no templates')
  for template in found:
    if '{}' not in template:
      raise errors.UserError(f'template {template!r} must hold {{}} for the label')
  return found or None


def _folder(arguments: argparse.Namespace) -> output.Folder:
  from xclip_jax.reports import evaluation_page

  pictures = '|'.join(rf'{name}(_\d+)?\.png' for name in evaluation_page.PICTURES)
  ours = re.compile(_FILES.format(pictures))
  return output.Folder(
    arguments.output, arguments.overwrite, lambda name: ours.fullmatch(name) is not None)


def _command(
  group: Any, keep_compilations: Callable[[], None], name: str, run: Any, help_text: str
) -> Any:
  command = group.add_parser(name, help=help_text, description=run.__doc__)
  add = command.add_argument
  add('--weights', required=True, metavar='W',
      help='workdir of a run, a folder or file with weights, or a name')
  add('-o', '--output', required=True, metavar='FOLDER', help='for predictions, results and report')
  add('--overwrite', action='store_true', help='replace an older result')
  add('--root', help="folder that paths start from (default: the list's)")
  add('--frames', type=int, metavar='T', help='of a clip, if not as the weights were trained')
  add('--heads', choices=('file', 'reference'), help='as in `xclip classify`')
  add('--dtype', choices=('float32', 'bfloat16', 'int8'), help='as in `xclip classify`')
  add('--merge-tokens', type=int, metavar='N', help='as in `xclip classify`')
  add('--template', action='append', metavar='"a {}"', help='text around every label; several '
      'times for an ensemble (default: as the weights were trained; captions: bare)')
  add('--templates-file', metavar='F', help='templates, one a line')
  add('--clips', type=int, default=1, metavar='C', help='of each video (default: 1)')
  add('--crops', type=int, default=1, choices=(1, 3), help='of each clip (default: 1)')
  add('--views', choices=('centred', 'reference'), default='centred',
      help='how several clips are chosen, and how three crops are cut (default: centred)')
  add('--resize', type=float, metavar='R', help='short side before the crops, over the image size')
  add('--sampling', choices=('sparse', 'dense'), default='sparse', help='default: sparse')
  add('--stride', type=int, default=4, metavar='N', help='frames between those of a dense clip')
  add('--average', choices=('probabilities', 'logits'), default='probabilities',
      help='of views (default: probabilities, as the reference; multi-label: logits; retrieval: '
      'always logits)')
  add('--batch-size', type=int, default=16, metavar='N',
      help='clips predicted at once over all devices (default: 16)')
  add('--threads', type=int, default=4, metavar='N', help='that decode (default: 4)')
  add('--clip-seconds', type=float, default=60.0, metavar='S',
      help='a video that is not read by then is missing; 0: no limit (default: 60)')
  add('--quiet', action='store_true', help='no progress bar')
  add('--distributed', choices=('off', 'auto'),
      help='auto: with the other hosts of a TPU pod, Slurm or MPI job; the first one writes; off: '
      'alone, even where a launcher started several tasks (default: alone)')
  add('--coordinator', metavar='HOST:PORT', help='of process 0, where they are not found so')
  add('--num-processes', type=int, metavar='N', help='with --coordinator')
  add('--process-id', type=int, metavar='I', help='with --coordinator: which this is, from 0')
  add('--join-timeout', type=int, metavar='S',
      help='seconds to wait for the other processes at the start (default: 300)')
  command.set_defaults(run=run, keep_compilations=keep_compilations)
  return command


def _add_classes(command: Any, nargs: str | None = None, more: str = '') -> None:
  command.add_argument(
    '--classes', metavar='FILE', nargs=nargs,
    help=f'class list, CSV with id,name or JSON with {{"name": id}}{more} '
    '(default: classes.csv beside the list)')
