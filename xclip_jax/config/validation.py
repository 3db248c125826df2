"""Checks of a whole config, before anything is read, written or computed."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from xclip_jax.config import fields, rules
from xclip_jax.config.batch_sizes import check_train_batch
from xclip_jax.config.duration import check_length
from xclip_jax.errors import ConfigError


def validate(config: Any) -> None:
  """Raises ConfigError unless all fields of a config are known, allowed and consistent.

  Checks that need the data, the weights or the devices are those of training.job.prepare.

  Args:
    config: ConfigDict of the fields of `fields.Run`.

  Raises:
    ConfigError: names one field, its value, what is allowed and what to do.
  """
  _check_section(config, fields.Run, 'config')
  _check_task(config)
  _check_texts(config)
  _check_averages_and_anchors(config.train)
  _check_devices(config)
  check_train_batch(config, 1)
  check_length(config)


def field_names(section: type = fields.Run, prefix: str = '') -> Iterator[str]:
  """Yields the dotted names of all fields, e.g. 'optim.lr'."""
  for name, hint in fields.type_hints(section).items():
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
      yield from field_names(hint, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}'


def resolve_loss(train: Any) -> str:
  """Returns the loss of `config.train`, 'softmax' or 'sigmoid'."""
  if train.loss != 'auto':
    return train.loss
  return 'sigmoid' if train.task == 'multi-label' else 'softmax'


def _check_section(values: Any, section: type, where: str) -> None:
  """Checks the names in a section, and the type and value of each of its fields."""
  if not rules.is_mapping(values):
    raise ConfigError(f'{where}={values!r} must be a section with fields of its own')
  hints = fields.type_hints(section)
  for name in values.keys():
    if name not in hints:
      raise ConfigError(f'{where}.{name} is no field of a run{_suggest(name, where, hints)}')
  for name, hint in hints.items():
    if name not in values.keys():
      raise ConfigError(
        f'{where}.{name} is missing; start from xclip_jax.config.get_config(), which has it')
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
      _check_section(values[name], hint, f'{where}.{name}')
    else:
      _check_value(values[name], hint, f'{where}.{name}')


def _suggest(name: str, where: str, hints: Mapping[str, Any]) -> str:
  """Returns the end of a message about an unknown field: the name that may be meant, or all."""
  near = difflib.get_close_matches(name, hints, 1)
  if near:
    return f'; did you mean {where}.{near[0]}?'
  elsewhere = {full.split('.')[-1]: full for full in reversed(list(field_names()))}
  near = difflib.get_close_matches(name, elsewhere, 1, 0.8)
  if near:
    return f'; did you mean config.{elsewhere[near[0]]}?'
  return f'; {where} has {", ".join(hints)}'


def _check_value(value: Any, hint: Any, name: str) -> None:
  """Checks the type of a value, then the rules of its field."""
  kind, checks = hint, ()
  if typing.get_origin(hint) is typing.Annotated:
    kind, *checks = typing.get_args(hint)
  if not _is_of_type(value, kind):
    raise ConfigError(
      f'{name}={value!r} must be {_describe_type(kind)}, got {type(value).__name__}')
  for rule in checks:
    if not rule.allows(value):
      raise ConfigError(f'{name}={value!r} must {rule.words}')


def _is_of_type(value: Any, kind: Any) -> bool:
  """Tells whether a value has the type of its field; whole numbers are floats, lists tuples."""
  if isinstance(kind, types.UnionType):
    return any(_is_of_type(value, part) for part in kind.__args__)
  origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
  if origin is types.NoneType:
    return value is None
  if origin is bool:
    return isinstance(value, bool)
  if origin is int:
    return rules.is_integer(value)
  if origin is float:
    return rules.is_number(value)
  if origin is str:
    return isinstance(value, str)
  if origin is tuple:
    inner = arguments[0] if arguments else Any
    return rules.is_sequence(value) and all(
      inner is Any or _is_of_type(part, inner) for part in value)
  assert origin is Mapping, f'no check for fields of type {kind}'
  return rules.is_mapping(value)


def _describe_type(kind: Any) -> str:
  """Returns a type in words."""
  if isinstance(kind, types.UnionType):
    return ' or '.join(_describe_type(part) for part in kind.__args__)
  origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
  if origin is tuple:
    return 'a sequence' + (f' of {_describe_plural(arguments[0])}' if arguments else '')
  return {bool: 'True or False', int: 'a whole number', float: 'a finite number', str: 'a text',
          types.NoneType: 'None'}.get(origin, 'a mapping of names to values')


def _describe_plural(kind: type) -> str:
  """Returns the plural of a type in words."""
  return {float: 'numbers', str: 'texts'}[kind]


def _check_task(config: Any) -> None:
  """Checks that loss, lists and augmentation have a meaning for `train.task`."""
  task, augment, data = config.train.task, config.augment, config.data
  if task == 'multi-label' and config.train.loss == 'softmax':
    raise ConfigError(
      "config.train.loss='softmax' makes classes compete, and in task multi-label several are "
      "right at once; set it to 'sigmoid' or 'auto'")
  blends = [name for name in ('mixup', 'cutmix', 'label_smoothing') if augment[name]]
  if task == 'captions' and blends:
    raise ConfigError(
      f'config.augment.{blends[0]}={augment[blends[0]]} mixes or smooths classes, and captions are '
      f'none; set {", ".join(f"config.augment.{name}" for name in blends)} to 0')
  if task != 'single-label' and augment.reverse:
    raise ConfigError(
      'config.augment.reverse says what one class becomes when played backwards; '
      f'with config.train.task={task!r} set it to False')
  if task != 'single-label' and data.name not in ('files', 'synthetic'):
    raise ConfigError(
      f'config.train.task={task!r} reads lists of its own: set config.data.name to files, found '
      f'{data.name!r}')
  if task == 'captions' and data.zero_shot:
    raise ConfigError(
      'config.data.zero_shot is a list of classes, and config.train.task is captions; leave it '
      'empty, and use `xclip eval zero-shot`')


def _check_texts(config: Any) -> None:
  """Checks prompts and descriptions of classes."""
  data, task = config.data, config.train.task
  for field, templates in (('template', (data.template,)), ('templates', data.templates)):
    for template in templates:
      if '{}' not in template and not (field == 'template' and data.templates):
        raise ConfigError(
          f'config.data.{field}: {template!r} must hold {{}} for the class name')
  if task == 'captions' and (data.templates or data.descriptions):
    raise ConfigError(
      'config.data.templates and descriptions are of classes, and config.train.task is captions; '
      'leave them empty')
  if task == 'multi-label' and data.descriptions:
    raise ConfigError(
      "config.data.descriptions with config.train.task='multi-label' is not there yet; leave it "
      'empty')


def _check_averages_and_anchors(train: Any) -> None:
  """Checks the options that keep a second set of weights beside those that are trained."""
  used = [name for name in ('interpolate_up_to', 'distill') if train[name]]
  if used and not train.init_from:
    raise ConfigError(
      f'config.train.{used[0]}={train[used[0]]} keeps a run near its initial weights; set '
      'config.train.init_from to some')
  if train.ema and train.average_from < 1:
    raise ConfigError(
      f'config.train.ema={train.ema} and config.train.average_from={train.average_from} are two '
      'ways to average; set one, and leave the other at 0.0 or 1.0')


def _check_devices(config: Any) -> None:
  """Checks what can be known about the mesh and the attention without the devices."""
  remaining = [name for name in config.mesh if config.mesh[name] == -1]
  if len(remaining) > 1:
    raise ConfigError(
      f'config.mesh.{remaining[1]}=-1 and config.mesh.{remaining[0]}=-1: only one axis can take '
      'the devices that are left; set the other to a number')
  dtype = config.model.fields.get('dtype', config.model.dtype)
  if config.model.attention == 'cudnn' and dtype != 'bfloat16':
    raise ConfigError(
      "config.model.attention='cudnn' needs an NVIDIA GPU and model.dtype='bfloat16', got "
      f"{dtype!r}; set it to 'xla'")
