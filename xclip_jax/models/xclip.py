"""X-CLIP (Ni et al., ECCV 2022): the model, its features and outputs, and how to apply it."""

from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Num

from xclip_jax.models.config import DTYPES, XCLIPConfig, make_config
from xclip_jax.models.integration import MultiframeTransformer
from xclip_jax.models.matmul import AnyArray, einsum
from xclip_jax.models.prompt import VideoPrompt
from xclip_jax.models.text import TextEncoder
from xclip_jax.models.vision import VisionEncoder, normalize
from xclip_jax.parallel.mesh import shard_batch


@flax.struct.dataclass
class VideoFeatures:
  """Features of B videos, as `classify` takes them; float32, not normalised."""

  video_features: jax.Array         # [B, E]
  frame_features: jax.Array         # [B, T, E], before the integration transformer
  patch_features: jax.Array | None  # [B, M, E], mean over time; None without prompts


@flax.struct.dataclass
class XCLIPOutput:
  """Logits and features of a forward pass; float32, no feature is normalised."""

  logits: jax.Array                     # [B, K], exp(logit_scale) * cosine (+ logit_bias)
  video_features: jax.Array             # [B, E]
  frame_features: jax.Array             # [B, T, E]
  text_features: jax.Array              # [K, E], before the prompt is added
  conditioned_text_features: jax.Array  # [B, K, E], with the video-specific prompt


class XCLIP(nn.Module):
  """Compares videos with texts: `XCLIP(config).apply({'params': params}, video, token_ids)`.

  The result is an XCLIPOutput. Texts that do not change are encoded once and passed as features:
    text = model.apply(variables, token_ids, method='encode_text')
    out = model.apply(variables, video, text, method='classify')
  """

  config: XCLIPConfig

  def setup(self):
    c = self.config
    dtype, residual = DTYPES[c.dtype], DTYPES[c.residual_dtype]
    self.vision = VisionEncoder(
      c.num_frames, c.patch_size, c.vision_width, c.vision_layers, c.vision_heads, c.vision_mlp,
      c.embed_dim, c.vision_activation, c.drop_path, dtype, residual, c.attention, c.remat,
      c.messages, c.patch_dropout, c.merge_tokens,
    )
    if c.mit:
      self.mit = MultiframeTransformer(
        c.mit_layers, c.mit_heads, c.mit_mlp, c.mit_activation, dtype, c.mit_positions
      )
    self.text = TextEncoder(
      c.vocab_size, c.context_length, c.text_width, c.text_layers, c.text_heads, c.text_mlp,
      c.embed_dim, c.text_activation, dtype, residual, c.remat,
    )
    if c.prompt:
      self.prompt = VideoPrompt(
        c.prompt_layers, c.prompt_heads, c.embed_dim, c.prompt_alpha, c.prompt_activation, dtype
      )
    self.logit_scale = self.param(
      'logit_scale', nn.initializers.constant(np.log(1 / 0.07)), (), jnp.float32
    )
    if c.logit_bias:
      self.logit_bias = self.param('logit_bias', nn.initializers.zeros, (), jnp.float32)

  def __call__(
    self, video: AnyArray, token_ids: AnyArray, deterministic: bool = True
  ) -> XCLIPOutput:
    """Compares every video with every text.

    Args:
      video: float [B, T, H, W, 3], RGB, normalised with the checkpoint's mean and std.
      token_ids: int [K, S], from `Tokenizer`.
      deterministic: False draws stochastic depth from the rng stream 'drop_path', and the patches
        to leave out from 'patch_dropout'.

    Raises:
      ValueError: the configuration does not take this shape or dtype.
    """
    check_video(video, self.config)
    return self.classify(video, self.encode_text(token_ids), deterministic)

  def encode_video(self, video: AnyArray, deterministic: bool = True) -> VideoFeatures:
    """Encodes float video [B, T, H, W, 3]."""
    check_video(video, self.config)
    frames, patches = self.vision(shard_batch(video), deterministic)
    patches = self.prompt.encode_patches(patches) if self.config.prompt else None
    return self.integrate(frames, patches)

  def encode_frames(self, video: AnyArray) -> tuple[
    Float[AnyArray, 'B T E'], Float[AnyArray, 'B T M _']
  ]:
    """Encodes frames for windows that share them: float32 [B, T, E] and patches [B, T, M, E].

    `integrate` turns them into the features of `encode_video`. Without prompts the patches are
    empty.
    """
    check_video(video, self.config)
    frames, patches = self.vision(shard_batch(video))
    patches = self.prompt.encode_each(patches) if self.config.prompt else patches[..., :0]
    return frames, patches

  def integrate(
    self, frames: Float[AnyArray, 'B T E'], patches: Float[AnyArray, 'B M _'] | None
  ) -> VideoFeatures:
    """Integrates encoded frames into video features.

    Args:
      frames: frame features of `encode_frames`.
      patches: patch features of `encode_frames`, averaged over the T frames.
    """
    assert patches is not None or not self.config.prompt
    return VideoFeatures(
      video_features=shard_batch(self.mit(frames) if self.config.mit else frames.mean(axis=1)),
      frame_features=frames,
      patch_features=None if patches is None or not self.config.prompt else shard_batch(patches))

  def encode_text(self, token_ids: AnyArray) -> Float[AnyArray, 'K E']:
    """Encodes int token_ids [K, S] to float32 features: not normalised, without prompt."""
    check_token_ids(token_ids, self.config)
    return self.text(token_ids)

  def classify(
    self, video: AnyArray | VideoFeatures, text_features: AnyArray, deterministic: bool = True
  ) -> XCLIPOutput:
    """Compares videos (or features of `encode_video`) with features of `encode_text`, [K, E]."""
    if text_features.ndim != 2 or text_features.shape[1] != self.config.embed_dim:
      raise ValueError(
        f'text_features must be [K, {self.config.embed_dim}] as encode_text gives them, got '
        f'{list(text_features.shape)}'
      )
    if not isinstance(video, VideoFeatures):
      video = self.encode_video(video, deterministic)
    text_features = text_features.astype(jnp.float32)
    B = video.video_features.shape[0]
    conditioned = jnp.broadcast_to(text_features, (B, *text_features.shape))
    if self.config.prompt:
      assert video.patch_features is not None
      conditioned += self.prompt(text_features, video.patch_features)
    logits = jnp.exp(self.logit_scale) * einsum(
      'BE,BKE->BK', l2_normalize(video.video_features), l2_normalize(conditioned)
    )
    if self.config.logit_bias:
      logits += self.logit_bias
    return XCLIPOutput(
      logits=logits,
      video_features=video.video_features,
      frame_features=video.frame_features,
      text_features=text_features,
      conditioned_text_features=conditioned,
    )


def init(config: XCLIPConfig | str, key: jax.Array) -> tuple[XCLIP, Any]:
  """Builds a model and draws its parameters.

  Args:
    config: the architecture, or the name of a published one: 'B/32', 'B/16', 'L/14', 'L/14@336'.
    key: jax.random.key(seed).

  Returns:
    the linen module, and its float32 parameters for model.apply({'params': params}, ...).

  Raises:
    ValueError: no published architecture has that name.
  """
  model = XCLIP(make_config(config) if isinstance(config, str) else config)
  return model, init_params(model, key)


def init_params(model: XCLIP, key: jax.Array) -> Any:
  """Draws the parameters of the model."""
  c = model.config
  video = jnp.zeros((1, c.num_frames, c.image_size, c.image_size, 3))
  ids = jnp.zeros((1, c.context_length), jnp.int32)
  return jax.jit(model.init)(key, video, ids)['params']     # compiled, the video itself drops out


def encode_pixels(
  model: XCLIP, params: Any, pixels: Num[AnyArray, 'B T H W 3'], statistics: Any
) -> VideoFeatures:
  """Normalises and encodes uint8 pixels [B, T, H, W, 3].

  Args:
    model: the module.
    params: its parameters.
    pixels: of the videos.
    statistics: object with `mean` and `std` of each channel, 0..255: `Preprocess` or `config.data`.
  """
  video = normalize(pixels, statistics.mean, statistics.std)
  return cast(VideoFeatures, model.apply({'params': params}, video, method='encode_video'))


def classify_pixels(
  model: XCLIP, params: Any, pixels: Num[AnyArray, 'B T H W 3'],
  text_features: Float[AnyArray, 'K E'], statistics: Any,
) -> XCLIPOutput:
  """Normalises uint8 pixels [B, T, H, W, 3] and compares the videos with text features [K, E].

  Arguments are those of `encode_pixels`.
  """
  video = normalize(pixels, statistics.mean, statistics.std)
  return compare(model, params, video, text_features)


def compare(
  model: XCLIP, params: Any, video: Float[AnyArray, 'B T H W 3'] | VideoFeatures,
  text_features: Float[AnyArray, 'K E'], dropout_key: jax.Array | None = None,
) -> XCLIPOutput:
  """Compares B videos with K texts.

  Args:
    model: the module.
    params: its parameters.
    video: normalised float32 [B, T, H, W, 3], or features of `encode_pixels`.
    text_features: float32 [K, E] of `encode_text`.
    dropout_key: draws stochastic depth and the patches to leave out, in training; None: neither.
  """
  if dropout_key is None:
    return cast(
      XCLIPOutput, model.apply({'params': params}, video, text_features, method='classify'))
  rngs = {'drop_path': dropout_key, 'patch_dropout': jax.random.fold_in(dropout_key, 1)}
  return cast(XCLIPOutput, model.apply(
    {'params': params}, video, text_features, False, method='classify', rngs=rngs))


def class_probabilities(
  logits: Float[AnyArray, 'B K'], count: Int[AnyArray, ''] | int | None = None
) -> Float[AnyArray, 'B K']:
  """Returns the softmax of logits [B, K] over the classes; with `count`, over the first ones only.

  The columns from `count` on are padding and get probability 0.
  """
  where = None if count is None else jnp.arange(logits.shape[-1]) < count
  return jax.nn.softmax(logits, axis=-1, where=where)


def l2_normalize(x: Float[AnyArray, '*batch D']) -> Float[AnyArray, '*batch D']:
  """Divides by the norm of the last axis; like the reference, without an epsilon."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def check_video(video: AnyArray, config: XCLIPConfig) -> None:
  """Raises ValueError unless video is float [B, T, H, W, 3] with the T, H and W of config."""
  want = (config.num_frames, config.image_size, config.image_size, 3)
  if np.ndim(video) != 5 or np.shape(video)[1:] != want:
    raise ValueError(
      f'video must be [B, T, H, W, 3] = [B, {", ".join(map(str, want))}], got '
      f'{list(np.shape(video))}: sample {config.num_frames} frames and crop to '
      f'{config.image_size} pixels, or build the model for what you have'
    )
  if not jnp.issubdtype(video.dtype, jnp.floating):
    raise ValueError(
      f'video must be floating point and normalised ((pixels - mean) / std), got {video.dtype}'
    )


def check_token_ids(token_ids: AnyArray, config: XCLIPConfig) -> None:
  """Raises ValueError unless token_ids is int [K, S] with S up to the context length."""
  shape = np.shape(token_ids)
  if len(shape) != 2 or not 1 <= shape[1] <= config.context_length:
    raise ValueError(
      f'token_ids must be [K, S] with S from 1 to the context length {config.context_length}, '
      f'got {list(shape)}'
    )
  if not jnp.issubdtype(token_ids.dtype, jnp.integer):
    raise ValueError(f'token_ids must be integers, got {token_ids.dtype}')
