"""Page of a run: curves, results, examples and the model's mistakes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from xclip_jax import files
from xclip_jax.evaluation.scores import Scores
from xclip_jax.reports import class_pictures, contact_sheet, curves, evaluation_page, time_test
from xclip_jax.reports.markdown import class_tables, escape, failures, table
from xclip_jax.reports.theme import AMBER, BLUE, STYLE
from xclip_jax.text_format import percent

_TILES = 12           # clips of the contact sheet


@dataclasses.dataclass(frozen=True, eq=False)
class RunReport:
  """Content of the page of a run.

  Fields:
    title: heading; summary: one sentence with the result.
    history: rows of metrics.jsonl.
    facts: rows of the table that describes the run.
    scores: scores of each split; 'val' is always there. With one label a video also 'zero_shot',
      videos of classes never trained on, scored among those classes; and 'zero_shot_all', the same
      videos, scored among trained and new classes.
    orders: scores of 'val' by the order of the frames; empty without the test.
    partner: for each class the class its clips become when played backwards, or None.
    clips: examples; the first twelve are shown.
  """

  title: str
  history: list[dict[str, Any]]
  scores: Mapping[str, Scores]
  summary: str = ''
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  orders: Mapping[str, Scores] = dataclasses.field(default_factory=dict)
  partner: Sequence[int | None] = ()
  clips: Sequence[contact_sheet.Clip] = ()


def write(folder: Path, report: RunReport) -> Path:
  """Writes report.md and its pictures, each whole or not at all; returns the path of the page.

  The folder is created; pictures of an earlier report that this one lacks are removed.
  """
  files.make_folder(folder)
  kind = report.scores['val'].kind
  if kind == 'single-label':
    page = _write_single_label(folder, report)
  else:
    page = evaluation_page.page(
      folder, report.title, report.summary, report.scores, report.facts)
    title, lines = _list_curves(kind, tuple(report.scores))
    with matplotlib.rc_context(STYLE):
      # Accuracy on training batches is another metric: how often the best text is a right one.
      files.write_figure(
        folder / 'curves.png', curves.draw(report.history, title, lines, training=''))
    page += ['![curves](curves.png)', '*The course of the run.*']
  files.write_text(folder / 'report.md', '\n\n'.join(page) + '\n')
  return folder / 'report.md'


def _write_single_label(folder: Path, report: RunReport) -> list[str]:
  """Writes pictures and removes old ones; returns the paragraphs of the page."""
  val = report.scores['val']
  with matplotlib.rc_context(STYLE):
    pictures = _pictures(report)
    for name, (figure, _) in pictures.items():
      if figure:
        files.write_figure(folder / f'{name}.png', figure)
      else:
        files.remove(folder / f'{name}.png')
  return [
    f'# {escape(report.title)}', _result(report.scores), *failures(val.failed),
    *([table(('run', ''), report.facts.items())] if report.facts else []),
    *(f'![{name}]({name}.png)\n\n*{text}*' for name, (figure, text) in pictures.items() if figure),
    class_tables(val),
  ]


def _pictures(report: RunReport) -> dict[str, tuple[Figure | None, str]]:
  """Draws the pictures; returns for each name the figure, if there is one, and its caption."""
  val, zero_shot = report.scores['val'], report.scores.get('zero_shot')
  lines = [
    curves.Line('val/top1', 'validation', BLUE, 1 / len(val.texts)),
    curves.Line('zero_shot/top1', 'zero-shot', AMBER,
                1 / len(zero_shot.texts) if zero_shot else None)]
  orders, partner = report.orders, report.partner
  return {
    'curves': (curves.draw(report.history, 'Top-1 accuracy', lines),
               'Training loss and accuracy over the course of the run.'),
    'time': (time_test.draw(orders, partner) if orders else None,
             time_test.caption(orders, partner)),
    'contact_sheet': (contact_sheet.draw(report.clips[:_TILES]) if report.clips else None,
                      'What the model saw, the true class, and its three best guesses.'),
    'confusion': (class_pictures.draw_confusion(val, 'Confusion, validation'),
                  'Each row shows where the videos of one class went; '
                  'a perfect model fills the diagonal.'),
  }


def _list_curves(kind: str, names: Sequence[str]) -> tuple[str, list[curves.Line]]:
  if kind == 'captions':
    return 'Recall at 1', [curves.Line('val/text_to_video/r1', 'text to video', BLUE),
                           curves.Line('val/video_to_text/r1', 'video to text', AMBER)]
  return 'Mean average precision', [
    curves.Line(f'{name}/map', name, color)
    for name, color in zip(names, (BLUE, AMBER), strict=False)]


def _result(scores: Mapping[str, Scores]) -> str:
  """Returns a paragraph about the validation set and a table of all sets."""
  val = scores['val']
  K = len(val.texts)
  text = (f'On the validation set the right one of {K:,} classes is ranked first for '
          f'{percent(val.top(1))} of the videos (top-1; chance is {percent(1 / K)})')
  if K > 5:
    text += f' and is among the best five for {percent(val.top(5))} (top-5)'
  text += f'; {len(val.index):,} of {val.expected:,} videos were evaluated.'
  titles = {'val': 'validation', 'zero_shot': 'never trained on, among new classes only',
            'zero_shot_all': 'never trained on, among trained and new classes'}
  rows = [(title, scores[name]) for name, title in titles.items() if name in scores]
  return f'{text}\n\n' + table(('', 'classes', 'videos', 'top-1', 'top-5', 'chance (top-1)'), [
    (title, f'{len(x.texts):,}', f'{len(x.index):,} of {x.expected:,}', percent(x.top(1)),
     percent(x.top(5) if len(x.texts) > 5 else np.nan), percent(1 / len(x.texts)))
    for title, x in rows])
