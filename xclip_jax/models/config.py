"""Architecture of X-CLIP: its fields, and the published variants."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from xclip_jax.errors import UserError
from xclip_jax.models.layers import REMAT_POLICIES
from xclip_jax.models.matmul import ACTIVATIONS

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Largest sizes that a config may ask for. The largest published towers have 48 layers and
# vocabularies of 256,000 tokens; beyond these limits a number is a mistake, and building the
# model would take the memory of the machine before anything could say so.
_MOST_LAYERS, _MOST = 1000, 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class XCLIPConfig:
  """Describes the architecture; hashable, and every size is stored rather than derived.

  Head counts are stored because Hugging Face's large checkpoints do not follow the reference's rule
  of width // 64.
  """

  image_size: int = 224           # H = W, pixels
  patch_size: int = 32
  num_frames: int = 8             # T
  embed_dim: int = 512            # E, width of video and text features
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
  messages: bool = True           # cross-frame attention between frames
  mit: bool = True                # integration transformer; False: mean over frames
  mit_positions: bool = True      # frame positions in the integration transformer
  prompt: bool = True             # video-specific prompts
  logit_bias: bool = False        # learnt addend of every logit, for the sigmoid loss
  patch_dropout: float = 0.0      # share of the patches dropped in training
  drop_path: float = 0.0          # stochastic depth of the last vision block; linear from 0
  dtype: str = 'float32'          # operands of matrix products: float32 | bfloat16
  residual_dtype: str = 'float32' # between blocks of the towers: float32 | bfloat16
  attention: str = 'xla'          # in the towers: xla | cudnn (CUDA, bfloat16) | chunked (TPU)
  merge_tokens: int = 0           # pairs merged in each vision block; inference only
  int8_kernels: bool = False      # kernels stored as 8 bits; inference only
  remat: str | None = None        # activations kept for backward: None all | dots | nothing

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name == 'merge_tokens' else 1
      most = _MOST_LAYERS if field.name.endswith('_layers') else _MOST
      is_integer = isinstance(value, int) and not isinstance(value, bool)
      if field.type is int and (not is_integer or value < least):
        wording = 'a positive integer' if least else 'an integer of 0 or more'
        raise UserError(f'XCLIPConfig.{field.name} must be {wording}, got {value!r}')
      if field.type is int and value > most:
        raise UserError(f'XCLIPConfig.{field.name} must be at most {most:,}, got {value!r:.40}')
      if field.type is float and not (isinstance(value, float) or is_integer):
        raise UserError(f'XCLIPConfig.{field.name} must be a number, got {value!r}')
      if field.type is bool and not isinstance(value, bool):
        raise UserError(f'XCLIPConfig.{field.name} must be True or False, got {value!r}')
    for width, heads in (
      ('vision_width', 'vision_heads'), ('text_width', 'text_heads'),
      ('embed_dim', 'mit_heads'), ('embed_dim', 'prompt_heads'),
    ):
      if getattr(self, width) % getattr(self, heads):
        raise UserError(
          f'XCLIPConfig.{heads}={getattr(self, heads)} does not divide '
          f'{width}={getattr(self, width)}'
        )
    if self.image_size % self.patch_size:
      raise UserError(
        f'XCLIPConfig.image_size={self.image_size} is not a multiple of '
        f'patch_size={self.patch_size}'
      )
    for name, allowed in (
      *((f'{tower}_activation', ACTIVATIONS) for tower in ('vision', 'text', 'mit', 'prompt')),
      ('dtype', DTYPES), ('residual_dtype', DTYPES),
      ('attention', ('xla', 'cudnn', 'chunked')), ('remat', (None, *REMAT_POLICIES)),
    ):
      if getattr(self, name) not in allowed:
        raise UserError(
          f'XCLIPConfig.{name}={getattr(self, name)!r} is unknown; one of {list(allowed)}'
        )
    if self.merge_tokens and self.attention == 'cudnn':
      raise UserError('XCLIPConfig.merge_tokens needs attention=xla or chunked')
    if not abs(self.prompt_alpha) <= _MOST:                   # nor NaN
      raise UserError(f'XCLIPConfig.prompt_alpha must be a finite number, got {self.prompt_alpha}')
    for name in ('drop_path', 'patch_dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f'XCLIPConfig.{name} must lie in [0, 1), got {getattr(self, name)}')


_LARGE: dict[str, Any] = dict(
  patch_size=14, embed_dim=768, vision_width=1024, vision_layers=24, vision_heads=16,
  vision_mlp=4096, text_width=768, text_heads=12, text_mlp=3072, mit_heads=12, mit_mlp=3072,
  prompt_heads=12,
)


# The published sizes; num_frames may be replaced by any other.
VARIANTS = {
  'B/32': XCLIPConfig(),
  'B/16': XCLIPConfig(patch_size=16),
  'L/14': XCLIPConfig(**_LARGE),
  'L/14@336': XCLIPConfig(**_LARGE, image_size=336, num_frames=16),
}


# Fields of computation and training, in which models with the same weights may differ.
COMPUTE_FIELDS = (
  'dtype', 'residual_dtype', 'attention', 'remat', 'drop_path', 'patch_dropout', 'prompt_alpha',
  'merge_tokens', 'int8_kernels',
)


# Fields of ViFi-CLIP: CLIP's image tower on every frame, and the mean of the frame features.
FRAME_MEAN = dict(messages=False, mit=False, prompt=False)


def make_config(variant: str, **fields) -> XCLIPConfig:
  """Looks up a published size and replaces some of its fields.

  Raises:
    UserError: unknown variant or field.
  """
  if variant not in VARIANTS:
    raise UserError(f'unknown variant {variant!r}; one of {list(VARIANTS)}')
  unknown = set(fields) - {f.name for f in dataclasses.fields(XCLIPConfig)}
  if unknown:
    raise UserError(f'XCLIPConfig has no field {sorted(unknown)}')
  return dataclasses.replace(VARIANTS[variant], **fields)


def config_of_run(model: Any) -> XCLIPConfig:
  """Returns the architecture of a run, whose `config.model` is a variant and changed fields.

  Raises:
    UserError: unknown variant or field.
  """
  direct = {k: v for k, v in model.items() if k != 'fields'}
  return make_config(**(direct | dict(model['fields'])))


def with_available_attention(config: XCLIPConfig) -> XCLIPConfig:
  """Falls back from cuDNN to XLA attention without a GPU or with float32."""
  has_cudnn = jax.default_backend() == 'gpu' and config.dtype == 'bfloat16'
  return config if has_cudnn or config.attention != 'cudnn' else dataclasses.replace(
    config, attention='xla')
