"""Files of predictions: what is written is read again, and damage is one line."""

import numpy as np
import pytest

from xclip_jax import errors
from xclip_jax.evaluation import scores


@pytest.fixture
def saved(tmp_path):
  """Returns the path of a file with three videos, one of which was unreadable."""
  scores.Scores(
    'single-label', ('a', 'b'), np.zeros((2, 1, 2), np.float32), np.array([0, 2], np.int32),
    np.array([0, -1, 1], np.int32), ('x', 'y', 'z'), {1: 'unreadable'}, 'f',
  ).save(tmp_path / 's.npz')
  return tmp_path / 's.npz'


def test_a_file_is_read_as_it_was_written(saved):
  read = scores.load(saved)
  assert (read.texts, read.paths, read.failed) == (('a', 'b'), ('x', 'y', 'z'), {1: 'unreadable'})


def test_damage_of_any_byte_is_refused_in_one_line(saved):
  whole, random = saved.read_bytes(), np.random.default_rng(0)
  refused = 0
  for _ in range(200):
    content = bytearray(whole)
    for position in random.integers(len(whole), size=3):
      content[position] = random.integers(256)
    saved.write_bytes(bytes(content))
    try:
      scores.load(saved)
    except errors.UserError as error:
      assert 'is no predictions file' in str(error)
      refused += 1
  assert refused > 100


@pytest.mark.parametrize(('changes', 'words'), [
  (dict(paths=None), "it has no array 'paths'"),
  (dict(about=np.array('[1]')), 'its version is None'),
  (dict(about=np.array('{"version": 1}')), 'its header has no kind'),
  (dict(failed=np.zeros(2, np.int32)), 'do not belong together'),
  (dict(index=np.array([0, 1], np.int32)), 'not each of them is evaluated or failed'),
])
def test_arrays_that_contradict_each_other_are_refused(saved, changes, words):
  with np.load(saved) as file:
    arrays = dict(file) | changes
  np.savez(saved, **{name: array for name, array in arrays.items() if array is not None})
  with pytest.raises(errors.UserError, match=words):
    scores.load(saved)


def test_a_bug_in_scores_keeps_its_traceback(saved, monkeypatch):
  monkeypatch.setattr(scores, 'Scores', lambda **fields: {}['a bug'])
  with pytest.raises(KeyError, match='a bug'):
    scores.load(saved)
