"""Changes of config fields from a command line."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from xclip_jax.config import validation
from xclip_jax.errors import ConfigError

# Fields that are mappings with free names: fields of XCLIPConfig, of `synthetic.Recipe`.
_OPEN = ('model.fields', 'data.synthetic')


def apply_flags(config: Any, arguments: Sequence[str]) -> list[str]:
  """Sets config fields from `--config.FIELD=VALUE` flags, as ml_collections reads them.

  Flags that absl and other libraries have defined, such as --verbosity, are set too.

  Args:
    config: ConfigDict to change and lock.
    arguments: what the command line holds beside the flags of the command itself.

  Returns:
    The arguments that are no flags.

  Raises:
    ConfigError: a field does not exist or cannot have the value, or a flag is unknown.
  """
  for argument in arguments:
    match = re.match(r'--?(?:no)?config\.([^=[]+)', argument)
    if match:
      _check_field(match[1], argument)
  values = flags.FlagValues()
  values.append_flag_values(flags.FLAGS)
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=['', *arguments])
    return values(['', *arguments])[1:]
  except flags.UnrecognizedFlagError as error:
    raise ConfigError(f'--{error.flagname} is no flag of this command') from error
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise ConfigError(' '.join(str(error).split()).removeprefix('flag ')) from error


def set_fields(config: Any, changes: Mapping[str, Any]) -> None:
  """Sets fields of a locked config by dotted name; ConfigError if one cannot have its value."""
  for field, value in changes.items():
    _check_field(field, f'config.{field}={value!r}')
    try:
      with config.unlocked() if field.startswith(_OPEN) else contextlib.nullcontext():
        config.update_from_flattened_dict({field: value})
    except (KeyError, AttributeError, TypeError) as error:
      reason = str(error.args[0]).splitlines()[0] if error.args else type(error).__name__
      raise ConfigError(f'config.{field}={value!r}: {reason}') from error


def did_you_mean(name: str, known: Iterable[str], prefix: str = '') -> str:
  """Returns the end of a sentence: '; did you mean X?' for the most similar known name, or '.'."""
  known = list(known)
  leaf = [x for x in known if x.rpartition('.')[2] == name.rpartition('.')[2]]
  close = leaf if len(leaf) == 1 else difflib.get_close_matches(name, known, 1)
  return f'; did you mean {prefix}{close[0]}?' if close else '.'


def _check_field(field: str, text: str) -> None:
  """Raises ConfigError if a dotted name is neither a field, nor a section, nor in an open field."""
  known = list(validation.field_names())
  sections = {name.rpartition('.')[0] for name in known}
  if field in known or field in sections or field.rpartition('.')[0] in _OPEN:
    return
  raise ConfigError(
    f'{text}: config.{field} is no field of a run{did_you_mean(field, known, "config.")}')
