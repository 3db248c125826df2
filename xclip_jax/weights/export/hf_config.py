"""The architecture of a model as transformers names it. Needs JAX and Flax alone."""

from typing import Any

from xclip_jax.models.config import XCLIPConfig


def make(config: XCLIPConfig) -> dict[str, Any]:
  """Returns the architecture as transformers.XCLIPConfig has it, no field left to a default."""
  return {
    'architectures': ['XCLIPModel'],
    'model_type': 'xclip',
    'dtype': 'float32',
    'projection_dim': config.embed_dim,
    'prompt_layers': config.prompt_layers,
    'prompt_num_attention_heads': config.prompt_heads,
    'prompt_hidden_act': config.prompt_activation,
    'prompt_alpha': config.prompt_alpha,
    'prompt_attention_dropout': 0.0,
    'prompt_projection_dropout': 0.0,
    'logit_scale_init_value': 2.6592,
    'initializer_factor': 1.0,
    'text_config': _text_config(config),
    'vision_config': _vision_config(config),
  }


def _text_config(config: XCLIPConfig) -> dict[str, Any]:
  return {
    'model_type': 'xclip_text_model',
    'vocab_size': config.vocab_size,
    'max_position_embeddings': config.context_length,
    'hidden_size': config.text_width,
    'num_hidden_layers': config.text_layers,
    'num_attention_heads': config.text_heads,
    'intermediate_size': config.text_mlp,
    'hidden_act': config.text_activation,
    'layer_norm_eps': 1e-5,
    'attention_dropout': 0.0,
    'initializer_range': 0.02,
    'initializer_factor': 1.0,
    # The ids of X-CLIP models on the hub, not CLIP's: eos_token_id 2 makes transformers take the
    # text feature at the largest id, as CLIP does.
    'bos_token_id': 0,
    'eos_token_id': 2,
    'pad_token_id': 1,
  }


def _vision_config(config: XCLIPConfig) -> dict[str, Any]:
  return {
    'model_type': 'xclip_vision_model',
    'image_size': config.image_size,
    'patch_size': config.patch_size,
    'num_frames': config.num_frames,
    'num_channels': 3,
    'hidden_size': config.vision_width,
    'num_hidden_layers': config.vision_layers,
    'num_attention_heads': config.vision_heads,
    'intermediate_size': config.vision_mlp,
    'hidden_act': config.vision_activation,
    'mit_hidden_size': config.embed_dim,
    'mit_num_hidden_layers': config.mit_layers,
    'mit_num_attention_heads': config.mit_heads,
    'mit_intermediate_size': config.mit_mlp,
    'layer_norm_eps': 1e-5,
    'attention_dropout': 0.0,
    'drop_path_rate': 0.0,
    'initializer_range': 0.02,
    'initializer_factor': 1.0,
  }
