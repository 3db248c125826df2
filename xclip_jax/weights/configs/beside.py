"""Choice of the weight file in a folder, and of the JSON files beside it that describe it."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from xclip_jax.errors import UserError
from xclip_jax.weights import rules
from xclip_jax.weights.configs import huggingface, open_clip, processor, tokenizer_files
from xclip_jax.weights.configs.section import read_json

_HF = 'config.json'
# Files with weights in a folder, in the order of preference, each with its config file.
WEIGHT_FILES = (
  ('model.safetensors', _HF), ('model.safetensors.index.json', _HF),
  ('pytorch_model.bin', _HF), ('pytorch_model.bin.index.json', _HF),
  ('open_clip_model.safetensors', open_clip.FILE), ('open_clip_pytorch_model.bin', open_clip.FILE),
)
# JSON files that may describe weights, whatever the file with weights is called.
DESCRIPTIONS = (
  _HF, open_clip.FILE, processor.FILE, processor.NESTING_FILE, *tokenizer_files.FILES)
# model.fp16.safetensors, pytorch_model.bf16.bin, model.safetensors.index.fp16.json.
_VARIANT = re.compile(
  r'(?:(?:open_clip_)?(?:pytorch_)?model)(?:\.(?P<file>[\w-]+)\.(?:safetensors|bin)'
  r'|\.(?:safetensors|bin)\.index\.(?P<index>[\w-]+)\.json)')
_SHARD = re.compile(r'.*-\d+-of-\d+\.\w+')
_ENDINGS = ('.safetensors', '.bin', '.pt', '.pth', '.ckpt')
# What programs write beside weights: states of the optimizer, random numbers, adapters, other
# towers.
_NOT_WEIGHTS = re.compile(
  r'(?:training_args|optimizer|scheduler|scaler|rng_state|random_states?|trainer_state|adapter_'
  r'|sampler|dataloader|tf_model|flax_model).*', re.IGNORECASE)


def choose_weights(names: Collection[str]) -> str | None:
  """Returns the one file of a folder that holds the weights; None without any.

  These are: one of WEIGHT_FILES, the first that there is; else the only variant of one, as
  model.fp16.safetensors; else the only file that ends like weights.

  Raises:
    UserError: there are several, and nothing says which one is meant.
  """
  named = next((name for name, _ in WEIGHT_FILES if name in names), None)
  if named:
    return named
  others = sorted(
    name for name in names
    if not _SHARD.fullmatch(name) and not _NOT_WEIGHTS.fullmatch(name)
    and not name.startswith('.'))
  variants = {name: match for name in others if (match := _VARIANT.fullmatch(name))}
  kinds = {match['file'] or match['index'] for match in variants.values()}
  if len(kinds) == 1:          # the same weights in two formats: safetensors are preferred
    return min(variants, key=lambda name: ('safetensors' not in name, 'index' in name))
  candidates = [*variants] or [name for name in others if name.lower().endswith(_ENDINGS)]
  if len(candidates) > 1:
    raise UserError(f'holds several files with weights; name one of them: {", ".join(candidates)}')
  return candidates[0] if candidates else None


def find_weights(path: Path) -> Path:
  """Returns the file with weights of a file or a folder; UserError says what a folder holds."""
  if path.is_file():
    return path
  names = sorted(x.name for x in path.iterdir())
  try:
    name = choose_weights([x for x in names if (path / x).is_file()])
  except UserError as error:
    raise UserError(f'{path} {error}') from error
  if name is None:
    raise UserError(
      f'{path} holds no weights: none of {", ".join(name for name, _ in WEIGHT_FILES)}; '
      f'it holds {", ".join(names[:8]) or "nothing"}. Name the file itself if it is called '
      'otherwise.')
  return path / name


def find_config(weights: Path, dialect: str) -> tuple[Path | None, list[str]]:
  """Finds the config that describes a file with weights, in the same folder.

  A config of transformers' belongs to names of Hugging Face's, one of open_clip's to names of
  OpenAI's CLIP; each is taken for the other names if it is alone. A config.json of another program
  is no description, unless the weights have the name that goes with it.

  Args:
    weights: the file.
    dialect: a key of rules.DIALECTS.

  Returns:
    The config, None without one; and a note for each file that is not followed.
  """
  named = dict(WEIGHT_FILES).get(weights.name)
  kinds: dict[str, Callable[..., bool]] = {
    _HF: huggingface.looks_like_one, open_clip.FILE: open_clip.looks_like_one}
  if dialect.startswith('huggingface'):
    order = [_HF]
  elif 'open_clip' in weights.name or dialect in rules.CLIP_DIALECTS:
    order = [open_clip.FILE, _HF]
  else:
    order = [_HF, open_clip.FILE]
  notes = []
  for name in order:
    file = weights.with_name(name)
    if not file.is_file():
      continue
    if name == named or name == open_clip.FILE or kinds[name](read_json(file)):
      return file, notes
    notes.append(f'{name} beside the weights is not one of transformers, and is not used')
  return None, notes
