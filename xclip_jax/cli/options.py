"""Options that subcommands share, and the parsers that they are added to."""

import argparse
import inspect
import os
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from xclip_jax import errors

WEIGHTS = ('workdir of a run, a folder or file with weights, or a name that `xclip weights` lists, '
           'as toy')
VIDEOS = ('files, folders (searched for videos at any depth) and globs; sample:ring and its like '
          'are clips in the package')
LIST = 'CSV with path,label, or .txt with `path id` lines'


class HelpFormatter(argparse.HelpFormatter):
  """Fills the paragraphs of a description; lines that are indented, as examples, stay."""

  def add_argument(self, action: argparse.Action) -> None:
    """Adds an argument; the help of a subcommand starts on the line of its name."""
    super().add_argument(action)
    if isinstance(action, argparse._SubParsersAction):
      self._action_max_length += self._indent_increment

  def _fill_text(self, text: str, width: int, indent: str) -> str:
    parts = []
    for part in text.split('\n\n'):
      is_raw = any(line.startswith(' ') for line in part.splitlines())
      parts.append(part if is_raw else textwrap.fill(' '.join(part.split()), width))
    return '\n\n'.join(parts)


class CommandParser(argparse.ArgumentParser):
  """A parser that raises a `UserError` where argparse would print its usage and exit."""

  def __init__(self, **options: Any):
    options.setdefault('formatter_class', HelpFormatter)
    super().__init__(**options)

  def error(self, message: str) -> NoReturn:
    """Raises the mistake as a `UserError`."""
    message = message.removeprefix('argument ').replace(': must', ' must', 1)
    raise errors.UserError(f'{message} (see {self.prog} --help)')


def add_command(
  commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str,
) -> CommandParser:
  """Adds a subcommand.

  Args:
    commands: the subcommands of `xclip`, or of a group such as `xclip data`.
    name: what is typed.
    run: does the work and returns the exit code; its docstring is the description.
    summary: a phrase for the list of subcommands.
    example: command lines, one a line; a backslash continues one.
  """
  command = _add(commands, name, summary, run.__doc__ or '', example)
  command.set_defaults(run=run)
  return command


def add_group(
  commands: Any, name: str, summary: str, description: str, example: str,
) -> tuple[CommandParser, Any]:
  """Adds a subcommand that has subcommands; without one it prints its help.

  Returns:
    its parser, and what its subcommands are added to.
  """
  group = _add(commands, name, summary, description, example)
  group.set_defaults(run=lambda arguments: print_help(group))
  return group, group.add_subparsers(metavar='COMMAND', title='commands')


def print_help(parser: argparse.ArgumentParser) -> int:
  """Prints what a parser takes; returns exit code 0."""
  parser.print_help()
  return 0


def _add(commands: Any, name: str, summary: str, description: str, example: str) -> CommandParser:
  lines = textwrap.indent(inspect.cleandoc(example), '  ')
  title = 'examples' if lines.count('\n  xclip ') else 'example'
  return commands.add_parser(
    name, help=summary, description=inspect.cleandoc(description), epilog=f'{title}:\n{lines}')


def at_least(least: int) -> Callable[[str], int]:
  """Returns the type of an option that takes an integer from `least` on."""

  def parse(text: str) -> int:
    number = int(text)
    if number < least:
      raise argparse.ArgumentTypeError(f'must be at least {least}, got {number}')
    return number

  parse.__name__ = 'int'                         # argparse names it: invalid int value
  return parse


def share(text: str) -> float:
  """Parses a number from 0 to 1."""
  number = float(text)
  if not 0 <= number <= 1:
    raise argparse.ArgumentTypeError(f'must lie from 0 to 1, got {text}')
  return number


share.__name__ = 'float'


def positive(text: str) -> float:
  """Parses a number above 0."""
  number = float(text)
  if not number > 0:
    raise argparse.ArgumentTypeError(f'must be positive, got {text}')
  return number


positive.__name__ = 'float'


def template(text: str) -> str:
  """Parses a text that holds {} for a label."""
  if '{}' not in text:
    raise argparse.ArgumentTypeError(f'{text!r} must hold {{}} for the label')
  return text


def add_model_options(command: CommandParser) -> None:
  """Adds the weights, and how they are opened; `open_options` reads them."""
  command.add_argument('--weights', required=True, metavar='WEIGHTS', help=WEIGHTS)
  command.add_argument('--frames', type=at_least(1), metavar='COUNT',
                       help='frames per clip (default: as the weights were trained)')
  command.add_argument('--heads', choices=('file', 'reference'),
                       help='head counts to use where a config beside the weights disagrees with '
                       'the reference (default: file)')
  command.add_argument('--dtype', choices=('float32', 'bfloat16', 'int8'),
                       help='number format of matrix products: bfloat16 is faster, int8 also holds '
                       'kernels in 8 bits (default: as the weights say, mostly float32)')
  command.add_argument('--merge-tokens', type=int, metavar='COUNT',
                       help='pairs of similar patches to merge in each block of the vision tower: '
                       'faster, less exact (default: 0)')
  command.add_argument('--square-pixels', action='store_true', default=None,
                       help='scale frames of files whose pixels are not square, as players do '
                       '(default: as the weights were trained, mostly not)')
  add_file_options(command)


def add_file_options(command: argparse.ArgumentParser) -> None:
  """Adds which model of a file to read, and how carefully."""
  command.add_argument('--subtree', metavar='KEY',
                       help='key or prefix of the model to take from a file that holds several, as '
                       'state_dict_ema; . is the one without any (default: the model itself rather '
                       'than its average or its teacher)')
  command.add_argument('--skip-checksums', action='store_true',
                       help='do not compare weights with the checksums in their file: a little '
                       'faster, and a damaged file goes unnoticed')


def open_options(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns the options of `weights.opening.open_weights` that were given."""
  options = {'heads': arguments.heads, 'num_frames': arguments.frames, 'dtype': arguments.dtype,
             'merge_tokens': arguments.merge_tokens, 'square_pixels': arguments.square_pixels,
             'subtree': arguments.subtree,
             'checksums': False if arguments.skip_checksums else None}
  return {name: value for name, value in options.items() if value is not None}


def add_label_options(command: CommandParser) -> None:
  """Adds labels in words, and the template around them."""
  command.add_argument('--labels', metavar='"A, B"',
                       help='labels, separated by commas (default: the labels stored with the '
                       'weights, as toy has)')
  command.add_argument('--labels-file', metavar='FILE',
                       help='labels, one a line (# starts a comment); or a CSV with id,name')
  command.add_argument('--template', type=template, metavar='"a {}"',
                       help='text around every label, {} stands for it '
                       '(default: as the weights were trained)')


def add_truncate(command: CommandParser, texts: str) -> None:
  """Adds --truncate."""
  command.add_argument('--truncate', action='store_true',
                       help=f'cut {texts} that are too long for the model')


def add_template_option(command: CommandParser, default: str) -> None:
  """Adds templates, of which several are an ensemble."""
  command.add_argument('--template', type=template, action='append', metavar='"a {}"',
                       help='text around every label, {} stands for it; repeat the option for an '
                       f'ensemble (default: {default})')


def add_list_options(command: CommandParser) -> None:
  """Adds the folder of a list's videos, and its class list."""
  add_root(command)
  command.add_argument('--classes', metavar='FILE',
                       help='class list (default: classes.csv beside the list)')


def add_root(command: CommandParser) -> None:
  """Adds the folder of a list's videos."""
  command.add_argument('--root', metavar='FOLDER',
                       help='folder that the paths of a list start from (default: the folder of '
                       'the list)')


def add_output(command: CommandParser, what: str, folder: bool = False) -> None:
  """Adds the file or folder to write, which is required, and --overwrite."""
  command.add_argument('-o', '--output', required=True, metavar='FOLDER' if folder else 'FILE',
                       help=what)
  add_overwrite(command, 'a folder' if folder else 'a file')


def add_overwrite(command: CommandParser, what: str = 'files') -> None:
  """Adds --overwrite."""
  command.add_argument('--overwrite', action='store_true',
                       help=f'replace {what} of that name')


def add_csv_output(command: CommandParser) -> None:
  """Adds --csv."""
  command.add_argument('--csv', metavar='FILE',
                       help='CSV file to write, too; - is standard output')


def add_quiet(command: CommandParser) -> None:
  """Adds --quiet."""
  command.add_argument('--quiet', action='store_true', help='show no progress')


def add_threads(command: CommandParser) -> None:
  """Adds the number of decoding threads."""
  command.add_argument('--threads', type=at_least(1), default=4, metavar='COUNT',
                       help='number of decoding threads (default: %(default)s)')


def add_batch_size(command: CommandParser) -> None:
  """Adds the number of clips that are predicted at once."""
  command.add_argument('--batch-size', type=at_least(1), default=16, metavar='COUNT',
                       help='clips predicted at once over all devices (default: %(default)s)')


def add_processes(command: CommandParser, work: str) -> None:
  """Adds the number of processes that work on a list."""
  command.add_argument('--processes', type=at_least(1), default=os.cpu_count(), metavar='COUNT',
                       help=f'number of {work} processes (default: one a CPU)')


def add_host_options(command: CommandParser) -> None:
  """Adds how a process finds the other processes of a run on several hosts."""
  add = command.add_argument
  add('--distributed', choices=('off', 'auto'),
      help='auto: join the other hosts of a TPU pod, Slurm or MPI job, the first one writes; off: '
      'run alone, even where a launcher started several tasks (default: run alone)')
  add('--coordinator', metavar='HOST:PORT',
      help='address of process 0, if the cluster is not detected')
  add('--num-processes', type=int, metavar='COUNT',
      help='number of processes, with --coordinator')
  add('--process-id', type=int, metavar='INDEX',
      help='number of this process from 0, with --coordinator')
  add('--join-timeout', type=int, metavar='SECONDS',
      help='seconds to wait for the other processes at the start (default: 300)')
