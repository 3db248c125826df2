"""Every published recipe is a config, and says what the authors' settings say."""

import ast
import importlib
import pathlib
import re

import numpy as np
import optax
import pytest

from configs import base
from xclip_jax.config import validation
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


def load(name, *arguments):
  return importlib.import_module(f'configs.{name}').get_config(*arguments)


def test_there_is_a_config_for_every_published_model():
  found = {path.stem for path in FOLDER.glob('*_*f.py')}
  assert found == PUBLISHED.keys()


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
  params = state.abstract(job_lib.make_model(c), optax.identity()).params
  assert frames in params['mit']['pos_embed'].shape


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_config_is_short_and_its_docstring_says_how_and_what_came_out(name):
  text = (FOLDER / f'{name}.py').read_text()
  about = ast.get_docstring(ast.parse(text), clean=False)
  code = text[text.index('from configs'):].splitlines()
  assert len(code) <= 25
  assert f'python train.py --config configs/{name}.py' in about
  assert 'micro-batches of' in about and 'GPUs' in about
  assert PUBLISHED[name][-1] in about and 'Not run here.' in about
  clips = PUBLISHED[name][2] // PUBLISHED[name][3]
  assert re.search(rf'{PUBLISHED[name][3]} micro-batches of {clips}\b', ' '.join(about.split()))


def test_the_frame_mean_baseline_is_the_authors():
  c = load('k400_b16_frame_mean')
  assert c.model.variant == 'B/16' and c.model.num_frames == 32
  assert (c.train.batch_size, c.train.epochs, c.optim.lr) == (256, 10, 8e-6)
  assert not c.train.freeze_text and c.train.init_from == 'ViT-B/16'
  assert set(load('k400_b16_frame_mean').to_dict()) == set(base.get_config().to_dict())
  params = state.abstract(job_lib.make_model(c), optax.identity()).params
  assert params.keys() == {'vision', 'text', 'logit_scale'}
  optimizer.make(c.optim, params, 10, 1)                 # every rule finds a parameter
  about = importlib.import_module('configs.k400_b16_frame_mean').__doc__
  assert '51.3' in about and '76.8' in about and '71.2' in about and 'Not run here.' in about


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
  about = importlib.import_module('configs.k400_b16_open').__doc__
  assert all(x in about for x in ('83.4', '53.9', '73.0', 'Not run here.'))


@pytest.mark.parametrize(('name', 'task', 'loss'), [
  ('charades_b16', 'multi-label', 'sigmoid'), ('msrvtt_b16', 'captions', 'softmax')])
def test_configs_of_other_tasks_ask_for_what_there_is(name, task, loss):
  c = load(name)
  job_lib.check_config(c)
  assert (c.train.task, validation.resolve_loss(c.train)) == (task, loss)
  assert job_lib.make_model(job_lib.resolve_config(c)).config.logit_bias == (loss == 'sigmoid')
  about = importlib.import_module(f'configs.{name}').__doc__
  assert f'configs/{name}.py' in about and 'Not run here.' in ' '.join(about.split())


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
  known = set(base.get_config().to_dict())
  for name in PUBLISHED:
    assert set(load(name).to_dict()) == known
