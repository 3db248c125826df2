"""How far the config of a run may differ from the one that the run began with."""

import functools
from collections.abc import Mapping
from typing import Any

from xclip_jax.config import duration
from xclip_jax.errors import UserError
from xclip_jax.parallel import tree_names

# Fields that may change between restarts of one run: they move no weight.
FREE_FIELDS = (
  r'data\.(root|zero_shot_root|workers|threads|clip_seconds|max_bad_share)|mesh\..*|sharding|checkpoint\..*'
  r'|log_steps|eval\..*|profile\..*|report|train\.extend_schedule'
)
# Numbers that follow from several fields, in config.json beside them: they are compared instead.
_FOLLOWS = {
  'updates': ('train.steps', 'train.epochs'),
  'warmup_updates': ('optim.warmup_steps', 'optim.warmup_epochs'),
}
_CAUSES = ('train.batch_size', 'augment.repeats', 'data_fingerprint.train')      # of both numbers
# What was done before there was the field, where the field's default is something else.
_FORMER = {'augment.blend_rows': 0}


def check(
  old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """Compares the config of a run with the one to continue the run with.

  Args:
    old: content of config.json.
    new: the same of the command.
    defaults: of all fields, for those that are younger than the run.

  Returns:
    the old values of what may change and does, for the history of the run, by dotted names.

  Raises:
    ValueError: a field that matters differs. The message lists the differences, and what can be
      done.
  """
  was, now = flatten(old), flatten(new)
  was = {k: v for k, v in (flatten(defaults) | _FORMER).items() if k in now} | was
  for side in (was, now):
    if not (side.get('augment.mixup') or side.get('augment.cutmix')):
      side.pop('augment.blend_rows', None)                     # there are no groups
  differs = lambda name: was.get(name) != now.get(name)
  followed = {field for name, fields in _FOLLOWS.items() if name in was for field in fields}
  changed = [name for name in sorted((was.keys() | now.keys()) - followed - {'history'})
             if differs(name) and not tree_names.matches(FREE_FIELDS, name)]
  refused, kept = [], {}
  for name in changed:
    fields = [k for k in _FOLLOWS.get(name, ()) if differs(k)] or [name]
    if fields == [name] and name in _FOLLOWS and any(map(differs, _CAUSES)):
      continue                                                 # which is in the list itself
    reason = _reason(name, was, now)
    if reason is None:
      kept |= {k: was.get(k) for k in {name, *fields}}
    else:
      refused += [f'{k}: {was.get(k, "not there")} -> {now.get(k, "not there")}{reason}'
                  for k in fields]
  if refused:
    raise UserError(
      'holds a run with another config (there -> now):\n  ' + '\n  '.join(refused)
      + '\nUse the same values to continue it, or another workdir to start anew.')
  return kept


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Turns nested mappings into one with dotted names; lists and empty mappings are values."""
  if not isinstance(tree, Mapping) or (prefix and not tree):
    return {prefix: tree}
  parts = (flatten(v, f'{prefix}.{k}' if prefix else k) for k, v in tree.items())
  return functools.reduce(lambda a, b: a | b, parts, {})


def lengths(config: Any, num_videos: int) -> dict[str, Any]:
  """Returns the numbers of config.json that follow from several fields."""
  return dict(zip(_FOLLOWS, duration.run_length(config, num_videos), strict=True))


def former_lengths(content: Mapping[str, Any], num_videos: int) -> dict[str, Any]:
  """Returns `lengths` of a run whose config.json has none: its epochs were whole batches."""
  train, optim = content['train'], content['optim']
  epoch = max(num_videos // train['batch_size'], 1)
  return {'updates': train['steps'] or round(train['epochs'] * epoch),
          'warmup_updates': optim['warmup_steps'] or optim['warmup_epochs'] * epoch}


def first_value(content: Mapping[str, Any], name: str) -> Any:
  """Returns what a number or field was when the run began, from the content of config.json."""
  for change in content.get('history', ()):
    if name in change['from']:
      return change['from'][name]
  return flatten(content)[name]


def _reason(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
  """Returns why a number or field cannot change so, '' if the names say it; None: it can."""
  if name == 'train.accumulation':
    return _depends_on_micro_batches(now)
  if name not in _FOLLOWS or name not in was or name not in now:
    return ''
  if not any(was.get(k) != now.get(k) for k in _FOLLOWS[name]):
    field = _FOLLOWS[name][0]
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


def _depends_on_micro_batches(now: Mapping[str, Any]) -> str | None:
  """Returns which option makes numbers depend on the micro-batches; None: nothing does."""
  clips, patches = 'clips are mixed within a micro-batch', 'patches are drawn for each micro-batch'
  for on, name, what in (
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
    if on:
      return f' (numbers would depend on it, as config.{name} is {now[name]!r}: {what})'
  return None
