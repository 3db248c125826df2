"""Errors that people are shown in one line. Every other exception is a bug of this package.

A `UserError` says what was given, what was wanted, what was found and what to do; its traceback
would tell its reader nothing. An exception that is neither a `UserError` nor what the operating
system says of a file keeps its traceback, followed by `REPORT`.
"""

import errno

REPORT = (
  'This is a bug in xclip-jax. Please report it where you got the package, with the lines above '
  'and the command; CONTRIBUTING.md says what helps.')


class UserError(ValueError):
  """Something given to the package cannot be used; the message says what to do about it."""


class ConfigError(UserError):
  """A field of a config is misspelt, has a value that it cannot have, or contradicts another."""


class ExistsError(UserError, FileExistsError):
  """A file or folder is there and must not be replaced."""

  def __str__(self) -> str:
    return str(self.args[0])               # OSError would show its number, too


def is_shown_in_one_line(error: BaseException) -> bool:
  """Tells whether an error is the user's to mend: a `UserError`, or one of the file system.

  Of the others, `OSError` counts if it has a number, as those of the operating system have: no
  such file, no permission, no space left, no network.
  """
  return isinstance(error, UserError) or (
    isinstance(error, OSError) and error.errno is not None and error.errno != errno.EINVAL)


def one_line(error: BaseException) -> str:
  """Returns the message of an error without line breaks."""
  return ' '.join(str(error).split()) or type(error).__name__
