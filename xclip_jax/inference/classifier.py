"""One object for people who have a video and some labels.

  classifier = xclip_jax.load('runs/demo')
  print(classifier.classify('clip.mp4', ['a dog running', 'a cat asleep']))

On the command line: `xclip classify`, see cli.py.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from xclip_jax.data.clips import augment, sampling
from xclip_jax.data.video import decode
from xclip_jax.data.video.decode import VideoError
from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.models.xclip import (
  XCLIP,
  VideoFeatures,
  class_probabilities,
  compare,
  encode_pixels,
)
from xclip_jax.text import prompts, tokenizer
from xclip_jax.weights import native
from xclip_jax.weights.opening import open_weights

Video = str | os.PathLike | np.ndarray     # a file, or uint8 [N, H, W, 3] of any N, H and W

_BATCH = 8            # videos at once; one alone has a program of its own, so there are two
_TEXTS = 8            # texts at once; their number is padded to this times a power of two
_LABEL_SETS = 8       # whose text features are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """How well each label fits one video."""

  labels: tuple[str, ...]
  probabilities: np.ndarray      # float32 [K], sums to 1

  def top(self, k: int = 5) -> list[tuple[str, float]]:
    """Returns the k most probable labels (all, if there are fewer), best first."""
    best = np.argsort(-self.probabilities, kind='stable')[:k]
    return [(self.labels[i], float(self.probabilities[i])) for i in best]

  def __str__(self) -> str:
    return ', '.join(f'{label} {probability:.1%}' for label, probability in self.top())


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A trained model with all it takes to go from files and labels to numbers.

  Clips are cut as in evaluation: the middle frame of each of T equal parts, short side resized,
  centre square. Everything runs on the device where the parameters are. Videos are decoded in
  threads while the device computes. The video tower is compiled at most twice, for one video and
  for eight: eights go together, a rest of up to four one by one, a rest of more is padded.
  """

  model: XCLIP
  params: Any = dataclasses.field(repr=False)
  preprocess: native.Preprocess
  template: str | tuple[str, ...] = '{}'  # written around every label; features of several averaged
  labels: tuple[str, ...] = ()            # used if a call gives none; empty if weights hold none

  @property
  def config(self) -> XCLIPConfig:
    """The architecture."""
    return self.model.config

  def classify(
    self, video: Video | Sequence[Video], labels: Sequence[str] | None = None
  ) -> Answer | list[Answer]:
    """Says which of K labels fits a video.

    Args:
      video: a path, or uint8 frames [N, H, W, 3] in RGB; or a list of those, of any lengths and
        sizes mixed. 'sample:NAME' is a clip in the package.
      labels: what it may show; by default the labels stored with the weights. Their features are
        kept for the next call with the same labels.

    Returns:
      One Answer, or a list of them for a list. Probabilities are a softmax over these labels: they
      compare them with each other and cannot say 'none of them'.

    Raises:
      ValueError: labels are not what they must be.
      VideoError: a video is not; it is named. One of a list ends the call, so where some may be
        broken use `classify_each`.
    """
    answers = _all(self.classify_each(_listed(video), labels))
    return answers if _is_list(video) else answers[0]

  def classify_each(
    self, videos: Iterable[Video], labels: Sequence[str] | None = None
  ) -> Iterator[Answer | VideoError]:
    """Does as `classify`, but gives for each video in turn its Answer or what is wrong with it.

    Videos may be without end: only the next few are held.

    Raises:
      ValueError: labels are not what they must be; before any video is looked at.
    """
    _check_several(videos)
    if labels is None:
      if not self.labels:
        raise UserError('these weights hold no labels; give the texts to choose from as labels')
      labels = self.labels
    labels = _check_labels(labels)
    repeated = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if repeated is not None:
      raise UserError(f'labels holds {repeated!r} more than once; leave the repeats out')
    self._token_ids(labels)
    return self._answers(videos, labels)

  def embed_video(self, video: Video | Sequence[Video]) -> np.ndarray:
    """Encodes one or more videos to float32 [B, E], as `XCLIP.encode_video` does: not normalised.

    Videos compare with each other by the cosine of their rows. Labels are better compared by
    `classify`, where the model adapts each text to the video before it takes the cosine.

    Raises:
      VideoError: as `classify`.
    """
    rows = _all(self.embed_each(_listed(video)))
    return np.stack(rows) if rows else np.zeros((0, self.config.embed_dim), np.float32)

  def embed_each(self, videos: Iterable[Video]) -> Iterator[np.ndarray | VideoError]:
    """Does as `embed_video`, but gives for each video its row [E] or what is wrong with it."""
    _check_several(videos)
    return self._rows(videos)

  def embed_text(self, labels: Sequence[str]) -> np.ndarray:
    """Encodes K labels, each in the template, to float32 [K, E]; not normalised."""
    labels = _check_labels(labels)
    return np.asarray(self._text_features(labels))[:len(labels)].copy()

  def _rows(self, videos: Iterable[Video]) -> Iterator[np.ndarray | VideoError]:
    with self._clips(videos) as clips:
      for found in self._encode(clips):
        if isinstance(found, VideoError):
          yield found
        else:
          features, row = found
          yield np.asarray(features.video_features)[row].copy()

  def _answers(
    self, videos: Iterable[Video], labels: tuple[str, ...]
  ) -> Iterator[Answer | VideoError]:
    scored, probabilities = None, None
    with self._clips(videos) as clips:      # the first are decoded while texts are encoded
      text, count = self._text_features(labels), np.int32(len(labels))
      for found in self._encode(clips):
        if isinstance(found, VideoError):
          yield found
          continue
        features, row = found
        if features is not scored:
          scored = features
          probabilities = np.asarray(self._score(self.params, features, text, count))
        yield Answer(labels, probabilities[row, :len(labels)])

  def _encode(
    self, clips: Iterable[np.ndarray | VideoError]
  ) -> Iterator[tuple[VideoFeatures, int] | VideoError]:
    """Yields for each clip the features of those it was encoded with and its row among them."""
    waiting, good = [], 0
    for clip in clips:
      good += not isinstance(clip, VideoError)
      if not good:
        yield clip                # an error with nothing before it need not wait
        continue
      waiting.append(clip)
      if good == _BATCH:
        yield from self._encode_some(waiting)
        waiting, good = [], 0
    yield from self._encode_some(waiting)

  def _encode_some(
    self, clips: list[np.ndarray | VideoError]
  ) -> Iterator[tuple[VideoFeatures, int] | VideoError]:
    good = [clip for clip in clips if not isinstance(clip, VideoError)]
    together = len(good) > _BATCH // 2
    if together:
      batch = np.stack(good + [np.zeros_like(good[0])] * (_BATCH - len(good)))
      features = self._encode_video(self.params, batch)
    rows = itertools.count()
    for clip in clips:
      if isinstance(clip, VideoError):
        yield clip
      elif together:
        yield features, next(rows)
      else:
        yield self._encode_video(self.params, clip[None]), 0

  @contextlib.contextmanager
  def _clips(self, videos: Iterable[Video]) -> Iterator[Iterator[np.ndarray | VideoError]]:
    """Cuts clips in threads, in order and at most two batches ahead, starting at once."""
    threads = min(_BATCH, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads, 'decode')
    try:
      videos = iter(videos)
      ahead = collections.deque(
        pool.submit(self._clip, video) for video in itertools.islice(videos, 2 * _BATCH)
      )

      def finished():
        while ahead:
          clip = ahead.popleft().result()
          ahead.extend(pool.submit(self._clip, video) for video in itertools.islice(videos, 1))
          yield clip

      yield finished()
    finally:
      pool.shutdown(cancel_futures=True)

  def _clip(self, video: Video) -> np.ndarray | VideoError:
    """Cuts uint8 [T, S, S, 3] out of a video, or says why not."""
    choose = lambda count: sampling.test_indices(count, self.config.num_frames)
    transform = augment.EvalTransform(
      self.config.image_size, self.preprocess.resize_ratio, self.preprocess.filter
    )
    try:
      if isinstance(video, str | os.PathLike):
        name, frames = os.fspath(video), decode.read_video(video, choose)
      else:
        name, frames = 'a video given as frames', np.asarray(video)
        if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
          raise VideoError(
            f'{name} must be uint8 [N, H, W, 3] with values 0..255 (a list holds several videos), '
            f'got {frames.dtype} {list(frames.shape)}'
          )
        frames = frames[choose(len(frames))]
      try:
        return transform(frames)
      except (cv2.error, MemoryError) as error:        # absurd picture sizes
        height, width = frames.shape[1:3]
        raise VideoError(f'{name}: cannot resize frames of {width} x {height} pixels') from error
    except VideoError as error:
      return error

  @functools.cached_property
  def _encode_video(self) -> Callable[[Any, np.ndarray], VideoFeatures]:
    return jax.jit(
      lambda params, pixels: encode_pixels(self.model, params, pixels, self.preprocess))

  @functools.cached_property
  def _score(self) -> Callable[[Any, VideoFeatures, jax.Array, np.ndarray], jax.Array]:
    def score(params, video, text, count):
      return class_probabilities(compare(self.model, params, video, text).logits, count)

    return jax.jit(score)

  @property
  def _templates(self) -> tuple[str, ...]:
    return (self.template,) if isinstance(self.template, str) else tuple(self.template)

  @functools.cached_property
  def _token_ids(self) -> Callable[[tuple[str, ...]], tuple[np.ndarray, ...]]:
    write = lambda labels, template: tokenizer.write_prompts(
      labels, template, self.config.context_length)
    return functools.lru_cache(_LABEL_SETS)(
      lambda labels: tuple(write(labels, template) for template in self._templates))

  @functools.cached_property
  def _text_features(self) -> Callable[[tuple[str, ...]], jax.Array]:
    """Labels to float32 [_TEXTS * 2**n, E], of which the first are theirs."""
    encode_text = jax.jit(
      lambda params, ids: self.model.apply({'params': params}, ids, method='encode_text')
    )

    def encode_one(ids):
      # Repeats of the last, as few programs for any number of labels are worth a little work.
      ids = np.pad(ids, ((0, -len(ids) % _TEXTS), (0, 0)), 'edge')
      parts = [encode_text(self.params, part) for part in ids.reshape(-1, _TEXTS, ids.shape[1])]
      while len(parts) & (len(parts) - 1):         # until it is a power of two
        parts.append(parts[-1])
      return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

    @functools.lru_cache(_LABEL_SETS)
    def encode(labels):
      found = [encode_one(ids) for ids in self._token_ids(labels)]
      return prompts.average(jnp.stack(found, axis=1)) if len(found) > 1 else found[0]

    return encode


def load(source: str | os.PathLike, **options: Any) -> Classifier:
  """Opens a trained model.

  Args:
    source: the workdir of a run (its checkpoint with the best validation accuracy, or the latest
      where none was evaluated; averaged weights where it kept them); a folder or file with weights
      of CLIP or X-CLIP in any dialect; or a name: `toy`, the small model in the package, or one of
      `weights.hub.KNOWN`, as `microsoft/xclip-base-patch32` or `ViT-B/16`.
    **options: dtype, of the operands of matrix products, 'float32' or 'bfloat16', or 'int8', which
      is bfloat16 with kernels of 8 bits (default: as the weights say, mostly float32);
      merge_tokens, patches merged in each vision block (docs/speed.md); heads, num_frames,
      image_size and seed as in `weights.hub.read`.

  Raises:
    ValueError: there is nothing of that name, or it cannot be read; the message says what to do.
    CheckpointError: a checkpoint is there but cannot be read.
  """
  weights = open_weights(source, **options)
  for note in weights.notes:
    print(f'{weights.source}: {note}', file=sys.stderr)
  params = jax.device_put(cast_for_inference(weights.params, weights.config))
  return Classifier(
    XCLIP(weights.config), params, weights.preprocess, weights.template, weights.labels)


def _is_list(video: Any) -> bool:
  return isinstance(video, list | tuple)


def _listed(video: Any) -> Sequence[Any]:
  return video if _is_list(video) else [video]


def _check_several(videos: Any) -> None:
  # Both can be gone through, letter by letter or frame by frame, which nobody means.
  if isinstance(videos, str | os.PathLike | np.ndarray):
    raise UserError('videos must be several, as [video]; for one there is classify or embed_video')


def _all(results: Iterator[Any]) -> list[Any]:
  """Collects results; the first VideoError among them is raised."""
  found = []
  with contextlib.closing(results):
    for result in results:
      if isinstance(result, VideoError):
        raise result
      found.append(result)
  return found


def _check_labels(labels: Sequence[str]) -> tuple[str, ...]:
  if isinstance(labels, str):
    raise UserError(f'labels must be a list of texts, got the text {labels!r}; write [{labels!r}]')
  labels = tuple(labels)
  if not labels:
    raise UserError('labels is empty; give at least one text')
  for i, label in enumerate(labels):
    if not isinstance(label, str) or not label.strip():
      raise UserError(f'labels[{i}] must be a text, got {label!r}')
  return labels
