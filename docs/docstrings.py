"""Docstrings for the API page: an extension of mkdocstrings' reader that mkdocs.yml names.

Our docstrings have a section `Fields:` and examples that are indented by two spaces. The reader
knows neither, so both are rewritten: to the section `Attributes:`, and to fenced code.
"""

import re
import textwrap
from typing import Any

import griffe

SECTION = re.compile(r'(Args|Returns|Raises|Yields|Attributes):')


class Docstrings(griffe.Extension):
  """Rewrites every docstring before it is parsed."""

  def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
    """Rewrites the docstring of a module, class, function or attribute."""
    if obj.docstring:
      obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
  """Returns a docstring with the section and the code that Markdown and griffe know."""
  paragraphs, in_section = [], False
  for paragraph in re.sub(r'^Fields:$', 'Attributes:', text, flags=re.M).split('\n\n'):
    first, _, rest = paragraph.partition('\n')
    if not first.startswith(' '):
      in_section = bool(SECTION.fullmatch(first))
    lines = rest.splitlines()
    if in_section or first.startswith(('- ', '* ', '1. ')):
      paragraphs.append(paragraph)
    elif first.startswith('  '):
      paragraphs.append(fence(paragraph))
    elif lines and first.endswith(':') and all(line.startswith('  ') for line in lines):
      paragraphs.append(f'{first}\n\n{fence(rest)}')
    else:
      paragraphs.append(paragraph)
  return '\n\n'.join(paragraphs)


def fence(code: str) -> str:
  """Returns indented lines as a block of code."""
  code = textwrap.dedent(code)
  language = '' if re.match(r'(xclip|python|make) ', code) else 'python'
  return f'```{language}\n{code}\n```'
