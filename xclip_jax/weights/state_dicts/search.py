"""The parameters of a model in the content of a file: under any keys, with any prefix."""

import collections
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.weights import apply, rules
from xclip_jax.weights.files import archive, tensors, unpickle

_MAX_DEPTH, _MAX_ENTRIES = 16, 1_000_000
TOP = '.'                     # what `subtree` calls a model whose names begin without a prefix

# Parts of names that wrappers of PyTorch put before, or into, the names of what they wrap.
_WRAPPERS = (
  'module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_forward_module')
_WRAPPER = rf'(?:(?:{"|".join(_WRAPPERS)})\.)*'
# A name that every model of a kind has; what stands before it is the prefix of the model.
_ANCHORS = tuple(
  re.compile(rf'((?:.*\.)?)({rf"{_WRAPPER}".join(map(re.escape, parts))})')
  for parts in (
    ('visual.', 'conv1.', 'weight'), ('vision_model.', 'embeddings.', 'patch_embedding.', 'weight'))
)
# Models that are rarely meant where the file has another, the likeliest of them first.
_AVERAGE = re.compile(r'(?:^|[._])(ema|avg|averag\w*|swa|shadow)', re.IGNORECASE)
_UNUSUAL = (
  _AVERAGE, re.compile(r'(?:^|[._])(teacher|target|anchor|frozen|old|init)', re.IGNORECASE),
  re.compile(r'(?:^|[._])(optim|exp_avg|moment|grad)', re.IGNORECASE))
_USUAL_KEYS = ('model', 'state_dict', 'model_state_dict', 'module')
_IS_ADAPTED = re.compile(r'\.(lora|hada|lokr|b?oft|vera|ia3)_|\.base_layer\.')
_ADAPTER = (
  'holds an adapter (LoRA or the like) beside or without its model: merge it with PEFT, '
  'model.merge_and_unload(), and save the result; or name the folder that save_pretrained wrote, '
  'with its adapter_config.json')
_PARTS_OF_MODULE = ('_parameters', '_buffers', '_modules')    # attributes of torch.nn.Module


@dataclasses.dataclass(frozen=True, eq=False)
class StateDict:
  """Holds the parameters of one model in a file.

  Fields:
    state: name without prefix -> array.
    dialect: the key of rules.DIALECTS that the names belong to.
    place: keys and prefix before the names in the file; '' if there are none.
    rest: everything else in the file, such as 'epoch', 'optimizer' or another model.
    notes: what people should know about the choice, a line each.
  """
  state: dict[str, np.ndarray]
  dialect: str
  place: str
  rest: dict[str, Any] = dataclasses.field(repr=False)
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
  """Describes one tensor: its full name, and the length of the part that names its container."""
  name: str
  container: int
  array: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
  """Describes the tensors of a file that one dialect names."""
  place: str
  state: dict[str, np.ndarray]
  names: frozenset[str]         # full names of its tensors
  dialect: str
  is_complete: bool             # has a text tower, too


def find(
  contents: archive.Contents, subtree: str | None = None, checksums: bool = True
) -> StateDict:
  """Finds the model in the content of a file; compares its tensors with the file's checksums.

  Args:
    contents: what `archive.read` returns.
    subtree: key or prefix of the model to take, where the file holds several; TOP is the one
      without any. Default: the model itself rather than its average, teacher or start.
    checksums: compare, which reads the bytes of the model.

  Raises:
    UserError: no tensors have names of CLIP or X-CLIP, or `subtree` names no model or several.
    ArchiveError: a tensor has other bytes than were written.
  """
  if subtree is not None and not isinstance(subtree, str):
    raise UserError(f'subtree must be a key or a prefix of names, got {subtree!r:.80}')
  path, listed = contents.files[0], list_tensors(contents)
  if not listed:
    raise UserError(f'{path}: has no tensors; it holds {_outline(contents.tree)}; save '
                    'model.state_dict() instead')
  models = _find_models(path, listed)
  model = models[0] if subtree is None else _choose(path, models, subtree)
  if checksums:
    contents.check(model.state.values())
  others = [x for x in models if x is not model]
  notes = []
  if others and subtree is None:
    notes.append(
      f'the file holds {len(models)} models; {_shown_place(model)} is taken, --subtree (subtree=) '
      f'takes another: {", ".join(map(_shown_place, others))}')
  if _AVERAGE.search(model.place) or any(
      f'{model.place}.'.startswith(x.name.removesuffix('n_averaged'))
      for x in listed if x.name.endswith('n_averaged')):
    notes.append(f'{_shown_place(model)} is a running average of the weights')
  return StateDict(
    model.state, model.dialect, model.place, _rest(contents, model, others), tuple(notes))


def check_no_subtree(source: str | os.PathLike, subtree: str | None) -> None:
  """Raises UserError if `subtree` is given for weights that can only be one model."""
  if subtree is not None:
    raise UserError(f'{os.fspath(source)} holds one model, so there is no subtree {subtree!r:.200} '
                    'to choose; leave it out')


def list_tensors(contents: archive.Contents) -> list[_Tensor]:
  """Lists all tensors in the content of a file by their full names, such as 'ema.visual.proj'."""
  with archive.naming(contents.files[0]):
    return [_Tensor('.'.join((*path, key)), len('.'.join((*path, ''))), value)
            for path, key, value in _walk(contents.tree) if isinstance(value, np.ndarray)]


def _walk(tree: Any) -> Iterator[tuple[tuple[str, ...], str, Any]]:
  """Yields (keys of the container, key, value) of each entry of a tree; each container once."""
  pending: collections.deque[tuple[tuple[str, ...], Any]] = collections.deque([((), tree)])
  seen, count = set(), 0
  while pending:
    path, container = pending.popleft()
    for key, value in _entries(container):
      count += 1
      if count > _MAX_ENTRIES:
        raise tensors.ArchiveError(f'holds more than {_MAX_ENTRIES:,} entries')
      yield path, key, value
      if _is_container(value) and id(value) not in seen and len(path) < _MAX_DEPTH:
        seen.add(id(value))
        pending.append(((*path, key), value))


def _is_container(value: Any) -> bool:
  return isinstance(value, dict | list | tuple | archive.Inert)


def _entries(container: Any) -> Iterator[tuple[str, Any]]:
  """Yields the names in one container and their values; a whole module has those of its parts."""
  if isinstance(container, unpickle.Module):
    yield from archive.leaves(container)
  elif isinstance(container, list | tuple):
    yield from ((str(index), value) for index, value in enumerate(container))
  elif isinstance(container, archive.Inert):
    parts = [container.items.get(x) for x in _PARTS_OF_MODULE]
    is_module = all(isinstance(part, dict) for part in parts)
    for part in parts if is_module else [container.items]:
      yield from ((key, x) for key, x in _entries(part) if not (is_module and x is None))
  elif isinstance(container, dict):
    yield from ((str(key), value) for key, value in container.items() if isinstance(key, str | int))


def _find_models(path: Any, listed: list[_Tensor]) -> list[_Model]:
  """Returns the models among the tensors of a file, the most usual first."""
  anchors: dict[str, _Tensor] = {}
  for tensor, anchor in itertools.product(listed, _ANCHORS):
    if match := anchor.fullmatch(tensor.name):
      anchors.setdefault(match[1], tensor)
  models, refusals = [], []
  for prefix, anchor in anchors.items():
    try:
      models.append(_model(path, prefix, anchor, listed, [*anchors]))
    except UserError as error:
      refusals.append(error)
  if not models and refusals:
    raise refusals[0]
  if not models:
    names = [x.name for x in listed]
    is_adapter = any(map(_IS_ADAPTED.search, names))
    raise UserError(f'{path}: {_ADAPTER if is_adapter else apply.explain_unknown_names(names)}')
  return sorted(models, key=_rank)


def _model(
  path: Any, prefix: str, anchor: _Tensor, listed: list[_Tensor], prefixes: list[str]
) -> _Model:
  """Collects the tensors of the model with a prefix; UserError if its names are no dialect's."""
  within = [x for x in prefixes if x != prefix and x.startswith(prefix)]
  state, names = {}, set()
  for tensor in listed:
    # Where one dict holds a whole name, it holds the whole model. Otherwise towers have own dicts.
    apart = anchor.container <= len(prefix) and tensor.container != anchor.container
    if not tensor.name.startswith(prefix) or apart or tensor.name.startswith(tuple(within)):
      continue
    name = re.sub(rf'(?:^|(?<=\.)){_WRAPPER}', '', tensor.name[len(prefix):])
    if name in state:
      raise UserError(f'{path}: holds two tensors {name!r:.200} under {prefix!r:.200}')
    state[name] = tensor.array
    names.add(tensor.name)
  if any(map(_IS_ADAPTED.search, names)):
    raise UserError(f'{path}: {_ADAPTER}')
  try:
    dialect = apply.detect_dialect(state)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  text = next(rule.theirs for rule in rules.DIALECTS[dialect] if rule.ours[0].startswith('text/'))
  return _Model(prefix.removesuffix('.'), state, frozenset(names), dialect, text in state)


def _rank(model: _Model) -> tuple:
  """Returns a key that sorts the model that people mostly want before the others."""
  parts = model.place.split('.')
  unusual = max(
    (n for n, pattern in enumerate(_UNUSUAL, 1) if pattern.search(model.place)), default=0)
  usual = _USUAL_KEYS.index(parts[0]) if parts[0] in _USUAL_KEYS else len(_USUAL_KEYS)
  is_clip = model.dialect in rules.CLIP_DIALECTS
  return not model.is_complete, unusual, is_clip, model.place != '', usual, len(parts)


def _choose(path: Any, models: list[_Model], subtree: str) -> _Model:
  """Returns the model that `subtree` names: its place, the beginning of it, or a part of it."""
  wanted = '' if subtree in (TOP, '') else subtree.strip('.')
  matches = [x for x in models if x.place == wanted]
  if not matches and wanted:
    matches = [x for x in models if f'{x.place}.'.startswith(f'{wanted}.')] or [
      x for x in models if f'.{wanted}.' in f'.{x.place}.']
  if len(matches) != 1:
    raise UserError(
      f'{path}: subtree {subtree!r:.200} names {len(matches) or "none"} of the models in the file; '
      f'it holds {", ".join(map(_shown_place, models))}')
  return matches[0]


def _shown_place(model: _Model) -> str:
  return repr((model.place or TOP)[:200])


def _rest(contents: archive.Contents, model: _Model, others: list[_Model]) -> dict[str, Any]:
  """Returns what a file holds besides a model, by full name; other models are one entry each."""
  rest: dict[str, Any] = {x.place or TOP: x.state for x in others}
  taken = set(model.names).union(*(x.names for x in others))
  opened = {name[:end.start()] for name in taken for end in re.finditer(r'\.', name)}
  pending: list[tuple[str, Any]] = [('', contents.tree)]
  while pending:
    prefix, container = pending.pop()
    for key, value in _entries(container):
      name = prefix + key
      if name in opened and _is_container(value):
        pending.append((f'{name}.', value))
      elif name not in taken:
        rest[name] = value
  return rest


def _outline(tree: Any) -> str:
  """Names the first entries of a tree and their kinds."""
  entries = ', '.join(f'{key!r:.60} ({_kind(value)})'
                      for key, value in itertools.islice(_entries(tree), 12))
  return entries if isinstance(tree, dict) and entries else (
    'nothing' if tree == {} else f'a {_kind(tree)}')


def _kind(value: Any) -> str:
  return value.name[:80] if isinstance(value, archive.Inert) else type(value).__name__
