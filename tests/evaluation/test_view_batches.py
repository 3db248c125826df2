"""An evaluation's batch size counts clips; what is predicted does not depend on it."""

import itertools

import jax
import numpy as np
import pytest
from test_views import evaluation, random_params

import tiny
from xclip_jax.data.clips import pipeline
from xclip_jax.data.video import decode
from xclip_jax.evaluation import scorer as scorer_lib
from xclip_jax.evaluation import view_batches
from xclip_jax.evaluation.scorer import PathSource, Scorer, Views
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.weights.native import Preprocess


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
    video = np.zeros((2, views, 1, 1, 1, 1))
    shape = {part.shape for part in view_batches.split_views(video, at_once)}
    assert shape == {(2 * at_once, 1, 1, 1, 1)}


@pytest.mark.parametrize('batch_size', [0, -8, 4, 12])
def test_a_batch_size_that_does_not_divide_is_refused(batch_size):
  with pytest.raises(ValueError, match=f'{batch_size} does not divide by 8 shards; .* of 8'):
    view_batches.sizes(batch_size, 1, 8)


def test_parts_of_views_join_to_all_of_them():
  video = np.random.default_rng(0).integers(0, 256, (3, 5, 2, 4, 4, 3), np.uint8)
  found = [part.reshape(3, 2, -1) for part in view_batches.split_views(video, 2)]
  assert len(found) == 3
  np.testing.assert_array_equal(view_batches.join_views(found, 5), video.reshape(3, 5, -1))


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
  """Scores of a run's validation set, and the shapes of what was predicted at once."""
  found = evaluation(tiny.config(
    root, eval__clips=clips, eval__crops=crops, eval__batch_size=batch_size, data__workers=workers,
    data__zero_shot=''))
  shapes, predict = [], found._scorer._predict

  def counted(params, batch, texts):
    shapes.append(batch['video'].shape[0])
    return predict(params, batch, texts)

  found._scorer._predict = counted
  scores, orders = found.score_splits(random_params(found))
  return scores['val'], orders, shapes


@pytest.mark.slow
def test_a_run_scores_alike_at_any_batch_size_and_with_any_workers(root):
  wanted, orders, shapes = scores(root, 2, 3, 48)
  # 41 videos in 4 batches of 12 in 4 orders, then in 6 batches of 8 with 6 views.
  assert shapes == [48] * (4 + 6) and wanted.index.tolist() == list(range(41))
  for batch_size, workers, clips_at_once in ((4, 0, {4, 3}), (24, 2, {24})):
    got, again, shapes = scores(root, 2, 3, batch_size, workers)
    assert set(shapes) == clips_at_once
    np.testing.assert_array_equal(got.index, wanted.index)
    np.testing.assert_allclose(got.averaged, wanted.averaged, rtol=1e-5, atol=1e-7)
    for order, x in orders.items():
      np.testing.assert_allclose(again[order].averaged, x.averaged, rtol=1e-5, atol=1e-7)


def test_frame_orders_rearrange_frames_within_a_clip(root):
  video = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 4, 4, 3), np.uint8)
  index = np.array([5, 5])
  arranged = view_batches.arrange(video, index, tuple(view_batches.FRAME_ORDERS))
  ordered, shuffled, backwards, single = np.split(arranged, 4, axis=1)
  np.testing.assert_array_equal(ordered, video)
  np.testing.assert_array_equal(backwards, video[:, :, ::-1])
  assert (single == video[:, :, 4:5]).all()
  frames = [int(np.flatnonzero((video[0, 0] == x).all(axis=(1, 2, 3)))[0]) for x in shuffled[0, 0]]
  assert sorted(frames) == list(range(8)) != frames
  np.testing.assert_array_equal(shuffled, video[:, :, frames])          # alike for one row
  one = view_batches.arrange(video[:, 0], index, ('reversed',))
  np.testing.assert_array_equal(one, video[:, :1, ::-1])


@pytest.mark.slow
def test_a_scorer_scores_alike_at_any_batch_size_and_with_any_workers(root):
  some = evaluation(tiny.config(root))
  paths = PathSource(tuple(some.splits['val'].videos[row]['path'] for row in range(7)))
  found, drawn = [], random_params(some)
  for batch_size, workers in ((16, 0), (4, 2)):
    scorer = Scorer(some.model, Preprocess(), mesh_lib.make_mesh({'data': -1}), batch_size,
                    pipeline.Reading(workers, 2))
    params = scorer.place(drawn)
    text = scorer.encode_texts(params, ['a dog', 'a cat'])
    shapes, predict = set(), scorer._predict
    scorer._predict = lambda params, batch, texts, shapes=shapes, predict=predict: (
      shapes.add(batch['video'].shape[0]) or predict(params, batch, texts))
    found.append(scorer.score(params, paths, text, Views(clips=5)))
    assert len(shapes) == 1 and max(shapes) <= batch_size
  for logits, index, _, failed in found:
    assert logits.shape == (7, 5, 2) and index.tolist() == list(range(7)) and not failed
    np.testing.assert_allclose(logits, found[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_very_many_texts_are_scored_as_few_are(root, monkeypatch):
  some = evaluation(tiny.config(root))
  paths = PathSource(tuple(some.splits['val'].videos[row]['path'] for row in range(3)))
  texts = [f'text {n}' for n in range(7)]
  found = []
  for at_once in (1024, 3):
    monkeypatch.setattr(scorer_lib, '_TEXTS_AT_ONCE', at_once)
    scorer = Scorer(some.model, Preprocess(), mesh_lib.make_mesh({'data': -1}), 4)
    params = scorer.place(random_params(some))
    text = scorer.encode_texts(params, texts, ('{}', 'a {}'))
    assert text.shape[0] == 7
    found.append(scorer.score(params, paths, text).logits)
  assert found[0].shape == (3, 1, 7)
  np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


def reads(monkeypatch):
  """Paths of the videos that are read from now on."""
  paths, read = [], decode.read_video
  monkeypatch.setattr(decode, 'read_video', lambda video, choose, seconds, path, **options: (
    paths.append(path) or read(video, choose, seconds, path, **options)))
  return paths


def test_the_report_reads_the_clips_that_it_shows(root, monkeypatch):
  found = evaluation(tiny.config(root, eval__clips=2, eval__views='reference', data__zero_shot=''))
  scores, _ = found.score_splits(random_params(found))
  read = reads(monkeypatch)
  clips = found.sample_clips(scores['val'])
  assert len(clips) == len(read) == 12
  labels = [scores['val'].texts[scores['val'].labels[row]] for row in
            np.linspace(0, 40, 12).round().astype(int)]
  assert [clip.label for clip in clips] == labels


@pytest.mark.parametrize(('clips', 'decoded'), [
  pytest.param(1, 41 + 13, marks=pytest.mark.slow), (2, 2 * 41 + 13)])
def test_orders_of_frames_are_compared_on_one_view_and_the_rest_is_of_all(
    root, tmp_path, monkeypatch, clips, decoded):
  found = evaluation(tiny.config(root, eval__clips=clips, report=False))
  params, read = random_params(found), reads(monkeypatch)
  results = found.finish(params, tmp_path, 1)
  assert len(read) == decoded                      # zero-shot videos once for both class lists
  scores, orders = found.score_splits(params)
  assert scores['val'].logits.shape[1] == clips
  assert results['val/top1'] == scores['val'].top(1)
  for order, x in orders.items():
    assert results[f'time/{order.replace(" ", "_")}/top1'] == x.top(1)
  assert not np.array_equal(orders['in order'].logits, orders['shuffled'].logits)
  one = found.during_training(params, lambda: False)
  assert one['val/top1'] == orders['in order'].top(1)
