"""Comparison of a run's config with the config that it is continued with."""

import functools
from collections.abc import Mapping
from typing import Any

from xclip_jax.config import duration
from xclip_jax.errors import UserError
from xclip_jax.parallel import tree_names

# Fields that may change between restarts of one run: no weight depends on them.
FREE_FIELDS = (
  r'data\.(root|zero_shot_root|workers|threads|clip_seconds|max_bad_share)|mesh\..*|sharding'
  r'|checkpoint\..*|log_steps|eval\..*|profile\..*|report|train\.extend_schedule'
)
# Numbers in config.json that are computed from these fields, and are compared in their place.
_COMPUTED = {
  'updates': ('train.steps', 'train.epochs'),
  'warmup_updates': ('optim.warmup_steps', 'optim.warmup_epochs'),
}
# Fields that both numbers depend on, too; they are compared by themselves.
_COMMON_FIELDS = ('train.batch_size', 'augment.repeats', 'data_fingerprint.train')
# Values of fields in runs that are older than the field, if the field's default is another value.
_VALUES_BEFORE_FIELD = {'augment.blend_rows': 0}


def check(
  old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """Compares the config of a run with the config to continue the run with.

  Args:
    old: content of config.json.
    new: content of the config.json that the command would write.
    defaults: default of every field, for fields that are newer than the run.

  Returns:
    Former values of the permitted changes by dotted name, for the history of the run.

  Raises:
    UserError: a field that affects the weights differs. The message lists the differences, and
      what to do.
  """
  was, now = flatten(old), flatten(new)
  was = {k: v for k, v in (flatten(defaults) | _VALUES_BEFORE_FIELD).items() if k in now} | was
  for config in (was, now):
    if not (config.get('augment.mixup') or config.get('augment.cutmix')):
      config.pop('augment.blend_rows', None)                   # without blending it has no effect
  differs = lambda name: was.get(name) != now.get(name)
  computed_from = {field for name, fields in _COMPUTED.items() if name in was for field in fields}
  changed = [name for name in sorted((was.keys() | now.keys()) - computed_from - {'history'})
             if differs(name) and not tree_names.matches(FREE_FIELDS, name)]
  refused, former_values = [], {}
  for name in changed:
    fields = [k for k in _COMPUTED.get(name, ()) if differs(k)] or [name]
    if fields == [name] and name in _COMPUTED and any(map(differs, _COMMON_FIELDS)):
      continue                                    # the common field is listed as changed itself
    reason = _refusal_reason(name, was, now)
    if reason is None:
      former_values |= {k: was.get(k) for k in {name, *fields}}
    else:
      refused += [f'{k}: {was.get(k, "not there")} -> {now.get(k, "not there")}{reason}'
                  for k in fields]
  if refused:
    raise UserError(
      'holds a run with another config (there -> now):\n  ' + '\n  '.join(refused)
      + '\nUse the same values to continue it, or another workdir to start anew.')
  return former_values


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Flattens nested mappings to dotted names; lists and empty mappings count as values."""
  if not isinstance(tree, Mapping) or (prefix and not tree):
    return {prefix: tree}
  parts = (flatten(v, f'{prefix}.{k}' if prefix else k) for k, v in tree.items())
  return functools.reduce(lambda a, b: a | b, parts, {})


def lengths(config: Any, num_videos: int) -> dict[str, Any]:
  """Returns the computed numbers of config.json: updates and warm-up updates."""
  return dict(zip(_COMPUTED, duration.run_length(config, num_videos), strict=True))


def former_lengths(content: Mapping[str, Any], num_videos: int) -> dict[str, Any]:
  """Returns `lengths` of an old run without them in config.json: its epochs were whole batches."""
  train, optim = content['train'], content['optim']
  epoch = max(num_videos // train['batch_size'], 1)
  return {'updates': train['steps'] or round(train['epochs'] * epoch),
          'warmup_updates': optim['warmup_steps'] or optim['warmup_epochs'] * epoch}


def first_value(content: Mapping[str, Any], name: str) -> Any:
  """Returns the value that a number or field of config.json had when the run began."""
  for change in content.get('history', ()):
    if name in change['from']:
      return change['from'][name]
  return flatten(content)[name]


def _refusal_reason(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
  """Returns why a value cannot change, '' without a special reason, None if it can change."""
  if name == 'train.accumulation':
    return _micro_batch_dependence(now)
  if name not in _COMPUTED or name not in was or name not in now:
    return ''
  if not any(was.get(k) != now.get(k) for k in _COMPUTED[name]):
    field = _COMPUTED[name][0]
    return (f' (an epoch was a number of whole batches when the run began; '
            f'--config.{field}={was[name]:g} continues it)')
  if name != 'updates':
    return ''
  if now[name] < was[name]:
    return f' (of {was[name]} updates it would have {now[name]}: a run can only be prolonged)'
  if not now['train.extend_schedule']:
    return (f' (to prolong the run from {was[name]} to {now[name]} updates, add '
            '--config.train.extend_schedule=True: learning rates from here on are then those of '
            'the new length)')
  return None


def _micro_batch_dependence(now: Mapping[str, Any]) -> str | None:
  """Names an option that makes results depend on the micro-batches; None without one."""
  clips, patches = 'clips are mixed within a micro-batch', 'patches are drawn for each micro-batch'
  for is_on, name, effect in (
    (now['augment.mixup'], 'augment.mixup', clips),
    (now['augment.cutmix'], 'augment.cutmix', clips),
    (now['train.task'] == 'captions', 'train.task', 'captions are compared in each micro-batch'),
    (now['model.patch_dropout'], 'model.patch_dropout', patches),
    (now.get('model.fields.patch_dropout'), 'model.fields.patch_dropout', patches),
    (now.get('model.fields.drop_path'), 'model.fields.drop_path',
     'branches are dropped anew in each micro-batch'),
    (now['train.interpolate_up_to'], 'train.interpolate_up_to',
     'each micro-batch draws the weights between'),
  ):
    if is_on:
      return f' (numbers would depend on it, as config.{name} is {now[name]!r}: {effect})'
  return None
