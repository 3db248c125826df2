"""Every published recipe is a config, and says what the authors' settings say."""

import ast
import pathlib
import re
import sys

import numpy as np
import optax
import pytest

from xclip_jax import config as fields
from xclip_jax.config import published, validation
from xclip_jax.errors import ConfigError
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state
from xclip_jax.training import job as job_lib
from xclip_jax.training import optimizer
from xclip_jax.training.objectives import anchoring

FOLDER = pathlib.Path(__file__).parents[2] / 'configs'
# Variant, frames, clips an update, micro-batches, epochs, learning rate, published top-1: settings
# and tables of the authors, written down again here.
PUBLISHED = {
  'k400_b32_8f': ('B/32', 8, 256, 4, 30, 8e-6, '80.4'),
  'k400_b32_16f': ('B/32', 16, 256, 4, 30, 8e-6, '81.1'),
  'k400_b16_8f': ('B/16', 8, 256, 4, 30, 8e-6, '83.8'),
  'k400_b16_16f': ('B/16', 16, 256, 8, 30, 8e-6, '84.7'),
  'k400_b16_32f': ('B/16', 32, 256, 8, 10, 8e-6, '44.6'),
  'k400_l14_8f': ('L/14', 8, 256, 8, 30, 8e-6, '87.1'),
  'k400_l14_336_16f': ('L/14@336', 16, 256, 32, 30, 8e-6, '87.7'),
  'k600_b16_8f': ('B/16', 8, 256, 4, 30, 8e-6, '85.3'),
  'k600_b16_16f': ('B/16', 16, 256, 8, 30, 8e-6, '85.8'),
  'k600_l14_8f': ('L/14', 8, 256, 8, 30, 8e-6, '88.3'),
  'hmdb51_b16_32f': ('B/16', 32, 64, 2, 50, 2e-6, '64.0'),
  'ucf101_b16_32f': ('B/16', 32, 64, 2, 50, 2e-6, '91.4'),
}


OTHERS = {'base', 'demo', 'k400_b16_frame_mean', 'k400_b16_open', 'charades_b16', 'msrvtt_b16'}


def load(name, *arguments):
  return published.load(':'.join((name, *arguments)))


def about(name):
  """The docstring of the file that holds a config, in one line."""
  return ' '.join(ast.get_docstring(ast.parse(published.path(name).read_text())).split())


def test_there_is_a_config_for_every_published_model():
  assert set(published.names()) == PUBLISHED.keys() | OTHERS
  assert len(published.names()) == len(PUBLISHED) + len(OTHERS)          # no name twice


@pytest.mark.parametrize('name', PUBLISHED)
def test_settings_are_the_published_ones(name):
  variant, frames, batch, parts, epochs, lr, _ = PUBLISHED[name]
  c = load(name)
  assert (c.model.variant, c.model.num_frames) == (variant, frames)
  assert (c.train.batch_size, c.train.accumulation) == (batch, parts)
  assert (c.train.epochs, c.optim.lr, c.optim.warmup_epochs) == (epochs, lr, 5)
  assert c.train.init_from == 'ViT-' + variant.replace('@336', '@336px')
  assert c.train.freeze_text and c.data.template == '{}'
  views = (4, 3) if name[0] == 'k' and frames < 32 else (1, 1)
  assert (c.eval.clips, c.eval.crops) == views
  config = job_lib.make_model(c).config
  assert config.image_size == (336 if '336' in name else 224)
  assert config.num_frames == frames


@pytest.mark.parametrize('name', published.names())
def test_a_config_is_short_and_its_file_says_how_and_what_came_out(name):
  text, docstring = published.path(name).read_text(), about(name)
  assert len(text.partition('def get_config')[2].splitlines()) <= 25
  command = re.search(r'xclip train --config (\w+)', docstring)
  assert command and command[1] in published.names()
  if name in PUBLISHED:
    assert 'on 8 GPUs' in docstring
  if name not in ('base', 'demo'):
    assert 'Not run here.' in docstring
    assert name in text


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_table_says_what_was_published(name):
  row = next(x for x in published.path(name).read_text().splitlines() if f"'{name}': " in x)
  *_, top_1 = PUBLISHED[name]
  assert top_1 in row or (name == 'k400_b16_32f' and f'HMDB51 {top_1}' in about(name))


def test_the_frame_mean_baseline_is_the_authors():
  c = load('k400_b16_frame_mean')
  assert c.model.variant == 'B/16' and c.model.num_frames == 32
  assert (c.train.batch_size, c.train.epochs, c.optim.lr) == (256, 10, 8e-6)
  assert not c.train.freeze_text and c.train.init_from == 'ViT-B/16'
  assert set(load('k400_b16_frame_mean').to_dict()) == set(fields.get_config().to_dict())
  params = state.abstract(job_lib.make_model(c), optax.identity()).params
  assert params.keys() == {'vision', 'text', 'logit_scale'}
  optimizer.make(c.optim, params, 10, 1)                 # every rule finds a parameter
  assert all(x in about('k400_b16_frame_mean') for x in ('51.3', '76.8', '71.2'))


def test_the_open_vocabulary_recipe_is_open_vclips():
  c = load('k400_b16_open')
  assert (c.train.interpolate_up_to, c.train.interpolate_weight) == (0.6, 0.5)
  assert (c.optim.lr, c.train.epochs, c.train.batch_size) == (3.33e-6, 22, 512)
  assert anchoring.is_on(c.train) and not c.train.freeze_text
  assert (c.augment.mixup, c.augment.cutmix, c.augment.label_smoothing) == (0, 0, 0)
  params = state.abstract(job_lib.make_model(c), optax.identity()).params
  assert params.keys() == {'vision', 'text', 'logit_scale'}
  optimizer.make(c.optim, params, 100, 1, c.train.accumulation)      # every rule finds a parameter
  steps = 22 * 469                                                # one epoch of 240,000 clips
  first = next(n for n in range(0, steps, 7) if optimizer.make_average(c.train, steps)(n) < 1)
  assert 469 <= first <= 469 + 14
  assert all(x in about('k400_b16_open') for x in ('83.4', '53.9', '73.0'))


@pytest.mark.parametrize(('name', 'task', 'loss'), [
  ('charades_b16', 'multi-label', 'sigmoid'), ('msrvtt_b16', 'captions', 'softmax')])
def test_configs_of_other_tasks_ask_for_what_there_is(name, task, loss):
  c = load(name)
  job_lib.check_config(c)
  assert (c.train.task, validation.resolve_loss(c.train)) == (task, loss)
  assert job_lib.make_model(job_lib.resolve_config(c)).config.logit_bias == (loss == 'sigmoid')


@pytest.mark.parametrize('shots', ['2', '4', '8', '16'])
def test_few_shot_configs_take_the_number_of_videos(shots):
  for name in ('hmdb51_b16_32f', 'ucf101_b16_32f'):
    assert load(name, shots).data.train == f'train_{shots}.csv'


def test_what_is_trained_how_fast_and_with_what_decay_is_the_authors():
  """Their rules: text and scale fixed; message_, mit, prompts at 10 times the rate; no decay of
  vectors, biases and positions; the floor is a hundredth of the base rate for all."""
  c = load('k400_b16_8f')
  params = state.abstract(job_lib.make_model(c), optax.identity()).params
  named = tree_names.flatten(params)
  fast = {n for n in named if re.search(r'message_|^mit/|^prompt/', n)}
  rate = {n: next(v for rule, v in c.optim.groups if re.fullmatch(rule, n)) for n in named}
  decay = {n: next(v for rule, v in c.optim.decay if re.fullmatch(rule, n)) for n in named}
  assert {n for n in named if rate[n] == 10} == fast and set(rate.values()) == {1, 10}
  plain = {n for n in named if n.endswith(('bias', '/scale', 'pos_embed', 'alpha'))
           or n.endswith('class_embed')}
  assert {n for n in named if decay[n] == 0} == plain
  _, schedule = optimizer.make(c.optim, params, 3000, 500, 1, True)
  rates = np.array([schedule(step) for step in range(3000)])
  assert rates[0] == 0 and np.isclose(rates.max(), 8e-6, rtol=0.01) and np.isclose(
    rates[-1], 8e-8, rtol=0.05)


def test_augmentation_of_every_recipe_is_the_authors():
  for name in PUBLISHED:
    a = load(name).augment
    assert (a.crop, a.flip, a.color_jitter, a.grayscale) == ('multiscale', 0.5, 0.8, 0.2)
    # On GPUs that hold one clip each, theirs mixes every clip with itself.
    blends = (0.0, 0.0) if name == 'k400_l14_336_16f' else (0.8, 1.0)
    assert (a.mixup, a.cutmix, a.cutmix_share, a.label_smoothing) == (*blends, 0.5, 0.1)
    assert not a.rand_augment and not a.erase and a.repeats == 1


def test_every_field_of_a_config_is_a_field_of_base():
  known = set(fields.get_config().to_dict())
  for name in PUBLISHED:
    assert set(load(name).to_dict()) == known


@pytest.mark.parametrize('name', published.names())
def test_a_path_of_old_stands_for_the_published_config(name):
  config = published.load(name)
  assert published.load(f'configs/{name}.py') == config
  assert published.load(f'/somewhere/else/configs/{name}.py') == config


def test_a_published_name_wins_over_a_file_beside_it(tmp_path, monkeypatch):
  (tmp_path / 'demo').write_text('no config')
  monkeypatch.chdir(tmp_path)
  assert published.load('demo').data.name == 'synthetic'


CONFIG = 'from xclip_jax import config\n\n\ndef get_config():\n  c = config.get_config()\n'


@pytest.mark.parametrize(('text', 'message'), [
  (f'{CONFIG}  c.train.batch_size = 3 / 0\n  return c\n', 'line 6: ZeroDivisionError: division by'),
  (f'{CONFIG}  c = confg\n', 'line 6: NameError'),
  (f'{CONFIG}  return c)\n', 'line 6: SyntaxError: unmatched'),
  (f'{CONFIG}  return 3\n', 'must return a ConfigDict.*found int'),
  ('from configs import base\n', r'line 1: .*`from xclip_jax import config`'),
  ('x = 3\n', 'has no function get_config'),
])
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, monkeypatch, text, message):
  monkeypatch.chdir(tmp_path)
  elsewhere = [x for x in sys.path if not (pathlib.Path(x) / 'configs').exists()]
  monkeypatch.setattr(sys, 'path', elsewhere)
  for name in [x for x in sys.modules if x.partition('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, name)
  file = tmp_path / 'mine.py'
  file.write_text(text)
  with pytest.raises(ConfigError, match=message) as error:
    published.load(str(file))
  assert '\n' not in str(error.value) and 'mine.py' in str(error.value)


def test_a_file_may_take_an_argument_and_import_from_the_current_folder(tmp_path, monkeypatch):
  (tmp_path / 'my_sizes.py').write_text('BATCH = 24\n')
  (tmp_path / 'mine.py').write_text(
    'import my_sizes\nfrom xclip_jax import config\n\ndef get_config(lr="1"):\n'
    '  c = config.get_config()\n  c.optim.lr, c.train.batch_size = float(lr), my_sizes.BATCH\n'
    '  c.model.fields.image_size, c.data.synthetic.seed = 32, 3\n  return c\n')
  monkeypatch.chdir(tmp_path)
  before = list(sys.path)
  c = published.load('mine.py:0.5')
  assert (c.optim.lr, c.train.batch_size, c.model.fields.image_size) == (0.5, 24, 32)
  assert c.is_locked and sys.path == before
  del sys.modules['my_sizes']


@pytest.mark.parametrize(('source', 'message'), [
  ('none.py', 'no such file, and no published config of that name'),
  ('k400_b16_9f', 'did you mean k400_b16_8f'),
  ('runs/demo.py', r'no such file.*Published: base, demo, '),
  ('demo:3', "get_config takes no argument, found '3'"),
  ('configs/kinetics.py:k400_b16_9f', "there is no run 'k400_b16_9f'; did you mean k400_b16_8f"),
  ('hmdb51_b16_32f:many', 'K must be a number'),
  ('README.md', 'is not a Python file'),
])
def test_what_is_no_config_is_told_from_what_there_is(source, message, monkeypatch):
  monkeypatch.chdir(FOLDER.parent)
  with pytest.raises(ConfigError, match=message):
    published.load(source)
