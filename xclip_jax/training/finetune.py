"""Own labels in one go: from a folder of clips to weights that know them, with all that was chosen.

The recipe is the few-shot one of X-CLIP (Ni et al., ECCV 2022, Sec. 4.1 and its published configs):
AdamW, learning rate 8e-6 x batch / 256, ten times that for the new parts, text tower fixed, 50
epochs. What comes out is on the way from the weights before to those after (WiSE-FT).
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xclip_jax import config as fields
from xclip_jax.data.datasets import own_clips
from xclip_jax.data.datasets.own_clips import Clips
from xclip_jax.errors import UserError
from xclip_jax.evaluation import video_lists, weight_curve
from xclip_jax.models.config import COMPUTE_FIELDS, FRAME_MEAN, VARIANTS
from xclip_jax.reports import evaluation_page, markdown, weight_curve_page
from xclip_jax.text_format import percent
from xclip_jax.training import run as run_lib
from xclip_jax.weights import interpolate, native, opening

FEW = 16                       # clips of a class up to which the few-shot recipe is taken
LEAST_UPDATES = 100
_SIDES = re.compile(r'\b(left|right|(counter-?|anti-?)?clockwise)\b', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Options:
  """What is asked for; None: chosen from the number of clips.

  Fields:
    epochs, batch_size, lr: of training; lr of the pretrained parts.
    tune_text: the text tower is trained, too.
    frame_mean: of weights of CLIP: no new parts, frames are averaged.
    flip: probability of a mirrored clip; None: 0.5, or 0 if a label tells sides apart.
    val_share: of the clips of each class, held out where no split is given.
    threads: that decode.
    seed: of the split, of training and of new parts.
  """

  epochs: float | None = None
  batch_size: int | None = None
  lr: float | None = None
  tune_text: bool = False
  frame_mean: bool = False
  flip: float | None = None
  val_share: float = 0.2
  threads: int = 4
  seed: int = 0


def recipe(clips: Clips, weights: native.Weights, given: str, out: Path, options: Options) -> Any:
  """The config of the run: the few-shot recipe, for as many clips as there are."""
  training = clips.of('train')
  devices = jax.device_count()
  batch = options.batch_size
  if batch is None:
    batch = -(-(1 << int(math.log2(min(64, len(training))))) // devices) * devices
  if batch % devices:
    raise UserError(f'--batch-size {batch} must be a multiple of the {devices} devices')
  few = float(np.median(list(clips.count('train').values()))) <= FEW
  epochs = options.epochs or (50.0 if few else 30.0)
  steps = max(round(epochs * len(training) / batch), 1)
  if options.epochs is None:
    steps = max(steps, LEAST_UPDATES)
  c = fields.get_config()
  c.seed = options.seed
  _set_model(c.model, weights, options)
  c.data.root = str(clips.root)
  for name in ('train', 'val', 'classes'):
    setattr(c.data, name, str(out / f'{name}.csv'))
  own = weights.template
  c.data.template, c.data.templates = (own, ()) if isinstance(own, str) else ('{}', tuple(own))
  c.data.mean, c.data.std = tuple(weights.preprocess.mean), tuple(weights.preprocess.std)
  c.data.eval_resize, c.data.threads = weights.preprocess.resize_ratio, options.threads
  sides = any(map(_SIDES.search, clips.classes))
  c.augment.flip = (0.0 if sides else 0.5) if options.flip is None else options.flip
  c.train.task = 'multi-label' if clips.several else 'single-label'
  c.train.init_from, c.train.freeze_text = given, not options.tune_text
  c.train.batch_size, c.train.steps = batch, steps
  c.optim.lr = options.lr or 8e-6 * batch / 256
  c.optim.warmup_steps = max(steps // 10, 1)
  if not (c.model.fields.get('messages', True) or c.model.fields.get('mit', True)):
    c.optim.groups = c.optim.groups[1:]                 # there are no new parts
  c.eval.every_steps = steps                            # nothing is chosen on the way
  c.checkpoint.every_steps = min(100, steps)
  c.log_steps = max(min(20, steps // 10), 1)
  c.eval.batch_size = -(-16 // devices) * devices
  return c.lock()


def _set_model(model: Any, weights: native.Weights, options: Options) -> None:
  want = vars(weights.config) | (FRAME_MEAN if options.frame_mean else {})
  differ = lambda variant: {
    k: v for k, v in want.items()
    if v != getattr(VARIANTS[variant], k) and k not in (*COMPUTE_FIELDS, 'num_frames')}
  model.variant = min(VARIANTS, key=lambda variant: len(differ(variant)))
  model.num_frames = want['num_frames']
  model.fields = differ(model.variant)
  if jax.default_backend() != 'cpu':
    model.dtype = model.residual_dtype = 'bfloat16'


def run(
  clips: Clips, weights: native.Weights, given: str, out: Path, config: Any,
  base: video_lists.EvaluationSet | None = None,
  progress: Callable[[str], Any] = lambda _: iter,
) -> dict[str, Any]:
  """Trains, measures the way from before to after, and writes everything into `out`.

  Args:
    clips: from `split`.
    weights: before; given: how they were named.
    out: a folder; a run that was interrupted in it goes on.
    config: from `recipe`.
    base: what must not be forgotten, if that is to be measured.
    progress: what is measured -> a wrapper of its batches.

  Returns:
    what results.json holds; empty if the run was asked to stop.

  Raises:
    ValueError, and what train.run raises.
  """
  out.mkdir(parents=True, exist_ok=True)
  lists = own_clips.write_lists(out, clips, {k: clips.of(k) for k in ('train', 'val')})
  if not run_lib.run(config, out / 'run'):
    return {}
  after = opening.open_weights(out / 'run')
  before = opening.open_start_weights(given, after.config, config.seed)
  val = video_lists.labelled('val', lists['val'], clips.root, lists['classes'], clips.several)
  sets = [val] + ([base] if base else [])
  curve = weight_curve.measure(
    before, after, sets, batch_size=config.eval.batch_size, threads=config.data.threads,
    progress=progress)
  alpha = curve.best()
  chosen = dataclasses.replace(
    interpolate.interpolate(before, after, alpha),
    licence=weights.licence, notes=())
  native.save(out / 'weights', chosen, overwrite=True)
  results = {
    'weights': given, 'alpha': alpha, 'metric': curve.metric('val'),
    'lists': {name: {'before': curve.values(name)[0], 'after': curve.values(name)[-1],
                     'chosen': curve.values(name)[curve.alphas.index(alpha)]}
              for name in curve.lists},
    'clips': {k: len(clips.of(k)) for k in ('train', 'val')},
    'left_out': [{'path': path, 'reason': reason} for path, reason in clips.left_out],
    'config': json.loads(config.to_json_best_effort()),
  }
  curve.at('val', 0.0).save(out / 'predictions_before.npz')
  curve.at('val', alpha).save(out / 'predictions.npz')
  weight_curve_page.write(out, curve, ('before', 'after'), {'alpha': alpha})
  (out / 'evaluation').mkdir(exist_ok=True)
  evaluation_page.write(
    out / 'evaluation', f'{out.name}: the clips held out',
    f'{curve.metric("val")} {percent(results["lists"]["val"]["chosen"])}',
    {'val': curve.at('val', alpha)}, {'weights': f'{out.name}/weights', 'alpha': f'{alpha:g}'})
  write_page(out, clips, curve, results, config)
  (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
  return results


def write_page(
  out: Path, clips: Clips, curve: weight_curve.Curve, results: Mapping[str, Any], config: Any
) -> None:
  """Writes report.md: what came out, what it is worth, and how to use it."""
  metric, alpha = results['metric'], results['alpha']
  per = {when: dict(zip(curve.at('val', a).texts, curve.at('val', a).per_class()[0], strict=True))
         for when, a in (('before', 0.0), ('chosen', alpha), ('after', 1.0))}
  counts = {k: clips.count(k) for k in ('train', 'val')}
  example = os.path.relpath(clips.of('val')[0].path)
  labels = ', '.join(clips.classes)
  page = [
    f'# {markdown.escape(out.name)}', markdown.escape(sentence(results)),
    markdown.table(('clips of', f'{metric} before', f'chosen, alpha {alpha:g}', 'after'), [
      (name, *(percent(x[k]) for k in ('before', 'chosen', 'after')))
      for name, x in results['lists'].items()]),
    'Alpha was chosen on these very clips, so that the number for it is a little too good: of new '
    'clips expect somewhat less. With few clips the numbers are coarse, too: one clip more or less '
    f'of {results["clips"]["val"]} is {percent(1 / max(results["clips"]["val"], 1))}.',
    *weight_curve_page.section(curve),
    '## Classes',
    markdown.table(('class', 'training clips', 'held out', 'before', 'chosen', 'after'), [
      (name, str(counts['train'][name]), str(counts['val'][name]),
       *(percent(per[k].get(name, math.nan)) for k in ('before', 'chosen', 'after')))
      for name in clips.classes]),
    'Confusion, calibration and every class of the chosen weights: '
    '[evaluation](evaluation/report.md). Training: [run](run/report/report.md).',
    '## What was chosen', markdown.table(('', ''), choices(config, clips)),
    *([markdown.table(('left out', 'why'), clips.left_out)] if clips.left_out else []),
    '## Use it',
    f'```\nxclip classify {example} --weights {os.path.relpath(out / "weights")} '
    f'--labels "{labels}"\n```',
  ]
  (out / 'report.md').write_text('\n\n'.join(page) + '\n', encoding='utf-8')


def sentence(results: Mapping[str, Any]) -> str:
  """Says in one sentence what came out."""
  x, alpha, metric = results['lists'], results['alpha'], results['metric']
  text = (f'{metric} of the {results["clips"]["val"]} clips held out: '
          f'{percent(x["val"]["before"])} before, {percent(x["val"]["chosen"])} with the weights '
          f'chosen (alpha {alpha:g}), {percent(x["val"]["after"])} after fine-tuning in full')
  others = [name for name in x if name != 'val']
  return text + ''.join(
    f'; {name}: {percent(x[name]["before"])}, {percent(x[name]["chosen"])}, '
    f'{percent(x[name]["after"])}' for name in others)


def choices(config: Any, clips: Clips) -> list[tuple[str, str]]:
  """What was chosen for this run, in words."""
  c = config
  n = len(clips.of('train'))
  trained = 'trained' if not c.train.freeze_text else 'fixed'
  size = c.model.fields.get('vision_width', VARIANTS[c.model.variant].vision_width)
  model = (f'{c.model.num_frames} frames, ' + (
    f'a size of its own (width {size})' if 'vision_width' in c.model.fields else c.model.variant))
  flip = f'{c.augment.flip:g}'
  if not c.augment.flip and any(map(_SIDES.search, clips.classes)):
    flip = '0, as labels tell sides apart'
  return [
    ('start', c.train.init_from), ('model', model),
    ('clips', f'{n} to train on, {len(clips.of("val"))} held out, {len(clips.classes)} classes'),
    ('training', f'{c.train.steps} updates of {c.train.batch_size} clips '
                 f'({c.train.steps * c.train.batch_size / max(n, 1):.0f} epochs)'),
    ('learning rate', f'{c.optim.lr:.2g}, ten times that for the new parts'
     if len(c.optim.groups) > 1 else f'{c.optim.lr:.2g}'),
    ('text tower', trained), ('mirrored clips', flip), ('seed', str(c.seed)),
  ]
