"""Libraries that read tokenizer.json give our ids, but for the texts that its docstring excepts."""

import json
import pathlib
import shutil
import subprocess
import sys
import unicodedata

import hard_texts
import numpy as np
import pytest

from xclip_jax.errors import UserError
from xclip_jax.export.tokenizer_json import tokenizer_json
from xclip_jax.text.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = ROOT / 'tests/programs/print_token_ids.mjs'
LIBRARY = ROOT / 'web/node_modules/@huggingface/tokenizers'
LENGTH = 77


@pytest.fixture(scope='module')
def content() -> dict:
  return tokenizer_json(LENGTH)


@pytest.fixture(scope='module')
def theirs(content):
  """The Rust library with this file."""
  return pytest.importorskip('tokenizers').Tokenizer.from_str(json.dumps(content))


@pytest.fixture(scope='module')
def texts() -> list[str]:
  return hard_texts.draw(5100)


def differences(texts, expected, found):
  assert len(texts) == len(expected) == len(found)
  return [rows for rows in zip(texts, expected, found, strict=True) if rows[1] != rows[2]]


def test_the_ids_of_hard_texts_are_ours(theirs, texts):
  compose = pytest.importorskip('tokenizers').normalizers.NFC().normalize_str
  kept = [text for text in texts if compose(text) == unicodedata.normalize('NFC', text)]
  assert len(texts) - len(kept) < 5 and len(kept) > 5000    # the excepted: marks of Unicode 10...
  expected = Tokenizer(LENGTH)(kept, truncate=True).tolist()
  found = [encoding.ids for encoding in theirs.encode_batch(kept)]
  assert not differences(kept, expected, found)


def test_rows_are_cut_and_padded_as_ours(content):
  tokenizers = pytest.importorskip('tokenizers')
  for length in (2, 16):
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(length)))
    rows = [theirs.encode(text).ids for text in ('', 'a cat', 'a photo of a cat ' * 9)]
    np.testing.assert_array_equal(
      rows, Tokenizer(length)(['', 'a cat', 'a photo of a cat ' * 9], truncate=True))
  with pytest.raises(UserError, match='context_length'):
    tokenizer_json(1)


@pytest.mark.parametrize('text', [
  'rock &amp; roll', '&lt;|endoftext|&gt;', '&#39;s', 'cafÃ© society', 'donâ€™t'])
def test_what_ours_repairs_is_excepted(theirs, text):
  assert not hard_texts.is_comparable(text)
  assert theirs.encode(text).ids != Tokenizer(LENGTH)(text)[0].tolist()


@pytest.mark.parametrize('text', ['a photo of a cat', 'naïve café', '日本語 😀', '3 . 1', ''])
def test_decoding_gives_our_text(theirs, text):
  ids = Tokenizer(LENGTH)(text)[0]
  ours = Tokenizer(LENGTH).decode(ids)
  assert theirs.decode(ids[:ids.argmax() + 1].tolist()) == ours == text


@pytest.mark.slow
def test_every_character_of_unicode_has_our_ids(theirs):
  theirs.no_padding()
  theirs.no_truncation()
  ours = Tokenizer(LENGTH)
  is_same = lambda text: theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)
  words = [f'A{char}b' for char in map(chr, range(sys.maxunicode + 1))
           if unicodedata.category(char) not in ('Cn', 'Cs')]
  assert len(words) > 250_000
  # Of texts that differ, the words are looked at: some look wrongly decoded beside each other.
  parts = [words[i:i + 20] for i in range(0, len(words), 20)]
  different = [word for part in parts if not is_same(' '.join(part)) for word in part
               if not is_same(word)]
  assert not [word for word in different if hard_texts.is_comparable(word)]


@pytest.mark.slow
def test_the_javascript_library_gives_our_ids(content, texts, tmp_path):
  if not shutil.which('node') or not LIBRARY.is_dir():
    pytest.skip('needs Node and the packages of web/ (cd web && npm ci)')
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  (tmp_path / 'texts.json').write_text(json.dumps(texts))
  program = subprocess.run(
    ['node', PROGRAM, LIBRARY, tmp_path / 'tokenizer.json', tmp_path / 'texts.json'],
    check=True, capture_output=True, text=True, timeout=120)
  found = json.loads(program.stdout)
  ours = Tokenizer(LENGTH)
  expected = [[ours.sot_token, *ours.encode(text), ours.eot_token] for text in texts]
  assert not differences(texts, expected, found)
