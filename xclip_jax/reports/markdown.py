"""Tables and paragraphs of Markdown pages."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from xclip_jax.evaluation.scores import Scores
from xclip_jax.text_format import percent, printable

LISTED_CLASSES = 40    # a page of more classes lists the best and the worst ten
LISTED_FAILURES = 20


def failures(failed: dict[int, str]) -> list[str]:
  """Returns paragraphs that list the missing rows and the reasons."""
  lines = [f'- row {row}: {escape(reason)}' for row, reason in sorted(failed.items())]
  more = len(lines) - LISTED_FAILURES
  listed = lines[:LISTED_FAILURES] + [f'- and {more:,} more'] * (more > 0)
  return [f'Not evaluated, because unreadable ({len(lines):,}):', '\n'.join(listed)] * bool(lines)


def class_tables(scores: Scores) -> str:
  """Returns a table with the accuracy of each class, or of the best and worst ten."""
  names, accuracy, counts = scores.texts, scores.per_class()[0], scores.confusion()
  K = len(names)
  mistakes = counts - np.diag(np.diag(counts))
  parts = {'Accuracy of each class': np.arange(K)}
  if K > LISTED_CLASSES:
    ranked = np.argsort(accuracy, kind='stable')[:np.isfinite(accuracy).sum()]   # nan sorts last
    parts = {'The ten best classes': ranked[::-1][:10], 'The ten worst classes': ranked[:10]}
  return '\n\n'.join(
    f'## {head}\n\n' + table(('class', 'videos', 'top-1', 'most often mistaken for'), [
      (names[c], f'{counts[c].sum():,}', percent(accuracy[c]),
       names[mistakes[c].argmax()] if mistakes[c].any() else '') for c in classes])
    for head, classes in parts.items())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a Markdown table."""
  lines = [head, ['---'] * len(head), *([escape(cell) for cell in row] for row in rows)]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def escape(text: str) -> str:
  """Escapes text for Markdown and puts it on one line, without control characters."""
  return re.sub(r'([\\`*_<>|\[\]#$~&])', r'\\\1', printable(' '.join(str(text).split())))
