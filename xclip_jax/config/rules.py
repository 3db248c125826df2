"""Rules for the values of config fields: each checks a value and says in words what it allows."""

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Between:
  """Numbers from `least` to `most`, or below `below`."""

  least: float
  most: float = math.inf
  below: float = math.inf

  def allows(self, value: Any) -> bool:
    """Tells whether the number lies in the range."""
    return self.least <= value <= self.most and (value < self.below or self.below == math.inf)

  @property
  def words(self) -> str:
    """The range, to follow `must` in a message."""
    if self.below < math.inf:
      return f'lie in [{self.least:g}, {self.below:g})'
    if self.most < math.inf:
      return f'lie in {self.least:g}..{self.most:g}'
    return f'be {self.least:g} or more'


@dataclasses.dataclass(frozen=True)
class OneOf:
  """Some values and no other."""

  choices: tuple

  def allows(self, value: Any) -> bool:
    """Tells whether the value is one of the choices."""
    return value in self.choices

  @property
  def words(self) -> str:
    """The choices, to follow `must` in a message."""
    return f'be one of {", ".join(map(str, self.choices))}'


@dataclasses.dataclass(frozen=True)
class Size:
  """The size of a mesh axis."""

  words = 'be 1 or more, or -1: all devices that are left'

  def allows(self, value: Any) -> bool:
    """Tells whether the number is a size or stands for the remaining devices."""
    return value >= 1 or value == -1


@dataclasses.dataclass(frozen=True)
class Triple:
  """Three numbers, one a colour channel."""

  positive: bool = False

  def allows(self, value: Any) -> bool:
    """Tells whether there are three numbers, above 0 if they must be."""
    return len(value) == 3 and all(is_number(x) and (x > 0 or not self.positive) for x in value)

  @property
  def words(self) -> str:
    """The allowed values, to follow `must` in a message."""
    return f'be three {"positive " if self.positive else ""}numbers, for red, green and blue'


@dataclasses.dataclass(frozen=True)
class Keys:
  """A mapping from some names to integers."""

  names: tuple[str, ...]

  def allows(self, value: Any) -> bool:
    """Tells whether all names are known and all values are integers."""
    return all(name in self.names and is_integer(value[name]) for name in value)

  @property
  def words(self) -> str:
    """The allowed values, to follow `must` in a message."""
    return f'map some of {", ".join(self.names)} to integers'


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Rules over the names of arrays: pairs of a regular expression and a number or a choice."""

  choices: tuple[str, ...] = ()
  least: float = -math.inf

  def allows(self, value: Any) -> bool:
    """Tells whether there are pairs, and each is a valid expression with an allowed value."""
    return len(value) > 0 and all(map(self._is_pair, value))

  def _is_pair(self, pair: Any) -> bool:
    if not is_sequence(pair) or len(pair) != 2 or not isinstance(pair[0], str):
      return False
    try:
      re.compile(pair[0])
    except re.error:
      return False
    return pair[1] in self.choices if self.choices else (
      is_number(pair[1]) and pair[1] >= self.least)

  @property
  def words(self) -> str:
    """The allowed values, to follow `must` in a message."""
    second = f'one of {", ".join(self.choices)}' if self.choices else (
      'a number' if self.least == -math.inf else f'a number of {self.least:g} or more')
    return f'be a sequence of (regular expression, {second})'


def is_integer(value: Any) -> bool:
  """Tells whether a value is a whole number, True and False left out."""
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
  """Tells whether a value is a finite real number, True and False left out."""
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_sequence(value: Any) -> bool:
  """Tells whether a value is a list or tuple, rather than a text."""
  return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_mapping(value: Any) -> bool:
  """Tells whether a value has named entries; a ConfigDict is no `Mapping`."""
  return isinstance(value, Mapping) or (hasattr(value, 'keys') and hasattr(value, '__getitem__'))
