"""Fine-tuning on somebody's own clips, from lists of clips to weights that know their labels.

The weights that come out lie on the way from the initial to the fine-tuned ones (WiSE-FT).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.data.datasets import own_clips
from xclip_jax.data.datasets.own_clips import Clips
from xclip_jax.evaluation import video_lists, weight_curve
from xclip_jax.reports import evaluation_page, weight_curve_page
from xclip_jax.text_format import percent
from xclip_jax.training import run as run_lib
from xclip_jax.training.finetuning.page import write_page
from xclip_jax.weights import interpolate, native, opening


@dataclasses.dataclass(frozen=True)
class Finetuning:
  """A fine-tuning that is about to run.

  Fields:
    clips: the user's clips, split into train and val.
    weights: the initial weights.
    given: the name that the user gave them.
    out: folder of everything that is written; an interrupted run in it continues.
    config: from `recipe.recipe`.
    base: videos that must not be forgotten, if that is to be measured.
  """

  clips: Clips
  weights: native.Weights
  given: str
  out: Path
  config: Any
  base: video_lists.EvaluationSet | None = None


def run(
  job: Finetuning, progress: Callable[[str], Any] = lambda _: iter
) -> dict[str, Any]:
  """Trains, chooses weights between the initial and the fine-tuned ones, and writes everything.

  Args:
    job: the fine-tuning.
    progress: takes the name of a measurement and returns a wrapper of its batches.

  Returns:
    The content of results.json; empty if the run was asked to stop.

  Raises:
    ValueError, and the errors of training.run.run.
  """
  clips, config, out = job.clips, job.config, job.out
  files.make_folder(out)
  lists = own_clips.write_lists(out, clips, {k: clips.of(k) for k in ('train', 'val')})
  if not run_lib.run(config, out / 'run'):
    return {}
  after = opening.open_weights(out / 'run')
  before = opening.open_start_weights(job.given, after.config, config.seed)
  val = video_lists.labelled(
    'val', lists['val'], clips.root, lists['classes'], clips.is_multi_label)
  options = weight_curve.CurveOptions(
    batch_size=config.eval.batch_size,
    reading=dataclasses.replace(weight_curve.READING, threads=config.data.threads))
  curve = weight_curve.measure(
    before, after, [val] + ([job.base] if job.base else []), options=options, progress=progress)
  alpha = curve.best()
  chosen = dataclasses.replace(
    interpolate.interpolate(before, after, alpha), licence=job.weights.licence, notes=(),
    labels=tuple(job.clips.classes))
  native.save(out / 'weights', chosen, overwrite=True)
  results = {
    'weights': job.given, 'alpha': alpha, 'metric': curve.metric('val'),
    'lists': {name: {'before': curve.values(name)[0], 'after': curve.values(name)[-1],
                     'chosen': curve.values(name)[curve.alphas.index(alpha)]}
              for name in curve.lists},
    'clips': {k: len(clips.of(k)) for k in ('train', 'val')},
    'left_out': [{'path': path, 'reason': reason} for path, reason in clips.left_out],
    'config': json.loads(config.to_json_best_effort()),
  }
  _write_results(job, curve, results)
  return results


def _write_results(
  job: Finetuning, curve: weight_curve.Curve, results: dict[str, Any]
) -> None:
  """Writes predictions, pages and, as the last file, results.json."""
  out, alpha = job.out, results['alpha']
  curve.at('val', 0.0).save(out / 'predictions_before.npz')
  curve.at('val', alpha).save(out / 'predictions.npz')
  weight_curve_page.write(out, curve, ('before', 'after'), {'alpha': alpha})
  files.make_folder(out / 'evaluation')
  evaluation_page.write(
    out / 'evaluation', f'{out.name}: the clips held out',
    f'{curve.metric("val")} {percent(results["lists"]["val"]["chosen"])}',
    {'val': curve.at('val', alpha)}, {'weights': f'{out.name}/weights', 'alpha': f'{alpha:g}'})
  write_page(out, job.clips, curve, results, job.config)
  files.write_json(out / 'results.json', results)
