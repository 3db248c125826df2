"""The page of a fine-tuning: report.md."""

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.data.datasets.own_clips import Clips
from xclip_jax.evaluation import weight_curve
from xclip_jax.reports import markdown, weight_curve_page
from xclip_jax.text_format import percent
from xclip_jax.training.finetuning.recipe import choices


def write_page(
  out: Path, clips: Clips, curve: weight_curve.Curve, results: Mapping[str, Any], config: Any
) -> None:
  """Writes report.md: the result, its reliability, and the command that uses the weights."""
  metric, alpha = results['metric'], results['alpha']
  per_class = {
    when: dict(zip(curve.at('val', a).texts, curve.at('val', a).per_class()[0], strict=True))
    for when, a in (('before', 0.0), ('chosen', alpha), ('after', 1.0))}
  counts = {k: clips.count(k) for k in ('train', 'val')}
  command = shlex.join(
    ['xclip', 'classify', os.path.relpath(clips.of('val')[0].path),
     '--weights', os.path.relpath(out), '--labels-file', os.path.relpath(out / 'classes.csv')])
  page = [
    f'# {markdown.escape(out.name)}', markdown.escape(summarise(results)),
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
       *(percent(per_class[k].get(name, math.nan)) for k in ('before', 'chosen', 'after')))
      for name in clips.classes]),
    'Confusion, calibration and every class of the chosen weights: '
    '[evaluation](evaluation/report.md). Training: [run](run/report/report.md).',
    '## What was chosen', markdown.table(('', ''), choices(config, clips)),
    *([markdown.table(('left out', 'why'), clips.left_out)] if clips.left_out else []),
    '## Use it',
    f'```\n{command}\n```',
  ]
  files.write_text(out / 'report.md', '\n\n'.join(page) + '\n')


def summarise(results: Mapping[str, Any]) -> str:
  """Returns the result of a fine-tuning in one sentence."""
  lists, alpha, metric = results['lists'], results['alpha'], results['metric']
  text = (f'{metric} of the {results["clips"]["val"]} clips held out: '
          f'{percent(lists["val"]["before"])} before, {percent(lists["val"]["chosen"])} with the '
          f'weights chosen (alpha {alpha:g}), {percent(lists["val"]["after"])} after fine-tuning '
          'in full')
  return text + ''.join(
    f'; {name}: {percent(x["before"])}, {percent(x["chosen"])}, {percent(x["after"])}'
    for name, x in lists.items() if name != 'val')
