"""Lists that other tools write: blank-separated ones for PySlowFast, and Parquet."""

import pytest

from xclip_jax.cli import main
from xclip_jax.data.datasets import annotations, tables
from xclip_jax.data.tools import derive_lists

CLASSES = annotations.ClassList(('a', 'b', 'c'), (None,) * 3)


@pytest.mark.parametrize('text, want', [
  ('ok.mp4 0\nin ner/b c.mp4 2\n', [('ok.mp4', 0), ('in ner/b c.mp4', 2)]),
  ('a,b.mp4\t1\r\n\r\nc.mp4  0', [('a,b.mp4', 1), ('c.mp4', 0)]),
  ('path label\na.mp4 1\n', [('a.mp4', 1)]),
  ('# made by a script\na.mp4 1\n', [('a.mp4', 1)]),
])
def test_lists_for_pyslowfast_are_read(tmp_path, text, want):
  (tmp_path / 'train.csv').write_text(text, newline='')
  examples = annotations.read_annotations(tmp_path / 'train.csv', '/v', CLASSES)
  assert [(x.path, x.label) for x in examples] == [(f'/v/{path}', label) for path, label in want]


@pytest.mark.parametrize('text', ['a.mp4 0\nb.mp4\n', 'a.mp4 run\n', 'a.mp4 0\nb.mp4,1\n'])
def test_a_list_that_is_neither_says_what_separates_columns(tmp_path, text):
  (tmp_path / 'train.csv').write_text(text)
  with pytest.raises(ValueError, match=r'line 1: the header must hold path,label.*; commas separ'):
    annotations.read_annotations(tmp_path / 'train.csv', '/v', CLASSES)


def write(file, /, **columns):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  parquet.write_table(pyarrow.table(columns), file)
  return file


def test_parquet_lists_are_read_and_derived(tmp_path):
  path = write(tmp_path / 'train.parquet', path=['x.mp4', 'y z.mp4'], label=[0, 2],
               video=[b'\0', b'\1'])
  examples = annotations.read_annotations(path, '/v', CLASSES)
  assert [(x.path, x.label) for x in examples] == [('/v/x.mp4', 0), ('/v/y z.mp4', 2)]
  (tmp_path / 'less.parquet').write_bytes(derive_lists.without(path, {2}))
  assert annotations.read_rows(tmp_path / 'less.parquet', ('path', 'label')) == (
    ['path', 'label'], [(2, {'path': 'y z.mp4', 'label': '2'})])


@pytest.mark.parametrize('labels, want', [
  (['a', 'c'], [0, 2]), ([0.0, 2.0], [0, 2]), ([[0], [1, 2]], [(0,), (1, 2)])])
def test_labels_of_a_parquet_list_are_names_numbers_or_several(tmp_path, labels, want):
  path = write(tmp_path / 'a.parquet', path=['x', 'y'], label=labels)
  assert [x.label for x in annotations.read_annotations(path, '/v', CLASSES)] == want


def test_captions_may_be_a_parquet_list(tmp_path):
  path = write(tmp_path / 'a.parquet', path=['x'], caption=['a dog, running'])
  assert annotations.read_captions(path, '/v')[0].caption == 'a dog, running'


def test_what_is_wrong_with_a_parquet_list_is_said(tmp_path, monkeypatch, capsys):
  path = write(tmp_path / 'a.parquet', path=['x'], label=[None])
  with pytest.raises(ValueError, match=r"a\.parquet, line 2: label must be .* found ''"):
    annotations.read_annotations(path, '/v', CLASSES)
  with pytest.raises(ValueError, match="columns must hold path,caption, found 'path,label'"):
    annotations.read_captions(path, '/v')
  (tmp_path / 'b.parquet').write_bytes(b'PAR1 no')
  assert main.main(['data', 'check', str(tmp_path / 'b.parquet')]) == 2
  assert 'b.parquet: cannot be read as a Parquet file' in capsys.readouterr().err
  monkeypatch.setattr(tables.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='needs pyarrow: pip install'):
    annotations.read_captions(path, '/v')
