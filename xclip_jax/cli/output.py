"""Lines of the `xclip` command for a terminal or a pipe: answers, tables, progress, errors."""

import contextlib
import select
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from xclip_jax import errors
from xclip_jax.text_format import printable

FAILED_IN_PART = 1         # exit codes: some videos could not be used
REFUSED = 2                # the user's input cannot be used
BUG = 70                   # our fault, as EX_SOFTWARE of sysexits.h
STOPPED = 130              # as a shell reports a program that SIGINT ended
READER_GONE = 141          # as a shell reports a program that SIGPIPE ended
NOTHING_WRITTEN = 'stopped; nothing was written'
_WIDEST_NAME = 48          # columns of a path in the table of a terminal
_LINE_SECONDS = 60.0       # between two lines of progress where there is no terminal

TopLabels = Sequence[tuple[str, float]]      # labels and probabilities, best first


class Table:
  """Aligned lines of probabilities and labels, printed as the answers come.

  In a terminal a long path loses its beginning; in a file or a pipe it is whole.
  """

  def __init__(self, files: Sequence[str]):
    self._width = max(columns(printable(file)) for file in files)
    if sys.stdout.isatty():
      self._width = min(self._width, _WIDEST_NAME)

  def show(self, file: str, top: TopLabels) -> None:
    """Prints the answer for one file."""
    name = printable(file)
    if columns(name) > self._width:
      while columns(name) >= self._width:
        name = name[1:]
      name = '…' + name
    lines = []
    for i, (label, probability) in enumerate(top):
      first = name if not i else ''
      space = ' ' * (self._width - columns(first))
      lines.append(f'{first}{space}  {100 * probability:5.1f} %  {printable(label)}')
    print_past_bar('\n'.join(lines))


def columns(text: str) -> int:
  """Returns the number of columns in which a terminal shows a text."""
  width = lambda x: 0 if unicodedata.combining(x) else (
    1 + (unicodedata.east_asian_width(x) in 'WF'))
  return sum(map(width, text))


def print_table(rows: Sequence[Sequence[str]]) -> None:
  """Prints rows of text in aligned columns."""
  rows = [[printable(x) for x in row] for row in rows]
  widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print('  '.join(x + ' ' * (n - columns(x)) for x, n in zip(row, widths, strict=True)).rstrip())


def show_progress(
  items: Iterable[Any], *, unit: str, total: int | None = None, desc: str = '', quiet: bool = False,
) -> Iterable[Any]:
  """Wraps an iterable to show its progress on standard error.

  A terminal gets a bar. A file or a pipe gets a line a minute.

  Args:
    items: what is iterated over.
    unit: one of them, in the singular.
    total: how many they are; None: their length.
    desc: what is being done.
    quiet: show nothing.
  """
  if quiet or sys.stderr is None:
    return items
  total = len(items) if total is None else total       # type: ignore[arg-type]
  if not sys.stderr.isatty():
    return _with_lines(items, total, unit, desc)
  if total < 2:
    return items
  import tqdm

  return tqdm.tqdm(
    items, total=total, unit=unit, desc=desc or None, dynamic_ncols=True, leave=False)


def _with_lines(items: Iterable[Any], total: int, unit: str, desc: str) -> Iterator[Any]:
  """Says once in `_LINE_SECONDS` how many items are done."""
  said = time.monotonic()
  for done, item in enumerate(items):
    if time.monotonic() - said >= _LINE_SECONDS:
      said = time.monotonic()
      say(f'{desc}{": " if desc else ""}{done} of {total} {unit}s')
    yield item


def print_past_bar(text: str, file: TextIO | None = None) -> None:
  """Prints lines on a stream (default: standard output); a progress bar moves out of the way.

  Control characters, which a text of a file may hold, are escaped.
  """
  file, text = file or sys.stdout, printable(text, keep='\n\t')
  if 'tqdm' in sys.modules:
    sys.modules['tqdm'].tqdm.write(text, file=file)
  else:
    print(text, file=file)
  if file is not None:                           # None: the stream was closed before the start
    file.flush()


def say(text: Any) -> None:
  """Prints a line of the command itself on standard error, past a progress bar."""
  print_past_bar(f'xclip: {text}', sys.stderr)


def say_failures(lines: Sequence[str], most: int = 5) -> None:
  """Prints the first reasons why videos could not be used."""
  for line in lines[:most]:
    say(printable(line))
  if len(lines) > most:
    say(f'and {len(lines) - most} more')


def report_error(error: BaseException, when_stopped: str = NOTHING_WRITTEN) -> int:
  """Prints why the command ends; returns its exit code."""
  if isinstance(error, KeyboardInterrupt):
    say(when_stopped)
    return STOPPED
  if errors.is_shown_in_one_line(error):
    say(errors.explain(error))
    return REFUSED
  print_past_bar(errors.explain(error), sys.stderr)
  return BUG


def streams_without_reader() -> list[TextIO]:
  """Returns standard output and standard error where they are pipes that nobody reads any more."""
  gone = []
  for stream in filter(None, (sys.stdout, sys.stderr)):
    with contextlib.suppress(OSError, ValueError, AttributeError):   # no file, or no poll (Windows)
      poll = select.poll()
      poll.register(stream.fileno(), select.POLLOUT)
      if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        gone.append(stream)
  return gone
