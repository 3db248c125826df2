"""A list of videos, its folder and its class list, as `xclip data` commands take them."""

import argparse
from pathlib import Path

from xclip_jax.cli import options
from xclip_jax.errors import UserError


def add_list(command: options.CommandParser, several: bool = False) -> None:
  """Adds the list, or several lists, and where its videos and classes are.

  Addresses of buckets are refused: these commands read and write local files.
  """
  command.add_argument('list', metavar='LIST', nargs='+' if several else None, help=options.LIST)
  options.add_list_options(command)
  command.set_defaults(local_only=True)


def root_of(arguments: argparse.Namespace) -> Path:
  """Returns the folder that the paths of the list start from."""
  return Path(arguments.root) if arguments.root else _folder_of(arguments)


def classes_of(arguments: argparse.Namespace) -> Path:
  """Returns the path of the class list; UserError without one."""
  path = Path(arguments.classes) if arguments.classes else _folder_of(arguments) / 'classes.csv'
  if not path.is_file():
    raise UserError(f'{path} is not there; name the class list with --classes')
  return path


def _folder_of(arguments: argparse.Namespace) -> Path:
  first = arguments.list if isinstance(arguments.list, str) else arguments.list[0]
  return Path(first).parent
