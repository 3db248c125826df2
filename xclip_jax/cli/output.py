"""What the `xclip` command writes: lines for a terminal, CSV, JSON, files whole or not at all."""

import contextlib
import csv
import io
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xclip_jax import errors

_WIDEST_NAME = 48          # columns of the table; longer paths lose their beginning
Top = Sequence[tuple[str, float]]      # labels and probabilities, best first


class Table:
  """Aligned lines of probabilities and labels, printed as the answers come."""

  def __init__(self, files: Sequence[str]):
    self._width = min(max(map(columns, map(printable, files))), _WIDEST_NAME)

  def show(self, file: str, top: Top) -> None:
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


def printable(text: str) -> str:
  """What would move the cursor, or is no text, as an escape."""
  return ''.join(
    x if x.isprintable() else x.encode('unicode_escape').decode('ascii') for x in text
  )


def columns(text: str) -> int:
  """How wide a terminal shows a text."""
  wide = lambda x: 0 if unicodedata.combining(x) else 1 + (unicodedata.east_asian_width(x) in 'WF')
  return sum(map(wide, text))


def to_csv(found: Sequence[tuple[str, Top]]) -> bytes:
  """One row for every label shown of every file."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(('path', 'rank', 'label', 'probability'))
  for file, top in found:
    writer.writerows((file, i, x, f'{p:.6f}') for i, (x, p) in enumerate(top, start=1))
  return text.getvalue().encode(errors='surrogateescape')


def to_json(content: dict[str, Any]) -> bytes:
  """UTF-8, for people to read too."""
  # What is no text in a path becomes \udc.., which is how JSON writes it.
  text = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
  return text.encode(errors='backslashreplace')


class Output:
  """A file that appears whole or not at all, '-' for standard output, None for nothing.

  It is begun at once, so that a bad place is refused before anything is computed.
  """

  def __init__(self, path: str | None, overwrite: bool):
    self._path, self._overwrite, self._temporary = path, overwrite, None
    self.target = Path(path if path in (None, '-') else os.path.realpath(path)) if path else None

  def __enter__(self) -> 'Output':
    if self._path in (None, '-'):
      return self
    self._check_free()
    self._temporary = self.target.with_name(f'.{self.target.name}.{os.getpid()}.tmp')
    try:
      self._file = open(self._temporary, 'wb')
    except OSError as error:
      self._temporary = None
      raise errors.UserError(f'cannot write {self._path}: {error.strerror}') from error
    return self

  def write(self, content: bytes) -> None:
    """Makes the file appear with this content; UserError if it cannot."""
    if self._path == '-':
      sys.stdout.flush()
      sys.stdout.buffer.write(content)
      sys.stdout.flush()
    elif self._temporary:
      try:
        with self._file as file:
          file.write(content)
        self._check_free()
        os.replace(self._temporary, self.target)
      except OSError as error:
        raise errors.UserError(f'cannot write {self._path}: {error.strerror}') from error
      self._temporary = None

  def __exit__(self, *_: Any) -> None:
    if self._temporary:
      self._file.close()
      self._temporary.unlink(missing_ok=True)

  def _check_free(self) -> None:
    if self.target.exists() and not self.target.is_file():
      raise errors.UserError(f'{self._path} is not a file')
    if self.target.exists() and not self._overwrite:
      raise errors.UserError(f'{self._path} exists; choose another name, or add --overwrite')


class Folder:
  """A folder that appears whole or not at all, begun at once so that a bad place is refused first.

  Only a folder that holds nothing else than what is written again is ever replaced.
  """

  def __init__(self, path: str, overwrite: bool, ours: Callable[[str], bool]):
    """Args: ours tells by its name whether a file is one that the command writes."""
    self.path, self._overwrite, self._ours = Path(os.path.realpath(path)), overwrite, ours
    self.temporary = self.path.with_name(f'.{self.path.name}.{os.getpid()}.tmp')

  def __enter__(self) -> 'Folder':
    self._check_free()
    try:
      self.temporary.mkdir(parents=True)
    except OSError as error:
      raise errors.UserError(f'cannot write {self.path}: {error.strerror}') from error
    return self

  def keep(self) -> None:
    """Makes the folder appear with what is in `temporary`."""
    self._check_free()
    try:
      old = self.temporary.with_suffix('.old')
      if self.path.exists():
        os.replace(self.path, old)
      os.replace(self.temporary, self.path)
      shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
      raise errors.UserError(f'cannot write {self.path}: {error.strerror}') from error

  def discard(self) -> None:
    """Removes what was written so far, unless it was kept."""
    shutil.rmtree(self.temporary, ignore_errors=True)

  def __exit__(self, *_: Any) -> None:
    self.discard()

  def _check_free(self) -> None:
    if not self.path.exists():
      return
    if not self.path.is_dir():
      raise errors.UserError(f'{self.path} is not a folder')
    held = sorted(x.name for x in self.path.iterdir())
    if held and not self._overwrite:
      raise errors.UserError(f'{self.path} exists; choose another name, or add --overwrite')
    other = [name for name in held if not self._ours(name)]
    if other:
      raise errors.UserError(
        f'{self.path} holds {other[0]}, which is not of an evaluation, so it is not overwritten; '
        'choose another name')


def batch_bar(what: str, quiet: bool) -> Callable[[Any], Any]:
  """What wraps batches to show their progress, in a terminal and unless told to be quiet."""
  if quiet or not sys.stderr.isatty():
    return iter
  import tqdm

  return lambda batches: tqdm.tqdm(
    batches, total=len(batches), unit='batch', desc=what or None, dynamic_ncols=True, leave=False)


def print_table(rows: Sequence[Sequence[str]]) -> None:
  """Prints rows of text in aligned columns."""
  rows = [[printable(x) for x in row] for row in rows]
  widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print('  '.join(x + ' ' * (n - columns(x)) for x, n in zip(row, widths, strict=True)).rstrip())


@contextlib.contextmanager
def show_user_errors() -> Iterator[None]:
  """Turns what the file system says of the user's files into a UserError; bugs pass."""
  try:
    yield
  except errors.UserError:
    raise
  except OSError as error:
    if not errors.is_shown_in_one_line(error):
      raise
    raise errors.UserError(errors.one_line(error)) from error


def print_past_bar(text: str, file: Any = None) -> None:
  """Prints a line; a progress bar moves out of its way."""
  if 'tqdm' in sys.modules:
    sys.modules['tqdm'].tqdm.write(text, file=file or sys.stdout)
  else:
    print(text, file=file or sys.stdout)
  (file or sys.stdout).flush()


def say(text: Any) -> None:
  """Prints a line of the command itself on standard error, past a progress bar."""
  print_past_bar(f'xclip: {text}', sys.stderr)
