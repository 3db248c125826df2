"""CLIP's byte-pair tokenizer: texts -> int32 token ids, equal to the reference's id for id."""

import contextlib
import functools
import gzip
import html
import importlib.resources
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import ftfy
import numpy as np
import regex

from xclip_jax.errors import UserError
from xclip_jax.text import vocabulary as vocabulary_lib

_SPECIAL = ('<|startoftext|>', '<|endoftext|>')
_SOT, _EOT = 49406, 49407
_WORD = regex.compile(
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
  regex.IGNORECASE)


@functools.cache
def _alphabet() -> dict[int, str]:
  """Gives each byte a printable character, in the order of the vocabulary's first 256 ids.

  Bytes that print in Latin-1 stand for themselves, the rest for characters from 256 on (GPT-2).
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [byte for byte in range(256) if byte not in printable]
  return {**{byte: chr(byte) for byte in printable},
          **{byte: chr(256 + i) for i, byte in enumerate(rest)}}


@functools.cache
def vocabulary() -> tuple[dict[tuple[str, ...], int], tuple[str, ...], dict[str, int]]:
  """Reads the merges: rank of each pair, token of each id, id of each token."""
  file = importlib.resources.files('xclip_jax') / 'assets' / 'bpe_merges.txt.gz'
  lines = gzip.decompress(file.read_bytes()).decode().splitlines()[1:]    # the first is a header
  merges = [tuple(line.split()) for line in lines]
  letters = list(_alphabet().values())
  tokens = (*letters, *(letter + '</w>' for letter in letters), *map(''.join, merges), *_SPECIAL)
  return ({pair: rank for rank, pair in enumerate(merges)}, tokens,
          {token: i for i, token in enumerate(tokens)})


@functools.lru_cache(maxsize=1 << 16)
def _encode_word(word: str) -> tuple[int, ...]:
  """Merges the letters of one word, pairs that were learnt first before others."""
  ranks, _, ids = vocabulary()
  if word in _SPECIAL:
    return (ids[word],)
  *parts, last = (_alphabet()[byte] for byte in word.encode())
  parts.append(last + '</w>')
  while len(parts) > 1:
    order = [ranks.get(pair, math.inf) for pair in itertools.pairwise(parts)]
    rank = min(order)
    if rank == math.inf:
      break
    i = order.index(rank)
    parts[i:i + 2] = [parts[i] + parts[i + 1]]
  return tuple(ids[part] for part in parts)


def _clean(text: str) -> str:
  """Repairs encoding errors and HTML, joins white space, lowers the case."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return regex.sub(r'\s+', ' ', text.strip()).strip().lower()


class TextTooLongError(UserError):
  """A text has more tokens than the model reads."""

  def __init__(self, reason: str, advice: str):
    super().__init__(f'{reason}; {advice}')
    self.reason = reason


@contextlib.contextmanager
def advise(advice: str) -> Iterator[None]:
  """Lets errors about texts that are too long end with what their caller can do about them."""
  try:
    yield
  except TextTooLongError as error:
    raise TextTooLongError(error.reason, advice) from error


class Tokenizer:
  """Turns texts into rows of ids: start token, text, end token, zeros up to context_length."""

  vocab_size = vocabulary_lib.SIZE
  sot_token = _SOT
  eot_token = _EOT

  def __init__(self, context_length: int = 77):
    if context_length < 2:
      raise UserError(f'context_length must hold the start and end tokens, so be at least 2; '
                       f'got {context_length}')
    self.context_length = context_length

  def __call__(self, texts: str | Iterable[str], truncate: bool = False) -> np.ndarray:
    """Tokenizes one or more texts: int32 [N, context_length].

    Args:
      texts: N texts; a single string is one text.
      truncate: cut longer texts, keeping the end token last, instead of refusing them.

    Raises:
      TextTooLongError: a text has more tokens than fit and truncate is False.
      TypeError: something is not a string.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = np.zeros((len(texts), self.context_length), np.int32)
    for i, text in enumerate(texts):
      if not isinstance(text, str):
        raise TypeError(f'texts[{i}] must be a string, got {type(text).__name__}')
      ids = [_SOT, *self.encode(text), _EOT]
      if len(ids) > self.context_length:
        if not truncate:
          raise TextTooLongError(
            f'texts[{i}] ({text[:60]!r}) has {len(ids)} tokens with start and end, and '
            f'context_length is {self.context_length}',
            'shorten it, or call the tokenizer with truncate=True')
        ids = [*ids[:self.context_length - 1], _EOT]
      rows[i, :len(ids)] = ids
    return rows

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without start and end token and of any length."""
    return [i for word in _WORD.findall(_clean(text)) for i in _encode_word(word)]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids or of one row: lower case, a space between words.

    A start token in front, and all from the first end token on, is left out. Encoding the text
    gives the ids again. Raises ValueError for an id that is not in the vocabulary.
    """
    _, tokens, _ = vocabulary()
    ids = list(itertools.takewhile(lambda i: i != _EOT, map(int, ids)))
    if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
      raise ValueError(f'ids must be from 0 to {self.vocab_size - 1}, got {min(ids)} to {max(ids)}')
    joined = ''.join(tokens[i] for i in ids[ids[:1] == [_SOT]:]).replace('</w>', ' ')
    letters = {letter: byte for byte, letter in _alphabet().items()}
    # A space is not in the alphabet: it can only stand for the end of a word.
    return bytes(letters.get(letter, 32) for letter in joined).decode(errors='replace').strip()


def bucket(token_ids: np.ndarray, lengths: Sequence[int] = (16, 32, 77)) -> np.ndarray:
  """Cuts columns that no text needs: [N, S] -> [N, L], L the least of lengths that holds all ends.

  Exact for a causal text tower read at the end token, whatever the padding (zeros or end tokens):
  nothing after it can change what is read. A few lengths keep the number of compilations small.
  """
  ends = token_ids == _EOT
  if not ends.any(1).all():
    row = int(np.argmin(ends.any(1)))
    raise ValueError(f'token_ids[{row}] has no end token ({_EOT}); make rows with Tokenizer()')
  needed = ends.argmax(1).max(initial=0) + 1
  return token_ids[:, :min((length for length in lengths if length >= needed), default=None)]


def write_prompts(
  labels: Sequence[str], template: str = '{}', context_length: int = 77, truncate: bool = False
) -> np.ndarray:
  """Writes labels into the prompt template: int32 [K, S], S as short as they allow.

  Args:
    labels: K texts.
    template: with {} for the label.
    context_length: most tokens that the model reads.
    truncate: cut longer texts, keeping the end token last, instead of refusing them.

  Raises:
    UserError: the template has no {} for the label, or a text is too long.
  """
  if '{}' not in template:
    raise UserError(f'the prompt template {template!r} must hold {{}} for the class name')
  texts = [template.replace('{}', label) for label in labels]
  with advise('shorten it'):
    return bucket(Tokenizer(context_length)(texts, truncate))
