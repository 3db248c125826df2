"""Config files: the published ones by name, those of users by path.

A published config is a file of the folder `configs`, such as `demo`, or a row of the table `RUNS`
in one of them, such as `k400_b16_8f` in kinetics.py. The folder stands beside the package in a
checkout and inside the package where it is installed.
"""

import ast
import contextlib
import functools
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from xclip_jax.config import overrides
from xclip_jax.errors import ConfigError, UserError

_PACKAGE = Path(__file__).parents[1]


def names() -> tuple[str, ...]:
  """Returns the names of all published configs."""
  return tuple(_published())


def path(name: str) -> Path:
  """Returns the file that holds a published config; UserError if there is none of that name."""
  if name not in _published():
    raise ConfigError(_describe_missing(name))
  return _published()[name]


def load(source: str) -> Any:
  """Loads a config by the name of a published one or by the path of a file, and locks it.

  Args:
    source: NAME or FILE, or NAME:ARGUMENT or FILE:ARGUMENT where `get_config` takes an argument. A
      path such as configs/k400_b16_8f.py that does not exist stands for the published config.

  Returns:
    A ConfigDict with the fields of `config.get_config()`.

  Raises:
    ConfigError: there is neither such a file nor such a name, or the file fails.
  """
  name_or_file, colon, argument = source.partition(':')
  arguments = (argument,) if colon else ()
  file = Path(name_or_file).expanduser()
  name = file.name.removesuffix('.py')
  if name_or_file in _published() or not file.is_file():
    if name not in _published() or file.parent.name not in ('', 'configs'):
      raise ConfigError(_describe_missing(source))
    file = path(name)
    if file.stem != name:                         # a row of a table
      arguments = (':'.join((name, *arguments)),)
  config = _get_config(file, arguments)
  if not isinstance(config, config_dict.ConfigDict):
    raise ConfigError(f'{source}: get_config must return a ConfigDict, as xclip_jax.config.'
                      f'get_config does; found {type(config).__name__}')
  return config.lock()


@functools.cache
def _folder() -> Path:
  inside = _PACKAGE / 'configs'
  return inside if inside.is_dir() else _PACKAGE.parent / 'configs'


@functools.cache
def _published() -> dict[str, Path]:
  """Returns the file of every published config by name, read without running the files."""
  files = sorted(_folder().glob('*.py'), key=lambda x: (x.stem not in ('base', 'demo'), x.stem))
  return {name: file for file in files for name in _rows(file) or (file.stem,)}


def _rows(file: Path) -> list[str]:
  """Returns the keys of the table RUNS in a file; none if it has no such table."""
  for statement in ast.parse(file.read_text()).body:
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict) and (
        'RUNS' in [x.id for x in statement.targets if isinstance(x, ast.Name)]):
      return [ast.literal_eval(key) for key in statement.value.keys if key is not None]
  return []


def _describe_missing(source: str) -> str:
  name = Path(source.partition(':')[0]).name.removesuffix('.py')
  return (f'--config {source}: no such file, and no published config of that name'
          f'{overrides.did_you_mean(name, names())} Published: {", ".join(names())}')


def _get_config(file: Path, arguments: tuple[str, ...]) -> Any:
  """Runs a config file and calls its `get_config`; an error of a user's file becomes one line."""
  is_ours = file.parent.resolve() == _folder().resolve()
  rows = _rows(file) if is_ours else []
  with _importing_from_here():
    with _explaining_failures(file, is_ours):
      get_config = _import(file)
    if arguments and not _takes_argument(get_config):
      raise ConfigError(f'{file}: get_config takes no argument, found {arguments[0]!r}')
    if is_ours and arguments and arguments[0].partition(':')[0] not in rows:
      raise ConfigError(f'{file}: there is no run {arguments[0]!r}'
                        f'{overrides.did_you_mean(arguments[0], rows)}')
    with _explaining_failures(file, is_ours):
      return get_config(*arguments)


@contextlib.contextmanager
def _explaining_failures(file: Path, is_ours: bool) -> Iterator[None]:
  """Turns any error of the code in a user's file into a ConfigError that names its line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:                       # whatever a person's own code raises
    if is_ours:
      raise
    raise ConfigError(_describe_failure(file, error)) from error


def _import(file: Path) -> Callable[..., Any]:
  spec = importlib.util.spec_from_file_location(f'xclip_config_{file.stem}', file)
  if spec is None or spec.loader is None:
    raise ConfigError(f'{file} is not a Python file; a config is a .py with a function get_config')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'{file} has no function get_config; docs/train.md shows one')
  return module.get_config


def _takes_argument(function: Callable[..., Any]) -> bool:
  try:
    inspect.signature(function).bind('')
  except TypeError:
    return False
  return True


@contextlib.contextmanager
def _importing_from_here() -> Iterator[None]:
  """Lets a config import modules of the current folder, such as `configs` in a checkout."""
  here = os.getcwd()
  sys.path.insert(0, here)
  try:
    yield
  finally:
    with contextlib.suppress(ValueError):         # the file has changed sys.path itself
      sys.path.remove(here)


def _describe_failure(file: Path, error: Exception) -> str:
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == str(file)]
  line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
  text = ' '.join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
  if isinstance(error, ModuleNotFoundError) and error.name == 'configs':
    text += ('; `configs` can be imported in a checkout only: write `from xclip_jax import config` '
             'and `config.get_config()` instead of `base.get_config()`')
  return f'{file}{f", line {line}" if line else ""}: {type(error).__name__}: {text}'
