"""Cross-frame communication transformer: CLIP's image tower with messages between frames."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from xclip_jax.models.inference_options import token_merging
from xclip_jax.models.layers import (
  REMAT_POLICIES,
  Attention,
  Dense,
  LayerNorm,
  Mlp,
  torch_init,
  uniform,
)
from xclip_jax.models.matmul import AnyArray, einsum
from xclip_jax.parallel import platforms
from xclip_jax.parallel.mesh import shard_batch


@jax.custom_vjp
def embed_patches(
  frames: Float[AnyArray, 'X H W 3'], kernel: Float[AnyArray, 'P P 3 D']
) -> Float[AnyArray, 'X M D']:
  """Convolves frames with the patch size as stride; float32.

  The convolution is one matrix product, except on TPU, where that would first move every pixel.
  """
  return platforms.by_platform(
    frames, kernel, tpu=_embed_by_convolution, default=_embed_by_product)


def _embed_by_product(frames, kernel):
  X, H, W, C = frames.shape
  P, _, _, D = kernel.shape
  x = frames.reshape(X, H // P, P, W // P, P, C)
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(X, -1, P * P * C)              # [X, M, P*P*C]
  return einsum('XMD,DE->XME', x, kernel.reshape(-1, D))


def _embed_by_convolution(frames, kernel):
  precision = jax.lax.Precision.HIGHEST if frames.dtype == jnp.float32 else None
  y = jax.lax.conv_general_dilated(
    frames, kernel, kernel.shape[:2], 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=precision, preferred_element_type=jnp.float32)
  return y.reshape(frames.shape[0], -1, kernel.shape[-1])


embed_patches.defvjp(          # JAX has no gradient of a convolution that accumulates in float32
  lambda frames, kernel: (embed_patches(frames, kernel), (frames, kernel)),
  lambda operands, g: jax.vjp(_embed_by_product, *operands)[1](g))


class PatchEmbed(nn.Module):
  """Maps every patch to a token, in row-major order; the kernel is [P, P, 3, D]."""

  patch_size: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, frames: Float[AnyArray, 'X H W 3']) -> Float[AnyArray, 'X M D']:
    P, C = self.patch_size, frames.shape[-1]
    kernel = self.param(
      'kernel', uniform((C * P * P) ** -0.5), (P, P, C, self.width), jnp.float32)
    return embed_patches(frames.astype(self.dtype), kernel.astype(self.dtype))


class DropPath(nn.Module):
  """Drops a residual branch for whole videos (stochastic depth), and scales the others up.

  The reference drops along axis 0 of tensors laid out [L, B*T, D] or [T, B, D]: a token position or
  a frame index, for all videos at once (VideoX issue 85). Its rate is 0 everywhere, so no published
  number depends on it; here one coin is thrown for each video, as the method intends.
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: Float[AnyArray, 'X ...'], num_videos: Any, deterministic: bool
  ) -> Float[AnyArray, 'X ...']:
    """Drops x, [B, ...] or [B*T, ...], for some of the B = num_videos videos."""
    if deterministic or self.rate == 0:
      return x
    keep = jax.random.bernoulli(self.make_rng('drop_path'), 1 - self.rate, (num_videos,))
    keep = jnp.repeat(keep, x.shape[0] // num_videos)
    return jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x / (1 - self.rate), 0)


class PatchDropout(nn.Module):
  """Keeps a random subset of the patch tokens of each video, and every class token.

  Liu et al., "PatchDropout", WACV 2023; Li et al., "FLIP", CVPR 2023. The number of kept patches is
  constant, so shapes stay static. All frames of a video keep the same patches, because the prompts
  read the mean over time of each patch.
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: Float[AnyArray, 'X L D'], num_videos: Any, deterministic: bool
  ) -> Float[AnyArray, 'X kept D']:
    """Keeps the class token and some patches of x, [B*T, 1+M, D], of B = num_videos videos."""
    if deterministic or self.rate == 0:
      return x
    M = x.shape[1] - 1
    kept = max(round(M * (1 - self.rate)), 1)
    draws = jax.random.uniform(self.make_rng('patch_dropout'), (num_videos, M))
    index = jnp.sort(jnp.argsort(draws, axis=1)[:, :kept], axis=1) + 1              # [B, m]
    index = jnp.concatenate([jnp.zeros((num_videos, 1), index.dtype), index], axis=1)
    index = jnp.repeat(index, x.shape[0] // num_videos, axis=0)                     # [B*T, 1+m]
    return jnp.take_along_axis(x, index[..., None], axis=1)


class CrossFrameBlock(nn.Module):
  """Applies cross-frame attention to messages, then attention and MLP in each frame (Eq. 2 to 5).

  Every frame writes a message, the messages of a video attend to each other (cross-frame fusion),
  and the frame's tokens read their own message as one more key (intra-frame diffusion). The
  reference appends the message to the tokens and cuts it off afterwards; the query of the message
  is never used, so here it is a key and a value only. Without messages the block is CLIP's.
  """

  num_frames: int
  heads: int
  mlp_width: int
  activation: str = 'quick_gelu'
  drop_path: float = 0.0
  dtype: Any = jnp.float32
  implementation: str = 'xla'
  messages: bool = True
  merge: int = 0

  @nn.compact
  def __call__(
    self, x: Float[AnyArray, 'X L D'], deterministic: bool = True,
    merged: token_merging.Merged | None = None,
  ) -> Any:
    """Transforms the tokens of every frame.

    Args:
      x: [B*T, L, D], the class token first.
      deterministic: no stochastic depth.
      merged: the tokens merged so far, if this block is to merge more.

    Returns:
      x in its shape and dtype; with `merged`, fewer tokens and the tokens merged so far.
    """
    T, D = self.num_frames, x.shape[-1]
    B = x.shape[0] // T
    init = torch_init(D, self.mlp_width)
    attention = lambda name, implementation: Attention(
      self.heads, self.dtype, qkv_init=init.qkv, out_init=init.out, implementation=implementation,
      name=name,
    )
    drop = lambda y: DropPath(self.drop_path)(y, B, deterministic).astype(x.dtype)
    x = shard_batch(x)

    tokens = x
    if self.messages:
      message = Dense(
        D, self.dtype, kernel_init=uniform(D**-0.5), bias_init=uniform(D**-0.5), name='message_fc'
      )(x[:, 0])
      message = shard_batch(message.astype(x.dtype).reshape(B, T, D))
      fused = attention('message_attn', 'xla')(LayerNorm(name='message_ln')(message))
      message = (message + drop(fused)).reshape(B * T, 1, D)
      tokens = jnp.concatenate([x, message], axis=1)                           # [B*T, L+1, D]

    tokens = LayerNorm(name='ln_1')(tokens)
    attn, queries = attention('attn', self.implementation), tokens[:, :x.shape[1]]
    if merged is None:
      x += drop(attn(queries, tokens))
    else:
      bias = jnp.pad(merged.log_size, ((0, 0), (0, tokens.shape[1] - x.shape[1])))
      y, keys = attn(queries, tokens, bias, return_keys=True)
      x, merged = token_merging.merge(x + drop(y), keys[:, :x.shape[1]], merged, self.merge)
    mlp = Mlp(self.mlp_width, init, self.activation, self.dtype, name='mlp')
    x = shard_batch(x + drop(mlp(LayerNorm(name='ln_2')(x))))
    return x if merged is None else (x, merged)


class VisionEncoder(nn.Module):
  """Encodes the frames of videos to class features and patch tokens."""

  num_frames: int
  patch_size: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  embed_dim: int
  activation: str = 'quick_gelu'
  drop_path: float = 0.0
  dtype: Any = jnp.float32
  residual_dtype: Any = jnp.float32
  implementation: str = 'xla'
  remat: str | None = None
  messages: bool = True
  patch_dropout: float = 0.0
  merge: int = 0

  @nn.compact
  def __call__(
    self, video: Float[AnyArray, 'B T H W 3'], deterministic: bool = True
  ) -> tuple[Float[AnyArray, 'B T E'], Float[AnyArray, 'B T M D']]:
    """Encodes every frame; messages tell it of the other frames of its video.

    Args:
      video: normalised pixels.
      deterministic: no stochastic depth and no dropped patches; only then are tokens merged.

    Returns:
      frames float32 [B, T, E]: class token after ln_post and projection.
      patches [B, T, M, D]: output of the last block, not normalised, of the patches that were not
        dropped; each merged patch has the token that it was merged into.
    """
    B, T = video.shape[:2]
    D = self.width
    x = PatchEmbed(self.patch_size, D, self.dtype, name='patch_embed')(
      video.reshape(B * T, *video.shape[2:])
    )
    normal = nn.initializers.normal(D**-0.5)
    class_embed = self.param('class_embed', normal, (D,), jnp.float32)
    x = jnp.concatenate([jnp.broadcast_to(class_embed, (B * T, 1, D)), x], axis=1)  # [B*T, L, D]
    x += self.param('pos_embed', normal, x.shape[1:], jnp.float32)
    x = PatchDropout(self.patch_dropout, name='patch_dropout')(x, B, deterministic)
    x = LayerNorm(name='ln_pre')(x).astype(self.residual_dtype)

    merged = token_merging.start(B * T, x.shape[1] - 1) if self.merge and deterministic else None
    block = CrossFrameBlock
    if self.remat:
      block = nn.remat(block, static_argnums=(2,), policy=REMAT_POLICIES[self.remat])
    for i in range(self.layers):
      rate = self.drop_path * i / max(self.layers - 1, 1)
      x = block(
        self.num_frames, self.heads, self.mlp_width, self.activation, rate, self.dtype,
        self.implementation, self.messages, self.merge, name=f'blocks_{i}',
      )(x, deterministic, merged)
      if merged is not None:
        x, merged = x

    frames = LayerNorm(name='ln_post')(x[:, 0])
    frames = Dense(
      self.embed_dim, self.dtype, use_bias=False, kernel_init=normal, name='proj'
    )(frames)
    patches = x[:, 1:] if merged is None else token_merging.spread(x, merged)
    return frames.reshape(B, T, -1), patches.reshape(B, T, -1, D)


def normalize(
  video: Num[AnyArray, '*batch 3'], mean: Sequence[float],
  std: Sequence[float],
) -> Float[AnyArray, '*batch 3']:
  """Normalises pixels to float32 (pixels - mean) / std, with mean and std in 0..255."""
  return (video.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
