"""Texts on which tokenizers tend to disagree, drawn with a fixed seed."""

import html
import random
import sys
import unicodedata

import ftfy

WRITTEN = (
  '', ' ', '\n\t', 'a photo of a cat', 'naïve café — œuvre', 'nai\u0308ve cafe\u0301',
  "don't DON'T they're I've I'm we'll he'd 'tis", 'don’t ‘quoted’ “double” ʼn ‚low‛',
  "it'ſ ſ 'ſa", '3.14159 1,000,000 ½ Ⅷ ٣٤ 二〇 ①②', '日本語 テスト 한국어',
  'שלום עולם \u200fمرحبا', 'İstanbul ISPARTA ıı İİ', 'Straße STRASSE ẞ',
  'ΟΔΥΣΣΕΥΣ ΣΑΣ Σ ΑΣ. ΑΣ.Α αΣʰ ʰΣ ΑΣ\u0301 Α\u0301Σ ΑΣ\u0345Α', 'Ǆ ǅ ĳ ŉ ﬁ ﬅ ﬃ',
  'ＡＢＣ　１２３！ ｶﾞｷﾞ ￦ ＄', 'Å Å Å Ω Ω ; ;', '😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽', '...!!??--__==',
  '#@$%^&*()[]{}\\|/~`', '</w> <w> a</w>b', '\x93Windows\x94 \x85 \x80',
  '\x1b[31;1mred\x1b[0m \x1b[٣m', 'nul\x00bell\x07del\x7fbom\ufeff',
  'tab\tline\r\nvt\x0bff\x0cnel\u2028ps\u2029nbsp\xa0em\u2003', '\x1c\x1d\x1e\x1f x',
  'iota\u0345iota', 'zero\u200bwidth\u00adhyphen', '<|startoftext|>', '<|endoftext|>',
  '<|ENDOFTEXT|>', '<|ſtartoftext|>', '!<|endoftext|>', 'a<|endoftext|>b',
  '!<|startoftext|><|endoftext|>',
  '<|endoftext|><|startoftext|>!<|endoftext|> <|endoftext|>', '<|<|endoftext|>',
  '<|endoftext|', '< |endoftext|>', '。<|endoftext|>', '1<|endoftext|>2',
  '<|ſtartoftext|><|endoftext|>', 'supercalifragilisticexpialidocious' * 9, 'ab' * 700,
  '!?' * 300, '0123456789' * 20, 'é' * 400, '한' * 150,
)
_FRAGMENTS = (
  'cat', 'Dog', 'photo of a ', 'ΣΑΣ', 'Σ', 'Σ.', 'ß', 'İ', 'ı', 'ſ', "'s", "'T", "’re", 'ʼ',
  '“', '”', '!', '?', '...', '—', '<|endoftext|>', '<|startoftext|>', '<|EndOfText|>', '<|',
  '|>', ' ', '  ', '\n', '\t', '\xa0', '\u3000', '\u2028', '\u200d', '\u0301', '\u0345',
  '\u0308', '7', '42', '٣', '½', 'é', '日本', 'ｶ', 'ﾞ', 'Ａ', 'ﬁ', 'ĳ', '😀', '👍🏽', 'ع',
  'ש', '\x00', '\x1b[0m', '\x1b[', 'm', ';', '\x93', '\x85', '\ufeff', '\ufffd', '\u212b',
  '&', 'amp', '#', '</w>', 'x', 'Z', '_', '-', '¿', '٪', '़', '\u1160',
)


def is_comparable(text: str) -> bool:
  """Tells whether a text is none of those that tokenizer_json's docstring excepts."""
  plain = ftfy.fix_text(text, fix_encoding=False, unescape_html=False)
  return (ftfy.fix_text(text) == plain == html.unescape(plain)
          and not any(unicodedata.category(char) in ('Cn', 'Cs') for char in text))


def draw(number: int, seed: int = 0) -> list[str]:
  """Returns `number` texts that are comparable: written, of every category, random mixtures."""
  rng = random.Random(seed)
  categories: dict[str, list[str]] = {}
  for char in map(chr, range(sys.maxunicode + 1)):
    categories.setdefault(unicodedata.category(char), []).append(char)
  assigned = {name: chars for name, chars in categories.items() if name not in ('Cn', 'Cs')}
  texts = list(WRITTEN)
  add = lambda drawn: texts.extend(filter(is_comparable, drawn))
  for chars in assigned.values():
    add('x'.join(rng.choices(chars, k=8)) for _ in range(20))
    add(''.join(rng.choices(chars, k=4)).join('aZ') for _ in range(20))
  everything = [char for chars in assigned.values() for char in chars]
  kinds = (
    lambda: ''.join(rng.choices(_FRAGMENTS, k=rng.randint(1, 12))),
    lambda: ''.join(rng.choices(everything, k=rng.randint(1, 30))),
    lambda: ''.join(chr(rng.randrange(0x250)) for _ in range(rng.randint(1, 20))),
    # Rare categories are as likely here as common ones.
    lambda: ''.join(rng.choice(assigned[rng.choice(list(assigned))]) for _ in range(12)),
  )
  while len(texts) < number:
    add([rng.choice(kinds)()])
  return texts
