"""Tests of the training loop's own cost: one compilation, no hidden transfer or waiting."""

import contextlib
import logging
import re

import jax
import pytest

import tiny
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.training import loop as loop_lib
from xclip_jax.training import run as run_lib


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


@pytest.mark.slow
def test_the_loop_compiles_once_moves_nothing_unasked_and_waits_at_log_points_only(
  root, tmp_path, monkeypatch, caplog
):
  steps, waits = [0], []
  put, get, before = mesh_lib.put_batch, jax.device_get, loop_lib.stop_signal

  def count(*arguments):
    steps[0] += 1
    return put(*arguments)

  def wait(x):
    waits.append(steps[0])
    return get(x)

  @contextlib.contextmanager
  def guarded():                  # entered where the loop begins
    with before() as stopped, jax.transfer_guard_host_to_device('disallow'):
      monkeypatch.setattr(mesh_lib, 'put_batch', count)
      monkeypatch.setattr(jax, 'device_get', wait)
      yield stopped
      monkeypatch.undo()

  monkeypatch.setattr(loop_lib, 'stop_signal', guarded)
  config = tiny.config(
    root, train__steps=8, log_steps=4, eval__every_steps=100, checkpoint__every_steps=100,
    report=False, data__zero_shot='', profile__first=6, profile__steps=2)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    run_lib.run(config, tmp_path / 'run')
  compiled = re.findall(r'Compiling jit\((\w+)\)', caplog.text)
  assert compiled.count('step') == 1 and compiled.count('schedule') <= 1
  assert compiled.count('predict') <= 2             # the last batch of an evaluation is full, too
  assert {step for step in waits if step <= 8} == {4, 8}
  assert list((tmp_path / 'run/profile').rglob('*.xplane.pb'))


@pytest.mark.slow
def test_a_run_that_ends_while_it_records_keeps_the_recording(root, tmp_path):
  config = tiny.config(root, train__steps=2, report=False, data__zero_shot='', profile__first=2,
                       profile__steps=50)
  run_lib.run(config, tmp_path / 'run')
  assert list((tmp_path / 'run/profile').rglob('*.xplane.pb'))
