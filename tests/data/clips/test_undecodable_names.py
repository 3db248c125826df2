"""Names of files that are not UTF-8: read as they are, shown with escapes, never a crash."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest
import reading

import videos
from xclip_jax.cli import main
from xclip_jax.data import bad_files
from xclip_jax.data.clips import augment
from xclip_jax.data.datasets import annotations, own_clips, public_formats
from xclip_jax.data.tools import derive_lists
from xclip_jax.data.video import decode

T, S, FRAMES = 2, 32, 12
CLASSES = annotations.ClassList(('a', 'b'), (None, None))
BROKEN, WHOLE = os.fsdecode(b'\xff.mp4'), os.fsdecode(b'\xe9\xfe.mp4')
TRAIN = augment.TrainTransform(S, 'center', flip=0, color_jitter=0, grayscale=0)


def test_folders_that_libraries_cannot_write_to_are_refused_before_any_work(
    folder, tmp_path, capsys):
  odd = os.fsdecode(b'donn\xe9es')
  (tmp_path / 'a.csv').write_text('path,label\na.mp4,0\n')
  (tmp_path / 'classes.csv').write_text('id,name\n0,a\n')
  for argv in (
    ['finetune', str(folder), '--weights', 'toy', '-o', str(tmp_path / odd)],
    ['data', 'prepare', str(tmp_path / 'a.csv'), '-o', str(tmp_path / odd)],
  ):
    assert main.main(argv) == 2
    assert r'donn\xe9es: the path must be UTF-8 text' in capsys.readouterr().err
  (tmp_path / odd).mkdir()
  (tmp_path / odd / 'a.array_record').write_bytes(b'any')
  with pytest.raises(decode.VideoError, match='the path of an ArrayRecord file must be UTF-8'):
    decode.count_frames(tmp_path / odd / 'a.array_record' / '0')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two classes of two videos each; in one class both names are no UTF-8, and one is broken."""
  root = tmp_path_factory.mktemp('names')
  for more, name in enumerate(('a/0.mp4', 'a/1.mp4', f'b/{WHOLE}')):
    (root / name).parent.mkdir(exist_ok=True)
    videos.write_video(root / 'written.mp4', videos.barcode_frames(FRAMES + more, 48, 64))
    os.rename(root / 'written.mp4', root / name)
  (root / 'b' / BROKEN).write_text('<html>not found</html>')
  return root


def video_list(folder):
  names = ('a/0.mp4', 'a/1.mp4', f'b/{WHOLE}', f'b/{BROKEN}')
  return annotations.VideoList(
    [annotations.Example(str(folder / name), row // 2) for row, name in enumerate(names)], CLASSES)


@pytest.mark.parametrize('workers', [0, 1])
def test_training_replaces_a_broken_file_of_such_a_name_and_shows_it_escaped(folder, workers):
  with reading.open_training(
    video_list(folder), TRAIN, num_frames=T, batch_size=4, seed=0, threads=1, workers=workers,
  ) as batches:
    (batch,) = itertools.islice(batches, 1)
  assert batch['mask'].all() and sorted(batch['failed'].tolist()) == [-1, -1, -1, 3]
  assert 2 in batch['index']                                 # the other one can be read
  assert_shown(batch)


@pytest.mark.parametrize('workers', [0, 1])
def test_an_evaluation_masks_a_broken_file_of_such_a_name(folder, workers):
  with reading.open_evaluation(
    video_list(folder), augment.EvalTransform(S), num_frames=T, batch_size=4, threads=1,
    workers=workers,
  ) as batches:
    (batch,) = batches
  assert batch['mask'].tolist() == [True, True, True, False]
  assert_shown(batch)


def assert_shown(batch):
  (reason,) = set(batch['error']) - {b''}
  assert rb'b/\xff.mp4: cannot be read as a video' in reason
  bad = bad_files.BadFiles(4, max_share=0.5)
  bad.update(batch)
  assert list(bad.items) == [3] and r'b/\xff.mp4: cannot be read' in bad.items[3]
  bad.items[3].encode()                                      # text, for any file and any screen


def test_a_reason_keeps_text_as_it_is_and_escapes_only_what_is_none():
  for text, shown in (
    ('é 日本.mp4: gone', 'é 日本.mp4: gone'), (os.fsdecode(b'\xff\xc3\xa9'), r'\xffé'),
    ('\ud800.mp4', r'\ud800.mp4'), (r'\xff', r'\xff'),
  ):
    assert bad_files.escape_undecodable(text) == shown


def test_a_list_made_of_a_folder_reads_the_same_files(folder, tmp_path):
  classes, listing = public_formats.read_folder(folder)
  listed = annotations.VideoList(listing.examples, classes, folder)
  made, class_list = derive_lists.from_split(listed, classes, folder, 'note')
  (tmp_path / 'list.csv').write_bytes(made)
  (tmp_path / 'classes.csv').write_bytes(class_list)
  assert b'b/\xff.mp4' in made and b'b/\xe9\xfe.mp4' in made
  read = annotations.read_annotations(
    tmp_path / 'list.csv', folder, annotations.read_classes(tmp_path / 'classes.csv'))
  assert read == listing.examples and str(folder / 'b' / BROKEN) in {x.path for x in read}
  few = derive_lists.few_shot(tmp_path / 'list.csv', classes, 2, seed=0)
  assert few.split(b'\n')[1:] == made.split(b'\n')[1:]       # two of each class are all
  assert b'\xff.mp4' not in derive_lists.without(
    tmp_path / 'list.csv', {line for line, text in enumerate(made.split(b'\n'), 1)
                            if b'\xff.mp4' in text})


def test_a_text_list_of_such_names_is_read(folder, tmp_path):
  (tmp_path / 'list.txt').write_bytes(b'a/0.mp4 0\nb/\xff.mp4 1\n')
  paths = [x.path for x in annotations.read_annotations(tmp_path / 'list.txt', folder, CLASSES)]
  assert os.fsencode(paths[1]) == os.fsencode(folder / 'b') + b'/\xff.mp4'


@pytest.mark.parametrize('content, message', [
  (b'path,label,caption\na.mp4,0,\xff\n', r'line 2: caption must be UTF-8 text'),
  (b'path,label\na.mp4,0\nb.mp4,\xff\n', r'line 3: label must be UTF-8 text'),
])
def test_everything_but_a_path_must_be_text(tmp_path, content, message):
  (tmp_path / 'list.csv').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    annotations.read_annotations(tmp_path / 'list.csv', tmp_path, CLASSES)


def test_a_class_folder_whose_name_is_no_text_is_refused(tmp_path):
  os.mkdir(os.fsencode(tmp_path) + b'/\xff')
  (tmp_path / os.fsdecode(b'\xff') / '0.mp4').touch()
  with pytest.raises(ValueError, match=r"b'\\xff' is not UTF-8 text; rename"):
    public_formats.read_folder(tmp_path)


def test_an_id_that_can_name_no_file_is_refused(tmp_path):
  (tmp_path / 'train.json').write_text('[{"id": "\\ud800", "template": "a"}]')
  with pytest.raises(ValueError, match=r'entry 1: the id .* names no file'):
    public_formats.read_ssv2(tmp_path / 'train.json', tmp_path, CLASSES)
  (tmp_path / 'train.json').write_text('[{"id": "\\udcff", "template": "a"}]')
  (example,) = public_formats.read_ssv2(tmp_path / 'train.json', tmp_path, CLASSES).examples
  assert os.fsencode(example.path).endswith(b'/\xff.webm')


def test_own_clips_of_such_names_are_checked_and_listed(folder, tmp_path):
  clips = own_clips.usable(own_clips.read(folder), num_frames=T)
  assert [os.path.basename(path) for path, _ in clips.left_out] == [BROKEN]
  files = own_clips.write_lists(tmp_path, clips, {'all': clips.clips})
  assert b'b/\xe9\xfe.mp4,1' in files['all'].read_bytes()
  assert own_clips.write_lists(tmp_path, clips, {'all': clips.clips}) == files   # the same again


def test_the_commands_check_and_clean_a_list_of_such_names(folder, tmp_path, capsys):
  (tmp_path / 'classes.csv').write_text('id,name\n0,a\n1,b\n')
  (tmp_path / 'all.csv').write_bytes(
    b'path,label\na/0.mp4,0\nb/\xe9\xfe.mp4,1\nb/\xff.mp4,1\n')
  command = ['data', 'check', tmp_path / 'all.csv', '--root', folder, '--classes',
             tmp_path / 'classes.csv', '--frames', T, '--clean', tmp_path / 'clean.csv',
             '--report', tmp_path / 'report.json', '--quiet']
  assert main.main([str(x) for x in command]) == 1
  problems = json.loads((tmp_path / 'report.json').read_bytes())['problems']
  assert [(x['path'], x['kind']) for x in problems] == [(f'b/{BROKEN}', 'undecodable')]
  assert r'b/\udcff.mp4: cannot be read' in capsys.readouterr().out
  assert (tmp_path / 'clean.csv').read_bytes().endswith(b'b/\xe9\xfe.mp4,1\n')


def test_frames_of_a_file_of_such_a_name_are_its_frames(folder, tmp_path):
  shutil.copy(folder / 'b' / WHOLE, tmp_path / 'a.mp4')
  choose = lambda count: np.arange(count)
  np.testing.assert_array_equal(
    decode.read_video(folder / 'b' / WHOLE, choose), decode.read_video(tmp_path / 'a.mp4', choose))
