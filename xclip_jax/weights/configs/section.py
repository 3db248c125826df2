"""Objects of a JSON file, whose fields are read by type; no field is skipped unseen."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from xclip_jax import files
from xclip_jax.errors import UserError

MOST = 1 << 20         # largest size that a field may have; the largest published model has 65,536
_LONGEST = 80          # characters of a value that are shown in a message
_MOST_NAMED = 20       # differences that are named in a message


def read_json(path: files.AnyPath) -> dict[str, Any]:
  """Reads an object from a JSON file; UserError names the file."""
  try:
    with files.explain_errors(path):
      content = path.read_bytes()
    content = json.loads(content)
  except FileNotFoundError as error:
    raise UserError(f'{path} is missing; the folder is incomplete') from error
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path} cannot be read as JSON: {error}') from error
  if not isinstance(content, dict):
    raise UserError(f'{path} must hold a JSON object, found {type(content).__name__}')
  return content


def is_number(value: Any) -> bool:
  """Tells whether a value that was read from JSON is a finite number, and not true or false."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:                          # an integer beyond the largest float
    return False


def is_numbers(value: Any, count: int) -> bool:
  """Tells whether a value that was read from JSON is a list of `count` finite numbers."""
  return isinstance(value, list) and len(value) == count and all(map(is_number, value))


def show(value: Any) -> str:
  """Returns a JSON value as a message shows it: in one line of ASCII, and cut where it is long."""
  try:
    text = json.dumps(value).replace('\x7f', '\\u007f')
  except (TypeError, ValueError, RecursionError):
    text = type(value).__name__
  return text if len(text) <= _LONGEST else text[:_LONGEST - 3] + '...'


def contradiction(source: str, wrong: Sequence[str]) -> UserError:
  """Returns the error of a file that says other things than the weights; `wrong` names each."""
  more = f'; and {len(wrong) - _MOST_NAMED} more' if wrong[_MOST_NAMED:] else ''
  return UserError(f'{source} does not fit the weights: {"; ".join(wrong[:_MOST_NAMED])}{more}')


class Section:
  """Reads the fields of one JSON object; `close` refuses those that nothing has asked for.

  Fields:
    source: name of the file that the object is from, for messages.
    name: dotted name of the object in the file; '' for the whole file.
    content: the object.
  """

  def __init__(self, source: str, content: Mapping[str, Any], name: str = ''):
    self.source, self.name = source, name
    self.content, self._known = content, set()

  def __contains__(self, key: str) -> bool:
    return key in self.content

  def path(self, key: str) -> str:
    """Returns the dotted name of a field, without characters that would move the cursor."""
    key = show(key)[1:-1]
    return f'{self.name}.{key}' if self.name else key

  def refuse(self, key: str, wanted: str) -> UserError:
    """Returns the error of a field whose value cannot be used; `wanted` says what can."""
    found = f'is {show(self.content[key])}' if key in self.content else 'is missing'
    return UserError(f'{self.source}: {self.path(key)} {found}; {wanted}')

  def value(self, key: str) -> Any:
    """Returns the value of a field, whatever its type; None if it is missing."""
    self._known.add(key)
    return self.content.get(key)

  def integer(self, key: str, default: int, least: int = 1) -> int:
    """Returns an integer from `least` to MOST; `default` if the field is missing."""
    value = self.value(key)
    if key not in self.content:
      return default
    if type(value) is not int or not least <= value <= MOST:
      raise self.refuse(key, f'an integer from {least} to {MOST:,} is wanted')
    return value

  def number(self, key: str, default: float) -> float:
    """Returns a finite number; `default` if the field is missing or null."""
    value = self.value(key)
    if value is None:
      return default
    if not is_number(value):
      raise self.refuse(key, 'a finite number is wanted')
    return value

  def boolean(self, key: str, default: bool) -> bool:
    """Returns true or false; `default` if the field is missing or null."""
    value = self.value(key)
    if value is None:
      return default
    if not isinstance(value, bool):
      raise self.refuse(key, 'true or false is wanted')
    return value

  def choice(self, key: str, choices: Collection[Any], default: Any, why: str) -> Any:
    """Returns one of `choices`, and `default` if the field is missing; others are refused.

    Args:
      key: the field.
      choices: strings, numbers, None and booleans, which are compared by type and value.
      default: meaning of a missing field.
      why: end of the message, after the choices.
    """
    value = self.value(key)
    if key not in self.content:
      return default
    same = lambda x: type(x) is type(value) and x == value
    numbers = lambda x: is_number(x) and is_number(value) and x == value
    for x in choices:
      if same(x) or numbers(x):
        return x
    named = ' or '.join(show(x) for x in choices if x not in (None, ''))
    raise self.refuse(key, f'only {named} is supported: {why}')

  def off(self, key: str, why: str) -> None:
    """Refuses a field that is not null, false, 0, or an empty text, list or object."""
    value = self.value(key)
    if value not in (None, False, 0, '', [], {}):
      raise self.refuse(key, f'this is not supported: {why}')

  def section(self, key: str) -> 'Section':
    """Returns an object inside this one; an empty one if the field is missing or null."""
    value = self.value(key)
    if value is None:
      value = {}
    if not isinstance(value, dict):
      raise UserError(f'{self.source}: {self.path(key)} must be an object, found {show(value)}')
    return Section(self.source, value, self.path(key))

  def merged(self, key: str) -> 'Section':
    """Returns `section(key)` with the fields of its older name, `key_dict`, which win."""
    inner = self.section(key)
    return Section(
      self.source, {**inner.content, **self.section(f'{key}_dict').content}, inner.name)

  def ignore(self, keys: Iterable[str]) -> None:
    """Marks fields whose values do not matter."""
    self._known.update(keys)

  def close(self) -> None:
    """Raises UserError for fields that nothing has asked for; private ones, `_name`, are none."""
    unknown = sorted(
      key for key in self.content if key not in self._known and not key.startswith('_'))
    if unknown:
      raise UserError(
        f'{self.source}: {self.path(unknown[0])} is a field that this program does not know, so '
        f'it cannot tell whether the model depends on it ({len(unknown)} such); remove it if not')
