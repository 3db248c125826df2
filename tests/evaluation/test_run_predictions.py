"""Predictions of a training run and of `xclip eval` are one record: they are compared alike."""

import json

import numpy as np
import pytest
from test_views import evaluate_run, evaluation, random_params

import tiny
from xclip_jax.cli import main
from xclip_jax.evaluation import scores


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tiny.write_data(tmp_path_factory.mktemp('data'))
  for split in ('train', 'val'):
    rows = [line.split(',') for line in (root / f'{split}.csv').read_text().splitlines()[1:]]
    (root / f'{split}_several.csv').write_text('path,label\n' + ''.join(
      f'{path},{label};{(int(label) + 3) % 24}\n' for path, label, _ in rows))
  return root


@pytest.fixture(scope='module')
def runs(root, tmp_path_factory):
  """Workdirs of two runs with other parameters each, which their last evaluation scored."""
  folder, config = tmp_path_factory.mktemp('runs'), tiny.config(root, report=False)
  for seed in (0, 1):
    evaluate_run(config, folder / f'seed{seed}', seed)
  return folder / 'seed0', folder / 'seed1'


def compare(a, b, *more):
  return main.main(['eval', 'compare', *map(str, (a, b, *more))])


@pytest.mark.parametrize('split', ['val', 'zero_shot', 'zero_shot_all'])
def test_two_runs_are_compared(runs, tmp_path, capsys, split):
  a, b = (run / f'predictions_{split}.npz' for run in runs)
  assert compare(a, b, '-o', tmp_path / 'out') == 0
  said = capsys.readouterr().out
  assert '(a, seed0)' in said and '(b, seed1)' in said
  content = json.loads((tmp_path / 'out/results.json').read_text())
  results = [json.loads((run / 'results.json').read_text()) for run in runs]
  assert [content[x]['top1'] for x in 'ab'] == [x[f'{split}/top1'] for x in results]
  assert content['compared'] == content['expected'] == (41 if split == 'val' else 13)


@pytest.mark.parametrize(('protocol', 'split', 'options'), [
  ('supervised', 'val', ()), ('zero-shot', 'zero_shot', ('--classes', 'classes_zero_shot.csv'))])
def test_a_run_is_compared_with_an_evaluation_of_its_videos(
    root, runs, tmp_path, capsys, protocol, split, options):
  options = [root / x if x.endswith('.csv') else x for x in options]
  words = ['eval', protocol, root / f'{split}.csv', *options, '--weights', runs[0], '--quiet', '-o',
           tmp_path / 'out']
  assert main.main(list(map(str, words))) == 0
  run, other = (scores.load(x) for x in (
    runs[0] / f'predictions_{split}.npz', tmp_path / 'out/predictions.npz'))
  np.testing.assert_allclose(run.logits, other.logits, atol=1e-4)
  assert run.paths == other.paths and run.texts == other.texts
  np.testing.assert_array_equal(run.label, other.label)
  assert compare(runs[0] / f'predictions_{split}.npz', tmp_path / 'out') == 0
  assert 'b - a is +0.0 points' in capsys.readouterr().out


def test_other_classes_are_not_compared(runs, capsys):
  assert compare(*(runs[0] / f'predictions_zero_shot{x}.npz' for x in ('', '_all'))) == 2
  assert 'are of different classes' in capsys.readouterr().err


def test_predictions_of_an_earlier_version_are_refused_with_what_to_do(runs, tmp_path, capsys):
  old = tmp_path / 'predictions_val.npz'
  np.savez(old, class_names=np.array(['a']), probabilities=np.ones((1, 1)), label=np.zeros(1, int),
           index=np.zeros(1, int), expected=1)
  assert compare(runs[0] / 'predictions_val.npz', old) == 2
  said = capsys.readouterr().err
  assert 'an earlier xclip-jax wrote it (format 0' in said and 'train.py --mode=eval' in said


@pytest.mark.parametrize('task', ['single-label', 'multi-label'])
@pytest.mark.parametrize('batches', [0, 1])
def test_an_evaluation_that_is_told_to_stop_has_no_numbers(root, task, batches):
  lists = {f'data__{x}': f'{x}_several.csv' for x in ('train', 'val')}
  changes = {'data__zero_shot': ''} | (lists if task == 'multi-label' else {})
  found = evaluation(tiny.config(root, train__task=task, **changes))
  asked = iter([*[False] * batches, True])
  assert found.during_training(random_params(found), lambda: next(asked)) == {}
