"""Tests of `xclip_jax.load` and its Classifier on videos and labels."""

import collections
import dataclasses
import itertools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import videos
import xclip_jax
from configs import base
from xclip_jax.data.clips import augment, sampling
from xclip_jax.data.video import decode
from xclip_jax.inference import classifier as classifier_lib
from xclip_jax.models import vision
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.text.tokenizer import Tokenizer
from xclip_jax.training import job as job_lib

LABELS = ['a dog running', 'a cat asleep', 'a red ball']


def tiny_config():
  c = base.get_config()
  c.model.num_frames = 4
  c.model.fields = dict(
    image_size=32, patch_size=16, embed_dim=32, vision_width=32, vision_layers=1, vision_heads=2,
    vision_mlp=64, text_width=32, text_layers=1, text_heads=2, text_mlp=64, context_length=16,
    mit_heads=2, mit_mlp=64, prompt_layers=1, prompt_heads=2,
  )
  c.data.template = 'a video of {}'
  return c


def save_run(workdir, params_by_step, top1_by_step):
  """Leaves what a run would: config.json and checkpoints."""
  workdir.mkdir(exist_ok=True)
  (workdir / 'config.json').write_text(tiny_config().to_json_best_effort())
  with Checkpoints(workdir) as checkpoints:
    for step, params in params_by_step.items():
      checkpoints.save(step, state.create(params, optax.identity()), {}, top1_by_step[step])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir whose first checkpoint is the better one, the model, and parameters by step."""
  workdir = tmp_path_factory.mktemp('run')
  model = job_lib.make_model(tiny_config())
  shapes = jax.eval_shape(lambda: state.init_params(model, jax.random.key(0)))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype)
  drawn = {step: jax.tree.map(draw, shapes) for step in (1, 2)}      # no compilation
  save_run(workdir, drawn, {1: 0.9, 2: 0.1})
  return workdir, model, drawn


@pytest.fixture(scope='module')
def classifier(run):
  return xclip_jax.load(run[0])


@pytest.fixture(scope='module')
def apply_model(run):
  return jax.jit(run[1].apply)


def some_frames(seed, n=9, height=40, width=56):
  return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.fixture(scope='module')
def mixed():
  """Ten videos of many lengths and shapes, among them one shorter than the model's clip."""
  return [some_frames(i, n=2 + 3 * i, height=24 + 7 * i, width=80 - 3 * i) for i in range(10)]


@pytest.mark.slow
def test_half_the_numbers_give_nearly_the_same_answer_and_hold_no_more(
  run, classifier, monkeypatch
):
  half = xclip_jax.load(run[0], dtype='bfloat16')
  kinds = {name: x.dtype for name, x in tree_names.flatten(half.params).items()}
  assert {str(x) for name, x in kinds.items() if name.endswith('/kernel')} == {'bfloat16'}
  assert {str(x) for name, x in kinds.items() if not name.endswith('/kernel')} == {'float32'}
  video = some_frames(0)
  got, want = (x.classify(video, LABELS).probabilities for x in (half, classifier))
  np.testing.assert_allclose(got, want, atol=0.05)
  # Kernels kept so are what every product would make of float32 ones.
  monkeypatch.setattr(classifier_lib, 'cast_for_inference', lambda params, config: params)
  whole = classifier_lib.Classifier(half.weights)
  np.testing.assert_array_equal(got, whole.classify(video, LABELS).probabilities)
  with pytest.raises(ValueError, match="dtype='float16' is unknown"):
    xclip_jax.load(run[0], dtype='float16')


def test_answer_is_the_model_applied_by_hand(classifier, run, apply_model):
  drawn = run[2]
  frames = some_frames(0)
  clip = augment.EvalTransform(32)(frames[sampling.test_indices(len(frames), 4)])
  data = tiny_config().data
  video = vision.normalize(clip[None], data.mean, data.std)
  ids = Tokenizer(16)([f'a video of {label}' for label in LABELS])
  want = apply_model({'params': drawn[1]}, video, ids)
  answer = classifier.classify(frames, LABELS)
  np.testing.assert_allclose(
    answer.probabilities, jax.nn.softmax(want.logits)[0], rtol=0, atol=1e-5
  )
  np.testing.assert_allclose(
    classifier.embed_video(frames), want.video_features, rtol=0, atol=1e-5
  )
  np.testing.assert_allclose(classifier.embed_text(LABELS), want.text_features, rtol=0, atol=1e-5)


def test_probabilities_sum_to_one_and_top_is_sorted(classifier):
  answer = classifier.classify(some_frames(1), LABELS)
  assert answer.labels == tuple(LABELS)
  assert answer.probabilities.shape == (3,) and answer.probabilities.dtype == np.float32
  assert answer.probabilities.sum() == pytest.approx(1, abs=1e-5)
  top = answer.top(2)
  assert [label for label, _ in top] == [LABELS[i] for i in np.argsort(-answer.probabilities)[:2]]
  assert len(answer.top()) == 3


def test_an_answer_reads_as_one_line():
  answer = classifier_lib.Answer(('cat', 'dog'), np.array([0.25, 0.75], np.float32))
  assert str(answer) == 'dog 75.0%, cat 25.0%'


def test_a_file_and_its_frames_get_the_same_answer(classifier, tmp_path):
  path = videos.write_video(tmp_path / 'clip.mp4', some_frames(2, n=12, height=48, width=64))
  frames = decode.read_video(path, np.arange)
  from_file, from_frames = classifier.classify([path, frames], LABELS)
  np.testing.assert_array_equal(from_file.probabilities, from_frames.probabilities)


def test_a_mixed_list_is_answered_as_one_by_one(classifier, mixed, tmp_path):
  path = tmp_path / 'clip.mp4'
  videos.write_video(path, some_frames(3, n=6, height=32, width=48))
  several = [path, *mixed]
  together = classifier.classify(several, LABELS)
  alone = [classifier.classify(video, LABELS) for video in several]
  np.testing.assert_allclose(
    [a.probabilities for a in together], [a.probabilities for a in alone], rtol=0, atol=1e-5
  )
  assert len({a.probabilities.tobytes() for a in alone}) == len(several)   # not all alike
  embedded = classifier.embed_video(several)
  assert embedded.shape == (11, 32) and embedded.dtype == np.float32
  np.testing.assert_allclose(
    embedded, np.concatenate([classifier.embed_video(v) for v in several]), rtol=0, atol=1e-5
  )


def test_one_broken_video_of_many_loses_no_other(classifier, mixed):
  broken = np.zeros((4, 8, 8), np.uint8)
  several = [broken, *mixed[:3], broken, *mixed[3:], broken]
  results = list(classifier.classify_each(several, LABELS))
  rows = list(classifier.embed_each(several))
  whole = classifier.classify(mixed, LABELS)
  for found in (results, rows):
    assert [isinstance(x, decode.VideoError) for x in found] == [v is broken for v in several]
  good = [x.probabilities for x in results if isinstance(x, classifier_lib.Answer)]
  np.testing.assert_allclose(good, [x.probabilities for x in whole], rtol=0, atol=1e-5)
  np.testing.assert_allclose(
    [x for x in rows if isinstance(x, np.ndarray)], classifier.embed_video(mixed), rtol=0, atol=1e-5
  )
  with pytest.raises(decode.VideoError, match='must be uint8'):
    classifier.classify(several, LABELS)


def test_videos_without_end_are_answered_as_they_come(classifier):
  asked = itertools.count()
  endless = (some_frames(next(asked)) for _ in itertools.repeat(None))
  results = list(itertools.islice(classifier.classify_each(endless, LABELS), 3))
  assert len(results) == 3 and next(asked) <= 8 + 2 * 8 + 1


@pytest.mark.parametrize('video', ['clip.mp4', some_frames(0)])
def test_one_video_is_not_taken_for_several(classifier, video):
  for ask in (classifier.embed_each, lambda video: classifier.classify_each(video, LABELS)):
    with pytest.raises(ValueError, match='videos must be several'):
      ask(video)


def test_wrong_labels_are_refused_before_any_video_is_touched(classifier):
  def never():
    raise AssertionError('a video was asked for')
    yield

  with pytest.raises(ValueError, match=r'has 4[0-9] tokens'):
    classifier.classify_each(never(), ['word ' * 40])


@pytest.mark.parametrize('count', [1, 8, 9, 40])
def test_any_number_of_labels_is_answered_as_by_the_model(classifier, run, apply_model, count):
  labels = [f'number {i}' for i in range(count)]
  data = tiny_config().data
  clip = augment.EvalTransform(32)(some_frames(0)[sampling.test_indices(9, 4)])
  video = vision.normalize(clip[None], data.mean, data.std)
  ids = Tokenizer(16)([f'a video of number {i}' for i in range(40)])   # one program for any count
  logits = apply_model({'params': run[2][1]}, video, ids).logits[0, :count]
  got = classifier.classify(some_frames(0), labels).probabilities
  np.testing.assert_allclose(got, jax.nn.softmax(logits), rtol=0, atol=1e-5)
  assert classifier.embed_text(labels).shape == (count, 32)


def test_a_list_gives_a_list(classifier):
  assert len(classifier.classify([some_frames(4)], LABELS)) == 1
  assert classifier.classify([], LABELS) == []
  assert classifier.embed_video([]).shape == (0, 32)
  assert classifier.embed_video(some_frames(4)).shape == (1, 32)


def test_mixed_calls_compile_the_video_tower_twice(run, mixed, monkeypatch):
  traced = collections.Counter()

  def count(name):
    method = getattr(XCLIP, name)

    def counted(*args, **kwargs):
      traced[name] += 1
      return method(*args, **kwargs)

    monkeypatch.setattr(XCLIP, name, counted)

  count('encode_video')
  count('classify')
  count('encode_text')
  classifier_lib._programs.cache_clear()            # what other tests compiled
  classifier = xclip_jax.load(run[0])
  traced.clear()                                    # loading traces an abstract initialisation
  for several in (mixed[0], mixed, mixed[:3], mixed[:8], mixed[5], mixed[2:7]):
    classifier.classify(several, LABELS)
    classifier.classify(several, LABELS[::-1])
    classifier.embed_video(several)
    classifier.classify(several, [*LABELS, *'abcde'])
  assert traced == {'encode_video': 2, 'classify': 2, 'encode_text': 1}
  classifier.classify(mixed[:3], [*LABELS, *'abcdef'])       # more than eight labels
  assert traced == {'encode_video': 2, 'classify': 3, 'encode_text': 1}


def test_texts_are_encoded_once(run, monkeypatch):
  classifier = xclip_jax.load(run[0])
  write_prompts, seen = classifier_lib.tokenizer.write_prompts, []

  def counted(labels, *rest):
    seen.append(labels)
    return write_prompts(labels, *rest)

  monkeypatch.setattr(classifier_lib.tokenizer, 'write_prompts', counted)
  for labels in (LABELS, tuple(LABELS), list(LABELS)):
    classifier.classify(some_frames(5), labels)
  classifier.embed_text(LABELS)
  assert seen == [tuple(LABELS)]
  classifier.classify(some_frames(5), LABELS[::-1])
  assert seen == [tuple(LABELS), tuple(LABELS[::-1])]


def test_what_embed_text_returns_is_the_callers_own(classifier):
  first = classifier.embed_text(LABELS)
  first[:] = 0
  assert np.abs(classifier.embed_text(LABELS)).sum() > 0


def test_the_best_checkpoint_is_loaded_else_the_latest(run, classifier, tmp_path):
  _, _, drawn = run
  jax.tree.map(np.testing.assert_array_equal, classifier.params, drawn[1])
  save_run(tmp_path, drawn, {1: None, 2: None})
  jax.tree.map(np.testing.assert_array_equal, xclip_jax.load(str(tmp_path)).params, drawn[2])


@pytest.mark.parametrize('labels, message', [
  ([], 'labels is empty'),
  ('a dog', r"labels must be a list of texts, got the text 'a dog'"),
  (['a dog', 3], r'labels\[1\] must be a text, got 3'),
  (['a dog', ' '], r"labels\[1\] must be a text, got ' '"),
  (['a dog', 'a cat', 'a dog'], "holds 'a dog' more than once"),
  (['word ' * 40], 'has 4[0-9] tokens'),
])
def test_wrong_labels_are_named(classifier, labels, message):
  with pytest.raises(ValueError, match=message):
    classifier.classify(some_frames(6), labels)


def test_long_labels_are_cut_where_it_is_asked_for(classifier):
  long = ['word ' * 40, 'a dog']
  with pytest.raises(ValueError, match=r'cut it with --truncate \(in Python truncate=True\)'):
    classifier.embed_text(long)
  cut = classifier.embed_text(long, truncate=True)
  # 16 tokens hold start, end and the 3 of the template 'a video of {}'.
  np.testing.assert_array_equal(cut, classifier.embed_text(['word ' * 11, 'a dog']))
  answer = classifier.classify(some_frames(6), long, truncate=True)
  assert answer.labels == tuple(long) and abs(answer.probabilities.sum() - 1) < 1e-5
  [again] = classifier.classify_each([some_frames(6)], long, truncate=True)
  np.testing.assert_array_equal(again.probabilities, answer.probabilities)


def test_a_model_of_another_tokenizer_reads_no_labels(classifier):
  weights = classifier.weights
  config = dataclasses.replace(weights.config, vocab_size=32000)
  other = classifier_lib.Classifier(dataclasses.replace(weights, config=config))

  def never():
    raise AssertionError('a video was asked for')
    yield

  for ask in (lambda: other.embed_text(LABELS), lambda: other.classify_each(never(), LABELS)):
    with pytest.raises(ValueError, match=r'vocabulary of 32000 tokens.*CLIP, 0\.\.49407'):
      ask()


@pytest.mark.parametrize('video, found', [
  (np.zeros((4, 8, 8, 3), np.float32), r'got float32 \[4, 8, 8, 3\]'),
  (np.zeros((8, 8, 3), np.uint8), r'got uint8 \[8, 8, 3\]'),
  (np.zeros((2, 4, 8, 8, 3), np.uint8), r'got uint8 \[2, 4, 8, 8, 3\]'),
  (np.zeros((4, 3, 8, 8), np.uint8), r'got uint8 \[4, 3, 8, 8\]'),
  (np.zeros((0, 8, 8, 3), np.uint8), r'got uint8 \[0, 8, 8, 3\]'),
  (None, r'got object \[\]'),
])
def test_wrong_frames_are_named(classifier, video, found):
  with pytest.raises(ValueError, match=r'must be uint8 \[F, H, W, 3\].*' + found):
    classifier.classify(video, LABELS)
  with pytest.raises(ValueError, match=found):
    classifier.embed_video([some_frames(7), video])


def test_a_file_that_is_no_video_is_named(classifier, tmp_path):
  (tmp_path / 'notes.mp4').write_text('these are no pictures')
  for name in ('notes.mp4', 'missing.mp4'):
    with pytest.raises(decode.VideoError, match=f'{name}: cannot be read as a video'):
      classifier.classify([some_frames(8), tmp_path / name], LABELS)


def test_frames_too_odd_to_resize_are_named(classifier, monkeypatch):
  def fail(*_):
    raise cv2.error('Insufficient memory')

  monkeypatch.setattr(augment.cv2, 'resize', fail)
  with pytest.raises(ValueError, match='cannot resize frames of 56 x 40 pixels'):
    classifier.classify(some_frames(9), LABELS)


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path):
  with pytest.raises(ValueError, match=r'nowhere. is not there: neither a file or folder'):
    xclip_jax.load(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='holds no weights'):
    xclip_jax.load(tmp_path)
  (tmp_path / 'metrics.jsonl').touch()
  with pytest.raises(ValueError, match='is a run without a checkpoint yet'):
    xclip_jax.load(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match=r'config\.json is missing'):
    xclip_jax.load(tmp_path)
  (tmp_path / 'config.json').write_text(tiny_config().to_json_best_effort())
  with pytest.raises(ValueError, match='checkpoints holds no checkpoint'):
    xclip_jax.load(tmp_path)


@pytest.mark.parametrize('text', [
  '{"model": ', '[1, 2]', '{}', json.dumps({'model': {'variant': 'B/99', 'num_frames': 8}}),
])
def test_a_config_of_something_else_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match=r'config\.json is not the configuration of a run: .'):
    xclip_jax.load(tmp_path)
