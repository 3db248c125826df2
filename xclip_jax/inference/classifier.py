"""A model with the preprocessing and the tokenizer that belong to it: videos and labels to answers.

  model = xclip_jax.load('runs/demo')
  print(model.classify('clip.mp4', ['a dog running', 'a cat asleep']))
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from xclip_jax.data.video.decode import VideoError
from xclip_jax.errors import UserError
from xclip_jax.inference.clips import ClipReader, Video
from xclip_jax.models import vision
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.models.xclip import (
  XCLIP,
  VideoFeatures,
  class_probabilities,
  compare,
  encode_pixels,
)
from xclip_jax.text import prompts, tokenizer, vocabulary
from xclip_jax.text_format import printable
from xclip_jax.weights import native
from xclip_jax.weights.opening import open_weights

_VIDEO_BATCH = 8      # videos encoded at once; a second program encodes one video alone
_TEXT_BATCH = 8       # texts encoded at once; K is padded to this times a power of two
_CACHED_LABEL_SETS = 8
_TOO_LONG = 'shorten it, or cut it with --truncate (in Python truncate=True)'

Result = TypeVar('Result')


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """Probabilities of the labels for one video."""

  labels: tuple[str, ...]
  probabilities: np.ndarray      # float32 [K], sums to 1

  def top(self, k: int = 5) -> list[tuple[str, float]]:
    """Returns the k most probable labels (all, if there are fewer), best first."""
    best = np.argsort(-self.probabilities, kind='stable')[:k]
    return [(self.labels[i], float(self.probabilities[i])) for i in best]

  def __str__(self) -> str:
    return ', '.join(f'{label} {probability:.1%}' for label, probability in self.top())


class _Programs(NamedTuple):
  """Jitted functions of one architecture; the parameters are their first argument."""

  encode_video: Callable[[Any, np.ndarray], VideoFeatures]
  score: Callable[..., jax.Array]
  encode_text: Callable[[Any, np.ndarray], jax.Array]


@functools.lru_cache(8)
def _programs(config: XCLIPConfig, statistics: native.Preprocess) -> _Programs:
  """Returns the jitted functions that all classifiers of one architecture share."""
  model = XCLIP(config)

  def score(params, video, text, count):
    return class_probabilities(compare(model, params, video, text).logits, count)

  return _Programs(
    jax.jit(lambda params, pixels: encode_pixels(model, params, pixels, statistics)),
    jax.jit(score),
    jax.jit(lambda params, ids: model.apply({'params': params}, ids, method='encode_text')))


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A trained model that takes video files and labels; `xclip_jax.load` opens one.

  Clips are cut as in evaluation: the middle frame of each of T equal parts, short side resized,
  centre square. Threads decode videos while the device computes. The video tower is compiled at
  most twice, for one video and for eight: eight videos go together, up to four that remain go one
  by one, and more than four are padded to eight.

  Fields:
    weights: float32 parameters and everything that belongs to them, as they were opened.
    model: the linen module.
    params: the parameters on the device, kernels in the dtype of inference. To use the model
      directly: model.apply({'params': params}, video, token_ids).
  """

  weights: native.Weights
  model: XCLIP = dataclasses.field(init=False)
  params: Any = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    config = self.weights.config
    object.__setattr__(self, 'model', XCLIP(config))
    params = jax.device_put(cast_for_inference(self.weights.params, config))
    object.__setattr__(self, 'params', params)

  @property
  def config(self) -> XCLIPConfig:
    """Returns the architecture."""
    return self.weights.config

  @property
  def labels(self) -> tuple[str, ...]:
    """Returns the labels stored with the weights; mostly none."""
    return self.weights.labels

  @property
  def template(self) -> str | tuple[str, ...]:
    """Returns the prompt template, or several whose text features are averaged."""
    return self.weights.template

  def preprocess(self, video: Video) -> np.ndarray:
    """Cuts and normalises the clip that `classify` shows to the model.

    Args:
      video: a path, or uint8 frames [F, H, W, 3] in RGB.

    Returns:
      float32 [T, H, W, 3], (pixels - mean) / std, as model.apply takes it in a batch:
      model.apply({'params': params}, np.stack([clip]), token_ids).

    Raises:
      VideoError: the video cannot be used; names it.
    """
    statistics = self.weights.preprocess
    pixels: Any = self._clips.read(video)
    return np.asarray(vision.normalize(pixels, statistics.mean, statistics.std))

  def save(self, folder: str | os.PathLike, overwrite: bool = False) -> Path:
    """Writes the weights into a folder that `xclip_jax.load` opens; returns its path.

    Parameters are written in float32, whatever dtype they were loaded for, with the architecture,
    preprocessing, template, labels, source and licence. For other parameters:
    Classifier(dataclasses.replace(classifier.weights, params=params)).save(folder).

    Raises:
      FileExistsError: the folder exists and is not to be overwritten, or holds something else.
    """
    return native.save(folder, self.weights, overwrite)

  def classify(
    self, video: Video | Sequence[Video], labels: Sequence[str] | None = None,
    truncate: bool = False,
  ) -> Answer | list[Answer]:
    """Says which of K labels fits a video.

    Args:
      video: a path, or uint8 frames [F, H, W, 3] in RGB; or a list of those, of any lengths and
        sizes mixed. 'sample:NAME' is a clip in the package.
      labels: what the video may show; by default the labels stored with the weights. Their
        features are kept for the next call with the same labels.
      truncate: cut labels that are too long for the model, instead of refusing them.

    Returns:
      One Answer, or a list of them for a list. Probabilities are a softmax over these labels: they
      compare the labels with each other and cannot say 'none of them'.

    Raises:
      UserError: labels are missing, empty, repeated or too long.
      VideoError: a video cannot be used; names it. One of a list ends the call: where some may be
        broken use `classify_each`.
    """
    answers = _raise_first_error(self.classify_each(_as_list(video), labels, truncate))
    return answers if isinstance(video, list | tuple) else answers[0]

  def classify_each(
    self, videos: Iterable[Video], labels: Sequence[str] | None = None, truncate: bool = False
  ) -> Iterator[Answer | VideoError]:
    """Yields for each video in turn its Answer, or the error that names the video.

    The iterable of videos may be endless: only the next few are held. Options: see `classify`.

    Raises:
      UserError: labels are missing, empty, repeated or too long; before any video is read.
    """
    _refuse_single_video(videos)
    if labels is None:
      if not self.labels:
        raise UserError('these weights hold no labels; give the texts to choose from as labels')
      labels = self.labels
    labels = _check_labels(labels)
    repeated = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if repeated is not None:
      raise UserError(f'labels holds {repeated!r} more than once; leave the repeats out')
    self._token_ids(labels, truncate)
    return self._answers(videos, labels, truncate)

  def embed_video(self, video: Video | Sequence[Video]) -> np.ndarray:
    """Encodes one or more videos to float32 [B, E], as `XCLIP.encode_video` does: not normalised.

    Videos compare with each other by the cosine of their rows. Compare labels by `classify`
    instead, where the model adapts each text to the video before it takes the cosine.

    Raises:
      VideoError: a video cannot be used; names it.
    """
    rows = _raise_first_error(self.embed_each(_as_list(video)))
    return np.stack(rows) if rows else np.zeros((0, self.config.embed_dim), np.float32)

  def embed_each(self, videos: Iterable[Video]) -> Iterator[np.ndarray | VideoError]:
    """Yields for each video in turn its row [E], or the error that names the video."""
    _refuse_single_video(videos)
    return self._rows(videos)

  def embed_text(self, labels: Sequence[str], truncate: bool = False) -> np.ndarray:
    """Encodes K labels, each in the template, to float32 [K, E]; not normalised.

    `truncate` cuts labels that are too long for the model; else they are a UserError.
    """
    labels = _check_labels(labels)
    return np.asarray(self._text_features(labels, truncate))[:len(labels)].copy()

  def _rows(self, videos: Iterable[Video]) -> Iterator[np.ndarray | VideoError]:
    with self._clips.read_each(videos, 2 * _VIDEO_BATCH) as clips:
      for encoded in self._encode(clips):
        if isinstance(encoded, VideoError):
          yield encoded
        else:
          features, row = encoded
          yield np.asarray(features.video_features)[row].copy()

  def _answers(
    self, videos: Iterable[Video], labels: tuple[str, ...], truncate: bool
  ) -> Iterator[Answer | VideoError]:
    compared, probabilities = None, np.zeros(0)
    # The first videos are decoded while the texts are encoded.
    with self._clips.read_each(videos, 2 * _VIDEO_BATCH) as clips:
      text, count = self._text_features(labels, truncate), np.int32(len(labels))
      for encoded in self._encode(clips):
        if isinstance(encoded, VideoError):
          yield encoded
          continue
        features, row = encoded
        if features is not compared:
          compared = features
          probabilities = np.asarray(
            self._programs.score(self.params, features, text, count))
        yield Answer(labels, probabilities[row, :len(labels)])

  def _encode(
    self, clips: Iterable[np.ndarray | VideoError]
  ) -> Iterator[tuple[VideoFeatures, int] | VideoError]:
    """Yields for each clip the features of the batch that it was encoded in, and its row there."""
    batch: list[np.ndarray | VideoError] = []
    readable = 0
    for clip in clips:
      if isinstance(clip, VideoError):
        if not batch:
          yield clip              # an error that no clip of the batch precedes need not wait
          continue
      else:
        readable += 1
      batch.append(clip)
      if readable == _VIDEO_BATCH:
        yield from self._encode_batch(batch)
        batch, readable = [], 0
    yield from self._encode_batch(batch)

  def _encode_batch(
    self, clips: list[np.ndarray | VideoError]
  ) -> Iterator[tuple[VideoFeatures, int] | VideoError]:
    readable = [clip for clip in clips if not isinstance(clip, VideoError)]
    features = None
    if len(readable) > _VIDEO_BATCH // 2:
      padding = [np.zeros_like(readable[0])] * (_VIDEO_BATCH - len(readable))
      features = self._programs.encode_video(self.params, np.stack(readable + padding))
    rows = itertools.count()
    for clip in clips:
      if isinstance(clip, VideoError):
        yield clip
      elif features is not None:
        yield features, next(rows)
      else:
        yield self._programs.encode_video(self.params, clip[None]), 0

  @functools.cached_property
  def _clips(self) -> ClipReader:
    return ClipReader(self.config.num_frames, self.config.image_size, self.weights.preprocess)

  @functools.cached_property
  def _programs(self) -> '_Programs':
    preprocess = self.weights.preprocess
    return _programs(self.model.config, dataclasses.replace(
      preprocess, mean=tuple(preprocess.mean), std=tuple(preprocess.std)))

  @functools.cached_property
  def _token_ids(self) -> Callable[[tuple[str, ...], bool], tuple[np.ndarray, ...]]:
    """Maps labels, and whether to cut those too long, to int32 [K, S] for each template."""
    templates = (self.template,) if isinstance(self.template, str) else self.template

    @functools.lru_cache(_CACHED_LABEL_SETS)
    def write(labels: tuple[str, ...], truncate: bool) -> tuple[np.ndarray, ...]:
      vocabulary.check(self.config.vocab_size, f'the model {self.weights.source}'.strip())
      with tokenizer.advise(_TOO_LONG):
        return tuple(
          tokenizer.write_prompts(labels, template, self.config.context_length, truncate)
          for template in templates)

    return write

  @functools.cached_property
  def _text_features(self) -> Callable[[tuple[str, ...], bool], jax.Array]:
    """Maps K labels, and whether to cut those too long, to float32 [_TEXT_BATCH * 2**n, E].

    The rows from K on are padding.
    """
    encode_text = self._programs.encode_text

    def encode_prompts(ids: np.ndarray) -> jax.Array:
      # Padding repeats the last text, so that few programs serve any number of labels.
      ids = np.pad(ids, ((0, -len(ids) % _TEXT_BATCH), (0, 0)), 'edge')
      batches = ids.reshape(-1, _TEXT_BATCH, ids.shape[1])
      parts = [encode_text(self.params, batch) for batch in batches]
      while len(parts) & (len(parts) - 1):         # until their number is a power of two
        parts.append(parts[-1])
      return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

    @functools.lru_cache(_CACHED_LABEL_SETS)
    def encode_labels(labels: tuple[str, ...], truncate: bool) -> jax.Array:
      by_template = [encode_prompts(ids) for ids in self._token_ids(labels, truncate)]
      if len(by_template) == 1:
        return by_template[0]
      return prompts.average(jnp.stack(by_template, axis=1))

    return encode_labels


def load(
  source: str | os.PathLike, *, template: str | tuple[str, ...] | None = None, **options: Any
) -> Classifier:
  """Opens a trained model.

  Args:
    source: the workdir of a run (its checkpoint with the best validation accuracy, or the latest
      where none was evaluated; averaged weights where it kept them); the folder of a fine-tuning;
      a folder or file with weights of CLIP or X-CLIP in any dialect; or a name: `toy`, the small
      model in the package, or one of `weights.hub.KNOWN`, as `microsoft/xclip-base-patch32` or
      `ViT-B/16`.
    template: text around every label, with {} for it; default: the template of the weights.
    **options: fields of `weights.opening.OpenOptions`: dtype ('float32', 'bfloat16' or 'int8'),
      merge_tokens, heads, num_frames, image_size, seed, subtree,
      checksums.

  Raises:
    UserError: no weights have that name, or they cannot be read; the message says what to do.
    CheckpointError: the run has a checkpoint that cannot be read.
  """
  weights = open_weights(source, **options)
  for note in weights.notes:
    print(printable(f'{weights.source}: {note}'), file=sys.stderr)
  if template is not None:
    weights = dataclasses.replace(weights, template=template)
  return Classifier(weights)


def _as_list(video: Video | Sequence[Video]) -> Sequence[Video]:
  return video if isinstance(video, list | tuple) else [video]  # pyright: ignore


def _refuse_single_video(videos: Iterable[Video]) -> None:
  # A str and an array are iterable too; iterating them would classify letters or single frames.
  if isinstance(videos, str | os.PathLike | np.ndarray):
    raise UserError('videos must be several, as [video]; for one there is classify or embed_video')


def _raise_first_error(results: Iterator[Result | VideoError]) -> list[Result]:
  """Collects results; raises the first VideoError among them."""
  collected = []
  with contextlib.closing(results):      # type: ignore[type-var]
    for result in results:
      if isinstance(result, VideoError):
        raise result
      collected.append(result)
  return collected


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
