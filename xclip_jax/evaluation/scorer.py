"""A model that scores every view of every video against texts, on any number of devices and hosts.

What comes out does not depend on the batch size, the devices, the hosts or the threads, but for the
last bits of a float where a matrix product of another shape adds up in another order.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xclip_jax.data import bad_files
from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.errors import UserError
from xclip_jax.evaluation import view_batches
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.models.xclip import XCLIP, compare, encode_pixels
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import processes
from xclip_jax.text import prompts, text_features, tokenizer
from xclip_jax.weights.native import Weights

_TEXTS = 256          # texts that are encoded, or compared with a batch of videos, at once


@dataclasses.dataclass(frozen=True)
class Views:
  """Which clips and crops of a video are seen.

  Fields:
    clips: of each video; crops: 1 or 3 of each clip; there are V = crops x clips views.
    choice: how several clips are chosen, 'centred' or 'reference'; see `data.sampling.ClipSampler`.
    resize: short side before the crops, over the image size; None: as the weights say, and 1 for
      three crops with 'reference', as there.
    sampling: 'sparse' or 'dense', with `stride`.
  """

  clips: int = 1
  crops: int = 1
  choice: str = 'centred'
  resize: float | None = None
  sampling: str = 'sparse'
  stride: int = 1


@dataclasses.dataclass(frozen=True)
class _Paths:
  """Videos by path, as the pipeline reads them; what their labels are is nothing to it."""

  paths: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, row: int) -> dict[str, Any]:
    return {'path': self.paths[row], 'label': 0, 'index': row}


class Scorer:
  """Weights on a mesh, compiled for one batch size."""

  def __init__(
    self, weights: Weights, mesh: Mesh, batch_size: int = 16, threads: int = 4, workers: int = 0
  ):
    """Puts weights on the devices.

    Args:
      weights: what to score with.
      mesh: all devices of all hosts.
      batch_size: clips (one view of one video each) predicted at once over all devices, rounded up
        to a multiple of these.
      threads: that decode, in each worker if there are any.
      workers: decoding processes; 0: threads of this process only.
    """
    if min(batch_size, threads) < 1:
      raise UserError(f'batch_size={batch_size} and threads={threads} must be at least 1')
    self.weights, self.mesh, self.threads, self.workers = weights, mesh, threads, workers
    shards = mesh_lib.batch_shards(mesh)
    self.batch_size = -(-batch_size // shards) * shards
    model, preprocess = XCLIP(weights.config), weights.preprocess
    everywhere = mesh_lib.replicated(mesh)
    self._params = jax.device_put(cast_for_inference(weights.params, weights.config), everywhere)

    def encode_video(params, pixels):
      return encode_pixels(model, params, pixels, preprocess)

    def score(params, features, text):
      return compare(model, params, features, text).logits

    encode = lambda params, ids: text_features.encode(model, params, ids)
    self._encode_video = jax.jit(encode_video)
    # Replicated results: every host holds every row.
    self._compare = jax.jit(score, out_shardings=everywhere)
    self._encode_text = jax.jit(encode, out_shardings=everywhere)
    self._gather = jax.jit(lambda x: x, out_shardings=everywhere)

  def use(self, weights: Weights) -> None:
    """Takes other weights of the same architecture; what is compiled stays.

    Raises:
      ValueError: another architecture, or other preprocessing.
    """
    if (weights.config, weights.preprocess) != (self.weights.config, self.weights.preprocess):
      raise UserError(f'{weights.source} is another model than {self.weights.source}')
    self.weights = weights
    params = cast_for_inference(weights.params, weights.config)
    self._params = jax.device_put(params, mesh_lib.replicated(self.mesh))

  def encode_texts(
    self, texts: Sequence[str], templates: Sequence[str] = ('{}',), truncate: bool = False
  ) -> np.ndarray:
    """Encodes K texts, each in every template, to float32 [K, E].

    With several templates the features of a text are averaged by `prompts.average`, as in training.

    Args:
      texts: K.
      templates: each with {} for the text.
      truncate: cut what is too long for the model, instead of a ValueError.
    """
    missing = [template for template in templates if '{}' not in template]
    if missing or not templates:
      raise UserError(f'every template must hold {{}} for the label, got {missing or "none"}')
    written = [template.replace('{}', text) for template in templates for text in texts]
    context = self.weights.config.context_length
    ids = tokenizer.bucket(tokenizer.Tokenizer(context)(written, truncate=truncate))
    parts = []
    with jax.set_mesh(self.mesh):
      for part, count in _blocks(ids):
        placed = jax.device_put(part, mesh_lib.replicated(self.mesh))
        parts.append(np.asarray(self._encode_text(self._params, placed))[:count])
    features = np.concatenate(parts).reshape(len(templates), len(texts), -1)
    if len(templates) == 1:
      return features[0]
    return np.asarray(prompts.average(features.swapaxes(0, 1)))

  def score(
    self, paths: Sequence[str], text: np.ndarray, views: Views = Views(),
    clip_seconds: float = 60.0, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
  ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Compares every view of R videos with K texts.

    Args:
      paths: R files.
      text: float32 features [K, E], from `encode_texts`.
      views: of each video.
      clip_seconds: a video that is not read by then is unreadable; 0: no limit.
      progress: wraps the batches.

    Returns:
      logits, float32 [N, V, K], of the videos that could be read; their rows, int32 [N], ascending;
      and for the other rows, why not.

    Raises:
      ValueError: no videos, views that are none, or a model that answers with no number at all.
    """
    config = self.weights.config
    transform = augment.EvalTransform(
      config.image_size, self.resize_ratio(views), self.weights.preprocess.filter, views.crops)
    V = views.clips * views.crops
    videos, at_once = view_batches.sizes(
      self.batch_size, V, mesh_lib.batch_shards(self.mesh))
    failed: dict[int, str] = {}

    def started(batches, texts):
      for batch in progress(batches):
        failed.update(bad_files.failures(batch))
        rows = {name: batch[name] for name in ('index', 'mask')}
        for part in view_batches.parts(batch['video'], at_once):
          yield self._start(rows, part, texts)

    index, mask, logits, waiting = [], [], [], []
    with jax.set_mesh(self.mesh), pipeline.eval_batches(
      _Paths(tuple(paths)), transform,
      sampling.ClipSampler(config.num_frames, views.sampling, views.stride, views.choice),
      pipeline.HostShare(videos, mesh_lib.host_rows(self.mesh, videos)),
      pipeline.Reading(self.workers, self.threads, clip_seconds), views.clips,
    ) as batches:
      texts = [jax.device_put(part, mesh_lib.replicated(self.mesh))
               for part, _ in _blocks(np.asarray(text, np.float32))]
      for rows, blocks in view_batches.fetch_late(started(batches, texts)):
        found = np.concatenate(blocks, axis=1)[:, :len(text)]                     # [B * v, K]
        waiting.append(found.reshape(videos, at_once, -1))
        if len(waiting) * at_once >= V:
          index.append(rows['index'])
          mask.append(rows['mask'])
          logits.append(view_batches.joined(waiting, V))
          waiting = []
    if not index:                                          # `progress` has ended before the first
      return np.zeros((0, V, len(text)), np.float32), np.zeros(0, np.int32), {}
    keep = np.concatenate(mask)
    return _sort_out(np.concatenate(index)[keep], np.concatenate(logits)[keep],
                     processes.merge_failures(failed))

  def resize_ratio(self, views: Views) -> float:
    """Returns the short side before the crops, over the image size."""
    if views.resize is not None:
      return views.resize
    as_reference = views.choice == 'reference' and views.crops == 3
    return 1.0 if as_reference else self.weights.preprocess.resize_ratio

  def _start(
    self, rows: dict[str, np.ndarray], views: np.ndarray, texts: list[jax.Array]
  ) -> tuple[dict[str, jax.Array], list[jax.Array]]:
    """Sends views [B * v, T, H, W, 3] to the devices; results come later, a block of texts each."""
    features = self._encode_video(
      self._params, mesh_lib.put_batch(np.ascontiguousarray(views), self.mesh))
    return (self._gather(mesh_lib.put_batch(rows, self.mesh)),
            [self._compare(self._params, features, text) for text in texts])


def _sort_out(
  index: np.ndarray, logits: np.ndarray, failed: dict[int, str]
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
  order = np.argsort(index, kind='stable')
  index, logits = index[order], logits[order]
  good = np.isfinite(logits).all(axis=(1, 2))
  if len(good) and not good.any():
    raise UserError('the model answers with NaN or infinity; its weights are damaged')
  failed = failed | {int(i): 'the model answers with NaN or infinity' for i in index[~good]}
  index, logits = index[good], logits[good]
  return logits, index, dict(sorted(failed.items()))


def _blocks(rows: np.ndarray) -> list[tuple[np.ndarray, int]]:
  """Cuts rows into blocks of one size, the last padded with its last row, and their counts."""
  size = min(len(rows), _TEXTS)
  parts = [rows[i:i + size] for i in range(0, len(rows), size)]
  pad = lambda part: np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
  return [(pad(part), len(part)) for part in parts]
