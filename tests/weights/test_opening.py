"""Folders that `open_weights` tells apart: a fine-tuning, its run, its weights."""

import jax
import numpy as np
import pytest

from goldens_io import Case
from xclip_jax.weights import native, opening


@pytest.fixture
def tuned(tmp_path):
  """The files of a finished fine-tuning that matter for opening it."""
  case = Case('hf_tiny_a')
  weights = native.Weights(case.config, case.params, licence='MIT')
  folder = tmp_path / 'tuned'
  (folder / 'run').mkdir(parents=True)
  (folder / 'run' / 'config.json').write_text('{}')
  (folder / 'classes.csv').write_text('id,name\n0,up\n')
  native.save(folder / 'weights', weights)
  return folder, weights


def test_the_folder_of_a_fine_tuning_opens_its_weights(tuned):
  folder, weights = tuned
  opened = opening.open_weights(folder, num_frames=weights.config.num_frames)
  assert opened.config == weights.config and opened.licence == 'MIT'
  jax.tree.map(np.testing.assert_array_equal, opened.params, weights.params)
  assert opening.open_weights(str(folder), dtype='bfloat16').config.dtype == 'bfloat16'


def test_an_unfinished_fine_tuning_says_how_to_go_on(tuned):
  folder, _ = tuned
  (folder / 'weights').rename(folder / 'elsewhere')
  with pytest.raises(ValueError, match=r'tuned is a fine-tuning that has not finished.*tuned/run'):
    opening.open_weights(folder)


def test_a_misspelt_option_is_refused(tuned):
  with pytest.raises(TypeError, match='frames'):
    opening.open_weights(tuned[0], frames=8)
