"""`xclip embed -o`: what a file holds is what its ending says, and other endings are refused."""

import functools
import json
import sys

import numpy as np
import pytest

from xclip_jax.assets import bundled
from xclip_jax.cli import main, startup
from xclip_jax.inference import classifier

LABELS = ['a ring moving right', 'a cross moving left']
load_once = functools.cache(classifier.load)


@pytest.fixture
def embed(tmp_path, monkeypatch, capsys):
  """Runs `xclip embed` with the toy model: exit code, standard output, standard error, file."""
  monkeypatch.setattr(classifier, 'load', load_once)
  monkeypatch.setattr(startup, 'prepare_compilation', lambda quiet: None)

  def run(output, *words):
    path = tmp_path / output
    code = main.main(['embed', *map(str, words), '--weights', 'toy', '-o', str(path)])
    return code, *capsys.readouterr(), path

  return run


@pytest.fixture(scope='module')
def clips():
  return bundled.list_samples()[:2]


def expected(clips):
  model = load_once('toy')
  return model.embed_video(clips), model.embed_text(LABELS)


def test_an_npy_holds_the_vectors_in_the_order_of_the_arguments(embed, clips):
  videos, texts = expected(clips)
  code, out, err, path = embed('videos.npy', *clips)
  assert (code, err) == (0, '') and 'video_features [2, ' in out
  found = np.load(path, allow_pickle=False)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, videos, atol=1e-6)
  _, _, _, path = embed('again.npy', *clips[::-1])
  np.testing.assert_allclose(np.load(path), videos[::-1], atol=1e-6)
  _, _, _, path = embed('texts.npy', '--labels', ', '.join(LABELS))
  np.testing.assert_array_equal(np.load(path), texts)


def test_a_video_that_cannot_be_read_keeps_an_npy_from_being_written(embed, clips, tmp_path):
  code, out, err, _ = embed('videos.npy', clips[0], tmp_path / 'missing.mp4')
  assert code == 2 and out == '' and not list(tmp_path.iterdir())
  first, second = err.splitlines()
  assert 'missing.mp4: cannot be read' in first and 'write an .npz' in second
  assert embed('videos.npz', clips[0], tmp_path / 'missing.mp4')[0] == 1


def test_a_parquet_file_has_a_row_for_every_vector(embed, clips):
  parquet = pytest.importorskip('pyarrow.parquet')
  videos, texts = expected(clips)
  code, _, err, path = embed('all.parquet', *clips, '--labels', ', '.join(LABELS))
  assert (code, err) == (0, '')
  table = parquet.read_table(path)
  assert table.column_names == ['kind', 'name', 'vector']
  assert table['kind'].to_pylist() == ['text', 'text', 'video', 'video']
  assert table['name'].to_pylist() == LABELS + clips
  vectors = np.array(table['vector'].to_pylist())
  np.testing.assert_allclose(vectors, np.concatenate([texts, videos]), atol=1e-6)
  config = json.loads(table.schema.metadata[b'config'])
  assert config['weights'] == 'toy' and config['model']['embed_dim'] == videos.shape[1]


@pytest.mark.parametrize(('output', 'words', 'message'), [
  ('x.csv', ['a.mp4'], 'the ending must be one of .npz, .npy, .parquet, got .csv'),
  ('x', ['a.mp4'], 'the ending must be one of .npz, .npy, .parquet, got none'),
  ('x.npz.gz', ['a.mp4'], 'got .gz'),
  ('x.npy', ['a.mp4', '--labels', 'a'], 'holds the vectors of videos or of labels'),
])
def test_other_files_are_refused_before_anything_is_computed(
  output, words, message, embed, tmp_path, monkeypatch):
  monkeypatch.setattr(classifier, 'load', lambda *_, **__: pytest.fail('weights were opened'))
  code, out, err, _ = embed(output, *words)
  assert code == 2 and out == '' and message in err and err.count('\n') == 1
  assert list(tmp_path.iterdir()) == []


def test_standard_output_takes_no_vectors(capsys):
  assert main.main(['embed', 'a.mp4', '--weights', 'toy', '-o', '-']) == 2
  assert 'not written to standard output' in capsys.readouterr().err


def test_parquet_without_pyarrow_is_refused_with_the_command_that_helps(
  embed, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  code, _, err, _ = embed('x.parquet', 'a.mp4')
  assert code == 2 and 'pip install "xclip-jax[parquet]"' in err and err.count('\n') == 1
  assert list(tmp_path.iterdir()) == []
