"""Evaluation: every video counted once, on any number of devices and hosts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xclip_jax import files
from xclip_jax.data import Split, bad_files
from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.errors import UserError
from xclip_jax.evaluation import view_batches
from xclip_jax.evaluation.scores import Predictions
from xclip_jax.models.xclip import XCLIP, PixelStatistics, class_probabilities, classify_pixels
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes
from xclip_jax.reports import run_facts, run_page
from xclip_jax.storage import metrics_log
from xclip_jax.text import prompts, text_features
from xclip_jax.text.tokenizer import write_prompts

_TEXTS = 64        # texts encoded at once, where classes have several


def in_order(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """The frames as they were filmed."""
  return video


def backwards(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Every clip played backwards."""
  return video[:, ::-1]


def shuffled(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Frames of each clip in an order drawn from its row number, the same in every evaluation."""
  T = video.shape[1]
  orders = [np.random.default_rng(max(int(i), 0)).permutation(T) for i in index]
  return np.take_along_axis(video, np.array(orders)[:, :, None, None, None], axis=1)


def single_frame(video: np.ndarray, index: np.ndarray) -> np.ndarray:
  """The middle frame, T times."""
  T = video.shape[1]
  return np.repeat(video[:, T // 2 : T // 2 + 1], T, axis=1)


# The does-it-use-time test: what each clip [B, T, H, W, 3] looks like to the model.
ORDERS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  'in order': in_order,
  'shuffled': shuffled,
  'reversed': backwards,
  'single frame': single_frame,
}


class Evaluator:
  """Compiled prediction for one model and mesh; use it again and again with new parameters."""

  def __init__(self, model: XCLIP, mesh: Mesh, statistics: PixelStatistics):
    self.mesh = mesh
    everywhere = mesh_lib.replicated(mesh)

    def predict(params, batch, text):
      out = classify_pixels(model, params, batch['video'], text, statistics)
      rows = {name: batch[name] for name in ('label', 'index', 'mask')}
      probabilities = class_probabilities(out.logits)                            # [B * v, K]
      B, K = len(rows['label']), probabilities.shape[-1]
      return rows | {'probabilities': probabilities.reshape(B, -1, K)}

    encode = lambda params, ids: text_features.encode(model, params, ids)
    # Replicated results: every host holds every row, so nothing is left to gather.
    self._predict = jax.jit(predict, out_shardings=everywhere)
    self._encode_text = jax.jit(encode, out_shardings=everywhere)

  def encode_text(self, params: Any, token_ids: np.ndarray) -> jax.Array:
    """Encodes int token_ids [K, S] to float32 [K, E] on every device."""
    with jax.set_mesh(self.mesh):
      return self._encode_text(params, jax.device_put(token_ids, mesh_lib.replicated(self.mesh)))

  def lower(self, params: Any, batch: Any, text: Any) -> jax.stages.Lowered:
    """Lowers the prediction for (abstract) arguments, to be compiled and looked at."""
    with jax.set_mesh(self.mesh):
      return self._predict.lower(params, batch, text)

  def run(
    self,
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    text: jax.Array,
    class_names: Sequence[str],
    expected: int,
    orders: Sequence[str] = ('in order',),
    stop: Callable[[], bool] = lambda: False,
    views_at_once: int | None = None,
  ) -> dict[str, Predictions] | None:
    """Scores every video of `batches` against every text, averaging over its views.

    Args:
      params: of the model.
      batches: from `data.pipeline.eval_batches`; padding and unreadable rows have mask False.
      text: float32 features [K, E].
      class_names: K names.
      expected: videos there should be.
      orders: keys of ORDERS; each clip is decoded once for all of them.
      stop: asked before every batch; True gives up.
      views_at_once: views of a video that are predicted at once; default: all.

    Returns:
      Predictions by order, rows sorted by index, or None if stopped.
    """
    tables: dict[str, list] = {order: [] for order in orders}
    failed: dict[int, str] = {}
    stopped = []

    def started():
      """Yields (order, views of a video, results to come), several for each batch."""
      for batch in batches:
        if stop():
          stopped.append(True)
          return
        failed.update(bad_files.failures(batch))
        V = 1 if batch['video'].ndim == 5 else batch['video'].shape[1]
        for order in orders:
          for part in view_batches.parts(batch['video'], views_at_once or V):
            yield order, V, self._start(params, batch, part, order, text)

    waiting: list[np.ndarray] = []
    with jax.set_mesh(self.mesh):
      for order, V, found in view_batches.fetch_late(started()):
        waiting.append(found.pop('probabilities'))
        if sum(x.shape[1] for x in waiting) >= V:
          tables[order].append(
            found | {'probabilities': view_batches.joined(waiting, V).mean(axis=1)})
          waiting = []
    if stopped:
      return None
    reasons = processes.merge_failures(failed)
    return {
      order: _collect(table, tuple(class_names), expected, reasons)
      for order, table in tables.items()
    }

  def _start(
    self, params: Any, batch: dict[str, np.ndarray], views: np.ndarray, order: str, text: jax.Array
  ) -> dict[str, jax.Array]:
    """Sends views [B * v, T, H, W, 3] of a batch to the devices; results come later."""
    index = np.repeat(batch['index'], len(views) // len(batch['index']))
    device = {'video': np.ascontiguousarray(ORDERS[order](views, index))}
    device |= {name: batch[name] for name in ('label', 'index', 'mask')}
    return self._predict(params, mesh_lib.put_batch(device, self.mesh), text)


class Evaluation:
  """The evaluations of a run: over val (and zero-shot) in the loop, and at length at its end."""

  metric = 'val/top1'           # the number that the best checkpoint is chosen by

  def __init__(self, config: Any, model: XCLIP, mesh: Mesh, splits: dict[str, Split]):
    self.config, self.model, self.mesh, self.splits = config, model, mesh, splits
    self.names = {'train': splits['train'].classes.names, 'val': splits['val'].classes.names}
    if 'zero_shot' in splits:
      self.names['zero_shot'] = splits['zero_shot'].classes.names
      self.names['zero_shot_all'] = self.names['zero_shot'] + self.names['val']
    prompts.check_descriptions(config.data, sum(self.names.values(), ()))
    length = model.config.context_length
    # Where a class has several texts: which. Usually it has one.
    self.prompts = {k: prompts.write(names, config.data, length) for k, names in self.names.items()}
    self.token_ids = {
      k: several.token_ids if several else write_prompts(
        self.names[k], config.data.template, length)
      for k, several in self.prompts.items()
    }
    self._evaluator = Evaluator(model, mesh, config.data)
    try:               # what is first used at the end of a run must not fail there
      augment.EvalTransform(
        model.config.image_size, config.data.eval_resize, crops=config.eval.crops)
      sampling.ClipSampler(
        model.config.num_frames, config.data.sampling, config.data.stride, config.eval.views)
      if config.eval.clips < 1:
        raise UserError(f'clips must be at least 1, found {config.eval.clips}')
    except ValueError as error:
      raise UserError(f'config.data or config.eval: {error}') from error

  def encode_text(self, params: Any, names: str) -> jax.Array:
    """Text features [K, E] of one of the class lists."""
    several = self.prompts[names]
    if not several:
      return self._evaluator.encode_text(params, self.token_ids[names])
    ids = several.token_ids
    size = max(_TEXTS, mesh_lib.batch_shards(self.mesh))
    ids = np.pad(ids, ((0, -len(ids) % size), (0, 0)), 'edge').reshape(-1, size, ids.shape[1])
    with jax.set_mesh(self.mesh):
      parts = [self._evaluator.encode_text(params, part) for part in ids]
      return jax.jit(lambda parts: several.average(jnp.concatenate(parts)))(parts)

  def predict(
    self, params: Any, split: str, names: str, orders: tuple[str, ...] = ('in order',),
    stop: Callable[[], bool] = lambda: False, views: bool = True,
  ) -> dict[str, Predictions] | None:
    """Predictions for every readable video of a split among the classes of a list.

    From all views that `config.eval` asks for, or from one, the centre, with `views` False.
    """
    c, videos = self.config, self.splits[split].videos
    clips, crops = (c.eval.clips, c.eval.crops) if views else (1, 1)
    sizes = view_batches.sizes(
      c.eval.batch_size, clips * crops, mesh_lib.batch_shards(self.mesh))
    with self._read(
      videos, pipeline.HostShare(sizes.videos, mesh_lib.host_rows(self.mesh, sizes.videos)),
      clips, crops, c.data.workers,
    ) as batches:
      return self._evaluator.run(
        params, batches, self.encode_text(params, names), self.names[names], len(videos), orders,
        stop, sizes.views,
      )

  def _read(
    self, videos: pipeline.Source, share: pipeline.HostShare, clips: int = 1, crops: int = 1,
    workers: int = 0,
  ) -> pipeline.Batches:
    c = self.config
    return pipeline.eval_batches(
      videos,
      augment.EvalTransform(self.model.config.image_size, c.data.eval_resize, crops=crops),
      sampling.ClipSampler(
        self.model.config.num_frames, c.data.sampling, c.data.stride, c.eval.views),
      share, pipeline.Reading(workers, c.data.threads, c.data.clip_seconds), clips,
    )

  def during_training(self, params: Any, stop: Callable[[], bool]) -> dict[str, float]:
    """Top-1 and top-5 of every split, from one view a video; empty if told to stop."""
    row = {}
    for split in ('val', 'zero_shot'):
      if split in self.splits:
        found = self.predict(params, split, split, stop=stop, views=False)
        if found is None:
          return {}
        row |= {f'{split}/{k}': v for k, v in found['in order'].summary().items()}
    return row

  def finish(
    self, params: Any, workdir: Path, step: int, seconds: float | None = None
  ) -> dict[str, float]:
    """Evaluates at length; saves predictions and results.json, draws the report.

    `val` and `zero_shot` are from all views. The orders of frames (`time`) are compared on one, the
    centre, 'in order' too, so that they differ in nothing else.
    """
    orders = self.predict(params, 'val', 'val', tuple(ORDERS), views=False)
    several_views = self.config.eval.clips * self.config.eval.crops > 1
    found = {'val': self.predict(params, 'val', 'val')['in order'] if several_views else
             orders['in order']}
    for names in ('zero_shot', 'zero_shot_all'):
      if names in self.names:
        found[names] = self.predict(params, 'zero_shot', names)['in order']
    partner = self.splits['val'].classes.reverse
    results = {f'{k}/{m}': v for k, p in found.items() for m, v in p.summary().items()}
    for order, predictions in orders.items():
      slug = order.replace(' ', '_')
      results[f'time/{slug}/top1'] = predictions.top(1)
      results[f'time/{slug}/against_reversed'] = predictions.against(partner)
    if jax.process_index():
      return results
    for name, predictions in found.items():
      predictions.save(workdir / f'predictions_{name}.npz')
    metrics_log.write_results(workdir, step, results)
    if self.config.report:
      path = run_page.write(
        workdir / 'report', title=f'X-CLIP, {workdir.name}, step {step}',
        history=metrics_log.read_metrics(workdir / 'metrics.jsonl'), val=found['val'],
        zero_shot=found.get('zero_shot'), zero_shot_all=found.get('zero_shot_all'), order=orders,
        partner=partner, clips=self.sample_clips(found['val']),
        facts=run_facts.facts(
          self.config, self.model.config, params, len(self.splits['train'].videos), self.mesh,
          step, seconds) | {'Classes': str(len(self.names['val']))},
      )
      print(f'report: {files.shown(path)}')
    for name, predictions in found.items():
      if missing := predictions.expected - len(predictions.label):
        why = ''.join(f'; one is {reason}' for reason in list(predictions.failed.values())[:1])
        print(f'{name}: {missing} of {predictions.expected} videos could not be read{why}')
    print(', '.join(f'{k} {v:.3f}' for k, v in results.items() if k.endswith('top1')))
    return results

  def sample_clips(self, predictions: Predictions, count: int = 12) -> list[run_page.Clip]:
    """Clips from all over the validation set with their three best predictions."""
    count = min(count, len(predictions.index))
    if not count:
      return []
    chosen = np.unique(np.linspace(0, len(predictions.index) - 1, count).round().astype(int))
    videos = pipeline.RowSubset(
      self.splits['val'].videos, tuple(predictions.index[chosen].tolist()))
    # Read by one process for itself, so on one host.
    with self._read(videos, pipeline.HostShare(len(chosen))) as batches:
      frames = next(batches)['video']
    clips = []
    for row, video in zip(chosen, frames, strict=True):
      scores = predictions.probabilities[row]
      best = np.argsort(-scores)[:3]
      clips.append(run_page.Clip(
        frames=video,
        label=predictions.class_names[predictions.label[row]],
        top=tuple((predictions.class_names[k], float(scores[k])) for k in best),
      ))
    return clips


def _collect(
  parts: list[dict[str, np.ndarray]], class_names: tuple[str, ...], expected: int,
  failed: dict[int, str],
) -> Predictions:
  table = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  keep = np.flatnonzero(table['mask'])
  keep = keep[np.argsort(table['index'][keep], kind='stable')]
  return Predictions(
    class_names=class_names,
    probabilities=table['probabilities'][keep],
    label=table['label'][keep],
    index=table['index'][keep],
    expected=expected,
    failed=failed,
  )
