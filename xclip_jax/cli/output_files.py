"""Files and folders that the `xclip` command writes: whole or not at all, and refused early."""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xclip_jax.cli.output import TopLabels
from xclip_jax.errors import UserError

Write = Callable[[bytes], Any]


@contextlib.contextmanager
def open_file(path: str | None, overwrite: bool) -> Iterator[Write]:
  """Opens a file that appears once the block has ended without an error.

  A path that cannot be written is refused at once, before anything is computed.

  Args:
    path: of the file; '-': standard output; None: what is written goes nowhere.
    overwrite: whether a file of that name may be replaced.

  Yields:
    A function that writes bytes.
  """
  if path is None:
    yield lambda content: None
  elif path == '-':
    yield _write_to_stdout
  else:
    from xclip_jax import files  # imports NumPy

    target = Path(os.path.realpath(path))
    _check_free(path, target, overwrite)
    with contextlib.ExitStack() as stack:
      with _naming(path):
        file = stack.enter_context(files.atomic_file(target))
      yield file.write
      _check_free(path, target, overwrite)       # another program may have written it meanwhile
      with _naming(path):
        stack.close()


@contextlib.contextmanager
def open_folder(path: str, overwrite: bool, is_ours: Callable[[str], bool]) -> Iterator[Path]:
  """Opens a folder that appears once the block has ended without an error.

  Args:
    path: of the folder.
    overwrite: whether a folder of that name may be replaced. One that holds a file which the
      command did not write never is.
    is_ours: tells by its name whether the command writes a file.

  Yields:
    The folder to write into.
  """
  from xclip_jax import files

  target = Path(os.path.realpath(path))

  def check_replaceable(folder: Path) -> None:
    if not folder.is_dir():
      raise UserError(f'{folder} is not a folder')
    held = sorted(x.name for x in folder.iterdir())
    if held and not overwrite:
      raise UserError(f'{folder} exists; choose another name, or add --overwrite')
    if foreign := [name for name in held if not is_ours(name)]:
      raise UserError(
        f'{folder} holds {foreign[0]}, which this command did not write, so it is not '
        'overwritten; choose another name')

  with contextlib.ExitStack() as stack:
    with _naming(path):
      folder = stack.enter_context(files.atomic_folder(target, check_replaceable))
    yield folder
    with _naming(path):
      stack.close()


def is_same(path: str | None, other: str | None) -> bool:
  """Tells whether two paths name one file, or both standard output."""
  if path is None or other is None:
    return False
  return path == other or (
    '-' not in (path, other) and os.path.realpath(path) == os.path.realpath(other))


def to_csv(answers: Sequence[tuple[str, TopLabels]]) -> bytes:
  """Returns a CSV with one row for every label shown of every file."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(('path', 'rank', 'label', 'probability'))
  for file, top in answers:
    writer.writerows((file, i, x, f'{p:.6f}') for i, (x, p) in enumerate(top, start=1))
  return text.getvalue().encode(errors='surrogateescape')


def to_json(content: Any) -> bytes:
  """Returns indented JSON in UTF-8."""
  # A byte of a path that is no text becomes \udc.., which is how JSON writes it.
  text = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
  return text.encode(errors='backslashreplace')


def _write_to_stdout(content: bytes) -> None:
  sys.stdout.flush()
  sys.stdout.buffer.write(content)
  sys.stdout.flush()


def _check_free(path: str, target: Path, overwrite: bool) -> None:
  if target.exists() and not target.is_file():
    raise UserError(f'{path} is not a file')
  if target.exists() and not overwrite:
    raise UserError(f'{path} exists; choose another name, or add --overwrite')


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Names the user's path in an error of the file system, in place of a temporary file's."""
  try:
    yield
  except UserError:
    raise
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror or error}') from error
