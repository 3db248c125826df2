import pickle

import pytest

from xclip_jax.data.datasets import annotations

CLASSES = annotations.ClassList(('kick ball', 'null', 'run'), (None, None, None))


def write(path, text):
  path.write_text(text, encoding='utf-8')
  return path


def test_classes_are_ordered_by_id_not_by_row(tmp_path):
  path = write(tmp_path / 'c.csv', 'id,name\n2,run\n0,kick ball\n1,null\n')
  classes = annotations.read_classes(path)
  assert classes.names == ('kick ball', 'null', 'run')  # "null" is a name, not a missing value
  assert classes.reverse == (None, None, None)
  assert len(classes) == 3


def test_reverse_names_the_class_of_the_backwards_clip(tmp_path):
  path = write(tmp_path / 'c.csv', 'id,name,reverse\n0,left,right\n1,right,left\n2,wave,\n')
  assert annotations.read_classes(path).reverse == (1, 0, None)


def test_spreadsheet_exports_are_read(tmp_path):
  path = tmp_path / 'c.csv'
  path.write_bytes('\ufeffid,name\r\n0,"run, fast"\r\n\r\n1,naïve 走る\r\n'.encode())
  assert annotations.read_classes(path).names == ('run, fast', 'naïve 走る')


@pytest.mark.parametrize('text, message', [
  ('', r"line 1: the header must hold id,name\[,reverse\], found ''"),
  ('name\nrun\n', "line 1: the header must hold id,name"),
  ('id,name\n', 'has a header but no rows'),
  ('id,name\nx,run\n', "line 2: id must be a whole number from 0, found 'x'"),
  ('id,name\n-1,run\n', "line 2: id must be a whole number from 0, found '-1'"),
  ('id,name\n0,run\n0,walk\n', 'line 3: id 0 is already used in line 2'),
  ('id,name\n0,run\n3,walk\n', 'ids must be 0..1 without a gap, 1 missing'),
  ('id,name\n0,run\n1,walk\n2,run\n', "class name 'run' is used twice, in lines 2 and 4"),
  ('id,name\n0,\n', 'line 2: class 0 has no name'),
  ('id,name\n0,run, fast\n', 'line 2: 2 fields wanted .* found 3; quote a field'),
  ('id,name,reverse\n0,run,walk\n', "line 2: reverse of 'run' is 'walk', not a class name"),
  ('id,name\n0,"run\n', 'line 2: not valid CSV'),
])
def test_a_wrong_class_list_says_where_and_why(tmp_path, text, message):
  path = write(tmp_path / 'c.csv', text)
  with pytest.raises(ValueError, match=message) as raised:
    annotations.read_classes(path)
  assert str(raised.value).startswith(str(path))


def test_labels_are_ids_or_names(tmp_path):
  path = write(tmp_path / 'a.csv', 'path,label\na.mp4,2\n\nb.mp4,kick ball\nc.mp4,null\n')
  examples = annotations.read_annotations(path, tmp_path, CLASSES)
  assert [e.label for e in examples] == [2, 0, 1]
  assert [e.path for e in examples] == [str(tmp_path / name) + '.mp4' for name in 'abc']
  assert {e.caption for e in examples} == {''}


def test_paths_with_blanks_and_any_script_work(tmp_path):
  path = write(tmp_path / 'a.csv', 'path,label,caption\nd i r/走る é.mp4,1,"he runs, fast"\n')
  (example,) = annotations.read_annotations(path, tmp_path, CLASSES)
  assert example == annotations.Example(str(tmp_path / 'd i r/走る é.mp4'), 1, 'he runs, fast')


def test_reference_lists_split_at_the_last_blank(tmp_path):
  path = write(tmp_path / 'a.txt', 'v_a.avi 0\n\nmy clip 2.avi\t2\nwith two  blanks.avi   1  \n')
  examples = annotations.read_annotations(path, tmp_path, CLASSES)
  assert [(e.path, e.label) for e in examples] == [
    (str(tmp_path / 'v_a.avi'), 0),
    (str(tmp_path / 'my clip 2.avi'), 2),
    (str(tmp_path / 'with two  blanks.avi'), 1),
  ]


def test_absolute_paths_stay(tmp_path):
  path = write(tmp_path / 'a.csv', 'path,label\n/videos/a.mp4,0\n')
  assert annotations.read_annotations(path, tmp_path, CLASSES)[0].path == '/videos/a.mp4'


@pytest.mark.parametrize('name, text, message', [
  ('a.csv', '', r"line 1: the header must hold path,label\[,caption\], found ''"),
  ('a.csv', 'a.mp4 x\n', "line 1: the header must hold path,label"),
  ('a.csv', 'path,label\n', 'has a header but no rows'),
  ('a.csv', 'path,label\na.mp4,0\nb.mp4,3\n',
   "line 3: label must be an id in 0..2 or a class name, found '3'"),
  ('a.csv', 'path,label\na.mp4,Run\n', "line 2: label must be .* found 'Run'"),
  ('a.csv', 'path,label\na.mp4\n', r'line 2: 2 fields wanted \(path,label\), found 1'),
  ('a.csv', 'path,label\n,1\n', 'line 2: the path is empty'),
  ('a.txt', '\n\n', 'is empty; wanted `path label` lines'),
  ('a.txt', 'a.mp4 0\nb.mp4\n', "line 2: `path label` wanted, found 'b.mp4'"),
  ('a.txt', 'a.mp4 run\n', "line 1: label must be an id in 0..2, found 'run'"),
])
def test_wrong_annotations_say_where_and_why(tmp_path, name, text, message):
  path = write(tmp_path / name, text)
  with pytest.raises(ValueError, match=message) as raised:
    annotations.read_annotations(path, tmp_path, CLASSES)
  assert str(raised.value).startswith(str(path))


def test_a_label_with_two_meanings_is_refused(tmp_path):
  path = write(tmp_path / 'a.csv', 'path,label\na.mp4,0\n')
  digits = annotations.ClassList(('1', '0'), (None, None))
  with pytest.raises(ValueError, match="label '0' is an id and also the name of class 1"):
    annotations.read_annotations(path, tmp_path, digits)
  same = annotations.ClassList(('0', '1'), (None, None))
  assert annotations.read_annotations(path, tmp_path, same)[0].label == 0


@pytest.mark.parametrize('content, message', [
  (None, r'cannot be read \(No such file'),
  (b'id,name\n0,\xff\n', 'must be UTF-8'),
])
def test_an_unreadable_list_is_named(tmp_path, content, message):
  path = tmp_path / 'c.csv'
  if content:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as raised:
    annotations.read_classes(path)
  assert str(raised.value).startswith(str(path))


def listed(root, names=('a', 'b c'), labels=(0, 2), classes=CLASSES):
  examples = [annotations.Example(f'{root}/{n}.mp4', k) for n, k in zip(names, labels, strict=True)]
  return annotations.VideoList(examples, classes, root)


def test_a_video_list_is_indexed_by_row_and_survives_pickling():
  videos = pickle.loads(pickle.dumps(listed('/data')))
  assert len(videos) == 2
  assert videos[1] == dict(path='/data/b c.mp4', label=2, index=1)


def test_a_quarter_of_a_million_videos_pickle_small():
  names = [f'class_{i % 400}/video_{i:06d}' for i in range(250_000)]
  videos = listed('/a/long/way/to/the/data/set', names, [0] * len(names))
  assert len(pickle.dumps(videos)) < 12e6


def test_the_fingerprint_is_of_content_not_of_place():
  first = listed('/data').fingerprint
  assert len(first) == 64 and int(first, 16)
  assert listed('/elsewhere').fingerprint == first
  other = annotations.ClassList(('kick', 'null', 'run'), (None, None, None))
  changed = [
    listed('/data', labels=(0, 1)),
    listed('/data', names=('a', 'b')),
    listed('/data', names=('b c', 'a')),
    listed('/data', classes=other),
  ]
  assert len({first, *(videos.fingerprint for videos in changed)}) == 5
