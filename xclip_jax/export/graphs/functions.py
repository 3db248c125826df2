"""The graphs of an export: what goes in, what comes out, and the function between.

The functions are those of the model itself; only the resize of the frames is written anew (see
`pixels`), since OpenCV and Pillow are not there where a graph runs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xclip_jax.export.graphs import pixels
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.vision import normalize
from xclip_jax.models.xclip import XCLIP, VideoFeatures, class_probabilities, compare
from xclip_jax.weights.native import Preprocess, Weights


class Port(NamedTuple):
  """An input or an output of a graph."""

  name: str
  shape: tuple[int | str, ...]       # a letter is a size that the caller chooses
  dtype: str
  meaning: str


@dataclasses.dataclass(frozen=True)
class Graph:
  """A function of the model that other runtimes call.

  Fields:
    name: of its files.
    summary: what it is for, a line.
    function: maps parameters (nested dicts) and one array for each input to a tuple of arrays.
    inputs, outputs: in the order of the function.
  """

  name: str
  summary: str
  function: Callable[..., tuple[jax.Array, ...]]
  inputs: tuple[Port, ...]
  outputs: tuple[Port, ...]


def portable_config(config: XCLIPConfig) -> XCLIPConfig:
  """Returns an architecture without what belongs to one device or to training."""
  return dataclasses.replace(config, attention='xla', remat=None, patch_dropout=0.0, drop_path=0.0)


def make_graphs(weights: Weights, text_features: np.ndarray | None = None) -> tuple[Graph, ...]:
  """Returns the graphs of a model.

  Args:
    weights: their architecture and preprocessing.
    text_features: float32 [K, E] of the labels of a `classify` graph; None: there is none.
  """
  config, preprocess = portable_config(weights.config), weights.preprocess
  T, S, E = config.num_frames, config.image_size, config.embed_dim
  frames = Port('frames', ('B', T, 'H', 'W', 3), 'uint8',
                f'RGB frames of any size, {T} of each video: the middle frame of each of {T} equal '
                'parts of its length')
  video_features = Port('video_features', ('B', E), 'float32', 'of the videos, not normalised')
  patches = (config.image_size // config.patch_size) ** 2
  patch_features = (Port('patch_features', ('B', patches, E), 'float32',
                         'patches of the videos, their mean over time'),) if config.prompt else ()
  features = Port('text_features', ('K', E), 'float32', 'of the texts, not normalised')
  scores = (Port('probabilities', ('B', 'K'), 'float32', 'softmax of the logits over the texts'),
            Port('logits', ('B', 'K'), 'float32', 'scaled cosines of videos and prompted texts'))
  token_ids = Port('token_ids', ('K', config.context_length), 'int32',
                   'texts written in the template, from tokenizer.json')
  cropped = Port('pixels', ('B', T, S, S, 3), 'uint8', 'what the model sees, before normalisation')
  made = (
    Graph('pixels', 'frames of any size to what the model sees', pixels_of(preprocess, S),
          (frames,), (cropped,)),
    Graph('video', 'frames to features', _video_features(config, preprocess), (frames,),
          (video_features, *patch_features)),
    Graph('text', 'token ids to features', _text_features(config), (token_ids,), (features,)),
    Graph('score', 'features of videos and texts to probabilities', _scores(config),
          (video_features, *patch_features, features), scores))
  if text_features is None:
    return made
  fixed = tuple(port._replace(shape=('B', len(text_features))) for port in scores)
  return (*made, Graph('classify', 'frames to probabilities of the labels of the export',
                       _classify(config, preprocess, text_features), (frames,), fixed))


def pixels_of(preprocess: Preprocess, size: int) -> Callable[..., tuple[jax.Array, ...]]:
  """Returns the function of the `pixels` graph."""
  def function(params: Any, frames: jax.Array) -> tuple[jax.Array, ...]:
    return (pixels.resize_and_crop(frames, preprocess, size).astype(jnp.uint8),)

  return function


def _encode(config: XCLIPConfig, preprocess: Preprocess, params: Any, frames: Any) -> VideoFeatures:
  cropped = pixels.resize_and_crop(frames, preprocess, config.image_size)
  video = normalize(cropped, preprocess.mean, preprocess.std)
  return XCLIP(config).apply(                                    # pyright: ignore
    {'params': params}, video, method='encode_video')


def _video_features(config: XCLIPConfig, preprocess: Preprocess) -> Callable[..., Any]:
  def function(params: Any, frames: jax.Array) -> tuple[jax.Array, ...]:
    found = _encode(config, preprocess, params, frames)
    return (found.video_features, *([found.patch_features] if config.prompt else []))

  return function


def _text_features(config: XCLIPConfig) -> Callable[..., Any]:
  def function(params: Any, token_ids: jax.Array) -> tuple[Any, ...]:
    return (XCLIP(config).apply({'params': params}, token_ids, method='encode_text'),)

  return function


def _scores(config: XCLIPConfig) -> Callable[..., Any]:
  def function(params: Any, video: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
    *patches, text = rest
    # The frame features are an output of the model that no score depends on.
    features = VideoFeatures(video, video[:, None], patches[0] if patches else None)
    logits = compare(XCLIP(config), params, features, text).logits
    return class_probabilities(logits), logits

  return function


def _classify(
  config: XCLIPConfig, preprocess: Preprocess, text_features: np.ndarray
) -> Callable[..., Any]:
  def function(params: Any, frames: jax.Array) -> tuple[jax.Array, ...]:
    features = _encode(config, preprocess, params, frames)
    logits = compare(XCLIP(config), params, features, jnp.asarray(text_features)).logits
    return class_probabilities(logits), logits

  return function


def describe(ports: Sequence[Port]) -> list[dict[str, Any]]:
  """Returns inputs or outputs as JSON of a manifest."""
  return [port._asdict() | {'shape': list(port.shape)} for port in ports]
