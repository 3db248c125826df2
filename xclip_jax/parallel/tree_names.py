"""Names for the leaves of any pytree, and tables of rules over those names."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from xclip_jax.errors import UserError

Rules = Sequence[tuple[str, Any]]     # rows of (regex over the whole name, value)


def name(path: tuple) -> str:
  """Joins a key path to a name: ('vision', 'ln_pre', 'scale') -> 'vision/ln_pre/scale'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by name, in tree order."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
  """Builds nested dicts from names; the inverse of `flatten` for trees of dicts."""
  tree: dict[str, Any] = {}
  for key, leaf in flat.items():
    *parents, last = key.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def map_with_names(f: Callable[[str, Any], Any], tree: Any) -> Any:
  """Applies f(name, leaf) to every leaf of a pytree."""
  return jax.tree.map_with_path(lambda path, leaf: f(name(path), leaf), tree)


def match(key: str, rules: Rules) -> Any:
  """Returns the value of the first rule whose regex matches the whole name.

  Raises:
    UserError: no rule matches.
  """
  for pattern, value in rules:
    if matches(pattern, key):
      return value
  raise UserError(
    f'no rule matches {key!r}; add one, e.g. a last row that matches everything: (".*", ...). '
    f'Rules: {[pattern for pattern, _ in rules]}'
  )


def matches(pattern: str, key: str) -> bool:
  """Tells whether a regex matches the whole name."""
  return re.fullmatch(pattern, key) is not None


def check_used(rules: Rules, keys: Iterable[str], field: str) -> None:
  """Raises UserError for a rule that no key matches first: usually a misspelt name.

  Args:
    rules: rules over `keys`; a final '.*' may match nothing.
    keys: names of parameters.
    field: the config's name of the rules, for the message.
  """
  keys = list(keys)
  first_rule = lambda key: next(
    (i for i, (pattern, _) in enumerate(rules) if matches(pattern, key)), -1)
  used = {first_rule(key) for key in keys}
  for i, (pattern, _) in enumerate(rules):
    if i not in used and pattern != '.*':
      raise UserError(f'{field}: {pattern!r} matches no parameter; see {keys[:3]}')
