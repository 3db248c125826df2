"""What a long video shows from moment to moment: windows that overlap, each frame encoded once.

  for window in windows.classify(xclip_jax.load('runs/demo'), 'day.mp4', labels, every=8):
    print(f'{window.begin:.1f} s', window.answer)

On the command line: `xclip windows`, see cli.py.
"""

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

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


@dataclasses.dataclass(frozen=True, eq=False)
class TimeWindow:
  """T frames of a video, `every` apart."""

  begin: float           # seconds, of the first frame
  end: float             # and of the last
  answer: Answer


def classify(
  classifier: Classifier, video: str | os.PathLike, labels: Sequence[str], every: int = 8,
  stride: int = 1, exact: bool = False,
) -> Iterator[TimeWindow]:
  """Classifies windows of T frames of a video of any length; only a few windows are held.

  Frames are encoded in runs of T that do not overlap, each once, and windows are put together from
  them: 1 / T of the work of the vision tower at stride 1. What a frame hears from the others of its
  run in cross-frame attention is then not always what it would hear from those of the window: an
  approximation, but for windows that are a run. Order in time (the integration transformer) and the
  prompts are of the window itself.

  Args:
    classifier: of `xclip_jax.load`.
    video: a file.
    labels: K, as for `Classifier.classify`.
    every: of how many frames of the video one is taken.
    stride: how many of those taken the next window begins later, 1 to T.
    exact: encode every window by itself.

  Raises:
    ValueError: an argument.
    VideoError: it cannot be read, or has fewer than T * every frames.
  """
  T = classifier.config.num_frames
  if every < 1 or not 1 <= stride <= T:
    raise UserError(f'every={every} must be at least 1, and stride={stride} from 1 to {T}, the '
                     'frames of a window')
  text = classifier.embed_text(labels)
  labels = tuple(labels)
  encode, integrate, score = _programs(classifier.model, classifier.preprocess)
  params = classifier.params

  def answer(features, row):
    probabilities = np.asarray(score(params, features, text))[0]
    if not np.isfinite(probabilities).all():
      raise UserError('the model answers with NaN or infinity; its weights are damaged')
    return TimeWindow(row[0], row[-1], Answer(labels, probabilities))

  seconds: deque[float] = deque()
  kept: deque[Any] = deque()          # frames, or what they were encoded to
  count, found = 0, False
  for run_seconds, clip, real in _runs(classifier, video, every):
    count += real
    if exact:
      items = [clip[t] for t in range(real)]
    else:
      frames, patches = encode(params, clip[None])
      items = [(frames[0, t], patches[0, t]) for t in range(real)]
    for second, item in zip(run_seconds, items, strict=True):
      seconds.append(second)
      kept.append(item)
      if len(kept) < T:
        continue
      if exact:
        parts = encode(params, np.stack(kept)[None])
      else:
        parts = tuple(jnp.stack(x)[None] for x in zip(*kept, strict=True))
      yield answer(integrate(params, *parts), seconds)
      found = True
      for _ in range(stride):
        seconds.popleft()
        kept.popleft()
  if not found:
    raise VideoError(
      f'{os.fspath(video)}: a window takes {T} frames, one of {every} each, and it holds {count} '
      'of those; take a smaller `every`, or a longer video')


def _runs(
  classifier: Classifier, video: str | os.PathLike, every: int
) -> Iterator[tuple[list[float], np.ndarray, int]]:
  """Yields (seconds, uint8 [T, S, S, 3], frames that are not repeats of the last) of each run."""
  T, preprocess = classifier.config.num_frames, classifier.preprocess
  transform = augment.EvalTransform(
    classifier.config.image_size, preprocess.resize_ratio, preprocess.filter)
  _, frames = decode.read_frames(video)
  seconds, clip = [], []
  for number, (second, frame) in enumerate(frames):
    if number % every:
      continue
    seconds.append(second)
    clip.append(transform(frame[None])[0])
    if len(clip) == T:
      yield seconds, np.stack(clip), T
      seconds, clip = [], []
  if clip:
    yield seconds, np.stack(clip + [clip[-1]] * (T - len(clip))), len(clip)


@functools.cache
def _programs(model: Any, preprocess: Any) -> tuple[Any, Any, Any]:
  def encode(params, video):
    video = vision.normalize(video, preprocess.mean, preprocess.std)
    return model.apply({'params': params}, video, method='encode_frames')

  def integrate(params, frames, patches):
    return model.apply({'params': params}, frames, patches.mean(axis=1), method='integrate')

  def score(params, features, text):
    return class_probabilities(compare(model, params, features, text).logits)

  return jax.jit(encode), jax.jit(integrate), jax.jit(score)
