"""The views that an evaluation scores are the reference's: its frames and its crops, end to end."""

import functools
import pathlib

import av
import jax
import numpy as np
import pytest
from test_weight_curve import random_weights

from xclip_jax.data.clips import augment
from xclip_jax.evaluation import scorer
from xclip_jax.models import vision
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.weights import native

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
PREPROCESS = np.load(GOLDENS / 'ref_preprocess.npz')
INDICES = np.load(GOLDENS / 'ref_frame_indices.npz')
TEXTS = ('run', 'jump', 'read a book')


def write_lossless(path, frames):
  """A video whose frames are these, to the bit."""
  with av.open(str(path), 'w') as file:
    stream = file.add_stream('ffv1', rate=25)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'bgr0'
    for frame in frames:
      file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
    file.mux(stream.encode())
  return str(path)


@functools.cache
def compiled(config):
  model = XCLIP(config)
  return jax.jit(lambda params, x, text: model.apply(
    {'params': params}, x, text, method='classify').logits)


def scores_of(weights, path, **views):
  """Logits [V, K] of one video by the Scorer; and how to score clips [V, T, S, S, 3] by hand."""
  model = XCLIP(weights.config)
  found = scorer.Scorer(model, weights.preprocess, mesh_lib.make_mesh({'data': 1}), batch_size=1)
  params = found.place(weights.params)
  text = found.encode_texts(params, TEXTS)
  logits, _, _, failed = found.score(
    params, scorer.PathSource((path,)), text, scorer.Views(**views))
  assert not failed
  by_hand = lambda clips: np.concatenate(
    [compiled(weights.config)(weights.params, clip[None], text) for clip in clips])
  return logits[0], by_hand


@pytest.mark.parametrize('name', ['land', 'port', 'up'])
def test_three_crops_of_a_video_are_the_references(name, tmp_path):
  frames = PREPROCESS[f'{name}.frames']
  weights = random_weights(0, num_frames=len(frames))
  path = write_lossless(tmp_path / 'video.mkv', frames)
  logits, by_hand = scores_of(weights, path, crops=3, choice='reference')
  golden = PREPROCESS[f'{name}.S32.three_crop']                    # [crops x T, 3, S, S]
  clips = golden.reshape(3, len(frames), 3, 32, 32).transpose(0, 1, 3, 4, 2)
  np.testing.assert_allclose(logits, by_hand(clips), atol=1e-4)
  one, _ = scores_of(weights, path)
  golden = PREPROCESS[f'{name}.S32.center'].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(one, by_hand(golden[None]), atol=1e-4)
  assert np.ptp(logits, axis=0).max() > 2e-3                       # the crops differ


@pytest.mark.parametrize('name', [
  'test_T8_n100', 'test_T8_n33', pytest.param('test_T16_n7', marks=pytest.mark.slow)])
def test_the_frames_of_a_video_are_the_references(name, tmp_path):
  T, count = (int(part[1:]) for part in name.split('_')[-2:])
  frames = np.random.default_rng(0).integers(0, 256, (count, 36, 40, 3), np.uint8)
  weights = random_weights(0, num_frames=T)
  logits, by_hand = scores_of(weights, write_lossless(tmp_path / 'video.mkv', frames))
  clip = augment.EvalTransform(32)(frames[INDICES[name]])
  preprocess = native.REFERENCE
  wanted = by_hand(vision.normalize(clip[None], preprocess.mean, preprocess.std))
  np.testing.assert_allclose(logits, wanted, atol=1e-4)
