"""The evaluations of a run on lists with several labels a video, or with captions.

They are those of `xclip eval multi-label` and `xclip eval retrieval`: the same scores, the same
numbers, the same page.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from jax.sharding import Mesh

from xclip_jax import files
from xclip_jax.data import Split
from xclip_jax.errors import UserError
from xclip_jax.evaluation.scorer import Scorer, Views
from xclip_jax.evaluation.scores import Scores
from xclip_jax.evaluation.video_lists import EvaluationSet
from xclip_jax.models.xclip import XCLIP
from xclip_jax.reports import curves, evaluation_page, run_facts
from xclip_jax.reports.theme import AMBER, BLUE, STYLE
from xclip_jax.storage import metrics_log
from xclip_jax.text import captions as captions_lib
from xclip_jax.text import prompts
from xclip_jax.text.tokenizer import write_prompts
from xclip_jax.weights.native import Preprocess, Weights


class ListEvaluation:
  """Like `evaluate.Evaluation`, for the tasks multi-label and captions.

  Fields:
    metric: the number that the best checkpoint is chosen by: mAP, or the mean of R@1 both ways.
    token_ids, prompts: of the classes trained on, as there; None for captions.
  """

  def __init__(self, config: Any, model: XCLIP, mesh: Mesh, splits: dict[str, Split]):
    self.config, self.model, self.mesh, self.splits = config, model, mesh, splits
    data, length = config.data, model.config.context_length
    self._captions = config.train.task == 'captions'
    self.metric = 'val/recall1' if self._captions else 'val/map'
    self.prompts = self.token_ids = {'train': None}
    if self._captions:
      if data.templates or data.descriptions:
        raise UserError('config.data.templates and descriptions are of classes, and '
                         'config.train.task is captions; leave them empty')
      captions_lib.caption_ids(splits['val'], length, data.truncate_captions)   # now, not at the end
      self.templates = ('{}',)
    else:
      if data.descriptions:
        raise UserError(f'config.data.descriptions with config.train.task={config.train.task!r} '
                         'is not there yet; leave it empty')
      names = splits['train'].classes.names
      self.prompts = {'train': prompts.write(names, data, length)}
      several = self.prompts['train']
      self.token_ids = {'train': several.token_ids if several else write_prompts(
        names, data.template, length)}
      self.templates = tuple(data.templates) or (data.template,)
    self._sets = {name: _set(name, split, self._captions)
                  for name, split in splits.items() if name != 'train'}
    self._preprocess = Preprocess(tuple(data.mean), tuple(data.std), data.eval_resize)
    self._scorer = None

  def encode_text(self, params: Any, names: str) -> jax.Array:
    """Text features [K, E] of the classes trained on."""
    self._use(params)
    return self._scorer.encode_texts(self.splits[names].classes.names, self.templates)

  def predict(
    self, params: Any, name: str, stop: Callable[[], bool] = lambda: False, views: bool = True
  ) -> Scores | None:
    """Scores of every readable video of a split; None if told to stop."""
    self._use(params)
    c, data = self.config.eval, self.config.data
    seen = Views(c.clips if views else 1, c.crops if views else 1, c.views, data.eval_resize,
                 data.sampling, data.stride)
    go_on = lambda batches: itertools.takewhile(lambda _: not stop(), batches)
    found = self._sets[name].score(
      self._scorer, self.templates, seen, 'logits', data.clip_seconds, go_on,
      data.truncate_captions)
    return None if stop() else found

  def during_training(self, params: Any, stop: Callable[[], bool]) -> dict[str, float]:
    """The numbers of every split, from one view a video; empty if told to stop."""
    row = {}
    for name in self._sets:
      found = self.predict(params, name, stop, views=False)
      if found is None:
        return {}
      row |= self._numbers(name, found)
    return row

  def finish(
    self, params: Any, workdir: Path, step: int, seconds: float | None = None
  ) -> dict[str, float]:
    """Evaluates at length; saves predictions and results.json, draws the report."""
    found = {name: self.predict(params, name) for name in self._sets}
    results = {k: v for name, x in found.items() for k, v in self._numbers(name, x).items()}
    if jax.process_index():
      return results
    for name, x in found.items():
      x.save(workdir / f'predictions_{name}.npz')
    metrics_log.write_results(workdir, step, results)
    line = ', '.join(f'{k} {v:.3f}' for k, v in results.items()
                     if k.endswith(('/map', '/r1', '/recall1')))
    if self.config.report:
      folder = workdir / 'report'
      files.make_folder(folder)
      facts = run_facts.facts(
        self.config, self.model.config, params, len(self.splits['train'].videos), self.mesh, step,
        seconds)
      evaluation_page.write(folder, f'X-CLIP, {workdir.name}, step {step}', line, found, facts)
      self._add_curves(folder, metrics_log.read_metrics(workdir / 'metrics.jsonl'))
      print(f'report: {files.shown(folder / "report.md")}')
    for name, x in found.items():
      if x.failed:
        print(f'{name}: {len(x.failed)} of {x.expected} videos could not be read; one is '
              f'{next(iter(x.failed.values()))}')
    print(line)
    return results

  def _add_curves(self, folder: Path, history: list[dict[str, Any]]) -> None:
    title, lines = 'Mean average precision', [
      (f'{name}/map', name, color, None)
      for name, color in zip(self._sets, (BLUE, AMBER), strict=False)]
    if self._captions:
      title, lines = 'Recall at 1', [
        ('val/text_to_video/r1', 'text to video', BLUE, None),
        ('val/video_to_text/r1', 'video to text', AMBER, None)]
    with matplotlib.rc_context(STYLE):
      # On training batches it is another number: how often the best text is a right one.
      figure = curves.draw(history, title, lines, training='')
      files.write_figure(folder / 'curves.png', figure)
    page = folder / 'report.md'
    files.write_bytes(
      page, page.read_bytes() + b'\n![curves](curves.png)\n\n*The course of the run.*\n')

  def _use(self, params: Any) -> None:
    weights = Weights(self.model.config, params, self._preprocess, source='this run')
    if self._scorer:
      self._scorer.use(weights)
    else:
      self._scorer = Scorer(
        weights, self.mesh, self.config.eval.batch_size, self.config.data.threads,
        self.config.data.workers)

  def _numbers(self, name: str, found: Scores) -> dict[str, float]:
    row = found.summary()
    if self._captions:
      row['recall1'] = (row['text_to_video/r1'] + row['video_to_text/r1']) / 2
    return {f'{name}/{k}': v for k, v in row.items()}


def _set(name: str, split: Split, captions: bool) -> EvaluationSet:
  if captions:
    numbers = split.file_numbers
    first = np.unique(numbers, return_index=True)[1]
    paths = tuple(split.videos[int(row)]['path'] for row in first)
    return EvaluationSet(name, 'captions', tuple(split.captions), paths, paths, numbers,
                         split.videos.fingerprint, {})
  paths = tuple(split.videos[row]['path'] for row in range(len(split.videos)))
  return EvaluationSet(name, 'multi-label', split.classes.names, paths, paths, split.labels,
                       split.videos.fingerprint, {})
