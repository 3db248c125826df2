"""Weights in the formats of others: Hugging Face, the reference, OpenAI's CLIP."""

import contextlib
import functools
import glob
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tqdm

from convert.hf_config import hf_config
from xclip_jax import files
from xclip_jax.errors import ExistsError, UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.text import tokenizer
from xclip_jax.weights import apply, architecture, native
from xclip_jax.weights.files import archive

# What --to takes -> the names of its parameters (a key of rules.DIALECTS).
DIALECTS = {'hf': 'huggingface', 'official': 'official', 'openai': 'openai'}
TARGETS = ('native', *DIALECTS)
_FOLDERS = ('native', 'hf')
_LARGE = 64 << 20       # bytes from which on a bar is shown
_TOWERS = {'official': ('vision', 'text', 'mit', 'prompt'), 'openai': ('vision', 'text')}


def save(
  weights: native.Weights, target: str, destination: str | os.PathLike, overwrite: bool = False
) -> Path:
  """Writes weights in another format, whole or not at all.

  Args:
    weights: as `inference.open_weights` gives them.
    target: one of TARGETS. 'native' and 'hf' are folders, 'official' and 'openai' one file each.
    destination: its name.
    overwrite: replace what is there; a folder only if it holds weights.

  Returns:
    The absolute path that was written.

  Raises:
    ValueError: the format cannot say what this architecture is.
    FileExistsError: there is something of that name that may not be replaced.
  """
  check_target(weights.config, target)
  check_destination(destination, target, overwrite)
  destination = Path(destination).expanduser().resolve()
  destination.parent.mkdir(parents=True, exist_ok=True)
  with _progress(destination, sum(x.nbytes for x in tree_names.flatten(weights.params).values())):
    if target == 'native':
      native.save(destination, weights, overwrite)
    elif target == 'hf':
      replaceable = functools.partial(native.check_free, overwrite=overwrite)
      with files.atomic_folder(destination, replaceable) as folder:
        _fill_hf(folder, weights)
    else:
      state = _state_dict(weights, target)
      archive.write_torch(destination, state, wrap='model' if target == 'official' else None)
  return destination


def check_destination(destination: str | os.PathLike, target: str, overwrite: bool) -> None:
  """Raises FileExistsError if there is something of that name that may not be replaced."""
  files.check_scheme(destination, 'DST', bucket=False)
  path = Path(destination).expanduser().resolve()
  if target in _FOLDERS:
    native.check_free(path, overwrite)
  elif path.is_dir():
    raise ExistsError(f'{path} is a folder, and --to {target} writes one file; name the file')
  elif path.exists() and not overwrite:
    raise ExistsError(f'{path} exists; choose another name, or --overwrite it')


def check_target(config: XCLIPConfig, target: str) -> None:
  """Raises ValueError, listing every field of `config` that the format cannot express."""
  wrong, reference = [], architecture.reference_heads(vars(config))
  if target == 'hf' and config.vision_activation != config.mit_activation:
    wrong.append(
      f'vision_activation={config.vision_activation!r} and mit_activation='
      f'{config.mit_activation!r}: one field, vision_config.hidden_act, holds both'
    )
  for tower in _TOWERS.get(target, ()):
    heads, rule = getattr(config, f'{tower}_heads'), reference[f'{tower}_heads']
    if heads != rule:
      wrong.append(
        f'{tower}_heads={heads}: it always takes {architecture.WIDTHS[tower]} // '
        f'{architecture.HEAD_WIDTH} = {rule}'
      )
    activation = getattr(config, f'{tower}_activation')
    if activation != 'quick_gelu':
      wrong.append(f'{tower}_activation={activation!r}: it always takes quick_gelu')
  if wrong:
    what, other = (
      ('config.json of --to hf cannot say', 'native') if target == 'hf' else
      (f'a file of --to {target} holds tensors only and cannot say', 'hf or native')
    )
    raise UserError(f'{what} (use --to {other}):\n  ' + '\n  '.join(wrong))


def remarks(weights: native.Weights, target: str) -> list[str]:
  """Says, a line each, what the format leaves out or does otherwise."""
  config, preprocess, said = weights.config, weights.preprocess, []
  if target == 'native':
    return said
  if target == 'hf' and preprocess.filter == 'opencv':
    said.append(
      'preprocessor_config.json resizes with an antialiased filter, as Hugging Face always does; '
      'these weights were used with one that is not (OpenCV\'s), so pixels, and probabilities '
      f'after them, differ a little. The short side is {_short_side(weights)} before the '
      f'{config.image_size} crop, as it was'
    )
  if target == 'hf' and config.vocab_size != tokenizer.Tokenizer.vocab_size:
    said.append(
      f'no tokenizer files: the vocabulary has {config.vocab_size} tokens, CLIP\'s has '
      f'{tokenizer.Tokenizer.vocab_size}'
    )
  if target == 'openai':
    said.append(
      'message, integration and prompt modules are dropped, as CLIP has none; the image tower was '
      'trained with its messages and is another model without them'
    )
  if target in _TOWERS:
    said.append(
      'the file holds tensors only; who uses it must know how frames become input: '
      + say_preprocess(preprocess, config.image_size)
    )
    widths = {f'{t}_mlp': architecture.WIDTHS[t] for t in _TOWERS[target] if t != 'prompt'}
    wrong = [
      f'{mlp}={getattr(config, mlp)}' for mlp, width in widths.items()
      if getattr(config, mlp) != 4 * getattr(config, width)
    ]
    if wrong:
      said.append(
        f'{", ".join(wrong)} is not 4 x the width: this program reads such a file, code of others '
        'does not'
      )
  if weights.template != '{}':
    said.append(f'the prompt template {weights.template!r} has no place in it; write texts so')
  if config.drop_path:
    said.append(f'drop_path={config.drop_path} matters in training only and is not in it')
  return said


def say_preprocess(preprocess: native.Preprocess, image_size: int) -> str:
  """Says in one line how a frame becomes input."""
  numbers = lambda values: '/'.join(f'{x:g}' for x in values)
  return (
    f'short side {int(preprocess.resize_ratio * image_size)} ({preprocess.filter}), centre '
    f'{image_size}, mean {numbers(preprocess.mean)}, std {numbers(preprocess.std)}'
  )


def hf_preprocessor(weights: native.Weights) -> dict[str, Any]:
  """Writes the preprocessing as transformers.VideoMAEImageProcessor has it."""
  unit = lambda values: [round(x / 255, 8) for x in values]
  size = weights.config.image_size
  return {
    'image_processor_type': 'VideoMAEImageProcessor',
    'do_resize': True,
    'size': {'shortest_edge': _short_side(weights)},
    'resample': 2,
    # Without it transformers crops to 224 whatever the model takes.
    'do_center_crop': True,
    'crop_size': {'height': size, 'width': size},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': unit(weights.preprocess.mean),
    'image_std': unit(weights.preprocess.std),
  }


@contextlib.contextmanager
def _progress(destination: Path, total: int) -> Iterator[None]:
  """Shows a bar of the bytes on disk while a large file is written.

  The writers have no callback: a thread looks at the size of what will become `destination`.
  """
  before, done = _written(destination), threading.Event()
  with tqdm.tqdm(
    total=total, unit='B', unit_scale=True, desc=f'writing {destination.name}', file=sys.stderr,
    leave=False, disable=None if total >= _LARGE else True,
  ) as bar:
    def watch() -> None:
      while not done.wait(0.2):
        bar.update(min(_written(destination) - before, total) - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    if not bar.disable:
      thread.start()
    try:
      yield
    finally:
      done.set()
      if thread.is_alive():
        thread.join()


def _written(destination: Path) -> int:
  """Bytes under the hidden names that are made beside `destination`."""
  size = 0
  for path in destination.parent.glob(f'.{glob.escape(destination.name)}.*'):
    for file in (path, *path.rglob('*')) if path.is_dir() else (path,):
      with contextlib.suppress(OSError):      # it has just been renamed
        size += file.stat().st_size if file.is_file() else 0
  return size


def _short_side(weights: native.Weights) -> int:
  return int(weights.preprocess.resize_ratio * weights.config.image_size)


def _fill_hf(folder: Path, weights: native.Weights) -> None:
  _write_json(folder / 'config.json', hf_config(weights.config))
  _write_json(folder / 'preprocessor_config.json', hf_preprocessor(weights))
  if weights.config.vocab_size == tokenizer.Tokenizer.vocab_size:
    _write_tokenizer(folder, weights.config.context_length)
  source = weights.source
  if Path(source).exists():            # a place on this machine means nothing on another
    source = Path(source).name
  (folder / 'LICENSE').write_text(
    f'Weights converted by xclip-jax from: {source or "unknown"}\n'
    f'Licence of these weights: {weights.licence}\n'
  )
  archive.write_safetensors(
    folder / 'model.safetensors', _state_dict(weights, 'hf'), {'format': 'pt'}
  )


def _write_tokenizer(folder: Path, context_length: int) -> None:
  """Writes what transformers.CLIPTokenizer reads."""
  ranks, _, ids = tokenizer.vocabulary()
  merges = ['#version: 0.2', *(' '.join(pair) for pair in ranks)]
  (folder / 'merges.txt').write_text('\n'.join(merges) + '\n', encoding='utf-8')
  (folder / 'vocab.json').write_text(json.dumps(ids, ensure_ascii=False), encoding='utf-8')
  start, end = '<|startoftext|>', '<|endoftext|>'
  special = {'bos_token': start, 'eos_token': end, 'unk_token': end, 'pad_token': end}
  _write_json(folder / 'special_tokens_map.json', special)
  _write_json(folder / 'tokenizer_config.json', {
    'tokenizer_class': 'CLIPTokenizer', 'processor_class': 'XCLIPProcessor',
    'model_max_length': context_length, 'do_lower_case': True, 'add_prefix_space': False, **special,
  })


def _state_dict(weights: native.Weights, target: str) -> Any:
  return apply.to_state_dict(weights.params, DIALECTS[target])


def _write_json(path: Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=2) + '\n')
