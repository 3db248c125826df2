"""Scorer: logits of every view of every video for texts, on any number of devices and hosts.

Results do not depend on the batch size, devices, hosts or threads, but for the last bits of a float
where a matrix product of another shape sums in another order.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xclip_jax.data import bad_files
from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.errors import UserError
from xclip_jax.evaluation import view_batches
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.models.xclip import XCLIP, compare, encode_pixels
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes
from xclip_jax.text import prompts, text_features, tokenizer, vocabulary
from xclip_jax.weights.native import Preprocess

Progress = Callable[[Iterable[Any]], Iterable[Any]]     # wraps the batches of an evaluation
READING = pipeline.Reading(clip_seconds=60.0)
_TEXTS_AT_ONCE = 1024     # texts that are encoded, or compared with a batch of videos, at once


@dataclasses.dataclass(frozen=True)
class Views:
  """Views of each video that are scored, and how they are averaged.

  Fields:
    clips: of each video; crops: 1 or 3 of each clip.
    choice: how several clips are chosen, 'centred' or 'reference'; see `sampling.ClipSampler`.
    resize: short side before the crops, over the image size; None: the weights' own, or 1 for three
      crops with 'reference'.
    sampling: 'sparse' or 'dense', with `stride`.
    orders: frame orders in which each view is scored, keys of `view_batches.FRAME_ORDERS`.
  """

  clips: int = 1
  crops: int = 1
  choice: str = 'centred'
  resize: float | None = None
  sampling: str = 'sparse'
  stride: int = 1
  orders: tuple[str, ...] = ('in order',)

  @property
  def count(self) -> int:
    """Returns V, the number of views of each video."""
    return len(self.orders) * self.crops * self.clips


class ViewLogits(NamedTuple):
  """Logits of N readable videos of a source.

  Fields:
    logits: float32 [N, V, K], views by frame order, then crop, then clip.
    index: int32 [N], rows, ascending; label: int32 [N], class ids that the source gives.
    failed: reason for every other row.
  """

  logits: np.ndarray
  index: np.ndarray
  label: np.ndarray
  failed: dict[int, str]


@dataclasses.dataclass(frozen=True)
class PathSource:
  """Videos by path, without labels, as the pipeline reads them."""

  paths: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, row: int) -> dict[str, Any]:
    return {'path': self.paths[row], 'label': 0, 'index': row}


@functools.lru_cache(8)
def _programs(config: XCLIPConfig, statistics: Preprocess, mesh: Mesh) -> tuple[Any, Any]:
  """Returns the jitted prediction and text encoder of all scorers of one architecture."""
  model = XCLIP(config)

  def predict(params, batch, texts):
    features = encode_pixels(model, params, batch['video'], statistics)
    score_block = lambda text: compare(model, params, features, text).logits
    if texts.ndim == 2:
      logits = score_block(texts)                                          # [B * v, K]
    else:                                      # blocks [n, K', E], one after another
      logits = jnp.concatenate(list(jax.lax.map(score_block, texts)), axis=1)
    return {name: batch[name] for name in ('label', 'index', 'mask')} | {'logits': logits}

  # Replicated results: every host holds every row, so nothing is left to gather.
  everywhere = mesh_lib.replicated(mesh)
  encode_text = lambda params, ids: text_features.encode(model, params, ids)
  return (jax.jit(predict, out_shardings=everywhere),
          jax.jit(encode_text, out_shardings=everywhere))


class Scorer:
  """Scores videos with one architecture on one mesh.

  Parameters are an argument of every call, so new ones are scored without compiling again. Nor do
  scorers of the same architecture, statistics and mesh compile again: they share their programs.
  """

  def __init__(
    self, model: XCLIP, preprocess: Preprocess, mesh: Mesh, batch_size: int = 16,
    reading: pipeline.Reading = READING,
  ):
    """Prepares the programs; they are compiled at their first use.

    Args:
      model: module.
      preprocess: turns frames into input.
      mesh: all devices of all hosts.
      batch_size: most clips (one view of one video each) predicted at once over all devices,
        rounded up to a multiple of the batch shards.
      reading: threads and processes that decode videos, and their time limit.
    """
    if min(batch_size, reading.threads) < 1:
      raise UserError(
        f'batch_size={batch_size} and threads={reading.threads} must be at least 1')
    self.model, self.preprocess, self.mesh, self.reading = model, preprocess, mesh, reading
    shards = mesh_lib.batch_shards(mesh)
    self.batch_size = -(-batch_size // shards) * shards

    statistics = dataclasses.replace(
      preprocess, mean=tuple(preprocess.mean), std=tuple(preprocess.std))
    self._predict, self._encode_text = _programs(model.config, statistics, mesh)

  def place(self, params: Any) -> Any:
    """Puts parameters on all devices in the dtypes that inference uses."""
    params = cast_for_inference(params, self.model.config)
    return jax.device_put(params, mesh_lib.replicated(self.mesh))

  def lower(self, params: Any, batch: Any, texts: Any) -> jax.stages.Lowered:
    """Lowers the prediction for abstract arguments, to be compiled and inspected."""
    with jax.set_mesh(self.mesh):
      return self._predict.lower(params, batch, texts)

  def encode_ids(self, params: Any, token_ids: np.ndarray) -> jax.Array:
    """Encodes int token_ids [K, S] to float32 [K, E] on every device."""
    parts = []
    with jax.set_mesh(self.mesh):
      for part in _blocks(token_ids):
        placed = jax.device_put(part, mesh_lib.replicated(self.mesh))
        parts.append(self._encode_text(params, placed))
      return parts[0] if len(parts) == 1 else jax.jit(jnp.concatenate)(parts)[:len(token_ids)]

  def encode_texts(
    self, params: Any, texts: Sequence[str], templates: Sequence[str] = ('{}',),
    truncate: bool = False,
  ) -> jax.Array:
    """Encodes K texts, each in every template, to float32 [K, E] on every device.

    With several templates the features of a text are averaged by `prompts.average`, as in training.

    Args:
      params: of the model, on the mesh.
      texts: K.
      templates: each with {} for the text.
      truncate: cuts a text that is too long for the model, instead of a UserError.
    """
    missing = [template for template in templates if '{}' not in template]
    if missing or not templates:
      raise UserError(f'every template must hold {{}} for the label, got {missing or "none"}')
    written = [template.replace('{}', text) for template in templates for text in texts]
    tokenize = tokenizer.Tokenizer(self.model.config.context_length)
    vocabulary.check(self.model.config.vocab_size)
    with tokenizer.advise('shorten it'):
      token_ids = tokenize(written, truncate=truncate)
    features = self.encode_ids(params, tokenizer.bucket(token_ids))
    if len(templates) == 1:
      return features
    average = lambda x: prompts.average(x.reshape(len(templates), len(texts), -1).swapaxes(0, 1))
    with jax.set_mesh(self.mesh):
      return jax.jit(average)(features)

  def read(
    self, videos: pipeline.Source, views: Views, share: pipeline.HostShare
  ) -> pipeline.Batches:
    """Starts to read the views of videos in batches; a context manager."""
    config = self.model.config
    transform = dataclasses.replace(
      augment.EvalTransform.of(self.preprocess, config.image_size), crops=views.crops)
    if self._resizes_by_views(views):
      transform = augment.EvalTransform(
        config.image_size, self.resize_ratio(views), self.preprocess.filter, views.crops)
    sampler = sampling.ClipSampler(
      config.num_frames, views.sampling, views.stride, views.choice)
    reading = dataclasses.replace(self.reading, square_pixels=self.preprocess.square_pixels)
    return pipeline.eval_batches(videos, transform, sampler, share, reading, views.clips)

  def score(
    self, params: Any, videos: pipeline.Source, text: jax.Array | np.ndarray,
    views: Views = Views(), progress: Progress = iter,
  ) -> ViewLogits:
    """Compares every view of R videos with K texts.

    Args:
      params: of the model, on the mesh.
      videos: source of R videos; each is decoded once.
      text: float32 features [K, E], from `encode_texts` or `encode_ids`.
      views: of each video.
      progress: wraps the batches; may raise to end the evaluation.

    Raises:
      UserError: no videos, views that do not exist, or logits without any finite number.
    """
    shards = mesh_lib.batch_shards(self.mesh)
    batch_size, at_once = view_batches.sizes(self.batch_size, views.count, shards)
    failed: dict[int, str] = {}

    def start_predictions(batches, texts) -> Iterator[dict[str, jax.Array]]:
      for batch in progress(batches):
        failed.update(bad_files.failures(batch))
        # A row for each clip: one program serves any division of a batch into videos and views.
        rows = {name: np.repeat(batch[name], at_once) for name in ('label', 'index', 'mask')}
        arranged = view_batches.arrange(batch['video'], batch['index'], views.orders)
        for part in view_batches.split_views(arranged, at_once):
          sent = mesh_lib.put_batch(rows | {'video': np.ascontiguousarray(part)}, self.mesh)
          yield self._predict(params, sent, texts)

    table, parts = [], []
    with jax.set_mesh(self.mesh), self.read(
      videos, views,
      pipeline.HostShare(batch_size, mesh_lib.host_rows(self.mesh, batch_size)),
    ) as batches:
      for result in view_batches.fetch_late(start_predictions(batches, self._place_texts(text))):
        logits = result.pop('logits')
        parts.append(logits.reshape(-1, at_once, logits.shape[-1])[:, :, :len(text)])
        result = {name: row[::at_once] for name, row in result.items()}
        if len(parts) * at_once >= views.count:
          table.append(result | {'logits': view_batches.join_views(parts, views.count)})
          parts = []
    return _sort_rows(table, processes.merge_failures(failed))

  def resize_ratio(self, views: Views) -> float:
    """Returns the short side before the crops, over the image size."""
    if views.resize is not None:
      return views.resize
    return 1.0 if self._resizes_by_views(views) else self.preprocess.resize_ratio

  @staticmethod
  def _resizes_by_views(views: Views) -> bool:
    """Tells whether the views say how frames are resized, and not the weights."""
    return views.resize is not None or (views.choice == 'reference' and views.crops == 3)

  def _place_texts(self, text: jax.Array | np.ndarray) -> jax.Array:
    """Puts text features on every device: [K, E], or blocks [n, K', E] of very many."""
    if len(text) > _TEXTS_AT_ONCE:
      text = np.stack(_blocks(np.asarray(text, np.float32)))
    return jax.device_put(text, mesh_lib.replicated(self.mesh))


def _sort_rows(table: list[dict[str, np.ndarray]], failed: dict[int, str]) -> ViewLogits:
  """Orders the rows of all batches, without padding and without rows that are not finite."""
  rows = {name: np.concatenate([part[name] for part in table]) for name in table[0]}
  kept = np.flatnonzero(rows['mask'])
  kept = kept[np.argsort(rows['index'][kept], kind='stable')]
  finite = np.isfinite(rows['logits'][kept]).all(axis=(1, 2))
  if len(kept) and not finite.any():
    raise UserError('the model answers with NaN or infinity; its weights are damaged')
  failed = failed | {int(row): 'the model answers with NaN or infinity'
                     for row in rows['index'][kept[~finite]]}
  kept = kept[finite]
  return ViewLogits(rows['logits'][kept], rows['index'][kept], rows['label'][kept],
                    dict(sorted(failed.items())))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
  """Cuts rows into blocks of one size, the last one padded with its last row."""
  size = min(len(rows), _TEXTS_AT_ONCE)
  parts = [rows[i:i + size] for i in range(0, len(rows), size)]
  return [np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)]) for x in parts]
