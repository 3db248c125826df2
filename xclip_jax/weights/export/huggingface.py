"""A folder as transformers reads it: its config, preprocessing, tokenizer and parameters."""

import json
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.text import tokenizer
from xclip_jax.weights import apply, native
from xclip_jax.weights.export import hf_config
from xclip_jax.weights.files import archive


def write_folder(folder: Path, weights: native.Weights) -> None:
  """Writes the files that `transformers.XCLIPModel.from_pretrained` reads, and a licence note."""
  _write_json(folder / 'config.json', hf_config.make(weights.config))
  _write_json(folder / 'preprocessor_config.json', hf_preprocessor(weights))
  if weights.config.vocab_size == tokenizer.Tokenizer.vocab_size:
    write_tokenizer(folder, weights.config.context_length)
  source = weights.source
  if Path(source).exists():            # a path of this machine says nothing on another one
    source = Path(source).name
  files.write_text(
    folder / 'LICENSE',
    f'Weights converted by xclip-jax from: {source or "unknown"}\n'
    f'Licence of these weights: {weights.licence}\n')
  state = apply.to_state_dict(weights.params, 'huggingface')
  archive.write_safetensors(folder / 'model.safetensors', state, {'format': 'pt'})


def write_tokenizer(folder: Path, context_length: int) -> None:
  """Writes the files that `transformers.CLIPTokenizer` reads."""
  ranks, _, ids = tokenizer.vocabulary()
  merges = ['#version: 0.2', *(' '.join(pair) for pair in ranks)]
  files.write_text(folder / 'merges.txt', '\n'.join(merges) + '\n')
  files.write_text(folder / 'vocab.json', json.dumps(ids, ensure_ascii=False))
  start, end = '<|startoftext|>', '<|endoftext|>'
  special = {'bos_token': start, 'eos_token': end, 'unk_token': end, 'pad_token': end}
  _write_json(folder / 'special_tokens_map.json', special)
  _write_json(folder / 'tokenizer_config.json', {
    'tokenizer_class': 'CLIPTokenizer', 'processor_class': 'XCLIPProcessor',
    'model_max_length': context_length, 'do_lower_case': True, 'add_prefix_space': False, **special,
  })


def resized_pixels(preprocess: native.Preprocess, image_size: int) -> dict[str, int]:
  """Returns the size of a frame after resizing, before the crop, as transformers has it.

  It is empty if frames are not resized.
  """
  first, second = (                                # 230 / 224 * 224 < 230
    int(ratio * image_size + 1e-6) for ratio in (
      preprocess.resize_ratio, preprocess.second_ratio))
  match preprocess.resize:
    case 'none':
      return {}
    case 'stretch':
      return {'height': first, 'width': second}
    case 'fit':
      return {'max_height': first, 'max_width': second}
  return {'shortest_edge': first} | ({'longest_edge': second} if second else {})


def hf_preprocessor(weights: native.Weights) -> dict[str, Any]:
  """Returns the preprocessing as transformers.VideoMAEImageProcessor has it."""
  unit = lambda values: [round(x / 255, 8) for x in values]
  size = weights.config.image_size
  pixels = resized_pixels(weights.preprocess, size)
  return {
    'image_processor_type': 'VideoMAEImageProcessor',
    'do_resize': bool(pixels),
    'size': pixels or {'shortest_edge': size},
    'resample': native.RESAMPLE.get(weights.preprocess.filter, native.RESAMPLE['pillow']),
    # Without crop_size transformers crops to 224, whatever the model takes.
    'do_center_crop': True,
    'crop_size': {'height': size, 'width': size},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': unit(weights.preprocess.mean),
    'image_std': unit(weights.preprocess.std),
  }


def _write_json(path: Path, content: Any) -> None:
  files.write_text(path, json.dumps(content, indent=2) + '\n')
