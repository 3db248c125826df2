"""Tests of evaluation batches: bounded memory, and workers that die."""

import multiprocessing
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import reading
from test_pipeline import BAD_ROW, CLASSES, EVAL, T, assert_same, evaluate, make_videos

from xclip_jax.data.clips import pipeline
from xclip_jax.data.datasets import annotations


@pytest.fixture(scope='module')
def one_bad(tmp_path_factory):
  return make_videos(tmp_path_factory.mktemp('bad'), bad=(BAD_ROW,))


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_batch_leaves_no_trace_in_an_evaluation(one_bad):
  options = dict(num_frames=T, batch_size=3, threads=1, workers=2)
  with reading.open_evaluation(one_bad, EVAL, **options) as batches:
    got = [next(batches)]
    killed = multiprocessing.active_children()
    for worker in killed:
      os.kill(worker.pid, signal.SIGKILL)
    got += batches
  assert len(killed) == 2
  assert_same(got, evaluate(one_bad, batch_size=3))


class Counting:
  """An evaluation's transform that knows how many of the clips it made are still in memory."""

  image_size, crops = EVAL.image_size, EVAL.crops

  def __init__(self):
    self.lock, self.alive, self.most = threading.Lock(), 0, 0

  def __call__(self, frames):
    clip = EVAL(frames).copy()
    with self.lock:
      self.alive += 1
      self.most = max(self.most, self.alive)
    weakref.finalize(clip, self.drop)
    return clip

  def drop(self):
    with self.lock:
      self.alive -= 1


def test_an_evaluation_holds_a_row_a_thread_beside_its_batch(one_bad):
  many = annotations.VideoList(
    [annotations.Example(one_bad[row % 2]['path'], 0) for row in range(48)], CLASSES)
  transform = Counting()
  with reading.open_evaluation(many, transform, num_frames=T, batch_size=16, threads=2) as batches:
    for batch in batches:
      time.sleep(0.5)                                      # time enough to read on
      assert batch['mask'].all()
  assert 2 <= transform.most <= 6                          # it was 48: a batch a thread and one


def test_chosen_rows_of_a_source_are_those_of_an_evaluation(one_bad):
  every = evaluate(one_bad, batch_size=7)[0]
  rows = (1, BAD_ROW, 6)
  (some,) = evaluate(pipeline.RowSubset(one_bad, rows), batch_size=3)
  assert some['failed'].tolist() == [-1, 1, -1]
  for name in ('video', 'label', 'index', 'mask', 'error'):
    np.testing.assert_array_equal(some[name], every[name][list(rows)], err_msg=name)
