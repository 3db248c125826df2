"""An evaluation's batch size counts clips; what is predicted does not depend on it."""

import itertools

import jax
import numpy as np
import pytest
from test_views import evaluation, random_params

import tiny
from xclip_jax.data.video import decode
from xclip_jax.evaluation import view_batches
from xclip_jax.evaluation.scorer import Scorer, Views
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.training import evaluate_run
from xclip_jax.weights.native import Preprocess, Weights


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize('shards', [1, 4, 8, 256])
def test_no_prediction_is_of_more_clips_than_the_batch_size(shards):
  for multiple, views in itertools.product((1, 2, 3, 8), (1, 2, 5, 12, 30)):
    batch_size = multiple * shards
    videos, at_once = view_batches.sizes(batch_size, views, shards)
    assert videos >= shards and videos % shards == 0 and 1 <= at_once <= views
    assert videos * at_once <= batch_size
    if views == 1:
      assert videos == batch_size
    shape = {part.shape for part in view_batches.parts(np.zeros((2, views, 1, 1, 1, 1)), at_once)}
    assert shape == {(2 * at_once, 1, 1, 1, 1)}


@pytest.mark.parametrize('batch_size', [0, -8, 4, 12])
def test_a_batch_size_that_does_not_divide_is_refused(batch_size):
  with pytest.raises(ValueError, match=f'{batch_size} does not divide by 8 shards; .* of 8'):
    view_batches.sizes(batch_size, 1, 8)


def test_parts_of_views_join_to_all_of_them():
  video = np.random.default_rng(0).integers(0, 256, (3, 5, 2, 4, 4, 3), np.uint8)
  found = [part.reshape(3, 2, -1) for part in view_batches.parts(video, 2)]
  assert len(found) == 3
  np.testing.assert_array_equal(view_batches.joined(found, 5), video.reshape(3, 5, -1))


def test_devices_have_one_result_to_go_on_with_and_never_three():
  started, waiting = [], []

  def start():
    for n in range(6):
      started.append(n)
      waiting.append(len(started) - len(fetched))
      yield {'x': jax.numpy.asarray(n)}

  fetched = []
  for result in view_batches.fetch_late(start()):
    fetched.append(int(result['x']))
  assert fetched == list(range(6)) and waiting == [1, 2, 2, 2, 2, 2]
  assert list(view_batches.fetch_late([])) == []


def scores(root, clips, crops, batch_size, workers=0):
  """Probabilities of a run's evaluation, and the shapes of what was predicted at once."""
  found = evaluation(tiny.config(
    root, eval__clips=clips, eval__crops=crops, eval__batch_size=batch_size, data__workers=workers))
  shapes, predict = [], found._evaluator._predict

  def counted(params, batch, text):
    shapes.append(batch['video'].shape[0])
    return predict(params, batch, text)

  found._evaluator._predict = counted
  return found.predict(random_params(found), 'val', 'val')['in order'], shapes


def test_a_run_scores_alike_at_any_batch_size_and_with_any_workers(root):
  wanted, shapes = scores(root, 2, 3, 48)
  assert shapes == [48] * 6 and wanted.index.tolist() == list(range(41))
  for batch_size, workers, clips_at_once in ((4, 0, {3}), (24, 2, {24})):
    got, shapes = scores(root, 2, 3, batch_size, workers)
    assert set(shapes) == clips_at_once
    np.testing.assert_array_equal(got.index, wanted.index)
    np.testing.assert_allclose(got.probabilities, wanted.probabilities, rtol=1e-5, atol=1e-7)


def test_a_scorer_scores_alike_at_any_batch_size_and_with_any_workers(root):
  some = evaluation(tiny.config(root))
  weights = Weights(some.model.config, random_params(some), Preprocess(), source='random')
  paths = [some.splits['val'].videos[row]['path'] for row in range(7)]
  found = []
  for batch_size, workers in ((16, 0), (4, 0), (12, 2)):
    scorer = Scorer(weights, mesh_lib.make_mesh({'data': -1}), batch_size, 2, workers)
    text = scorer.encode_texts(['a dog', 'a cat'])
    shapes, encode = set(), scorer._encode_video
    scorer._encode_video = lambda params, video, shapes=shapes, encode=encode: (
      shapes.add(video.shape[0]) or encode(params, video))
    found.append(scorer.score(paths, text, Views(clips=5)))
    assert len(shapes) == 1 and max(shapes) <= batch_size
  for logits, index, failed in found:
    assert logits.shape == (7, 5, 2) and index.tolist() == list(range(7)) and not failed
    np.testing.assert_allclose(logits, found[0][0], rtol=1e-5, atol=1e-5)


def reads(monkeypatch):
  """Paths of the videos that are read from now on."""
  paths, read = [], decode.read_video
  monkeypatch.setattr(decode, 'read_video', lambda video, choose, seconds, path: (
    paths.append(path) or read(video, choose, seconds, path)))
  return paths


def test_the_report_reads_the_clips_that_it_shows(root, monkeypatch):
  found = evaluation(tiny.config(root, eval__clips=2, eval__views='reference'))
  predictions = found.predict(random_params(found), 'val', 'val')['in order']
  read = reads(monkeypatch)
  clips = found.sample_clips(predictions)
  assert len(clips) == len(read) == 12
  labels = [predictions.class_names[predictions.label[row]] for row in
            np.linspace(0, 40, 12).round().astype(int)]
  assert [clip.label for clip in clips] == labels


@pytest.mark.parametrize(('clips', 'decoded'), [(1, 41), (2, 2 * 41)])
def test_orders_of_frames_are_compared_on_one_view_and_the_rest_is_of_all(
    root, tmp_path, monkeypatch, clips, decoded):
  c = tiny.config(root, eval__clips=clips, report=False, data__zero_shot='')
  found = evaluation(c)
  params, read = random_params(found), reads(monkeypatch)
  results = found.finish(params, tmp_path, 1)
  assert len(read) == decoded
  one, every = (found.predict(params, 'val', 'val', tuple(evaluate_run.ORDERS), views=views)
                for views in (False, True))
  assert results['val/top1'] == every['in order'].top(1)
  for order in evaluate_run.ORDERS:
    assert results[f'time/{order.replace(" ", "_")}/top1'] == one[order].top(1)
