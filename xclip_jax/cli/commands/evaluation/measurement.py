"""The measurement of a model by a protocol, on one process or on several."""

import argparse
import contextlib
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output, startup
from xclip_jax.cli.commands.evaluation import result_folder
from xclip_jax.errors import UserError
from xclip_jax.parallel import cluster


def run(
  arguments: argparse.Namespace, protocol: str, read_lists: Callable[[], Sequence[Any]]
) -> int:
  """Measures a model on lists; process 0 writes and prints the results.

  Args:
    arguments: of the command.
    protocol: one of `evaluation.results.PROTOCOLS`.
    read_lists: returns the evaluation sets. Called after all processes have joined, so that a
      fault that one of them finds ends all.

  Returns:
    the exit code.
  """
  templates = _read_templates(arguments)
  process, processes = _join(arguments)
  with contextlib.ExitStack() as stack:
    if processes > 1:
      from xclip_jax.parallel import process_exit

      stack.enter_context(process_exit.end_all_on_failure(output.report_error))
    sets = read_lists()
    folder = None
    if process == 0:
      folder = stack.enter_context(result_folder.open_results(arguments))
    if folder and processes > 1:
      stack.callback(process_exit.on_exit(
        functools.partial(shutil.rmtree, folder, ignore_errors=True)))
    is_quiet = arguments.quiet or process > 0
    weights, scorer, params = _open_scorer(arguments, is_quiet)
    if templates is None:
      templates = ['{}'] if protocol == 'retrieval' else _templates_of(weights)
    scores, settings = _score(arguments, (scorer, params), sets, templates, is_quiet)
    if folder:
      from xclip_jax.evaluation import results
      from xclip_jax.reports import evaluation_page

      result = results.write(folder, results.ProtocolRun(
        protocol, sets, scores, arguments.weights, weights, settings | {'processes': processes}))
      evaluation_page.write(folder, result.title, result.lines[-1], scores, result.facts)
  failed = [
    f'{x.paths[row]}: {reason}' for x in scores.values() for row, reason in x.failed.items()]
  if folder:
    output.print_past_bar('\n'.join(result.lines))
    print(f'report: {Path(arguments.output) / "report.md"}')
    output.say_failures(failed)
    if failed:
      total = sum(x.expected for x in scores.values())
      output.say(f'{len(failed)} of {total} videos could not be evaluated')
  return output.FAILED_IN_PART if failed else 0


def _open_scorer(arguments: argparse.Namespace, is_quiet: bool) -> tuple[Any, Any, Any]:
  """Returns the weights, a `Scorer` of their model, and their parameters on all devices."""
  with startup.paused_collector():
    startup.prepare_compilation(is_quiet)
    from xclip_jax.data.clips import pipeline
    from xclip_jax.evaluation import scorer as scorer_lib
    from xclip_jax.models.xclip import XCLIP
    from xclip_jax.parallel import mesh as mesh_lib
    from xclip_jax.weights import opening

    weights = opening.open_weights(arguments.weights, **options.open_options(arguments))
    for note in weights.notes:
      output.print_past_bar(f'{weights.source}: {note}', sys.stderr)
    scorer = scorer_lib.Scorer(
      XCLIP(weights.config), weights.preprocess, mesh_lib.make_mesh({'data': -1}),
      arguments.batch_size,
      pipeline.Reading(threads=arguments.threads, clip_seconds=arguments.clip_seconds))
    return weights, scorer, scorer.place(weights.params)


def _score(
  arguments: argparse.Namespace, model: tuple[Any, Any], sets: Sequence[Any],
  templates: list[str], is_quiet: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the scores of every set by its name, and the settings that led to them."""
  from xclip_jax.evaluation import scorer as scorer_lib
  from xclip_jax.text import tokenizer

  views = scorer_lib.Views(
    arguments.clips, arguments.crops, arguments.views, arguments.resize, arguments.sampling,
    arguments.stride)
  progress = functools.partial(output.show_progress, unit='batch', quiet=is_quiet)
  scorer, params = model
  scores = {}
  for x in sets:
    # Of a class, half a name would be another class: captions alone may be cut.
    with tokenizer.advise('shorten it' + (', or cut it with --truncate' if x.kind == 'captions'
                                          else '')):
      text = scorer.encode_texts(params, x.unique_texts, templates, arguments.truncate)
    scores[x.name] = x.score(scorer, params, text, views, arguments.average, progress)
  return scores, {
    'templates': templates, 'average': arguments.average, 'clips': arguments.clips,
    'crops': arguments.crops, 'views': arguments.views, 'resize': scorer.resize_ratio(views),
    'sampling': arguments.sampling, 'stride': arguments.stride, 'batch_size': scorer.batch_size,
    'clip_seconds': arguments.clip_seconds, 'devices': scorer.mesh.size,
    'truncate': arguments.truncate,
  }


def _join(arguments: argparse.Namespace) -> tuple[int, int]:
  """Joins the other processes; returns the number of this one and how many there are."""
  explicit = (arguments.coordinator, arguments.num_processes, arguments.process_id)
  if arguments.distributed is None and explicit == (None,) * 3 and not cluster.launched_task():
    return 0, 1                                   # without JAX: a mistake is answered at once
  from xclip_jax.parallel import processes as processes_lib

  return processes_lib.join(arguments.distributed, *explicit, arguments.join_timeout)


def _read_templates(arguments: argparse.Namespace) -> list[str] | None:
  """Returns the templates of --template or --templates-file; None without either."""
  if not arguments.templates_file:
    return arguments.template
  if arguments.template:
    raise UserError('give either --template or --templates-file')
  from xclip_jax.data.datasets import annotations

  lines = annotations.read_lines(arguments.templates_file)
  templates = [x.strip() for x in lines if x.strip() and not x.startswith('# ')]
  if not templates:
    raise UserError(f'{arguments.templates_file} holds no templates; write one a line')
  for template in templates:
    if '{}' not in template:
      raise UserError(f'template {template!r} must hold {{}} for the label')
  return templates


def _templates_of(weights: Any) -> list[str]:
  """Returns the templates that weights were trained with."""
  return [weights.template] if isinstance(weights.template, str) else list(weights.template)
