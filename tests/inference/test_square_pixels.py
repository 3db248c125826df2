"""One option makes pixels square in training, evaluation and inference; it is off by default."""

import fractions

import av
import numpy as np
import pytest

import videos
import xclip_jax
from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.data.datasets import annotations
from xclip_jax.data.video import decode
from xclip_jax.inference import clips
from xclip_jax.weights import native

T, SIZE = 4, 32
ONE = annotations.ClassList(('one',), (None,))


@pytest.fixture
def wide(tmp_path):
  """A recording of 64 x 48 whose pixels are twice as wide as high."""
  path = tmp_path / 'a.mp4'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=16, options={'mbtree': '0'})
    stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
    stream.codec_context.sample_aspect_ratio = fractions.Fraction(2)
    stream.codec_context.thread_count = 1
    for frame in videos.barcode_frames(171, 48, 64)[[170] * 8]:         # black and white bars
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode())
  return str(path)


def expected(path, is_square):
  choose = lambda count: sampling.test_indices(count, T)
  frames = decode.read_video(path, choose, square_pixels=is_square)
  assert frames.shape[1:3] == (48, 128 if is_square else 64)
  return augment.EvalTransform(SIZE)(frames)


@pytest.mark.parametrize('is_square', [False, True])
def test_every_reader_makes_pixels_square_if_it_is_told(wide, is_square):
  want = expected(wide, is_square)
  preprocess = native.Preprocess(square_pixels=is_square)
  np.testing.assert_array_equal(clips.ClipReader(T, SIZE, preprocess).read(wide), want)
  listed = annotations.VideoList([annotations.Example(wide, 0)], ONE)
  reading = pipeline.Reading(threads=1, square_pixels=is_square)
  sampler, share = sampling.ClipSampler(T), pipeline.HostShare(1)
  with pipeline.eval_batches(
      listed, augment.EvalTransform(SIZE), sampler, share, reading) as batches:
    np.testing.assert_array_equal(next(iter(batches))['video'][0], want)
  transform = augment.TrainTransform(SIZE, 'center', 0, 0, 0)
  with pipeline.train_batches(
      listed, transform, sampler, share, pipeline.TrainStream(0), reading) as batches:
    video = next(iter(batches))['video'][0]
  difference = lambda clip: np.abs(video.astype(int) - clip).mean()     # all frames are alike
  assert difference(want) < 3 and difference(expected(wide, not is_square)) > 20


def test_weights_are_opened_with_square_pixels_on_request():
  assert xclip_jax.load('toy').weights.preprocess.square_pixels is False
  assert xclip_jax.load('toy', square_pixels=True).weights.preprocess.square_pixels is True
