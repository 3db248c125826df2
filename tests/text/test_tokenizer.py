"""The tokenizer gives the reference's ids, refuses what it cannot do, and can be read back."""

import json
import pathlib

import numpy as np
import pytest

from xclip_jax.text import tokenizer

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
LABELS = ('kinetics_400', 'kinetics_600', 'ucf_101', 'hmdb_51')
EXTRA = json.loads((GOLDENS / 'ref_tokens_extra_strings.json').read_text())


@pytest.fixture(scope='module')
def golden() -> dict[str, np.ndarray]:
  with np.load(GOLDENS / 'ref_tokens.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def tokenize() -> tokenizer.Tokenizer:
  return tokenizer.Tokenizer()


def test_hard_strings_give_the_ids_of_the_reference(tokenize, golden):
  ids = tokenize(EXTRA)
  assert ids.dtype == np.int32 and len(EXTRA) == len(golden['extra'])
  np.testing.assert_array_equal(ids, golden['extra'])


@pytest.mark.parametrize('name', LABELS)
def test_golden_rows_survive_decoding_and_encoding(tokenize, golden, name):
  texts = [tokenize.decode(row) for row in golden[name]]
  assert all(texts)
  np.testing.assert_array_equal(tokenize(texts), golden[name])


def test_decoded_labels_can_be_read(tokenize, golden):
  assert tokenize.decode(golden['kinetics_400'][0]) == 'abseiling'
  assert tokenize.decode(golden['hmdb_51'][0]) == 'brush hair'
  assert tokenize.decode(golden['extra'][4]) == '日本語 テスト 😀 emoji'
  assert tokenize.decode([]) == tokenize.decode(golden['extra'][EXTRA.index('')]) == ''


@pytest.mark.parametrize(
  'text', ['a photo of a cat', 'naïve café — œuvre', '日本語 😀', "don 't go", '3 . 1'])
def test_decode_inverts_encode_on_clean_text(tokenize, text):
  assert tokenize.decode(tokenize.encode(text)) == text


def test_known_ids_of_known_words(tokenize):
  assert tokenize.encode('hello world!') == [3306, 1002, 256]
  np.testing.assert_array_equal(tokenize('a diagram')[0, :5], [49406, 320, 22697, 49407, 0])
  assert tokenize.encode(' A  Diagram\n') == tokenize.encode('a diagram')
  assert (tokenize.vocab_size, tokenize.sot_token, tokenize.eot_token) == (49408, 49406, 49407)


def test_one_text_is_a_batch_of_one(tokenize):
  np.testing.assert_array_equal(tokenize('a dog'), tokenize(['a dog']))
  assert tokenize('a dog').shape == (1, 77)
  assert tokenize([]).shape == (0, 77)


def test_a_text_of_exactly_the_limit_fits():
  short = tokenizer.Tokenizer(context_length=6)
  assert short('one two three four')[0, -1] == short.eot_token
  with pytest.raises(ValueError, match='has 7 tokens'):
    short('one two three four five')


def test_a_long_text_is_named_and_refused(tokenize):
  with pytest.raises(ValueError) as error:
    tokenize(['fine', 'word ' * 80])
  message = str(error.value)
  assert message.startswith(f'texts[1] ({("word " * 12)!r}) has 82 tokens')
  assert 'context_length is 77' in message and 'truncate=True' in message


def test_truncation_keeps_the_end_token_last(tokenize):
  whole = tokenize.encode('word ' * 76 + 'end')
  row = tokenize('word ' * 76 + 'end', truncate=True)[0]
  assert row[0] == tokenize.sot_token and row[-1] == tokenize.eot_token
  np.testing.assert_array_equal(row[1:-1], whole[:75])


@pytest.mark.parametrize(('texts', 'message'), [
  (['fine', 3], r'texts\[1\] must be a string, got int'),
  ([None], r'texts\[0\] must be a string, got NoneType'),
  ([['nested']], r'texts\[0\] must be a string, got list')])
def test_what_is_not_a_string_is_named(tokenize, texts, message):
  with pytest.raises(TypeError, match=message):
    tokenize(texts)


def test_impossible_ids_and_lengths_are_refused(tokenize):
  with pytest.raises(ValueError, match='from 0 to 49407, got 5 to 49408'):
    tokenize.decode([5, 49408])
  with pytest.raises(ValueError, match='at least 2; got 1'):
    tokenizer.Tokenizer(context_length=1)


@pytest.mark.parametrize(('words', 'length'), [(1, 16), (14, 16), (15, 32), (30, 32), (31, 77)])
@pytest.mark.parametrize('pad', [0, 49407])
def test_bucket_cuts_only_behind_the_longest_text(tokenize, words, length, pad):
  ids = tokenize(['dog', 'dog ' * words])
  for row in ids:
    row[list(row).index(tokenize.eot_token) + 1:] = pad
  cut = tokenizer.bucket(ids)
  np.testing.assert_array_equal(cut, ids[:, :length])
  assert (cut == tokenize.eot_token).any(1).all()


def test_bucket_leaves_rows_alone_that_no_length_holds(tokenize):
  ids = tokenize(['dog ' * 40])
  np.testing.assert_array_equal(tokenizer.bucket(ids, lengths=(16, 32)), ids)
  assert tokenizer.bucket(ids[:0]).shape[0] == 0


def test_bucket_refuses_rows_without_an_end(tokenize):
  ids = tokenize(['dog', 'dog ' * 40])[:, :16]
  with pytest.raises(ValueError, match=r'token_ids\[1\] has no end token'):
    tokenizer.bucket(ids)
