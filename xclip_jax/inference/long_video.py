"""Answers for overlapping windows of a long video, whose frames are encoded once each.

  model = xclip_jax.load('runs/demo')
  for window in long_video.classify(model, 'day.mp4', labels, every=8):
    print(f'{window.begin:.1f} s', window.answer)

The command `xclip windows` does the same.
"""

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xclip_jax.data.clips import augment
from xclip_jax.data.video import decode
from xclip_jax.data.video.decode import VideoError
from xclip_jax.errors import UserError
from xclip_jax.inference.classifier import Answer, Classifier
from xclip_jax.models import vision
from xclip_jax.models.xclip import class_probabilities, compare
from xclip_jax.text import tokenizer

_SECONDS = 120.0           # time limit for the next frame of a video


@dataclasses.dataclass(frozen=True, eq=False)
class TimeWindow:
  """The answer for T sampled frames of a video."""

  begin: float           # time of the first frame, seconds
  end: float             # time of the last frame, seconds
  answer: Answer


class _Programs(NamedTuple):
  """The compiled functions that a window needs; each takes the parameters first."""

  encode_frames: Callable[[Any, np.ndarray], tuple[jax.Array, jax.Array]]
  integrate: Callable[..., Any]
  score: Callable[..., jax.Array]


def classify(
  classifier: Classifier, video: str | os.PathLike, labels: Sequence[str], every: int = 8,
  stride: int = 1, exact: bool = False,
) -> Iterator[TimeWindow]:
  """Classifies windows of T frames of a video of any length, holding only a few windows.

  Of a damaged video the frames that can be decoded are used; what was lost is logged at the end.

  Frames are encoded in runs of T that do not overlap, each frame once, and windows are put together
  from encoded frames: 1 / T of the work of the vision tower at stride 1. Cross-frame attention sees
  the frames of the encoded run, not of the window, so results are approximate unless the two
  coincide. The integration transformer and the prompts see the window itself.

  Args:
    classifier: the result of `xclip_jax.load`.
    video: a file.
    labels: K texts, as for `Classifier.classify`.
    every: sample one of this many frames of the video.
    stride: sampled frames from the beginning of one window to that of the next, 1 to T.
    exact: encode every window by itself.

  Raises:
    UserError: an argument is out of range, or the labels cannot be used.
    VideoError: the video cannot be read, has fewer than T * every frames, or its next frame does
      not come within two minutes.
  """
  T = classifier.config.num_frames
  if every < 1 or not 1 <= stride <= T:
    raise UserError(f'every={every} must be at least 1, and stride={stride} from 1 to {T}, the '
                    'frames of a window')
  with tokenizer.advise('shorten it'):
    text, labels = classifier.embed_text(labels), tuple(labels)
  model: Any = classifier.model
  params, programs = classifier.params, _programs(model, classifier.weights.preprocess)
  frames = _sampled_frames if exact else _encoded_frames
  count = 0
  window: deque[tuple[float, Any]] = deque()            # (seconds, pixels or features of the frame)
  for frame in frames(classifier, video, every):
    count += 1
    window.append(frame)
    if len(window) < T:
      continue
    seconds, contents = zip(*window, strict=True)
    if exact:
      encoded = programs.encode_frames(params, np.stack(contents)[None])
    else:
      encoded = tuple(jnp.stack(x)[None] for x in zip(*contents, strict=True))
    features = programs.integrate(params, *encoded)
    probabilities = np.asarray(programs.score(params, features, text))[0]
    if not np.isfinite(probabilities).all():
      raise UserError('the model answers with NaN or infinity; its weights are damaged')
    yield TimeWindow(seconds[0], seconds[-1], Answer(labels, probabilities))
    for _ in range(stride):
      window.popleft()
  if count < T:
    raise VideoError(
      f'{os.fspath(video)}: a window takes {T} frames, one of {every} each, and it holds {count} '
      'of those; take a smaller `every`, or a longer video')


def _sampled_frames(
  classifier: Classifier, video: str | os.PathLike, every: int
) -> Iterator[tuple[float, np.ndarray]]:
  """Yields (seconds, uint8 [H, W, 3]) of one frame of every few, resized and cropped."""
  preprocess = classifier.weights.preprocess
  transform = augment.EvalTransform.of(preprocess, classifier.config.image_size)
  _, frames = decode.read_frames(
    video, seconds=_SECONDS, square_pixels=preprocess.square_pixels)
  for number, (seconds, frame) in enumerate(frames):
    if number % every == 0:
      yield seconds, transform(frame[None])[0]


def _encoded_frames(
  classifier: Classifier, video: str | os.PathLike, every: int
) -> Iterator[tuple[float, tuple[jax.Array, jax.Array]]]:
  """Yields (seconds, (frame features [E], patch features [M, E])) of each sampled frame.

  T frames are encoded at once; the last frame is repeated to fill the last run of them.
  """
  T = classifier.config.num_frames
  model: Any = classifier.model
  encode = _programs(model, classifier.weights.preprocess).encode_frames

  def encode_run(seconds, frames):
    clip = np.stack(frames + [frames[-1]] * (T - len(frames)))
    frame_features, patch_features = encode(classifier.params, clip[None])
    for t, second in enumerate(seconds):
      yield second, (frame_features[0, t], patch_features[0, t])

  run_seconds: list[float] = []
  run_frames: list[np.ndarray] = []
  for second, frame in _sampled_frames(classifier, video, every):
    run_seconds.append(second)
    run_frames.append(frame)
    if len(run_frames) == T:
      yield from encode_run(run_seconds, run_frames)
      run_seconds, run_frames = [], []
  if run_frames:
    yield from encode_run(run_seconds, run_frames)


@functools.cache
def _programs(model: Any, statistics: Any) -> _Programs:
  def encode_frames(params, pixels):
    video = vision.normalize(pixels, statistics.mean, statistics.std)
    return model.apply({'params': params}, video, method='encode_frames')

  def integrate(params, frames, patches):
    return model.apply({'params': params}, frames, patches.mean(axis=1), method='integrate')

  def score(params, features, text):
    return class_probabilities(compare(model, params, features, text).logits)

  return _Programs(jax.jit(encode_frames), jax.jit(integrate), jax.jit(score))
