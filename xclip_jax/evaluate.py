"""Evaluation: every video counted once, on any number of devices and hosts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xclip_jax import distributed, files, losses, metrics, progress, prompts, report, sharding
from xclip_jax.data import Split, augment, pipeline, sampling
from xclip_jax.metrics import Predictions
from xclip_jax.models.xclip import XCLIP
from xclip_jax.tokenizer import write_prompts

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

  def __init__(
    self, model: XCLIP, mesh: Mesh, mean: tuple[float, ...], std: tuple[float, ...]
  ):
    self.mesh = mesh
    everywhere = sharding.replicated(mesh)

    def predict(params, batch, text_features):
      video = losses.normalize(batch['video'], mean, std)
      out = model.apply({'params': params}, video, text_features, method='classify')
      rows = {name: batch[name] for name in ('label', 'index', 'mask')}
      probabilities = jax.nn.softmax(out.logits, axis=-1)                        # [B * V, K]
      B, K = len(rows['label']), probabilities.shape[-1]
      return rows | {'probabilities': probabilities.reshape(B, -1, K).mean(1)}

    encode = lambda params, ids: model.apply({'params': params}, ids, method='encode_text')
    # Replicated results: every host holds every row, so nothing is left to gather.
    self._predict = jax.jit(predict, out_shardings=everywhere)
    self._encode_text = jax.jit(encode, out_shardings=everywhere)

  def encode_text(self, params: Any, token_ids: np.ndarray) -> jax.Array:
    """Encodes int token_ids [K, S] to float32 [K, E] on every device."""
    with jax.set_mesh(self.mesh):
      return self._encode_text(params, jax.device_put(token_ids, sharding.replicated(self.mesh)))

  def lower(self, params: Any, batch: Any, text_features: Any) -> jax.stages.Lowered:
    """Lowers the prediction for (abstract) arguments, to be compiled and looked at."""
    with jax.set_mesh(self.mesh):
      return self._predict.lower(params, batch, text_features)

  def run(
    self,
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    text_features: jax.Array,
    class_names: Sequence[str],
    expected: int,
    orders: Sequence[str] = ('in order',),
    stop: Callable[[], bool] = lambda: False,
  ) -> dict[str, Predictions] | None:
    """Scores every video of `batches` against every text, averaging over its views.

    Args:
      params: of the model.
      batches: from `data.pipeline.eval_batches`; padding and unreadable rows have mask False.
      text_features: float32 [K, E].
      class_names: K names.
      expected: videos there should be.
      orders: keys of ORDERS; each clip is decoded once for all of them.
      stop: asked before every batch; True gives up.

    Returns:
      Predictions by order, rows sorted by index, or None if stopped.
    """
    rows: dict[str, list] = {order: [] for order in orders}
    failed: dict[int, str] = {}
    with jax.set_mesh(self.mesh):
      for batch in batches:
        if stop():
          return None
        for i in np.flatnonzero(batch['failed'] >= 0):
          failed[int(batch['failed'][i])] = batch['error'][i].decode(errors='replace')
        views = batch['video'].reshape(-1, *batch['video'].shape[-4:])  # [B * V, T, H, W, 3]
        index = np.repeat(batch['index'], len(views) // len(batch['index']))
        for order in orders:
          video = np.ascontiguousarray(ORDERS[order](views, index))
          device = {'video': video} | {k: batch[k] for k in ('label', 'index', 'mask')}
          rows[order].append(self._predict(params, sharding.put_batch(device, self.mesh),
                                           text_features))
    failed = distributed.merged(failed)
    return {
      order: _collect(jax.device_get(parts), tuple(class_names), expected, failed)
      for order, parts in rows.items()
    }


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
    self._evaluator = Evaluator(model, mesh, config.data.mean, config.data.std)
    try:               # what is first used at the end of a run must not fail there
      augment.EvalTransform(
        model.config.image_size, config.data.eval_resize, crops=config.eval.crops)
      sampling.Sampler(
        model.config.num_frames, config.data.sampling, config.data.stride, config.eval.views)
      if config.eval.clips < 1:
        raise ValueError(f'clips must be at least 1, found {config.eval.clips}')
    except ValueError as error:
      raise ValueError(f'config.data or config.eval: {error}') from error

  def encode_text(self, params: Any, names: str) -> jax.Array:
    """Text features [K, E] of one of the class lists."""
    several = self.prompts[names]
    if not several:
      return self._evaluator.encode_text(params, self.token_ids[names])
    ids = several.token_ids
    ids = np.pad(ids, ((0, -len(ids) % _TEXTS), (0, 0)), 'edge').reshape(-1, _TEXTS, ids.shape[1])
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
    videos = self.splits[split].videos
    with self.batches(split, views) as batches:
      return self._evaluator.run(
        params, batches, self.encode_text(params, names), self.names[names], len(videos), orders,
        stop,
      )

  def batches(self, split: str, views: bool = True) -> pipeline.Batches:
    config = self.config
    clips, crops = (config.eval.clips, config.eval.crops) if views else (1, 1)
    return pipeline.eval_batches(
      self.splits[split].videos,
      augment.EvalTransform(
        self.model.config.image_size, config.data.eval_resize, crops=crops
      ),
      sampling=config.data.sampling, stride=config.data.stride, clips=clips,
      views=config.eval.views, clip_seconds=config.data.clip_seconds,
      num_frames=self.model.config.num_frames, batch_size=config.eval.batch_size,
      workers=0, threads=config.data.threads,
      host_index=jax.process_index(), host_count=jax.process_count(),
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
    """Evaluates at length; saves predictions and results.json, draws the report."""
    orders = self.predict(params, 'val', 'val', tuple(ORDERS))
    found = {'val': orders['in order']}
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
    metrics.write_results(workdir, step, results)
    if self.config.report:
      path = report.write(
        workdir / 'report', title=f'X-CLIP, {workdir.name}, step {step}',
        history=metrics.read_metrics(workdir / 'metrics.jsonl'), val=found['val'],
        zero_shot=found.get('zero_shot'), zero_shot_all=found.get('zero_shot_all'), order=orders,
        partner=partner, clips=self.sample_clips(found['val']),
        facts=progress.facts(
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

  def sample_clips(self, predictions: Predictions, count: int = 12) -> list[report.Clip]:
    """Clips from all over the validation set with their three best predictions."""
    rows = {int(i): n for n, i in enumerate(predictions.index)}
    clips = []
    wanted = set(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int).tolist())
    wanted = {int(predictions.index[n]) for n in wanted}
    with self.batches('val', views=False) as batches:
      for batch in batches:
        for video, index in zip(batch['video'], batch['index'].tolist(), strict=True):
          if index in wanted:
            scores = predictions.probabilities[rows[index]]
            best = np.argsort(-scores)[:3]
            clips.append(report.Clip(
              frames=np.array(video),
              label=predictions.class_names[predictions.label[rows[index]]],
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
