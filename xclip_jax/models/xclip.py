"""X-CLIP (Ni et al., ECCV 2022): what the model is, its sizes and its entry points."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from xclip_jax.models.layers import REMAT_POLICIES
from xclip_jax.models.products import ACTIVATIONS, einsum
from xclip_jax.models.prompt import VideoPrompt
from xclip_jax.models.temporal import MultiframeTransformer
from xclip_jax.models.text import TextEncoder
from xclip_jax.models.vision import VisionEncoder
from xclip_jax.sharding import shard_batch

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class XCLIPConfig:
  """The architecture. Hashable; nothing is derived from a width behind your back.

  Head counts are stored, not width // 64: Hugging Face's large checkpoints carry others than the
  reference.
  """

  image_size: int = 224           # H = W, pixels
  patch_size: int = 32
  num_frames: int = 8             # T
  embed_dim: int = 512            # E, of everything that video and text share
  vision_width: int = 768
  vision_layers: int = 12
  vision_heads: int = 12
  vision_mlp: int = 3072
  text_width: int = 512
  text_layers: int = 12
  text_heads: int = 8
  text_mlp: int = 2048
  vocab_size: int = 49408
  context_length: int = 77        # longest S
  mit_layers: int = 1
  mit_heads: int = 8
  mit_mlp: int = 2048
  prompt_layers: int = 2
  prompt_heads: int = 8
  prompt_alpha: float = 0.1       # initial value; the trained one is a parameter
  vision_activation: str = 'quick_gelu'  # in each MLP: quick_gelu (OpenAI) | gelu (exact)
  text_activation: str = 'quick_gelu'
  mit_activation: str = 'quick_gelu'
  prompt_activation: str = 'quick_gelu'
  messages: bool = True           # frames talk to each other (cross-frame attention)
  mit: bool = True                # integration transformer; without it: the mean over frames
  mit_positions: bool = True      # the one place that knows the order of frames
  prompt: bool = True             # texts look at the video
  logit_bias: bool = False        # a learnt number added to every logit; for the sigmoid loss
  patch_dropout: float = 0.0      # share of the patches left out in training
  drop_path: float = 0.0          # stochastic depth of the last vision block; linear from 0
  dtype: str = 'float32'          # operands of matrix products: float32 | bfloat16
  residual_dtype: str = 'float32' # what flows between blocks of the towers: float32 | bfloat16
  attention: str = 'xla'          # of the towers: xla | cudnn (CUDA, bfloat16) | chunked (TPU)
  merge_tokens: int = 0           # pairs merged in each vision block, of inference; merging.py
  int8_kernels: bool = False      # kernels at rest as 8 bits, of inference; see at_rest
  remat: str | None = None        # what the towers keep for backward: None all | dots | nothing

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name == 'merge_tokens' else 1
      if field.type is int and (not isinstance(value, int) or value < least):
        what = 'a positive integer' if least else 'an integer of 0 or more'
        raise ValueError(f'XCLIPConfig.{field.name} must be {what}, got {value!r}')
      if field.type is bool and not isinstance(value, bool):
        raise ValueError(f'XCLIPConfig.{field.name} must be True or False, got {value!r}')
    for width, heads in (
      ('vision_width', 'vision_heads'), ('text_width', 'text_heads'),
      ('embed_dim', 'mit_heads'), ('embed_dim', 'prompt_heads'),
    ):
      if getattr(self, width) % getattr(self, heads):
        raise ValueError(
          f'XCLIPConfig.{heads}={getattr(self, heads)} does not divide '
          f'{width}={getattr(self, width)}'
        )
    if self.image_size % self.patch_size:
      raise ValueError(
        f'XCLIPConfig.image_size={self.image_size} is not a multiple of '
        f'patch_size={self.patch_size}'
      )
    for name, allowed in (
      *((f'{tower}_activation', ACTIVATIONS) for tower in ('vision', 'text', 'mit', 'prompt')),
      ('dtype', DTYPES), ('residual_dtype', DTYPES),
      ('attention', ('xla', 'cudnn', 'chunked')), ('remat', (None, *REMAT_POLICIES)),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'XCLIPConfig.{name}={getattr(self, name)!r} is unknown; one of {list(allowed)}'
        )
    if self.merge_tokens and self.attention == 'cudnn':
      raise ValueError('XCLIPConfig.merge_tokens needs attention=xla or chunked')
    for name in ('drop_path', 'patch_dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f'XCLIPConfig.{name} must lie in [0, 1), got {getattr(self, name)}')


_LARGE = dict(
  patch_size=14, embed_dim=768, vision_width=1024, vision_layers=24, vision_heads=16,
  vision_mlp=4096, text_width=768, text_heads=12, text_mlp=3072, mit_heads=12, mit_mlp=3072,
  prompt_heads=12,
)
# The published sizes; any of them with any frame count: replace(VARIANTS['B/16'], num_frames=32).
VARIANTS = {
  'B/32': XCLIPConfig(),
  'B/16': XCLIPConfig(patch_size=16),
  'L/14': XCLIPConfig(**_LARGE),
  'L/14@336': XCLIPConfig(**_LARGE, image_size=336, num_frames=16),
}


# Fields that say how a model is computed or trained. Those of the same weights may differ in them.
COMPUTE_FIELDS = (
  'dtype', 'residual_dtype', 'attention', 'remat', 'drop_path', 'patch_dropout', 'prompt_alpha',
  'merge_tokens', 'int8_kernels',
)
# The fields that make CLIP's image tower on every frame of it, and their mean: ViFi-CLIP.
FRAME_MEAN = dict(messages=False, mit=False, prompt=False)


def make_config(variant: str, **fields) -> XCLIPConfig:
  """Looks up a published size and replaces some of its fields.

  Raises:
    ValueError: unknown variant or field.
  """
  if variant not in VARIANTS:
    raise ValueError(f'unknown variant {variant!r}; one of {list(VARIANTS)}')
  unknown = set(fields) - {f.name for f in dataclasses.fields(XCLIPConfig)}
  if unknown:
    raise ValueError(f'XCLIPConfig has no field {sorted(unknown)}')
  return dataclasses.replace(VARIANTS[variant], **fields)


def config_of_run(model: Mapping[str, Any]) -> XCLIPConfig:
  """The architecture of a run: `config.model` is a variant and fields that differ from it.

  Raises:
    ValueError: unknown variant or field.
  """
  direct = {k: v for k, v in model.items() if k != 'fields'}
  return make_config(**(direct | dict(model['fields'])))


@flax.struct.dataclass
class VideoFeatures:
  """What the text side needs to know of B videos. All float32, nothing normalised."""

  video_features: jax.Array      # [B, E]
  frame_features: jax.Array      # [B, T, E], before the integration transformer
  patch_features: jax.Array | None  # [B, M, E], mean over time; what prompts look at, if any do


@flax.struct.dataclass
class XCLIPOutput:
  """What a forward pass has to say. All float32; no feature is normalised."""

  logits: jax.Array                     # [B, K], exp(logit_scale) * cosine (+ logit_bias)
  video_features: jax.Array             # [B, E]
  frame_features: jax.Array             # [B, T, E]
  text_features: jax.Array              # [K, E], without having seen the video
  conditioned_text_features: jax.Array  # [B, K, E], with the video-specific prompt added, if any


class XCLIP(nn.Module):
  """X-CLIP. `XCLIP(config).apply({'params': params}, video, token_ids)` gives an XCLIPOutput.

  Texts are encoded once and passed in as values where they do not change:
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
    self, video: jax.Array, token_ids: jax.Array, deterministic: bool = True
  ) -> XCLIPOutput:
    """Compares every video with every text.

    Args:
      video: float [B, T, H, W, 3], RGB, normalised with the checkpoint's mean and std.
      token_ids: int [K, S], from `Tokenizer`.
      deterministic: False draws stochastic depth from the rng stream 'drop_path', and the patches
        to leave out from 'patch_dropout'.

    Raises:
      ValueError: a shape or dtype that this configuration does not take.
    """
    check_video(video, self.config)
    return self.classify(video, self.encode_text(token_ids), deterministic)

  def encode_video(self, video: jax.Array, deterministic: bool = True) -> VideoFeatures:
    """Encodes float video [B, T, H, W, 3]."""
    check_video(video, self.config)
    frames, patches = self.vision(shard_batch(video), deterministic)
    patches = self.prompt.encode_patches(patches) if self.config.prompt else None
    return self.integrate(frames, patches)

  def encode_frames(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The part of `encode_video` before time is looked at: float32 [B, T, E] and [B, T, M, E].

    For windows that share frames; see `integrate`. Without prompts the second is empty.
    """
    check_video(video, self.config)
    frames, patches = self.vision(shard_batch(video))
    patches = self.prompt.encode_each(patches) if self.config.prompt else patches[..., :0]
    return frames, patches

  def integrate(self, frames: jax.Array, patches: jax.Array | None) -> VideoFeatures:
    """What follows from encoded frames, float32 [B, T, E], and their patches, float32 [B, M, E].

    Args: as of `encode_frames`, the patches averaged over the T frames.
    """
    return VideoFeatures(
      video_features=shard_batch(self.mit(frames) if self.config.mit else frames.mean(axis=1)),
      frame_features=frames,
      patch_features=shard_batch(patches) if self.config.prompt else None)

  def encode_text(self, token_ids: jax.Array) -> jax.Array:
    """Encodes int token_ids [K, S] to float32 [K, E], not normalised, no video seen."""
    check_token_ids(token_ids, self.config)
    return self.text(token_ids)

  def classify(
    self, video: jax.Array | VideoFeatures, text_features: jax.Array, deterministic: bool = True
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
    B = len(video.video_features)
    conditioned = jnp.broadcast_to(text_features, (B, *text_features.shape))
    if self.config.prompt:
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


def init_params(model: XCLIP, key: jax.Array) -> Any:
  """Draws the parameters of the model."""
  c = model.config
  video = jnp.zeros((1, c.num_frames, c.image_size, c.image_size, 3))
  ids = jnp.zeros((1, c.context_length), jnp.int32)
  return jax.jit(model.init)(key, video, ids)['params']     # compiled, the video itself drops out


def on_this_machine(config: XCLIPConfig) -> XCLIPConfig:
  """Takes XLA's attention where a run had cuDNN's and there is none, or not for these numbers."""
  there = jax.default_backend() == 'gpu' and config.dtype == 'bfloat16'
  return config if there or config.attention != 'cudnn' else dataclasses.replace(
    config, attention='xla')


def at_rest(params: Any, config: XCLIPConfig) -> Any:
  """Keeps kernels in the dtype that products take them in. For inference.

  Where that is bfloat16, results are the same to the bit, kernels take half the memory, and no call
  has to convert them. With `int8_kernels` those of affine maps become integers from -127 to 127
  with a float32 scale for each output (`kernel_scale`), which is rounding: half the memory again.
  """
  def convert(tree):
    out = {}
    for name, x in tree.items():
      if isinstance(x, Mapping):
        out[name] = convert(x)
      elif name != 'kernel':
        out[name] = x
      elif config.int8_kernels and x.ndim == 2 and x.dtype != jnp.int8:
        scale = np.maximum(np.abs(np.asarray(x, np.float32)).max(axis=0), 1e-12) / 127
        out[name] = np.round(np.asarray(x, np.float32) / scale).astype(np.int8)
        out['kernel_scale'] = scale.astype(np.float32)
      elif x.dtype != jnp.int8:
        out[name] = x.astype(DTYPES[config.dtype], copy=False)      # of a mapped file: stays mapped
      else:
        out[name] = x
    return out
  return convert(params)


def l2_normalize(x: jax.Array) -> jax.Array:
  """Divides by the norm of the last axis; like the reference, without an epsilon."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def check_video(video: jax.Array, config: XCLIPConfig) -> None:
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


def check_token_ids(token_ids: jax.Array, config: XCLIPConfig) -> None:
  """Raises ValueError unless token_ids is int [K, S] with S up to the context length."""
  shape = np.shape(token_ids)
  if len(shape) != 2 or not 1 <= shape[1] <= config.context_length:
    raise ValueError(
      f'token_ids must be [K, S] with S from 1 to the context length {config.context_length}, '
      f'got {list(shape)}'
    )
  if not jnp.issubdtype(token_ids.dtype, jnp.integer):
    raise ValueError(f'token_ids must be integers, got {token_ids.dtype}')
