"""Promises of `xclip eval`: every video once, the numbers of the model applied by hand."""

import functools
import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

import tiny
import videos
import xclip_jax
from xclip_jax.cli import main
from xclip_jax.data.clips import augment, sampling
from xclip_jax.data.video import decode
from xclip_jax.evaluation import metrics, scorer, scores
from xclip_jax.models import vision
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.xclip import XCLIP
from xclip_jax.text import tokenizer
from xclip_jax.weights import apply, native, opening

NAMES = ('run', 'jump', 'read a book', 'sleep', 'sing', 'play "chess", alone', 'cook')
LABELS = [n % 7 for n in range(11)]
GONE, BROKEN = 4, 9                     # rows of videos that cannot be evaluated
GOOD = [n for n in range(11) if n not in (GONE, BROKEN)]
PICTURES = ['confusion.png', 'per_class.png', 'reliability.png']


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Eleven videos, of which one is missing and one broken, their lists, and two models."""
  root = tmp_path_factory.mktemp('eval')
  for n in GOOD:
    frames = np.random.default_rng(n).integers(0, 256, (5 + 2 * n, 4, 5, 3), np.uint8)
    frames = frames.repeat(10 + n % 2, axis=1).repeat(10, axis=2)
    videos.write_video(root / f'{n}.mp4', frames, codec='mpeg4')
  (root / f'{BROKEN}.mp4').write_bytes(b'no video')
  (root / 'classes.csv').write_text('id,name\n' + ''.join(
    f'{i},"{name.replace(chr(34), chr(34) * 2)}"\n' for i, name in enumerate(NAMES)))
  rows = [f'{n}.mp4,{label}\n' for n, label in enumerate(LABELS)]
  (root / 'val.csv').write_text('path,label\n' + ''.join(rows))
  (root / 'several.csv').write_text('path,label\n' + ''.join(
    f'{n}.mp4,{label};{(label + 2) % 7}\n' for n, label in enumerate(LABELS)))
  (root / 'captions.csv').write_text('path,caption\n' + ''.join(
    f'{n // 2}.mp4,someone does number {n % 10}\n' for n in range(22)))
  for seed in (0, 1):
    config = XCLIPConfig(num_frames=3, **tiny.FIELDS)
    draw = np.random.default_rng(seed).standard_normal
    params = jax.tree.map(lambda x, draw=draw: (0.5 * draw(x.shape)).astype(np.float32),
                          apply.abstract_params(config))
    native.save(root / f'weights{seed}', native.Weights(config, params, template='a {} video'))
  return root


@pytest.fixture
def evaluate(root, tmp_path, capsys):
  """Runs `xclip eval`: exit code, standard output, standard error, results.json."""
  def run(protocol, *arguments, weights=0, output='out'):
    model = ['--weights', root / f'weights{weights}'] if weights is not None else []
    words = ['eval', protocol, *arguments, *model, '-o', tmp_path / output]
    code = main.main(list(map(str, words)))
    file = tmp_path / output / 'results.json'
    return code, *capsys.readouterr(), json.loads(file.read_text()) if code < 2 else None

  return run


@pytest.fixture(scope='module')
def supervised(root, tmp_path_factory):
  """The folder of one evaluation."""
  folder = tmp_path_factory.mktemp('results') / 'supervised'
  command = ['eval', 'supervised', root / 'val.csv', '--weights', root / 'weights0', '-o', folder]
  assert main.main(list(map(str, command))) == 1
  return folder


@functools.cache
def compiled(config):
  """Text encoder and comparison of a model, jitted."""
  model = XCLIP(config)
  apply = lambda params, *inputs, method: model.apply({'params': params}, *inputs, method=method)
  return (jax.jit(functools.partial(apply, method='encode_text')),
          jax.jit(functools.partial(apply, method='classify')))


def apply_by_hand(root, paths, texts, transform, choose, templates=('a {} video',)):
  """Logits [N, V, K] and raw text features [templates, K, E], one video at a time."""
  weights = opening.open_weights(root / 'weights0')
  encode, classify = compiled(weights.config)
  text = np.stack([
    encode(weights.params, tokenizer.write_prompts(texts, x, 16)) for x in templates])
  compare = lambda x: classify(weights.params, x, text[0]).logits
  logits = []
  for path in paths:
    views = transform(decode.read_video(root / path, choose)).reshape(-1, 3, 32, 32, 3)
    logits.append(compare(vision.normalize(
      views, weights.preprocess.mean, weights.preprocess.std)))
  return np.array(logits), text


def test_every_video_is_evaluated_once_or_named_as_missing(root, supervised):
  assert sorted(x.name for x in supervised.iterdir()) == [
    *PICTURES[:2], 'predictions.npz', 'reliability.png', 'report.md', 'results.json']
  found = scores.load(supervised / 'predictions.npz')
  assert found.index.tolist() == GOOD and sorted(found.failed) == [GONE, BROKEN]
  assert found.label.tolist() == LABELS and found.texts == NAMES
  files = [str(root / f'{n}.mp4') for n in GOOD]
  answers = xclip_jax.load(root / 'weights0').classify(files, NAMES)
  want = np.array([answer.probabilities for answer in answers])
  np.testing.assert_allclose(found.averaged, want, atol=1e-5)
  (row,) = json.loads((supervised / 'results.json').read_text())['lists']
  hits = want.argmax(1) == np.array(LABELS)[GOOD]
  best = np.argsort(-want)[:, :5]
  in_five = (best == np.array(LABELS)[GOOD, None]).any(1)
  numbers = row['metrics']
  assert (numbers['expected'], numbers['evaluated'], numbers['missing']) == (11, 9, 2)
  assert numbers['top1'] == hits.mean() and numbers['top1_of_expected'] == hits.sum() / 11
  assert numbers['top5'] == in_five.mean() and numbers['top5_of_expected'] == in_five.sum() / 11
  each = [hits[np.array(LABELS)[GOOD] == k].mean() for k in range(7) if k in np.array(LABELS)[GOOD]]
  assert np.isclose(numbers['mean_class_accuracy'], np.mean(each))
  assert [(x['row'], x['path']) for x in row['missing']] == [(4, '4.mp4'), (9, '9.mp4')]
  assert 'No such file' in row['missing'][0]['reason']


def test_results_say_what_was_done(root, supervised):
  found = json.loads((supervised / 'results.json').read_text())
  assert (found['protocol'], found['protocol_version']) == ('supervised', 1)
  assert found['weights']['given'] == str(root / 'weights0')
  assert len(found['weights']['sha256']) == 64
  assert found['weights']['model']['num_frames'] == 3
  assert found['options']['templates'] == ['a {} video']
  assert found['options']['average'] == 'probabilities'
  row = found['lists'][0]
  listed = subprocess.run(['sha256sum', root / 'val.csv'], capture_output=True, text=True).stdout
  assert row['list_sha256'] == listed.split()[0] and row['videos_listed_again'] == 0
  assert {'git_commit', 'version'} <= found.keys()
  page = (supervised / 'report.md').read_text()
  assert 'row 4: ' in page and '9 of 11' in page and row['list_sha256'][:12] in page
  for name in PICTURES:
    assert f'({name})' in page and cv2.imread(str(supervised / name)).min() < 100


@pytest.mark.slow
def test_views_are_those_that_were_asked_for_and_are_averaged_as_asked(root, evaluate, tmp_path):
  evaluate('supervised', root / 'val.csv', '--clips', 2, '--crops', 3, '--average', 'logits')
  found = scores.load(tmp_path / 'out' / 'predictions.npz')
  transform = augment.EvalTransform(32, crops=3)
  want, _ = apply_by_hand(root, [f'{n}.mp4' for n in GOOD], NAMES, transform,
                          lambda n: sampling.view_indices(n, 3, 2).ravel())
  np.testing.assert_allclose(found.logits, want, atol=2e-5)
  x = np.exp(want.astype(float).mean(1))
  np.testing.assert_allclose(found.averaged, x / x.sum(1, keepdims=True), atol=2e-5)
  assert np.ptp(found.logits, axis=1).max() > 1e-3


def test_reference_views_are_drawn_by_row_and_crops_are_of_the_short_side(root, evaluate, tmp_path):
  *_, results = evaluate(
    'supervised', root / 'val.csv', '--clips', 2, '--crops', 3, '--views', 'reference')
  assert results['options']['resize'] == 1
  found = scores.load(tmp_path / 'out' / 'predictions.npz')
  transform = augment.EvalTransform(32, 1.0, crops=3)
  for n, row in ((0, GOOD.index(0)), (10, GOOD.index(10))):
    draw = np.random.default_rng(n).integers
    choose = lambda count, draw=draw: np.concatenate(
      [sampling.train_indices(count, 3, draw) for _ in range(2)])
    want, _ = apply_by_hand(root, [f'{n}.mp4'], NAMES, transform, choose)
    np.testing.assert_allclose(found.logits[row], want[0], atol=2e-5)
  each = np.exp(found.logits.astype(float))
  np.testing.assert_allclose(
    found.averaged, (each / each.sum(-1, keepdims=True)).mean(1), atol=1e-6)


def same(folder, other):
  """Both folders hold the same predictions and numbers, but for rounding."""
  one, two = (scores.load(x / 'predictions.npz') for x in (folder, other))
  assert one.index.tolist() == two.index.tolist() and one.failed == two.failed
  assert one.fingerprint == two.fingerprint
  np.testing.assert_allclose(one.logits, two.logits, atol=2e-5)
  read = lambda x: json.loads((x / 'results.json').read_text())
  old, new = (read(x)['lists'][0]['metrics'] for x in (folder, other))
  assert new == pytest.approx(old, abs=1e-5)
  return read(other)['options']


@pytest.mark.slow
def test_batches_and_threads_change_nothing(root, supervised, evaluate, tmp_path):
  evaluate('supervised', root / 'val.csv', '--batch-size', 4, '--threads', 1)
  assert same(supervised, tmp_path / 'out')['batch_size'] == 4


@pytest.mark.slow
def test_eight_devices_see_what_one_sees(root, supervised, tmp_path):
  command = [sys.executable, '-m', 'xclip_jax.cli', 'eval', 'supervised', root / 'val.csv',
             '--weights', root / 'weights0', '-o', tmp_path / 'out', '--batch-size', '5']
  environment = tiny.environment(8) | {'XCLIP_CACHE': str(tmp_path)}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 1, done.stderr
  assert done.stderr.strip().endswith('2 of 11 videos could not be evaluated')
  options = same(supervised, tmp_path / 'out')
  assert (options['devices'], options['batch_size']) == (8, 8)


def test_an_ensemble_averages_directions_and_keeps_the_norm(root):
  weights = opening.open_weights(root / 'weights0')
  found = scorer.Scorer(
    XCLIP(weights.config), weights.preprocess, scorer.mesh_lib.make_mesh({'data': -1}))
  params = found.place(weights.params)
  templates = ['a {} video', 'somebody who tries to {}', '{}']
  _, text = apply_by_hand(root, [], NAMES, None, None, templates)
  np.testing.assert_allclose(found.encode_texts(params, NAMES, templates[:1]), text[0], atol=1e-5)
  norm = np.linalg.norm(text, axis=-1, keepdims=True)
  direction = np.mean(text / norm, axis=0)
  direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
  got = found.encode_texts(params, NAMES, templates)
  np.testing.assert_allclose(got, direction * norm.mean(0), atol=1e-5)
  assert np.abs(got - text[0]).max() > 1e-2


@pytest.mark.slow
def test_zero_shot_takes_both_published_formats_of_lists(root, evaluate, tmp_path):
  folders = [tmp_path / 'a', tmp_path / 'b']
  for folder in folders:
    folder.mkdir()
  # ViFi-CLIP: `path id` lines and a CSV of names. PySlowFast: `path,id` lines and a JSON of names.
  (folders[0] / 'val.txt').write_text('0.mp4 1\n1.mp4 0\n2.mp4 1\n')
  (folders[0] / 'names.csv').write_text('id,name\n0,run\n1,jump (high)\n')
  (folders[1] / 'val.csv').write_text('3.mp4,2\n5.mp4,0\n4.mp4,1\n6.mp4,1\n')
  (folders[1] / 'names.json').write_text('{"eat": 0, "drink": 1, "walk a dog": 2}')
  code, out, _, results = evaluate(
    'zero-shot', folders[0] / 'val.txt', folders[1] / 'val.csv', '--root', root, '--classes',
    folders[0] / 'names.csv', folders[1] / 'names.json', '--template', 'a {}', '--template', '{}!')
  assert code == 1 and results['options']['templates'] == ['a {}', '{}!']
  a, b = results['lists']
  assert (a['name'], b['name'], a['texts'], b['texts']) == ('a/val', 'b/val', 2, 3)
  assert a['metrics']['evaluated'] == 3 and b['metrics']['missing'] == 1
  mean, half = ((a['metrics']['top1'] + s * b['metrics']['top1']) / 2 for s in (1, -1))
  assert results['mean']['top1'] == pytest.approx(mean) and results['std_ddof'] == 0
  assert results['std']['top1'] == pytest.approx(abs(half)) and 'expected' not in results['mean']
  assert f'mean of 2 lists: top-1 {100 * mean:.1f}%' in out
  files = {x.name for x in (tmp_path / 'out').iterdir()}
  assert {'predictions_1.npz', 'predictions_2.npz', 'confusion_1.png', 'confusion_2.png'} <= files


@pytest.mark.slow
def test_base_and_novel_classes_give_a_harmonic_mean(root, evaluate, tmp_path, capsys):
  halves = tmp_path / 'halves'
  assert main.main(['data', 'base-novel', str(root / 'val.csv'), '-o', str(halves)]) == 0
  capsys.readouterr()
  *_, results = evaluate(
    'base-novel', halves / 'val_base.csv', halves / 'val_novel.csv', '--root', root)
  base, novel = (x['metrics']['top1'] for x in results['lists'])
  assert results['harmonic_mean']['top1'] == pytest.approx(metrics.harmonic_mean(base, novel))
  assert [x['texts'] for x in results['lists']] == [4, 3]
  assert (tmp_path / 'out' / 'predictions_novel.npz').exists()


def test_several_labels_are_ranked_class_by_class(root, evaluate, tmp_path):
  *_, results = evaluate('multi-label', root / 'several.csv')
  found = scores.load(tmp_path / 'out' / 'predictions.npz')
  truth = np.zeros((11, 7), bool)
  for row, label in enumerate(LABELS):
    truth[row, [label, (label + 2) % 7]] = True
  np.testing.assert_array_equal(found.label, truth)
  each = []
  for k in range(7):                       # the mean logit, not the softmax, orders the videos
    order = np.argsort(-found.logits[:, 0, k])
    hit = truth[GOOD][order, k]
    each.append(np.mean([hit[:i + 1].mean() for i in np.flatnonzero(hit)]))
  assert results['lists'][0]['metrics']['map'] == pytest.approx(np.mean(each))
  lost = [x * truth[GOOD, k].sum() / truth[:, k].sum() for k, x in enumerate(each)]
  assert results['lists'][0]['metrics']['map_of_expected'] == pytest.approx(np.mean(lost))


def test_retrieval_compares_every_caption_with_every_video(root, evaluate, tmp_path, monkeypatch):
  monkeypatch.setattr(scorer, '_TEXTS_AT_ONCE', 4)     # ten different captions: three blocks
  code, _, _, results = evaluate('retrieval', root / 'captions.csv')
  found = scores.load(tmp_path / 'out' / 'predictions.npz')
  captions = [f'someone does number {n % 10}' for n in range(22)]
  want, _ = apply_by_hand(root, [f'{n}.mp4' for n in GOOD], captions, augment.EvalTransform(32),
                          lambda n: sampling.test_indices(n, 3), ('{}',))
  np.testing.assert_allclose(found.logits, want, atol=2e-5)
  similarity = found.logits[:, 0].astype(float)
  ranks = []
  for n in range(22):                      # videos 0 and 5, 1 and 6, ... have the same captions
    if n // 2 in GOOD:
      column = similarity[:, n]
      ranks.append(np.sum(column >= column[GOOD.index(n // 2)]))
  numbers = results['lists'][0]['metrics']
  assert (numbers['captions'], numbers['captions_evaluated'], numbers['evaluated']) == (22, 18, 9)
  for k in (1, 5, 10):
    assert numbers[f'text_to_video/r{k}'] == np.mean(np.array(ranks) <= k)
    assert numbers[f'text_to_video/r{k}_of_expected'] == np.sum(np.array(ranks) <= k) / 22
  assert numbers['text_to_video/median_rank'] == np.median(ranks)
  # A caption that another video has, too, ties with it, which is no success.
  assert found.retrieval_ranks()[1][GOOD.index(0)] >= 2
  assert code == 1 and 'text to video' in (tmp_path / 'out' / 'report.md').read_text()


def test_comparing_says_how_sure_the_difference_is(root, supervised, evaluate, tmp_path, capsys):
  evaluate('supervised', root / 'val.csv', weights=1, output='other')
  code, out, _, found = evaluate(
    'compare', supervised, tmp_path / 'other', weights=None, output='difference')
  assert code == 0
  a, b = (scores.load(x / 'predictions.npz').hits for x in (supervised, tmp_path / 'other'))
  want = metrics.paired_bootstrap(a, b)
  assert (found['difference'], found['p_value']) == (want.difference, want.p_value)
  assert found['interval'] == [want.low, want.high] and found['compared'] == 9
  assert [x['videos'] for x in found['classes']] == [2, 2, 1, 2, 0, 1, 1]
  assert 'on the same 9 videos' in out and 'No evidence that they differ' in out
  picture = cv2.imread(str(tmp_path / 'difference' / 'differences.png'))
  assert 'No evidence' in (tmp_path / 'difference' / 'report.md').read_text()
  assert picture.min() < 100
  assert main.main(['eval', 'compare', str(supervised), str(supervised)]) == 0
  assert 'b - a is +0.0 points' in capsys.readouterr().out


def test_other_lists_or_kinds_are_not_compared(root, supervised, evaluate, tmp_path, capsys):
  (tmp_path / 'val.csv').write_text('path,label\n0.mp4,0\n1.mp4,2\n')
  classes = ['--classes', root / 'classes.csv', '--root', root]
  evaluate('supervised', tmp_path / 'val.csv', *classes, output='other')
  evaluate('multi-label', root / 'several.csv', output='several')
  for other, reason in (('other', 'different lists or labels'), ('several', 'of kind multi-label'),
                        ('none', 'is no predictions file')):
    assert main.main(['eval', 'compare', str(supervised), str(tmp_path / other)]) == 2
    assert reason in capsys.readouterr().err


def test_what_is_not_an_evaluation_is_never_replaced(root, supervised, tmp_path, capsys):
  command = ['eval', 'supervised', str(root / 'val.csv'), '--weights', 'none', '-o']
  assert main.main([*command, str(supervised)]) == 2
  assert 'add --overwrite' in capsys.readouterr().err
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'results.json').write_text('{}')
  (tmp_path / 'run' / 'metrics.jsonl').write_text('')
  assert main.main([*command, str(tmp_path / 'run'), '--overwrite']) == 2
  assert 'holds metrics.jsonl, which this command did not write' in capsys.readouterr().err
  before = {x.name: x.read_bytes() for x in supervised.iterdir()}
  assert main.main([*command, str(supervised), '--overwrite']) == 2     # there are no such weights
  assert {x.name: x.read_bytes() for x in supervised.iterdir()} == before
  assert [x.name for x in supervised.parent.iterdir()] == ['supervised']


@pytest.mark.parametrize(('words', 'message'), [
  (['--template', 'a video'], "must hold {} for the label"),
  (['--clips', '0'], '--clips must be at least 1'),
  (['--classes', 'nowhere.csv'], 'nowhere.csv is not there'),
])
def test_what_cannot_be_done_is_one_line(root, tmp_path, capsys, words, message):
  command = ['eval', 'supervised', root / 'val.csv', '--weights', root / 'weights0', *words]
  assert main.main([*map(str, command), '-o', str(tmp_path / 'out')]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
  assert list(tmp_path.iterdir()) == []


def test_several_labels_need_their_own_protocol(root, tmp_path, capsys):
  command = ['eval', 'supervised', root / 'several.csv', '--weights', 'none', '-o', tmp_path / 'x']
  assert main.main(list(map(str, command))) == 2
  assert 'see `xclip eval multi-label`' in capsys.readouterr().err


def test_a_model_of_nan_is_damaged_and_one_bad_video_is_missing():
  logits = np.zeros((2, 1, 3), np.float32)
  logits[1, 0, 2] = np.nan
  batch = {'index': np.array([1, 0]), 'label': np.array([5, 4]), 'mask': np.array([True, True]),
           'logits': logits}
  result = scorer._sort_rows([batch], {2: 'gone'})
  assert result.index.tolist() == [1] and result.label.tolist() == [5]
  assert result.logits.shape == (1, 1, 3)
  assert list(result.failed) == [0, 2] and 'NaN' in result.failed[0] and result.failed[2] == 'gone'
  with pytest.raises(ValueError, match='damaged'):
    scorer._sort_rows([batch | {'logits': logits * np.nan}], {})


def test_nothing_readable_is_said_not_crashed(root, evaluate, tmp_path):
  (tmp_path / 'val.csv').write_text('path,label\nnone.mp4,0\nnobody.mp4,1\n')
  code, out, _, results = evaluate(
    'supervised', tmp_path / 'val.csv', '--classes', root / 'classes.csv')
  assert code == 1 and 'top-1 n/a' in out
  assert results['lists'][0]['metrics']['top1'] is None
  assert results['lists'][0]['metrics']['top1_of_expected'] == 0
  assert 'nan' not in (tmp_path / 'out' / 'report.md').read_text()
