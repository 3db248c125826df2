"""Checks of the tokenizer files beside weights: they must be those of CLIP's tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xclip_jax.errors import UserError
from xclip_jax.weights.configs.section import Section, read_json, show

FILES = ('tokenizer_config.json', 'vocab.json', 'tokenizer.json')
CLASSES = ('CLIPTokenizer', 'CLIPTokenizerFast', None)
_WHY = 'texts are written with CLIP\'s tokenizer, and the model would read other words'


def check(folder: Path) -> None:
  """Raises UserError if a folder holds the files of another tokenizer than CLIP's.

  Tokens that were added to CLIP's are no difference: texts are written without them.
  """
  config, vocabulary, whole = (folder / name for name in FILES)
  if config.is_file():
    Section(config.name, read_json(config)).choice('tokenizer_class', CLASSES, None, _WHY)
  if vocabulary.is_file():
    _compare(vocabulary.name, read_json(vocabulary))
  elif whole.is_file():
    model = Section(whole.name, read_json(whole)).section('model')
    _compare(whole.name, model.section('vocab').content)


def _compare(file: str, ids: Mapping[str, Any]) -> None:
  """Raises UserError unless every token of CLIP's has CLIP's id."""
  from xclip_jax.text import tokenizer  # its libraries are missing on a bare machine
  _, _, wanted = tokenizer.vocabulary()
  differing = ((token, i) for token, i in wanted.items() if ids.get(token) != i)
  token, number = next(differing, (None, 0))
  if token is None:
    return
  raise UserError(
    f'{file} is not the vocabulary of CLIP: it holds {len(ids)} tokens, and the id of {token!r} is '
    f'{show(ids.get(token))}, not {number}; {_WHY}')
