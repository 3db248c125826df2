"""Fields are changed on the command line as ml_collections does it, and mistakes are one line."""

import pytest

from xclip_jax import config as fields
from xclip_jax.config import overrides
from xclip_jax.errors import ConfigError


def apply(*arguments):
  config = fields.get_config()
  assert overrides.apply_flags(config, arguments) == []
  assert config.is_locked
  return config


def test_every_form_of_ml_collections_sets_a_field():
  c = apply('--config.train.steps=3', '--config.optim.lr', '2', '--noconfig.report',
            '-config.seed=5', "--config.data.synthetic={'seed': 1}", '--config.model.remat=dots',
            "--config.data.templates=('a {}', 'b {}')", '--config.train.freeze_text=false')
  assert (c.train.steps, c.optim.lr, c.report, c.seed) == (3, 2.0, False, 5)
  assert (c.data.synthetic.seed, c.model.remat) == (1, 'dots')
  assert c.data.templates == ('a {}', 'b {}') and c.train.freeze_text is False
  assert apply('--config.report').report is True
  assert apply("--config.train={'steps': 7}").train.steps == 7
  assert apply('--config.log_steps=2', '--config.log_steps=5').log_steps == 5


@pytest.mark.parametrize(('argument', 'message'), [
  ('--config.train.step=3', r'no field of a run; did you mean config.train.steps\?'),
  ('--config.accumulation=3', r'did you mean config.train.accumulation\?'),
  ('--noconfig.reprt', r'config.reprt is no field of a run; did you mean config.report\?'),
  ('--config.zzz=3', r'config.zzz is no field of a run\.'),
  ('--config.train.steps=many', '--config.train.steps=many: invalid literal'),
  ('--config.train.steps', 'Missing value for flag --config.train.steps'),
  ('--config.data.templates=a {}', '--config.data.templates=a {}: Error while parsing'),
  ('--wrkdir=3', '--wrkdir is no flag of this command'),
])
def test_a_mistake_is_one_line(argument, message):
  with pytest.raises(ConfigError, match=message) as error:
    apply(argument)
  assert '\n' not in str(error.value)


def test_what_is_no_flag_is_given_back():
  assert overrides.apply_flags(fields.get_config(), ['stray', 'x']) == ['stray', 'x']


def test_fields_are_set_by_name():
  config = fields.get_config().lock()
  overrides.set_fields(config, {'train.steps': 3, 'model.fields.image_size': 32})
  assert (config.train.steps, config.model.fields.image_size) == (3, 32)
  for change, message in (({'model.size': 3}, 'config.model.size=3: config.model.size is no field'),
                          ({'train.steps': 'many'}, "config.train.steps='many': ")):
    with pytest.raises(ConfigError, match=message):
      overrides.set_fields(config, change)
