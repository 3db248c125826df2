"""Our tokenizer as `tokenizer.json`, the file that the libraries called tokenizers load.

The Rust library (PyPI `tokenizers`) and the JavaScript one (npm `@huggingface/tokenizers`) then
give the ids of `xclip_jax.text.tokenizer`. The file spells out the characters of each class, so
that words are cut alike whatever version of Unicode a library or a browser has.

These texts differ, because the file cannot express what is done to them:

- HTML entities: ours alone reads `&amp;` as `&`.
- Wrongly decoded text: ours repairs 'cafÃ©' to 'café' (ftfy.fix_encoding).
- Code points that are new: those that this Python's Unicode does not know yet may have a lower
  case or a composition in a library. The Rust library orders combining marks by Unicode 9: two
  marks on a letter, one of them newer, may keep the order in which they were typed.
- Lone surrogates, which are no characters: ours reads U+FFFD, JavaScript leaves them out, and the
  Rust library refuses the text.

The Rust library also cuts and pads rows to context_length. JavaScript's ignores both fields: its
caller has to do what `Tokenizer.__call__` does.
"""

import functools
import itertools
import sys
from collections.abc import Iterable
from typing import Any

import regex
from ftfy import chardata, fixes

from xclip_jax.text import tokenizer

_START, _END = '<|startoftext|>', '<|endoftext|>'
_PAD = 0                                          # the id of '!', which CLIP pads with
# A special token, and what looks like one to a pattern that ignores case: ſ is a small s.
_SPECIAL = r'<\|(?:[sſ]tart|end)oftext\|>'
_CONTRACTIONS = "'[sſ]|'t|'re|'ve|'m|'ll|'d"


def tokenizer_json(context_length: int) -> dict[str, Any]:
  """Builds the content of `tokenizer.json`.

  Args:
    context_length: number of ids in a row. Longer texts are cut and keep the end token last;
      shorter ones are padded with 0.

  Returns:
    A dict for json.dump.

  Raises:
    UserError: context_length cannot hold the start and end tokens.
  """
  length = tokenizer.Tokenizer(context_length).context_length
  ranks, tokens, ids = tokenizer.vocabulary()
  return {
    'version': '1.0',
    'truncation': {
      'direction': 'Right', 'max_length': length, 'strategy': 'LongestFirst', 'stride': 0},
    'padding': {
      'strategy': {'Fixed': length}, 'direction': 'Right', 'pad_to_multiple_of': None,
      'pad_id': _PAD, 'pad_type_id': 0, 'pad_token': tokens[_PAD]},
    'added_tokens': [_added_token(ids[token], token) for token in (_START, _END)],
    'normalizer': {'type': 'Sequence', 'normalizers': _normalizers()},
    'pre_tokenizer': _pre_tokenizer(),
    'post_processor': _post_processor(ids),
    'decoder': {'type': 'Sequence', 'decoders': [
      {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False},
      {'type': 'Replace', 'pattern': {'Regex': r'</w>\z'}, 'content': ''},
      {'type': 'Replace', 'pattern': {'String': '</w>'}, 'content': ' '}]},
    'model': {
      'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
      'end_of_word_suffix': '</w>', 'fuse_unk': False, 'byte_fallback': False,
      'ignore_merges': False, 'vocab': dict(ids), 'merges': [list(pair) for pair in ranks]},
  }


def _added_token(token_id: int, content: str) -> dict[str, Any]:
  # Looked for after normalisation: ours lowers the case of '<|ENDOFTEXT|>' first, too.
  return {'id': token_id, 'content': content, 'single_word': False, 'lstrip': False,
          'rstrip': False, 'normalized': True, 'special': True}


def _normalizers() -> list[dict[str, Any]]:
  """Lists the steps of cleaning, in the order of ftfy.fix_text and then `_clean`."""
  classes = character_classes()
  cased, ignorable = classes['cased'], classes['ignorable']
  return [
    *(_replace('String', char, content) for char, content in _single_characters().items()),
    _replace('Regex', r'\x1b\[[\p{Nd};]*[A-Za-z]', ''),          # colours of a terminal
    _replace('Regex', f'[{_ranges(map(chr, chardata.CONTROL_CHARS))}]', ''),
    {'type': 'NFC'},
    # The Rust library lowers character by character, and so never to a final sigma.
    _replace('Regex', f'(?<=[{cased}][{ignorable}]*)Σ(?![{ignorable}]*[{cased}])', 'ς'),
    {'type': 'Lowercase'},
    # A library sees special tokens anywhere in a text; our pattern sees them where a word can
    # begin, which is not after a punctuation mark. There, a space breaks the token into the words
    # that our pattern makes of it. Special tokens in a row stand or break together.
    _replace('Regex', rf'(?<!(?:\A|[^{classes["other"]}])(?:{_SPECIAL})*)<\|'
                      r'(?=(?:start|end)oftext\|>)', '<| '),
  ]


def _replace(kind: str, pattern: str, content: str) -> dict[str, Any]:
  return {'type': 'Replace', 'pattern': {kind: pattern}, 'content': content}


def _single_characters() -> dict[str, str]:
  """Returns the characters that ftfy replaces one by one: C1 controls, ligatures, widths, quotes.

  The C1 controls come first: some become quotes, which later entries do not see again.
  """
  widths = {**chardata.LIGATURES, **chardata.WIDTH_MAP}
  quotes = [0x02bc, *range(0x2018, 0x2020)]
  return {
    char: content for char in map(chr, (*range(0x80, 0xa0), *widths, *quotes))
    if (content := fixes.uncurl_quotes(fixes.fix_c1_controls(char).translate(widths))) != char}


def _pre_tokenizer() -> dict[str, Any]:
  """Splits into words by the tokenizer's pattern, then into the letters of its vocabulary."""
  classes = character_classes()
  word = (f'{_SPECIAL}|{_CONTRACTIONS}|[{classes["letter"]}]+|[{classes["number"]}]'
          f'|[{classes["other"]}]+')
  return {'type': 'Sequence', 'pretokenizers': [
    {'type': 'Split', 'pattern': {'Regex': word}, 'behavior': 'Removed', 'invert': True},
    {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}]}


def _post_processor(ids: dict[str, int]) -> dict[str, Any]:
  """Puts the start token before a text and the end token behind it."""
  special = lambda token: {'SpecialToken': {'id': token, 'type_id': 0}}
  part = lambda name: [
    special(_START), {'Sequence': {'id': name, 'type_id': 0}}, special(_END)]
  return {
    'type': 'TemplateProcessing', 'single': part('A'), 'pair': [*part('A'), *part('B')],
    'special_tokens': {
      token: {'id': token, 'ids': [ids[token]], 'tokens': [token]} for token in (_START, _END)}}


@functools.cache
def character_classes() -> dict[str, str]:
  """Returns the insides of bracket expressions: 'A-Za-z...' for letters and so on.

  `letter`, `number` and `other` are what the tokenizer's pattern means by \\p{L}, \\p{N} and
  [^\\s\\p{L}\\p{N}]; what is in none of them separates words. `cased` and `ignorable` are the
  letters around a final sigma, by Unicode's definition.
  """
  surrogates = range(0xd800, 0xe000)
  every = ''.join(chr(i) for i in range(sys.maxunicode + 1) if i not in surrogates)
  # The flag matters: without regard to case U+0345 is the letter iota, and so is no `other`.
  find = lambda pattern: regex.findall(pattern, every, regex.IGNORECASE)
  ignorable = set(regex.findall(r'\p{Case_Ignorable}', every))
  cased = set(regex.findall(r'\p{Cased}', every)) - ignorable
  return {
    'letter': _ranges(find(r'\p{L}')), 'number': _ranges(find(r'\p{N}')),
    'other': _ranges(find(r'[^\s\p{L}\p{N}]')), 'cased': _ranges(cased),
    'ignorable': _ranges(ignorable)}


def _ranges(characters: Iterable[str]) -> str:
  """Writes characters as ranges of a bracket expression; ASCII, which has syntax, as \\xHH."""
  write = lambda number: f'\\x{number:02x}' if number < 128 else chr(number)
  numbers = sorted(map(ord, characters))
  # In a run of neighbours, number minus position is constant.
  runs = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
  ends = ((run[0][1], run[-1][1]) for run in (list(group) for _, group in runs))
  return ''.join(write(a) if a == b else f'{write(a)}-{write(b)}' for a, b in ends)
