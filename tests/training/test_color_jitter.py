"""Colours changed on the device are those changed on the host."""

import cv2
import jax
import numpy as np
import pytest
import reading

import tiny
from xclip_jax.data import open_splits
from xclip_jax.data.clips import augment
from xclip_jax.storage import state
from xclip_jax.training import job as job_lib
from xclip_jax.training import optimizer
from xclip_jax.training import step as step_lib
from xclip_jax.training.objectives import color_jitter


@pytest.fixture(scope='module')
def clips():
  """uint8 [B, T, H, W, 3]: noise, soft pictures, and one without colour."""
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (6, 4, 32, 40, 3), np.uint8)
  clips[2:] = [[cv2.GaussianBlur(frame, (0, 0), 3) for frame in clip] for clip in clips[2:]]
  clips[5] = clips[5, ..., :1]
  return clips


def on_both(clips, drawn):
  host = np.stack([augment.apply_colors(*pair) for pair in zip(clips, drawn, strict=True)])
  return host, np.asarray(jax.jit(color_jitter.apply)(clips, drawn.astype(np.float32)))


def test_the_device_computes_what_the_host_computes(clips):
  rng = np.random.default_rng(1)
  for _ in range(5):
    drawn = np.stack([augment.draw_colors(4, i != 3, i == 1, rng) for i in range(len(clips))])
    host, device = on_both(clips, drawn)
    assert device.dtype == np.float32 and np.array_equal(device, np.round(device))
    assert abs(device - host).max() <= 2 and (device != host).mean() < 1e-3


@pytest.mark.parametrize('operation', range(4))
def test_each_operation_is_the_hosts(clips, operation):
  rng = np.random.default_rng(2)
  drawn = np.stack([augment.draw_colors(4, True, False, rng) for _ in clips])
  drawn[..., :4] = [operation, 4, 4, 4]
  host, device = on_both(clips, drawn)
  assert (host != clips).mean() > 0.1
  assert abs(device - host).max() <= 1 and (device != host).mean() < 1e-3


def test_a_clip_that_nothing_was_drawn_for_stays_as_it_is(clips):
  nothing = np.stack([augment.draw_colors(4, False, False, None) for _ in clips])
  host, device = on_both(clips, nothing)
  assert np.array_equal(host, clips) and np.array_equal(device, clips)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def batch_of(data, **fields):
  split = open_splits(tiny.config(data).data)['train']
  transform = augment.TrainTransform(32, 'multiscale', 0.5, 0.8, 0.2, **fields)
  with reading.open_training(
    split.videos, transform, num_frames=3, batch_size=16, seed=3, threads=1) as batches:
    return next(batches)


def test_the_stream_is_the_same_wherever_colours_are_changed(data):
  host, device = batch_of(data), batch_of(data, colors='device')
  assert 'colors' not in host and device['colors'].shape == (16, 3, 9)
  assert (device['video'] != host['video']).any()
  for name in ('label', 'index', 'mask', 'failed'):
    np.testing.assert_array_equal(host[name], device[name])
  changed = np.asarray(jax.jit(color_jitter.apply)(device['video'], device['colors']))
  assert abs(changed - host['video']).max() <= 2 and (changed != host['video']).mean() < 1e-3


@pytest.mark.parametrize('later', [dict(rand_augment=1), dict(erase=0.5)])
def test_what_comes_after_colours_keeps_them_on_the_host(data, later):
  host, device = batch_of(data, **later), batch_of(data, colors='device', **later)
  assert 'colors' not in device
  np.testing.assert_array_equal(host['video'], device['video'])


@pytest.mark.slow
def test_an_update_with_colours_on_the_device_is_that_of_the_host(data):
  config = tiny.config(data)
  model = job_lib.make_model(config)
  params = state.init_params(model, jax.random.key(0))
  tx, _ = optimizer.make(config.optim, params, 10, 1)
  classes = open_splits(config.data)['train'].classes
  step = jax.jit(step_lib.make_train_step(step_lib.StepParts(model, tx, config, classes)))
  texts = np.arange(len(classes) * 16, dtype=np.int32).reshape(-1, 16) % 90 + 1
  found = {}
  for place in ('host', 'device'):
    batch = batch_of(data, colors=place)
    batch = {k: batch[k] for k in ('video', 'label', 'mask', 'colors') if k in batch}
    _, found[place] = step(state.create(params, tx), batch, texts, jax.random.key(1))
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(found['host'][name], found['device'][name], rtol=1e-3)


def test_on_a_cpu_colours_are_changed_on_the_host_by_default(data):
  config = tiny.config(data)
  assert job_lib.train_transform(config, job_lib.make_model(config)).colors == 'host'
  config.augment.color_on = 'gpu'
  with pytest.raises(ValueError, match=r"color_on='gpu' must be one of auto, host, device"):
    job_lib.check_config(config)


def test_black_stays_black_and_finite():
  black = np.zeros((1, 2, 8, 8, 3), np.uint8)
  drawn = np.stack([augment.draw_colors(2, True, False, np.random.default_rng(0))])
  np.testing.assert_array_equal(on_both(black, drawn)[1], black)
