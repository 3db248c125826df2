"""An epoch is a pass over the training videos, in updates, in warm-up and between evaluations."""

import collections
import re

import pytest
import reading

import tiny
from configs import base
from xclip_jax.config import batch_sizes, duration, validate
from xclip_jax.data import open_splits
from xclip_jax.storage import metrics_log
from xclip_jax.training import job as job_lib
from xclip_jax.training import run as run_lib

K400 = 240_436          # no multiple of 256


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def recipe(**changes):
  c = base.get_config()
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c


@pytest.mark.parametrize(('videos', 'changes', 'updates', 'warmup'), [
  (K400, {}, 28176, 5 * K400 / 256),                        # of whole batches it would be 28170
  (K400, {'augment__repeats': 2}, 56352, 10 * K400 / 256),
  (816, {'train__batch_size': 64, 'train__epochs': 50.0}, 638, 5 * 816 / 64),
  (100, {}, 12, 5 * 100 / 256),                             # an epoch is less than an update
  (3, {'train__epochs': 1.0, 'optim__warmup_epochs': 0.5}, 1, 0.5 * 3 / 256),
  (K400, {'train__steps': 700, 'optim__warmup_steps': 350}, 700, 350),
  (K400, {'train__epochs': 10.0}, 9392, 5 * K400 / 256),    # half of the run, but for rounding
])
def test_epochs_are_passes_over_the_videos(videos, changes, updates, warmup):
  total, warm = duration.run_length(recipe(**changes), videos)
  assert (total, warm) == (updates, pytest.approx(warmup))


@pytest.mark.parametrize(('changes', 'message'), [
  ({'train__steps': 30}, r'warmup_epochs=5.0 is 4696 updates, which is more than half of the run, '
                         r'which has 30 updates: set config.optim.warmup_steps to 15 or less'),
  ({'train__steps': 30, 'optim__warmup_steps': 16},
   r'config.optim.warmup_steps=16 is more than half .* set config.optim.warmup_steps to 15 or'),
  ({'train__epochs': 9.0}, r'more than half of the run, which has 8453 updates.* to 4226 or less'),
  ({'train__epochs': 0.0}, 'the run has no steps: set config.train.epochs or config.train.steps'),
])
def test_a_length_that_cannot_be_says_what_to_set(changes, message):
  with pytest.raises(ValueError, match=message):
    duration.run_length(recipe(**changes), K400)


@pytest.mark.parametrize('repeats', [1, 2])
def test_a_run_of_one_epoch_draws_every_video_once(root, repeats):
  c = tiny.config(root, train__steps=0, train__epochs=1.0, augment__repeats=repeats,
                  optim__warmup_steps=0, optim__warmup_epochs=0.0)
  splits = open_splits(c.data)
  total, _ = duration.run_length(c, len(splits['train'].videos))
  transform = job_lib.train_transform(c, job_lib.make_model(c))
  drawn = collections.Counter()
  with reading.open_training(
    splits['train'].rows, transform, num_frames=2, batch_size=8, seed=0, repeats=repeats,
  ) as batches:
    for _ in range(total):
      drawn.update(next(batches)['index'].tolist())
  assert total == 9 * repeats and drawn == {row: repeats for row in range(72)}
  assert duration.passes(c, 72, total) == 1


def test_passes_end_where_their_last_video_is_drawn():
  c = recipe(train__batch_size=16)
  ends = lambda videos, n: [k for k in range(1, n + 1) if duration.ends_pass(c, videos, k)]
  assert ends(72, 18) == [5, 9, 14, 18]                      # 4.5 updates each
  assert ends(16, 3) == [1, 2, 3] and ends(5, 3) == [1, 2, 3]
  c.augment.repeats = 2
  assert ends(72, 18) == [9, 18]


@pytest.mark.slow
def test_a_run_says_its_length_and_evaluates_after_every_epoch(root, tmp_path, capsys):
  c = tiny.config(root, train__steps=0, train__epochs=2.0, train__batch_size=16, report=False,
                  eval__every_steps=0, optim__warmup_steps=0, optim__warmup_epochs=0.5,
                  data__zero_shot='', log_steps=3)
  run_lib.run(c, tmp_path)
  rows = metrics_log.read_metrics(tmp_path / 'metrics.jsonl')
  assert [row['step'] for row in rows if 'val/top1' in row] == [5, 9]
  said = capsys.readouterr().out
  assert re.search(r'steps 1 to 9: 9 updates of 16 videos, 2 passes over the training videos, 2.25 '
                   'updates of warm-up', said)
  assert 'compiling the training step (this can take a minute)\n' in said
  assert re.findall(r'^step (\d)/9: loss .* videos/s$', said, re.M) == ['3', '6', '9']


@pytest.mark.parametrize(('size', 'parts', 'shards', 'advice'), [
  (256, 4, 128, 'lower config.train.accumulation to 2, or set config.train.batch_size to a '
                'multiple of 512, such as 512'),
  (104, 8, 4, 'lower config.train.accumulation to 2, or set .* multiple of 32, such as 96 or 128'),
  (600, 8, 8, 'lower config.train.accumulation to 5, or set .* multiple of 64, such as 576 or 640'),
  (100, 4, 8, r'8 shards x train.accumulation=4; set config.train.batch_size to a multiple of 32, '
              'such as 96 or 128'),
  (0, 1, 8, 'set config.train.batch_size to a multiple of 8, such as 8'),
])
def test_a_batch_that_does_not_divide_is_told_what_does(size, parts, shards, advice):
  c = recipe(train__batch_size=size, train__accumulation=parts)
  with pytest.raises(ValueError, match=rf'train.batch_size={size} does not divide by .*{advice}'):
    batch_sizes.check_train_batch(c, shards)


@pytest.mark.parametrize('field', ['train.accumulation', 'augment.repeats'])
def test_less_than_one_is_refused(field):
  c = recipe(**{field: 0})
  with pytest.raises(ValueError, match=f'config.{field}=0 must be 1 or more'):
    validate(c)


def test_the_advised_batches_and_micro_batches_are_taken():
  for size, parts, shards in ((256, 4, 128), (600, 8, 8), (100, 4, 8), (7, 2, 1)):
    with pytest.raises(ValueError) as error:
      batch_sizes.check_train_batch(
        recipe(train__batch_size=size, train__accumulation=parts), shards)
    message = str(error.value)
    for near in re.findall(r'\d+', message.split('such as')[1]):
      batch_sizes.check_train_batch(
        recipe(train__batch_size=int(near), train__accumulation=parts), shards)
    for fewer in re.findall(r'accumulation to (\d+)', message):
      batch_sizes.check_train_batch(
        recipe(train__batch_size=size, train__accumulation=int(fewer)), shards)
