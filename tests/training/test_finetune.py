"""Tests of `xclip finetune`: a folder of clips in, weights that know their labels out."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
from test_weight_curve import random_weights

import tiny
import videos
from xclip_jax.cli import main
from xclip_jax.data.datasets import own_clips
from xclip_jax.evaluation import scores
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.training import optimizer
from xclip_jax.training.finetuning import recipe as recipes
from xclip_jax.weights import native

COLORS = {'a_red_screen': (220, 30, 30), 'blue': (30, 30, 220)}


def clip_of(color, seed):
  noise = np.random.default_rng(seed).integers(-20, 20, (5, 36, 40, 3))
  return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Two labels, five clips each; beside them a copy, and a file that is no video."""
  place = tmp_path_factory.mktemp('own')
  native.save(place / 'weights', random_weights(0))
  for name, color in COLORS.items():
    (place / 'clips' / name).mkdir(parents=True)
    for n in range(5):
      videos.write_video(place / 'clips' / name / f'{n}.mp4', clip_of(color, n), codec='mpeg4')
  copy = (place / 'clips/blue/1.mp4').read_bytes()
  (place / 'clips/blue/9.mp4').write_bytes(copy)
  (place / 'clips/blue/broken.mp4').write_text('no video')
  return place


def run(place, out, *more, what='clips'):
  words = ['finetune', place / what, '--weights', place / 'weights', '-o', out, '--quiet', *more]
  return main.main(list(map(str, words)))


@pytest.mark.slow
def test_one_command_from_a_folder_to_weights_that_know_its_labels(place, tmp_path, capsys):
  out = tmp_path / 'my out'
  assert run(place, out, '--lr', '0.003', '--epochs', '40', '--batch-size', '8') == 1  # left out
  said = capsys.readouterr()
  assert 'broken.mp4' in said.err and 'the same content as blue/1.mp4' in said.err
  results = json.loads((out / 'results.json').read_text())
  assert results['clips'] == {'train': 8, 'val': 2} and len(results['left_out']) == 2
  assert results['lists']['val']['chosen'] == 1.0
  lists = [(out / f'{x}.csv').read_text() for x in ('train', 'val')]
  assert 'blue/9.mp4' not in lists[0] + lists[1] and lists[1].count('\n') == 3
  page = (out / 'report.md').read_text()
  assert 'a red screen' in page and (out / 'curve.png').exists()
  kept = scores.load(out / 'predictions.npz')
  assert kept.summary()['top1'] == results['lists']['val']['chosen']

  # The command in the report works, and sees what the report says.
  capsys.readouterr()
  (line,) = [x for x in page.splitlines() if x.startswith('xclip classify')]
  assert main.main([*shlex.split(line)[1:], '--json', '-']) == 0
  video = json.loads(capsys.readouterr().out)['videos'][0]
  assert video['top'][0]['label'] == ('blue' if '/blue/' in video['path'] else 'a red screen')

  # Once more: nothing is trained again. Other clips: refused, and nothing is lost.
  before = (out / 'weights/params.safetensors').read_bytes()
  assert run(place, out, '--lr', '0.003', '--epochs', '40', '--batch-size', '8') == 1
  assert (out / 'weights/params.safetensors').read_bytes() == before
  assert run(place, out, '--lr', '0.002', '--epochs', '40', '--batch-size', '8') == 2
  assert 'optim.lr: 0.003 -> 0.002' in capsys.readouterr().err
  assert run(place, out, '--val-share', '0.5', '--lr', '0.003') == 2
  assert 'is of other clips' in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(place, tmp_path, capsys):
  assert run(place, tmp_path / 'out', '--dry-run') == 1
  said = capsys.readouterr().out
  assert '100 updates of 8 clips' in said and '50 epochs' not in said
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_several_labels_a_clip_are_learnt_and_measured_by_map(place, tmp_path, monkeypatch):
  tiny.draw_with_numpy(monkeypatch)                     # the given weights replace what is drawn
  rows = [f'{name}/{n}.mp4,{name};bright\n' for name in COLORS for n in range(4)]
  (place / 'clips/several.csv').write_text('path,label\n' + ''.join(rows) + 'blue/4.mp4,blue\n')
  native.save(place / 'fast', random_weights(0, messages=False, prompt=False))
  out = tmp_path / 'out'
  assert run(place, out, '--lr', '0.003', '--epochs', '2', '--weights', place / 'fast',
             what='clips/several.csv') == 0
  results = json.loads((out / 'results.json').read_text())
  assert results['metric'] == 'mAP' and results['config']['train']['task'] == 'multi-label'
  kept = scores.load(out / 'predictions.npz')
  assert kept.kind == 'multi-label' and kept.summary()['map'] == results['lists']['val']['chosen']
  assert native.read(out / 'weights').config.logit_bias


def many(counts, **more):
  clips = tuple(
    own_clips.Clip(f'/x/{name}/{n}.mp4', (name,)) for name, k in counts.items() for n in range(k))
  return own_clips.Clips(own_clips.Path('/x'), clips, tuple(counts), False, **more)


def test_a_share_of_every_class_is_held_out_and_one_at_least():
  clips = own_clips.split(many({'a': 2, 'b': 10, 'c': 21}), 0.2, seed=0)
  assert clips.count('val') == {'a': 1, 'b': 2, 'c': 4}
  assert clips.count('train') == {'a': 1, 'b': 8, 'c': 17}
  again = own_clips.split(many({'a': 2, 'b': 10, 'c': 21}), 0.2, seed=0)
  other = own_clips.split(many({'a': 2, 'b': 10, 'c': 21}), 0.2, seed=1)
  assert clips == again != other


def test_with_several_labels_every_label_is_on_both_sides():
  rng = np.random.default_rng(0)
  names = ('a', 'b', 'c', 'rare')
  draw = lambda: tuple(x for x in names[:3] if rng.random() < 0.5) or ('a',)
  clips = [own_clips.Clip(f'/x/{n}.mp4', draw()) for n in range(40)]
  clips += [own_clips.Clip(f'/x/rare{n}.mp4', ('a', 'rare')) for n in range(2)]
  found = own_clips.split(
    own_clips.Clips(own_clips.Path('/x'), tuple(clips), names, True), 0.25, seed=3)
  assert min(found.count('val').values()) >= 1 and min(found.count('train').values()) >= 1
  assert 6 <= len(found.of('val')) <= 16


def test_given_splits_are_kept(place, tmp_path):
  for split, n in (('train', 0), ('train', 1), ('val', 2)):
    for name, color in COLORS.items():
      (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
      videos.write_video(tmp_path / split / name / f'{n}.mp4', clip_of(color, n), codec='mpeg4')
  found = own_clips.split(own_clips.read(tmp_path), 0.5, 0)
  assert found.count('train') == {'a red screen': 2, 'blue': 2} and len(found.of('val')) == 2


@pytest.mark.parametrize(('make', 'message'), [
  (lambda p: p / 'none', 'is not there; give a folder'),
  (lambda p: _csv(p, 'path,label\na.mp4,0\nb.mp4,1\n'), 'write the names of the classes'),
  (lambda p: _csv(p, 'path,label\na.mp4,run;run\n'), 'names a class twice'),
  (lambda p: _csv(p, 'path,label\na.mp4,a_b\nb.mp4,a b\n'), "two classes are called 'a b'"),
  (lambda p: (p / 'train' / 'x').mkdir(parents=True) or p, 'a folder train and no folder val'),
])
def test_a_place_that_holds_no_such_thing_is_refused(tmp_path, make, message):
  with pytest.raises(ValueError, match=message):
    own_clips.read(make(tmp_path))


def _csv(folder, text):
  (folder / 'list.csv').write_text(text)
  return folder / 'list.csv'


@pytest.mark.parametrize(('counts', 'share', 'message'), [
  ({'a': 5}, 0.2, 'has one class'),
  ({'a': 5, 'b': 1}, 0.2, "class 'b' has 1 usable clip"),
  ({'a': 5, 'b': 5}, 1.0, 'must lie between 0 and 1'),
])
def test_too_few_clips_are_refused(counts, share, message):
  with pytest.raises(ValueError, match=message):
    own_clips.split(many(counts), share, 0)


def test_clips_are_not_mirrored_where_labels_tell_sides_apart(tmp_path):
  for names, flip in ((('moving left', 'still'), 0.0), (('leftovers', 'a bright day'), 0.5)):
    clips = own_clips.split(many(dict.fromkeys(names, 4)), 0.25, 0)
    config = recipes.recipe(clips, random_weights(0), 'w', tmp_path, recipes.Options())
    assert config.augment.flip == flip


def test_the_recipe_is_the_published_one_for_as_many_clips_as_there_are(tmp_path):
  published = dataclasses.replace(random_weights(0), config=XCLIPConfig())
  make = lambda k, **more: recipes.recipe(
    own_clips.split(many(dict.fromkeys(map(str, range(51)), k)), 0.2, 0), published, 'w',
    tmp_path, recipes.Options(**more))
  few = make(20)                                        # 16 of each of 51 classes: HMDB51, K = 16
  assert (few.train.batch_size, few.train.steps) == (64, round(50 * 816 / 64))
  assert few.optim.lr == 2e-6 and few.train.freeze_text
  assert make(100).train.steps == round(30 * 80 * 51 / 64)
  assert make(20, lr=1e-3, epochs=2.0).train.steps == round(2 * 816 / 64)


def test_a_small_model_gets_a_learning_rate_that_it_learns_with(tmp_path):
  clips = own_clips.split(many({'a': 5, 'b': 5}), 0.2, 0)
  small = recipes.recipe(clips, random_weights(0), 'w', tmp_path, recipes.Options())
  assert random_weights(0).config.vision_width < optimizer.SMALL_WIDTH
  assert small.optim.lr == optimizer.SMALL_RATE


def test_an_earlier_fine_tuning_becomes_longer_with_extend_alone(tmp_path):
  clips = own_clips.split(many({'a': 5, 'b': 5}), 0.2, 0)
  make = lambda epochs, extend=False: recipes.recipe(
    clips, random_weights(0), 'w', tmp_path, recipes.Options(epochs=epochs, extend=extend))
  earlier = make(20.0)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text(earlier.to_json_best_effort())
  assert make(20.0) == earlier
  with pytest.raises(ValueError, match=r'has 20 updates, and 40 are asked for; add --extend'):
    make(40.0)
  longer = make(40.0, extend=True)
  assert longer.train.steps == 40 and longer.train.extend_schedule
  assert longer.optim.warmup_steps == earlier.optim.warmup_steps == 2
  for extend in (False, True):
    with pytest.raises(ValueError, match='can only become longer; raise --epochs'):
      make(10.0, extend)
