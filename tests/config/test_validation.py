"""A config is checked whole, once, before any work: one wrong field, one error that names it."""

import pytest

from configs import base
from xclip_jax import config as config_lib
from xclip_jax.config import fields, validation
from xclip_jax.data import _NAMES as DATA_SETS
from xclip_jax.errors import ConfigError
from xclip_jax.models.config import DTYPES
from xclip_jax.parallel import mesh
from xclip_jax.training import run as run_lib

NAMES = tuple(validation.field_names())
# A value that a field cannot have, though its type is right. All other fields are in FREE.
WRONG = {
  'model.variant': 'B/8', 'model.num_frames': 0, 'model.fields': {'vision_widht': 3},
  'model.dtype': 'float16', 'model.residual_dtype': 'half', 'model.attention': 'flash',
  'model.remat': 'all', 'model.patch_dropout': 1.0, 'data.name': 'webvid',
  'data.synthetic': {'videos': 3}, 'data.split': 0, 'data.template': 'a video',
  'data.templates': ('{}', 'a video'), 'data.workers': -1, 'data.threads': 0,
  'data.sampling': 'all', 'data.stride': 0, 'data.clip_seconds': -1.0, 'data.max_bad_share': 1.5,
  'data.mean': (1.0, 2.0), 'data.std': (1.0, 0.0, 1.0), 'data.eval_resize': 0.5,
  'augment.crop': 'middle', 'augment.flip': 1.5, 'augment.color_jitter': -0.1,
  'augment.grayscale': 2.0, 'augment.color_on': 'gpu', 'augment.rand_augment': -1,
  'augment.rand_magnitude': 11.0, 'augment.erase': 2.0, 'augment.repeats': 0,
  'augment.mixup': -0.1, 'augment.cutmix': float('nan'), 'augment.cutmix_share': 2.0,
  'augment.blend_rows': 1, 'augment.label_smoothing': 2.0, 'train.task': 'labels',
  'train.loss': 'hinge', 'train.batch_size': 0, 'train.accumulation': 0, 'train.epochs': -1.0,
  'train.steps': -1, 'train.init_scale': (('(', 1.0),), 'train.interpolate_up_to': 1.0,
  'train.interpolate_weight': -1.0, 'train.distill': -1.0, 'train.ema': 1.0,
  'train.average_from': -0.1, 'optim.name': 'adam', 'optim.lr': float('inf'),
  'optim.groups': (('.*', -1.0),), 'optim.floor': -1.0, 'optim.warmup_epochs': -1.0,
  'optim.warmup_steps': -1, 'optim.b1': 1.0, 'optim.b2': 1.0, 'optim.eps': -1.0,
  'optim.weight_decay': -1.0, 'optim.decay': (), 'optim.clip_norm': -1.0, 'mesh.data': 0,
  'mesh.fsdp': -2, 'mesh.tensor': -1, 'mesh.dcn': 0, 'sharding': (('.*', 'columns'),),
  'checkpoint.every_steps': 0, 'checkpoint.keep_latest': 0, 'checkpoint.keep_best': -1,
  'log_steps': 0, 'eval.every_steps': -1, 'eval.batch_size': 0, 'eval.clips': 0,
  'eval.views': 'all', 'eval.crops': 2, 'eval.checkpoint': 'first', 'profile.first': -1,
  'profile.steps': -1,
}
FREE = {                                        # any number, any text, True and False
  'seed', 'data.root', 'data.train', 'data.val', 'data.classes', 'data.videos', 'data.split_files',
  'data.zero_shot', 'data.zero_shot_classes', 'data.zero_shot_root', 'data.descriptions',
  'data.truncate_captions', 'data.square_pixels', 'augment.reverse', 'train.extend_schedule',
  'train.freeze_text', 'train.init_from', 'train.init_resample', 'optim.lag_steps', 'report',
}


def changed(name, value):
  c = base.get_config()
  with c.ignore_type():
    *sections, last = name.split('.')
    section = c
    for part in sections:
      section = section[part]
    section[last] = value
  return c


@pytest.fixture(autouse=True)
def nothing_is_touched(monkeypatch):
  """Fails if a file or a device is used before the config is checked."""
  def refuse(*_, **__):
    raise AssertionError('a run began before its config was checked')

  monkeypatch.setattr(run_lib.workdir_lib, 'open_folder', refuse)
  monkeypatch.setattr('jax.devices', refuse)


def refused(config, tmp_path):
  with pytest.raises(ConfigError) as error:
    run_lib.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  return str(error.value)


@pytest.mark.parametrize('name', NAMES)
def test_a_wrong_type_is_one_error_that_names_the_field(name, tmp_path):
  value = base.get_config()
  for part in name.split('.'):
    value = value[part]
  message = refused(changed(name, 3.5j), tmp_path)
  assert message.startswith(f'config.{name}=3.5j must be ') and 'complex' in message
  if type(value) is int:
    assert f'config.{name}=True must be a' in refused(changed(name, True), tmp_path)
  if type(value) in (int, float):
    assert f"config.{name}='1' must be a" in refused(changed(name, '1'), tmp_path)


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_value_is_one_error_that_names_the_field(name, tmp_path):
  message = refused(changed(name, WRONG[name]), tmp_path)
  section = name if name not in ('model.variant', 'model.fields') else 'model'
  assert f'config.{section}' in message or f'{section}: ' in message


def test_every_field_has_a_wrong_value_or_is_free():
  assert set(NAMES) == WRONG.keys() | FREE and not WRONG.keys() & FREE


@pytest.mark.parametrize(('name', 'message'), [
  ('optim.learning_rate', 'config.optim.learning_rate is no field of a run; config.optim has name'),
  ('optim.warmup_step', r'did you mean config.optim.warmup_steps\?'),
  ('train.warmup_steps', r'did you mean config.optim.warmup_steps\?'),
  ('batchsize', r'did you mean config.train.batch_size\?'),
])
def test_an_unknown_field_is_named_with_what_may_be_meant(name, message):
  c = base.get_config()
  section, _, last = name.rpartition('.')
  (c[section] if section else c)[last] = 1
  with pytest.raises(ConfigError, match=message):
    config_lib.validate(c)


def test_a_missing_field_is_named():
  c = base.get_config()
  del c.optim.lr
  with pytest.raises(ConfigError, match=r'config.optim.lr is missing'):
    config_lib.validate(c)


@pytest.mark.parametrize(('changes', 'message'), [
  ({'train.steps': 0, 'train.epochs': 0.0}, 'the run has no steps'),
  ({'train.batch_size': 7, 'train.accumulation': 2}, 'train.batch_size=7 does not divide by'),
  ({'train.batch_size': 7, 'augment.repeats': 2}, 'must be a multiple of config.augment.repeats=2'),
  ({'mesh.fsdp': -1}, 'only one axis can take the devices that are left'),
  ({'model.attention': 'cudnn'}, "needs an NVIDIA GPU and model.dtype='bfloat16'"),
  ({'train.task': 'multi-label', 'data.descriptions': 'd.csv'}, 'leave it empty'),
])
def test_fields_that_contradict_each_other_are_named(changes, message, tmp_path):
  c = base.get_config()
  c.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError, match=message):
    run_lib.run(c, tmp_path / 'run')


def test_whole_numbers_are_taken_for_numbers_and_lists_for_tuples():
  for name, value in (('optim.lr', 1), ('data.mean', [0, 0, 0]), ('optim.groups', [['.*', 1]])):
    config_lib.validate(changed(name, value))


def test_names_of_other_rooms_are_the_same_here():
  assert set(fields.DATA_SETS) == set(DATA_SETS)
  assert fields.SHARDING_RULES == mesh.RULES and set(fields.DTYPES) == DTYPES.keys()
  assert set(fields.type_hints(fields.Mesh)) == set(mesh.AXES)
