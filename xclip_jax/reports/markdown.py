"""Tables and text of Markdown pages."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from xclip_jax.evaluation.scores import Predictions
from xclip_jax.text_format import percent

LISTED_CLASSES = 40   # with more classes than this the page lists the best and worst ten


LISTED_FAILURES = 20


def failures(failed: dict[int, str]) -> list[str]:
  """Returns paragraphs that say which rows of a list are missing, and why."""
  lines = [f'- row {row}: {escape(reason)}' for row, reason in sorted(failed.items())]
  more = len(lines) - LISTED_FAILURES
  listed = lines[:LISTED_FAILURES] + [f'- and {more:,} more'] * (more > 0)
  return [f'Not evaluated, because unreadable ({len(lines):,}):', '\n'.join(listed)] * bool(lines)


def class_tables(val: Predictions) -> str:
  """Returns the accuracy of each class, or of the best and worst ten."""
  K, accuracy, counts = len(val.class_names), val.per_class(), val.confusion()
  mistakes = counts - np.diag(np.diag(counts))
  parts = {'Accuracy of each class': np.arange(K)}
  if K > LISTED_CLASSES:
    ranked = np.argsort(accuracy, kind='stable')[:np.isfinite(accuracy).sum()]   # nan sorts last
    parts = {'The ten best classes': ranked[::-1][:10], 'The ten worst classes': ranked[:10]}
  return '\n\n'.join(
    f'## {head}\n\n' + table(('class', 'videos', 'top-1', 'most often mistaken for'), [
      (val.class_names[c], f'{counts[c].sum():,}', percent(accuracy[c]),
       val.class_names[mistakes[c].argmax()] if mistakes[c].any() else '') for c in classes])
    for head, classes in parts.items())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table of Markdown."""
  lines = [head, ['---'] * len(head), *([escape(cell) for cell in row] for row in rows)]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def escape(text: str) -> str:
  """Makes text from outside stand for itself in Markdown, on one line."""
  return re.sub(r'([\\`*_<>|\[\]#$~&])', r'\\\1', ' '.join(str(text).split()))
