"""Weight files for other programs: Hugging Face, the reference, OpenAI's CLIP; and for this one."""

import contextlib
import functools
import glob
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tqdm

from xclip_jax import files
from xclip_jax.errors import ExistsError, UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.text import tokenizer
from xclip_jax.weights import apply, architecture, native, rules
from xclip_jax.weights.export import huggingface
from xclip_jax.weights.files import archive

# Format, as --to takes it -> dialect of its parameter names (a key of rules.DIALECTS).
DIALECTS = {'hf': 'huggingface', 'official': 'official', 'openai': 'openai'}
TARGETS = ('native', *DIALECTS)
_FOLDERS = ('native', 'hf')
_LARGE = 64 << 20       # bytes of parameters from which on a progress bar is shown
_TOWERS = {'official': ('vision', 'text', 'mit', 'prompt'), 'openai': ('vision', 'text')}


def save(
  weights: native.Weights, target: str, destination: str | os.PathLike, overwrite: bool = False
) -> Path:
  """Writes weights in a format, whole or not at all.

  Args:
    weights: as `opening.open_weights` returns them.
    target: one of TARGETS. 'native' and 'hf' are folders, 'official' and 'openai' one file each.
    destination: path of the folder or file.
    overwrite: replace an existing file, or an existing folder that holds weights.

  Returns:
    The absolute path that was written.

  Raises:
    UserError: the format cannot express this architecture.
    ExistsError: the destination exists and must not be replaced.
  """
  check_target(weights.config, target)
  check_destination(destination, target, overwrite)
  destination = Path(destination).expanduser().resolve()
  destination.parent.mkdir(parents=True, exist_ok=True)
  with _progress(destination, sum(x.nbytes for x in tree_names.flatten(weights.params).values())):
    if target == 'native':
      native.save(destination, weights, overwrite)
    elif target == 'hf':
      check_replaceable = functools.partial(native.check_free, overwrite=overwrite)
      with files.atomic_folder(destination, check_replaceable) as folder:
        huggingface.write_folder(folder, weights)
    else:
      state = apply.to_state_dict(weights.params, DIALECTS[target])
      archive.write_torch(destination, state, wrap='model' if target == 'official' else None)
  return destination


def check_destination(destination: str | os.PathLike, target: str, overwrite: bool) -> None:
  """Raises ExistsError if the destination exists and must not be replaced."""
  files.check_scheme(destination, 'DST', bucket=False)
  path = Path(destination).expanduser().resolve()
  if target in _FOLDERS:
    native.check_free(path, overwrite)
  elif path.is_dir():
    raise ExistsError(f'{path} is a folder, and --to {target} writes one file; name the file')
  elif path.exists() and not overwrite:
    raise ExistsError(f'{path} exists; choose another name, or --overwrite it')


def check_target(config: XCLIPConfig, target: str) -> None:
  """Raises UserError, listing every field of `config` that the format cannot express."""
  problems, reference = [], architecture.reference_heads(vars(config))
  if target == 'hf' and config.vision_activation != config.mit_activation:
    problems.append(
      f'vision_activation={config.vision_activation!r} and mit_activation='
      f'{config.mit_activation!r}: one field, vision_config.hidden_act, holds both')
  for tower in _TOWERS.get(target, ()):
    heads, rule = getattr(config, f'{tower}_heads'), reference[f'{tower}_heads']
    if heads != rule:
      problems.append(
        f'{tower}_heads={heads}: it always takes {architecture.WIDTHS[tower]} // '
        f'{architecture.HEAD_WIDTH} = {rule}')
    activation = getattr(config, f'{tower}_activation')
    if activation != 'quick_gelu':
      problems.append(f'{tower}_activation={activation!r}: it always takes quick_gelu')
  if problems:
    limit, other = (
      ('config.json of --to hf cannot say', 'native') if target == 'hf' else
      (f'a file of --to {target} holds tensors only and cannot say', 'hf or native'))
    raise UserError(f'{limit} (use --to {other}):\n  ' + '\n  '.join(problems))


def remarks(weights: native.Weights, target: str) -> list[str]:
  """Returns a line for each thing that the format leaves out or does in another way."""
  config, preprocess, lines = weights.config, weights.preprocess, []
  if target == 'native':
    return lines
  if target == 'hf':
    lines += _remarks_on_hf(weights)
  if target == 'openai':
    lines.append(
      'message, integration and prompt modules are dropped, as CLIP has none; the image tower was '
      'trained with its messages and is another model without them')
  if target in _TOWERS:
    lines.append(
      'the file holds tensors only; who uses it must know how frames become input: '
      + describe_preprocess(preprocess, config.image_size))
    widths = {f'{t}_mlp': architecture.WIDTHS[t] for t in _TOWERS[target] if t != 'prompt'}
    unusual = [
      f'{mlp}={getattr(config, mlp)}' for mlp, width in widths.items()
      if getattr(config, mlp) != 4 * getattr(config, width)]
    if unusual:
      lines.append(
        f'{", ".join(unusual)} is not 4 x the width: this program reads such a file, code of '
        'others does not')
  if weights.template != '{}':
    lines.append(
      f'the format has no field for the prompt template {weights.template!r}; write texts so')
  if config.drop_path:
    lines.append(f'drop_path={config.drop_path} matters in training only and is not in it')
  return lines


def _remarks_on_hf(weights: native.Weights) -> list[str]:
  lines = []
  if weights.preprocess.filter == 'opencv':
    lines.append(
      'preprocessor_config.json resizes with an antialiased filter, as Hugging Face always does; '
      'these weights were used with one that is not (OpenCV\'s), so pixels, and probabilities '
      'after them, differ a little. Sizes are as they were: '
      f'{_describe_size(weights.preprocess, weights.config.image_size)}')
  if weights.config.vocab_size != tokenizer.Tokenizer.vocab_size:
    lines.append(
      f'no tokenizer files: the vocabulary has {weights.config.vocab_size} tokens, CLIP\'s has '
      f'{tokenizer.Tokenizer.vocab_size}')
  return lines


def describe_preprocess(preprocess: native.Preprocess, image_size: int) -> str:
  """Returns one line that says how a frame becomes input of the model."""
  numbers = lambda values: '/'.join(f'{x:g}' for x in values)
  return (
    f'{_describe_size(preprocess, image_size)}, mean {numbers(preprocess.mean)}, std '
    f'{numbers(preprocess.std)}')


def _describe_size(preprocess: native.Preprocess, image_size: int) -> str:
  pixels = huggingface.resized_pixels(preprocess, image_size)
  match sorted(pixels):
    case []:
      resized = 'no resizing'
    case ['height', 'width']:
      resized = f'stretched to {pixels["height"]} x {pixels["width"]} ({preprocess.filter})'
    case ['max_height', 'max_width']:
      resized = f'within {pixels["max_height"]} x {pixels["max_width"]} ({preprocess.filter})'
    case _:
      limit = f', long side at most {pixels["longest_edge"]}' if 'longest_edge' in pixels else ''
      resized = f'short side {pixels["shortest_edge"]}{limit} ({preprocess.filter})'
  return f'{resized}, centre {image_size}'


def count_parameters(params: Any, target: str) -> int:
  """Counts the parameters that the format keeps."""
  dropped = rules.NEW_PARAMETERS if target == 'openai' else '$'
  flat = tree_names.flatten(params)
  return sum(x.size for name, x in flat.items() if not tree_names.matches(dropped, name))


@contextlib.contextmanager
def _progress(destination: Path, total: int) -> Iterator[None]:
  """Shows a bar of the bytes on disk while a large file is written.

  The writers have no callback: a thread polls the size of the hidden files beside `destination`.
  """
  before, done = _bytes_written(destination), threading.Event()
  with tqdm.tqdm(
    total=total, unit='B', unit_scale=True, desc=f'writing {destination.name}', file=sys.stderr,
    leave=False, disable=None if total >= _LARGE else True,
  ) as bar:
    def watch() -> None:
      while not done.wait(0.2):
        bar.update(min(_bytes_written(destination) - before, total) - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    if not bar.disable:
      thread.start()
    try:
      yield
    finally:
      done.set()
      if thread.is_alive():
        thread.join()


def _bytes_written(destination: Path) -> int:
  """Returns the size of the hidden files beside `destination` that will become it."""
  size, name = 0, glob.escape(destination.name)
  for path in (x for pattern in (f'.{name}.*.tmp', f'.*.partial.{name}')
               for x in destination.parent.glob(pattern)):
    for file in (path, *path.rglob('*')) if path.is_dir() else (path,):
      with contextlib.suppress(OSError):      # the file has just been renamed
        size += file.stat().st_size if file.is_file() else 0
  return size
