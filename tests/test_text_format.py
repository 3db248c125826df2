"""Texts of files are printed without what would move the cursor; numbers are rounded for people."""

import math

import numpy as np

from xclip_jax.reports import markdown
from xclip_jax.text_format import percent, points, printable


def test_what_moves_the_cursor_or_hides_text_is_escaped():
  for character in '\x00\x07\x1b\x7f\x9b\r\n\u2028\u202e\u2066\ufeff\udcff':
    text = printable(f'a{character}b')
    assert text.isprintable() and text.isascii() and text[0] + text[-1] == 'ab'
  assert printable('a\nb\t', keep='\n') == 'a\nb\\t'


def test_scripts_and_emoji_stay_as_they_are():
  for text in ('猫とダンス', 'نمی\u200cخواهم', '👨\u200d👩', 'à\xa0bientôt', 'a\u3000b', 'क्षि'):
    assert printable(text) == text


def test_reports_hold_no_control_characters():
  page = markdown.table(('class',), [('\x1b[31mred\u202e',)]) + markdown.escape('\x9b')
  assert page.replace('\n', '').isprintable() and 'red' in page


def test_shares_that_are_not_finite_are_not_available():
  assert percent(0.1234) == '12.3%' and percent(np.float32(0.5), 0) == '50%'
  assert points(-0.012) == '-1.2' and percent(math.nan) == points(np.inf) == 'n/a'
