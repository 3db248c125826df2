"""Evaluations of a run: its splits during training, and at length at its end."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xclip_jax import files
from xclip_jax.data import Split
from xclip_jax.data.clips import pipeline
from xclip_jax.data.datasets.annotations import VideoList
from xclip_jax.evaluation.scorer import PathSource, Progress, Scorer, Views
from xclip_jax.evaluation.scores import Scores
from xclip_jax.evaluation.video_lists import EvaluationSet
from xclip_jax.evaluation.view_batches import FRAME_ORDERS
from xclip_jax.models.xclip import XCLIP
from xclip_jax.storage import metrics_log
from xclip_jax.text import captions as captions_lib
from xclip_jax.text import prompts, vocabulary
from xclip_jax.text.tokenizer import write_prompts
from xclip_jax.text_format import printable
from xclip_jax.weights.native import Preprocess

if TYPE_CHECKING:
  from xclip_jax.reports import contact_sheet

METRICS = {'single-label': 'val/top1', 'multi-label': 'val/map', 'captions': 'val/recall1'}
_TILES = 12                           # clips that a report shows


class Evaluation:
  """Evaluates a run on every split but train.

  Fields:
    metric: the number that chooses the best checkpoint.
    token_ids: int32 [texts, S] of each class list ('train', 'val', 'zero_shot'); None for captions.
    prompts: which texts are of which class, where classes have several; else None.
  """

  def __init__(self, config: Any, model: XCLIP, mesh: Mesh, splits: dict[str, Split]):
    self.config, self.model, self.splits, self._mesh = config, model, splits, mesh
    data, task = config.data, config.train.task
    self.metric = METRICS[task]
    self.prompts: dict[str, prompts.Prompts | None] = {}
    self.token_ids: dict[str, np.ndarray | None] = {}
    if task == 'captions':
      # A caption that is too long is reported now, not at the end.
      captions_lib.caption_ids(
        splits['val'], model.config.context_length, data.truncate_captions)
      self.prompts['train'] = self.token_ids['train'] = None
    else:
      self._write_prompts()
    self._sets = {name: _evaluation_set(name, split, task)
                  for name, split in splits.items() if name != 'train'}
    self._scorer = Scorer(
      model,
      Preprocess(tuple(data.mean), tuple(data.std), data.eval_resize,
                 square_pixels=data.square_pixels),
      mesh,
      config.eval.batch_size, pipeline.Reading(data.workers, data.threads, data.clip_seconds))

  def encode_text(self, params: Any, names: str) -> jax.Array:
    """Encodes a class list, a key of `token_ids`, to float32 [K, E] on every device."""
    token_ids, texts = self.token_ids[names], self.prompts[names]
    assert token_ids is not None, names
    features = self._scorer.encode_ids(params, token_ids)
    if texts is None:
      return features
    with jax.set_mesh(self._mesh):
      return jax.jit(texts.average)(features)

  def during_training(self, params: Any, stop: Callable[[], bool]) -> dict[str, float]:
    """Returns the metrics of every split from one view a video; empty if told to stop."""
    row = {}
    try:
      for name, videos in self._sets.items():
        text = self._encode(params, videos)
        scores = self._score(params, videos, text, self._views(all_views=False), _until(stop))
        row |= {f'{name}/{k}': x for k, x in summarise(scores).items()}
    except _Stopped:
      return {}
    return row

  def finish(
    self, params: Any, workdir: Path, step: int, seconds: float | None = None
  ) -> dict[str, float]:
    """Evaluates from all views; writes predictions, results.json and the report.

    Args:
      params: of the model, on the mesh.
      workdir: of the run.
      step: updates so far; seconds: of training, None if nothing was trained.
    """
    scores, orders = self.score_splits(params)
    results = {f'{name}/{k}': v for name, x in scores.items() for k, v in summarise(x).items()}
    partner = self.splits['val'].classes.reverse
    for order, x in orders.items():
      slug = order.replace(' ', '_')
      results[f'time/{slug}/top1'] = x.top(1)
      results[f'time/{slug}/against_reversed'] = x.against(partner)
    if jax.process_index():
      return results
    for name, x in scores.items():
      x.save(workdir / f'predictions_{name}.npz')
    metrics_log.write_results(workdir, step, results)
    line = ', '.join(f'{k} {v:.3f}' for k, v in results.items()
                     if k.endswith(('top1', '/map', '/r1', '/recall1')))
    if self.config.report:
      from xclip_jax.reports import run_page

      page = run_page.write(workdir / 'report', run_page.RunReport(
        title=f'X-CLIP, {workdir.name}, step {step}', summary=line,
        history=metrics_log.read_metrics(workdir / 'metrics.jsonl'),
        facts=self._facts(params, step, seconds), scores=scores, orders=orders, partner=partner,
        clips=self.sample_clips(scores['val']) if orders else ()))
      print(f'report: {files.shown(page)}')
    for name, x in scores.items():
      if x.failed:
        reason = printable(next(iter(x.failed.values())))
        print(f'{name}: {len(x.failed)} of {x.expected} videos could not be read; one is {reason}')
    print(line)
    return results

  def score_splits(self, params: Any) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Scores every split from all views, and 'val' in every order of its frames.

    Returns:
      Scores by split, with 'zero_shot_all', the zero-shot videos among new and trained classes; and
      of 'val' by frame order, from one view, the centre, so that they differ in nothing else.
      Without one label a video there are neither frame orders nor 'zero_shot_all'.
    """
    if self.config.train.task != 'single-label':
      return {name: self._score(params, x, self._encode(params, x), self._views())
              for name, x in self._sets.items()}, {}
    val, text = self._sets['val'], self.encode_text(params, 'val')
    views = dataclasses.replace(self._views(all_views=False), orders=tuple(FRAME_ORDERS))
    rearranged = self._score(params, val, text, views)
    orders = {order: dataclasses.replace(rearranged, logits=rearranged.logits[:, n:n + 1])
              for n, order in enumerate(FRAME_ORDERS)}
    scores = {'val': orders['in order'] if self._views().count == 1 else
              self._score(params, val, text, self._views())}
    if 'zero_shot' in self._sets:
      new = self._sets['zero_shot']
      every = dataclasses.replace(
        new, texts=new.texts + val.texts,
        fingerprint=hashlib.sha256(json.dumps([new.fingerprint, val.texts]).encode()).hexdigest())
      with jax.set_mesh(self._mesh):
        text = jax.jit(lambda *x: jnp.concatenate(x))(self.encode_text(params, 'zero_shot'), text)
      among_all = self._score(params, every, text, self._views())
      scores['zero_shot'] = dataclasses.replace(
        among_all, texts=new.texts, logits=among_all.logits[:, :, :len(new.texts)],
        fingerprint=new.fingerprint)
      scores['zero_shot_all'] = among_all
    return scores, orders

  def sample_clips(self, scores: Scores, count: int = _TILES) -> 'list[contact_sheet.Clip]':
    """Reads clips from all over the validation set, with their three best predictions.

    One process reads them for itself.
    """
    from xclip_jax.reports import contact_sheet

    count = min(count, len(scores.index))
    if not count:
      return []
    chosen = np.unique(np.linspace(0, len(scores.index) - 1, count).round().astype(int))
    videos = pipeline.RowSubset(self.splits['val'].videos, tuple(scores.index[chosen].tolist()))
    with self._scorer.read(
      videos, self._views(all_views=False), pipeline.HostShare(len(chosen))
    ) as batches:
      frames = next(batches)['video']
    clips = []
    for row, video in zip(chosen, frames, strict=True):
      probabilities = scores.averaged[row]
      best = np.argsort(-probabilities)[:3]
      clips.append(contact_sheet.Clip(
        frames=video, label=scores.texts[scores.labels[row]],
        top=tuple((scores.texts[k], float(probabilities[k])) for k in best)))
    return clips

  def _write_prompts(self) -> None:
    """Fills `prompts` and `token_ids` for every class list."""
    data, length = self.config.data, self.model.config.context_length
    vocabulary.check(self.model.config.vocab_size)
    names = {name: split.classes.names for name, split in self.splits.items()}
    prompts.check_descriptions(data, sum(names.values(), ()))
    for key, classes in names.items():
      texts = self.prompts[key] = prompts.write(classes, data, length)
      self.token_ids[key] = texts.token_ids if texts else write_prompts(
        classes, data.template, length)

  def _views(self, all_views: bool = True) -> Views:
    """Returns the views that config.eval asks for, or the one in the centre."""
    c, data = self.config.eval, self.config.data
    return Views(c.clips if all_views else 1, c.crops if all_views else 1, c.views,
                 data.eval_resize, data.sampling, data.stride)

  def _encode(self, params: Any, videos: EvaluationSet) -> jax.Array:
    """Encodes the texts of a set: its class list, or its captions."""
    if videos.kind == 'captions':
      return self._scorer.encode_texts(
        params, videos.unique_texts, truncate=self.config.data.truncate_captions)
    return self.encode_text(params, videos.name)

  def _score(
    self, params: Any, videos: EvaluationSet, text: jax.Array, views: Views,
    progress: Progress = iter,
  ) -> Scores:
    average = 'probabilities' if videos.kind == 'single-label' else 'logits'
    return videos.score(self._scorer, params, text, views, average, progress)

  def _facts(self, params: Any, step: int, seconds: float | None) -> dict[str, str]:
    """Returns the rows of the table that a report opens with."""
    model = self.model.config
    facts = {
      'Parameters': f'{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} million',
      'Input': f'{model.num_frames} frames of {model.image_size} x {model.image_size} pixels',
      'Training clips': str(len(self.splits['train'].videos)),
      'Updates': f'{step}, of {self.config.train.batch_size} clips',
      'Devices': f'{self._mesh.size} x {jax.devices()[0].device_kind}',
    }
    if seconds:
      facts['Training time'] = f'{seconds / 60:.1f} minutes in this process, evaluations left out'
    if self.config.train.task == 'single-label':
      facts['Classes'] = str(len(self.splits['val'].classes))
    return facts


def summarise(scores: Scores) -> dict[str, float]:
  """Returns the metrics of a split as a run writes them."""
  if scores.kind == 'single-label':
    return {'top1': scores.top(1), 'top5': scores.top(5), 'evaluated': len(scores.index),
            'expected': scores.expected}
  row = scores.summary()
  if scores.kind == 'captions':
    row['recall1'] = (row['text_to_video/r1'] + row['video_to_text/r1']) / 2
  return row


def _evaluation_set(name: str, split: Split, task: str) -> EvaluationSet:
  """Returns a split as the scorer reads it."""
  videos, fingerprint = split.videos, split.videos.fingerprint
  if not isinstance(videos, VideoList):   # a record of TFDS gives its label when it is read
    assert task == 'single-label', task
    paths = tuple(f'record {row}' for row in range(len(videos)))
    return EvaluationSet(name, task, split.classes.names, videos, paths, None, fingerprint)
  if task == 'single-label':
    return EvaluationSet(name, task, split.classes.names, videos, videos.listed_paths,
                         videos.labels, fingerprint)
  paths = tuple(videos[row]['path'] for row in range(len(videos)))
  if task == 'multi-label':
    return EvaluationSet(name, task, split.classes.names, PathSource(paths), videos.listed_paths,
                         split.labels, fingerprint)
  first = np.unique(split.file_numbers, return_index=True)[1]      # one row of each file
  return EvaluationSet(
    name, task, tuple(split.captions), PathSource(tuple(paths[row] for row in first)),
    tuple(videos.listed_paths[row] for row in first), split.file_numbers, fingerprint)


class _Stopped(Exception):
  """Ends an evaluation that was asked to stop."""


def _until(stop: Callable[[], bool]) -> Progress:
  """Returns a wrapper of batches that raises _Stopped before a batch once `stop` says so."""
  def watch(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
      if stop():
        raise _Stopped
      yield batch

  return watch
