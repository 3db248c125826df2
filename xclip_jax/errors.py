"""Errors that people are shown in one line. Every other exception is a bug of this package.

A `UserError` says what was given, what is possible and what to do; a traceback would tell its
reader nothing more. Neither would the traceback of an error of the file system, or of a device
whose memory is full. Every other exception keeps its traceback, followed by `REPORT`.
"""

import errno
import traceback

from xclip_jax.text_format import printable

REPORT = (
  'This is a bug in xclip-jax. Please report it where you got the package, with the lines above '
  'and the command; CONTRIBUTING.md says what helps.')
_LESS_MEMORY = (
  'Lower the batch size (--batch-size, or config.train.batch_size and config.eval.batch_size of a '
  'run), or free the device of other programs; `xclip plan` estimates what fits.')
# Errors of the operating system that only wrong code can cause, or that a closed pipe causes.
_NOT_THE_USERS = frozenset({errno.EINVAL, errno.EBADF, errno.EPIPE, errno.ECHILD, errno.EFAULT})


class UserError(ValueError):
  """Something given to the package cannot be used; the message says what to do about it."""


class ConfigError(UserError):
  """A field of a config is misspelt, has a value that it cannot have, or contradicts another."""


class ExistsError(UserError, FileExistsError):
  """A file or folder exists and must not be replaced."""

  def __str__(self) -> str:
    return str(self.args[0])               # OSError would show its number, too


def is_shown_in_one_line(error: BaseException) -> bool:
  """Tells whether the user can mend an error: a `UserError`, a full device, or the file system's.

  An `OSError` counts if it has the number of a condition outside the program: no such file, no
  permission, no space left, no network.
  """
  return isinstance(error, UserError) or is_out_of_device_memory(error) or (
    isinstance(error, OSError) and error.errno is not None and error.errno not in _NOT_THE_USERS)


def is_out_of_device_memory(error: BaseException) -> bool:
  """Tells whether JAX reports that a program or an array does not fit into a device's memory."""
  # By name: the class would import JAX, which the first answer to a mistake does not wait for.
  return type(error).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' in str(error)


def one_line(error: BaseException) -> str:
  """Returns the message of an error without line breaks and control characters."""
  return printable(' '.join(str(error).split())) or type(error).__name__


def explain(error: BaseException) -> str:
  """Returns what a person is shown of an error: its message, or its traceback and `REPORT`."""
  if isinstance(error, UserError):
    return printable(str(error), keep='\n')
  if is_out_of_device_memory(error):
    reason = one_line(error).removeprefix('RESOURCE_EXHAUSTED: ')[:200].rstrip('. ')
    return f'the memory of the device is full: {reason}. {_LESS_MEMORY}'
  if is_shown_in_one_line(error):
    return one_line(error)
  return printable(''.join(traceback.format_exception(error)), keep='\n\t') + REPORT
