"""Windows of a long video: what each sees, and when they are exact."""

import dataclasses
import itertools

import av
import jax
import numpy as np
import pytest

import tiny
import videos
import xclip_jax
from xclip_jax.cli import main
from xclip_jax.data.video.decode import VideoError, read_video
from xclip_jax.inference import long_video
from xclip_jax.inference.classifier import Classifier
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.xclip import XCLIP, init_params
from xclip_jax.weights import native

LABELS = ['one', 'two', 'three']
# Two layers: the message of the first is the same for any frame, so that one alone mixes nothing.
CONFIG = XCLIPConfig(num_frames=4, **(tiny.FIELDS | dict(vision_layers=2)))


@pytest.fixture(scope='module')
def classifier():
  shapes = jax.eval_shape(lambda: init_params(XCLIP(CONFIG), jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)
  params['logit_scale'] = np.float32(4.6)                # as trained: differences show
  return Classifier(native.Weights(CONFIG, params))


@pytest.fixture(scope='module')
def video(tmp_path_factory):
  rng = np.random.default_rng(1)
  frames = np.repeat(rng.integers(0, 256, (30, 6, 8, 3), np.uint8), 8, 1).repeat(8, 2)
  file = tmp_path_factory.mktemp('video') / 'long.mp4'
  videos.write_video(file, frames, fps=10)
  return file


def by_hand(classifier, video, first, every):
  frames = read_video(video, lambda count: first + every * np.arange(4))
  return classifier.classify(frames, LABELS).probabilities


def test_exact_windows_are_their_frames_classified(classifier, video):
  found = list(long_video.classify(classifier, video, LABELS, every=2, stride=3, exact=True))
  assert [(round(x.begin, 3), round(x.end, 3)) for x in found] == [
    (0, .6), (.6, 1.2), (1.2, 1.8), (1.8, 2.4)]        # 15 frames taken
  for i, window in enumerate(found):
    np.testing.assert_allclose(
      window.answer.probabilities, by_hand(classifier, video, 6 * i, 2), atol=1e-4)


def test_windows_that_share_frames_are_exact_where_they_are_a_run(classifier, video):
  found = list(long_video.classify(classifier, video, LABELS, every=2))
  exact = list(long_video.classify(classifier, video, LABELS, every=2, exact=True))
  assert len(found) == len(exact) == 12
  apart = [np.abs(x.answer.probabilities - y.answer.probabilities).max()
           for x, y in zip(found, exact, strict=True)]
  assert max(apart[::4]) < 2e-5                        # 0, 4 and 8 begin a run
  assert max(apart) > 1e-4                             # between, messages are another run's
  # Without messages no frame hears of another, and all are exact.
  config = dataclasses.replace(CONFIG, messages=False)
  mute = Classifier(dataclasses.replace(classifier.weights, config=config))
  for x, y in zip(long_video.classify(mute, video, LABELS, every=2),
                  long_video.classify(mute, video, LABELS, every=2, exact=True), strict=True):
    np.testing.assert_allclose(x.answer.probabilities, y.answer.probabilities, atol=1e-4)


def test_what_cannot_be_windows_is_said(classifier, video):
  with pytest.raises(ValueError, match=r'stride=5 from 1 to 4'):
    next(long_video.classify(classifier, video, LABELS, stride=5))
  with pytest.raises(VideoError, match=r'takes 4 frames, one of 12 each, and it holds 3 of those'):
    next(long_video.classify(classifier, video, LABELS, every=12))


def test_the_command_prints_and_writes_them(classifier, video, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(xclip_jax.inference.classifier, 'load', lambda *_, **__: classifier)
  table = tmp_path / 'windows.csv'
  words = ['windows', str(video), '--weights', 'any', '--labels', 'one, two', '--every', '7',
           '--csv', str(table)]
  assert main.main(words) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 and '0.00 - 2.10 s' in lines[0]
  assert table.read_text().splitlines()[1].startswith('0.00-2.10,')
  assert main.main([*words, '--overwrite', '--every', '20']) == 2
  assert 'take a smaller `every`' in capsys.readouterr().err


def test_one_bad_frame_never_ends_windows(classifier, video, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(xclip_jax.inference.classifier, 'load', lambda *_, **__: classifier)
  content = bytearray(video.read_bytes())
  with av.open(str(video)) as container:
    places = [(x.pos, x.size) for x in container.demux(video=0) if x.size]
  for position, size in (places[9], places[14]):
    content[position:position + size] = bytes(size)
  (tmp_path / 'bad.mp4').write_bytes(content)
  words = ['windows', str(tmp_path / 'bad.mp4'), '--weights', 'any', '--labels', 'one, two',
           '--every', '2', '--csv', str(tmp_path / 'out.csv')]
  assert main.main(words) == 0
  said = capsys.readouterr()
  assert len(said.out.splitlines()) == 11                  # of 28 frames, 14 taken
  assert 'xclip: ' in said.err and 'bad.mp4: 2 of 30 frames cannot be decoded' in said.err
  assert len((tmp_path / 'out.csv').read_text().splitlines()) == 12


def test_windows_before_a_read_that_stops_are_written(
    classifier, video, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(xclip_jax.inference.classifier, 'load', lambda *_, **__: classifier)
  whole = long_video.decode.read_frames

  def stopping(file, **options):
    rate, frames = whole(file, **options)

    def some():
      yield from itertools.islice(frames, 12)
      raise VideoError(f'{file}: no frame was read within 120 s')

    return rate, some()

  monkeypatch.setattr(long_video.decode, 'read_frames', stopping)
  words = ['windows', str(video), '--weights', 'any', '--labels', 'one, two', '--every', '2',
           '--exact', '--csv', str(tmp_path / 'out.csv')]
  assert main.main(words) == 1
  assert 'stopped after 3 windows: ' in capsys.readouterr().err
  assert len((tmp_path / 'out.csv').read_text().splitlines()) == 4
  assert main.main([*words, '--overwrite', '--every', '6']) == 2      # none before it


def test_a_text_is_no_list_of_labels(classifier, video):
  with pytest.raises(ValueError, match="labels must be a list of texts, got the text 'abc'"):
    next(long_video.classify(classifier, video, 'abc'))
