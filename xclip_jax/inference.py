"""One object for people who have a video and some labels.

  classifier = xclip_jax.load('runs/demo')
  print(classifier.classify('clip.mp4', ['a dog running', 'a cat asleep']))
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from xclip_jax import losses, tokenizer
from xclip_jax.data import augment, decode, sampling
from xclip_jax.models.xclip import XCLIP, VideoFeatures, XCLIPConfig, make_config
from xclip_jax.weights import hub, native

Video = str | os.PathLike | np.ndarray     # a file, or uint8 [N, H, W, 3] of any N, H and W

_BATCH = 8            # videos at once; one alone has a program of its own, so there are two
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
  centre square. Everything runs on the device where the parameters are. The video tower is compiled
  at most twice, for one video and for eight; fewer than eight are padded.
  """

  model: XCLIP
  params: Any = dataclasses.field(repr=False)
  preprocess: native.Preprocess
  template: str = '{}'           # written around every label

  @property
  def config(self) -> XCLIPConfig:
    """The architecture."""
    return self.model.config

  def classify(
    self, video: Video | Sequence[Video], labels: Sequence[str]
  ) -> Answer | list[Answer]:
    """Says which of K labels fits a video.

    Args:
      video: a path, or uint8 frames [N, H, W, 3] in RGB; or a list of those, of any lengths and
        sizes mixed.
      labels: what it may show. Their features are kept for the next call with the same labels.

    Returns:
      One Answer, or a list of them for a list. Probabilities are a softmax over these labels: they
      compare them with each other and cannot say 'none of them'.

    Raises:
      ValueError: labels or frames are not what they must be; VideoError names a file that cannot be
        read.
    """
    labels = _check_labels(labels)
    repeated = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if repeated is not None:
      raise ValueError(f'labels holds {repeated!r} more than once; leave the repeats out')
    text = self._text_features(labels)
    answers = [
      Answer(labels, row)
      for features, count in self._encode(video)
      for row in np.asarray(self._score(self.params, features, text))[:count]
    ]
    return answers if _is_list(video) else answers[0]

  def embed_video(self, video: Video | Sequence[Video]) -> np.ndarray:
    """Encodes one or more videos to float32 [B, E], as `XCLIP.encode_video` does: not normalised.

    Videos compare with each other by the cosine of their rows. Labels are better compared by
    `classify`, where the model adapts each text to the video before it takes the cosine.
    """
    rows = [np.asarray(features.video_features)[:n] for features, n in self._encode(video)]
    return np.concatenate([np.zeros((0, self.config.embed_dim), np.float32), *rows])

  def embed_text(self, labels: Sequence[str]) -> np.ndarray:
    """Encodes K labels, each in the template, to float32 [K, E]; not normalised."""
    return np.array(self._text_features(_check_labels(labels)))

  def _encode(self, video: Video | Sequence[Video]) -> Iterator[tuple[VideoFeatures, int]]:
    """Yields features of up to _BATCH videos, and how many of the rows are not padding."""
    videos = video if _is_list(video) else [video]
    for start in range(0, len(videos), _BATCH):
      clips = [self._clip(videos[i]) for i in range(start, min(start + _BATCH, len(videos)))]
      rows = 1 if len(clips) == 1 else _BATCH
      batch = np.stack(clips + [np.zeros_like(clips[0])] * (rows - len(clips)))
      yield self._encode_video(self.params, batch), len(clips)

  def _clip(self, video: Video) -> np.ndarray:
    """Cuts uint8 [T, S, S, 3] out of a video."""
    choose = lambda count: sampling.test_indices(count, self.config.num_frames)
    transform = augment.EvalTransform(
      self.config.image_size, self.preprocess.resize_ratio, self.preprocess.filter
    )
    if isinstance(video, str | os.PathLike):
      name, frames = os.fspath(video), decode.read_video(video, choose)
    else:
      name, frames = 'a video given as frames', np.asarray(video)
      if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
        raise ValueError(
          f'{name} must be uint8 [N, H, W, 3] with values 0..255 (a list holds several videos), '
          f'got {frames.dtype} {list(frames.shape)}'
        )
      frames = frames[choose(len(frames))]
    try:
      return transform(frames)
    except (cv2.error, MemoryError) as error:        # absurd picture sizes
      height, width = frames.shape[1:3]
      raise ValueError(f'{name}: cannot resize frames of {width} x {height} pixels') from error

  @functools.cached_property
  def _encode_video(self) -> Callable[[Any, np.ndarray], VideoFeatures]:
    return jax.jit(lambda params, video: self.model.apply(
      {'params': params}, losses.normalize(video, self.preprocess.mean, self.preprocess.std),
      method='encode_video'
    ))

  @functools.cached_property
  def _score(self) -> Callable[[Any, VideoFeatures, jax.Array], jax.Array]:
    return jax.jit(lambda params, video, text: jax.nn.softmax(
      self.model.apply({'params': params}, video, text, method='classify').logits
    ))

  @functools.cached_property
  def _text_features(self) -> Callable[[tuple[str, ...]], jax.Array]:
    encode = jax.jit(
      lambda params, ids: self.model.apply({'params': params}, ids, method='encode_text')
    )
    prompts = lambda labels: tokenizer.write_prompts(
      labels, self.template, self.config.context_length
    )
    return functools.lru_cache(_LABEL_SETS)(lambda labels: encode(self.params, prompts(labels)))


def load(source: str | os.PathLike, **options: Any) -> Classifier:
  """Opens a trained model.

  Args:
    source: the workdir of a run (its checkpoint with the best validation accuracy, or the latest
      where none was evaluated); a folder or file with weights of CLIP or X-CLIP in any dialect; or
      a name, as `microsoft/xclip-base-patch32` or `ViT-B/16`. See `weights.hub.KNOWN`.
    **options: heads, num_frames, image_size and seed as in `weights.hub.read`.

  Raises:
    ValueError: there is nothing of that name, or it cannot be read; the message says what to do.
    CheckpointError: a checkpoint is there but cannot be read.
  """
  weights = open_weights(source, **options)
  for note in weights.notes:
    print(f'{weights.source}: {note}', file=sys.stderr)
  return Classifier(
    XCLIP(weights.config), jax.device_put(weights.params), weights.preprocess, weights.template
  )


def open_weights(source: str | os.PathLike, **options: Any) -> native.Weights:
  """Reads what `load` takes, without a device: parameters are numpy arrays."""
  folder = Path(source).expanduser()
  if not (folder / 'checkpoints').is_dir():
    if (folder / 'metrics.jsonl').exists():
      raise ValueError(f'{folder} is a run without a checkpoint yet; train until one is saved')
    return hub.read(source, **options)
  weights = _read_run(folder)
  return hub.resampled(weights, options.get('num_frames'), options.get('image_size'))


def _read_run(workdir: Path) -> native.Weights:
  file = workdir / 'config.json'
  if not file.is_file():
    raise ValueError(f'{file} is missing, so {workdir} is not the --workdir of a run of train.py')
  from xclip_jax import checkpoint, state  # Orbax takes seconds to import
  try:
    content = native.read_json(file)
    model, data = content['model'], content['data']
    config = make_config(
      model['variant'], num_frames=model['num_frames'], dtype=model['dtype'],
      residual_dtype=model['residual_dtype'], remat=model['remat'], **model['fields'],
    )
    preprocess = native.Preprocess(
      tuple(data['mean']), tuple(data['std']), data['eval_resize'], 'opencv'
    )
    template = data['template']
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f'{file} is not the configuration of a run: {error!r}') from error
  abstract = jax.eval_shape(lambda: state.init_params(XCLIP(config), jax.random.key(0)))
  with checkpoint.Checkpoints(workdir) as checkpoints:
    step = checkpoints.best_step()
    if step is None:
      raise ValueError(
        f'{workdir / "checkpoints"} holds no checkpoint yet; train until one is saved'
      )
    params = jax.device_get(checkpoints.restore_params(step, abstract))
  return native.Weights(
    config, params, preprocess, template, source=str(workdir), dialect='run',
    licence='yours: trained by you, from what config.json names',
  )


def _is_list(video: Any) -> bool:
  return isinstance(video, list | tuple)


def _check_labels(labels: Sequence[str]) -> tuple[str, ...]:
  if isinstance(labels, str):
    raise ValueError(f'labels must be a list of texts, got the text {labels!r}; write [{labels!r}]')
  labels = tuple(labels)
  if not labels:
    raise ValueError('labels is empty; give at least one text')
  for i, label in enumerate(labels):
    if not isinstance(label, str) or not label.strip():
      raise ValueError(f'labels[{i}] must be a text, got {label!r}')
  return labels
