"""Rows that name a span of a video are checked, prepared and drawn from like any others."""

import numpy as np
import preparing
import pytest

import videos
from xclip_jax.data.tools import check, prepare
from xclip_jax.data.video import decode


@pytest.fixture
def store(tmp_path):
  """A video of 60 numbered frames, 3.75 s, and a copy of it."""
  path = videos.write_video(tmp_path / 'up.mp4', videos.barcode_frames(60, 32, 48))
  with open(path, 'rb') as file:
    (tmp_path / 'copy.mp4').write_bytes(file.read())
  (tmp_path / 'classes.csv').write_text('id,name\n0,open\n1,close\n')
  return tmp_path


def test_spans_of_one_file_are_not_duplicates_and_wrong_ones_are_found(store):
  path = preparing.write_list(store / 'list.csv', [
    ('up.mp4', 0, 0, 1), ('up.mp4', 1, 1, 2), ('up.mp4', 0, 1, 2), ('copy.mp4', 0, 0, 1),
    ('up.mp4', 0, 2, 9), ('gone.mp4', 0, 0, 1), ('up.mp4', 0, 3, 3.1),
  ], ('path', 'label', 'time_start', 'time_end'))
  found = check.check_list(path, store, store / 'classes.csv', check.Inspection(4))
  assert [(x.line, x.kind) for x in found.problems] == [
    (4, 'duplicate'), (5, 'duplicate'), (6, 'undecodable'), (7, 'missing'), (8, 'short')]
  assert found.present == 6


def test_a_prepared_span_holds_its_frames(store, tmp_path):
  preparing.write_list(store / 'list.csv', [('up.mp4#t=1,2', 0), ('up.mp4', 1)], ('path', 'label'))
  listed = prepare.ListFiles(store / 'list.csv', store, store / 'classes.csv')
  prepare.prepare(listed, tmp_path / 'new', preparing.SMALL)
  rows = preparing.read(tmp_path / 'new/list.csv')[1:]
  shown = [[videos.read_barcode(x) for x in decode.read_video(tmp_path / 'new' / name, np.arange)]
           for name, _ in rows]
  assert shown == [list(range(16, 32)), list(range(60))]
