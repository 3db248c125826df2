"""Annotations as they are published, and videos in archives, read without a conversion."""

import io
import json
import pickle
import tarfile
import types

import numpy as np
import pytest
import reading

import videos
from configs import base
from xclip_jax import data
from xclip_jax.cli import main
from xclip_jax.data.clips import augment
from xclip_jax.data.datasets import annotations, public_formats
from xclip_jax.data.video import archives, decode

CLASSES = annotations.ClassList(('kick ball', 'null', 'run'), (None, None, None))


def write(path, text=''):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding='utf-8')
  return path


def open_data(name, root, **fields):
  c = base.get_config().data
  c.update(name=name, root=str(root), **fields)
  return data.open_splits(c)


def seen(split, root):
  """[(path below root, class name)]"""
  rows = [split.videos[i] for i in range(len(split.videos))]
  return [(r['path'].removeprefix(f'{root}/'), split.classes.names[r['label']]) for r in rows]


def test_a_folder_with_a_subfolder_for_each_class_is_a_data_set(tmp_path):
  for name in ('train/run fast/b 2.mp4', 'train/run fast/deep/é.MKV', 'train/ölen/a.avi',
               'train/clap/x.webm', 'train/clap/notes.txt', 'train/clap/.hidden.mp4',
               'val/clap/y.mp4', 'train/readme.txt'):
    write(tmp_path / name)
  splits = open_data('folder', tmp_path, train='train', val='val')
  assert splits['train'].classes.names == ('clap', 'run fast', 'ölen')
  assert splits['val'].classes == splits['train'].classes
  assert seen(splits['train'], tmp_path) == [
    ('train/clap/x.webm', 'clap'), ('train/run fast/b 2.mp4', 'run fast'),
    ('train/run fast/deep/é.MKV', 'run fast'), ('train/ölen/a.avi', 'ölen'),
  ]
  assert seen(splits['val'], tmp_path) == [('val/clap/y.mp4', 'clap')]
  write(tmp_path / 'val/walk/z.mp4')
  with pytest.raises(ValueError, match=r"val: subfolder 'walk' is none of the 3 classes"):
    open_data('folder', tmp_path, train='train', val='val')
  (tmp_path / 'empty/walk').mkdir(parents=True)
  for place, message in (('gone', 'cannot be read as a folder'), ('val/clap', 'no subfolders'),
                         ('empty', 'walk: holds no video')):
    with pytest.raises(ValueError, match=message):
      public_formats.read_folder(tmp_path / place)


def test_kinetics_lists_find_what_is_there_and_count_the_rest(tmp_path):
  head = 'label,youtube_id,time_start,time_end,split\n'
  write(tmp_path / 'train.csv', head + '"petting animal (not cat)",-a_b,12,22,train\n'
        'yoga,cc,0,10,train\nyoga,gone,5,15,train\nabseiling,dd,100,110,train\n')
  write(tmp_path / 'val.csv', head + 'yoga,cc,7,17,val\n')
  for name in ('-a_b_000012_000022.mp4', 'abseiling/dd.mp4', 'zumba/dd.mp4', 'yoga/cc.mp4',
               'val/cc_000007_000017.mp4'):
    write(tmp_path / 'my videos' / name)
  splits = open_data('kinetics', tmp_path, videos='my videos')
  assert splits['train'].classes.names == ('abseiling', 'petting animal (not cat)', 'yoga')
  assert seen(splits['train'], tmp_path) == [
    ('my videos/-a_b_000012_000022.mp4', 'petting animal (not cat)'),
    ('my videos/yoga/cc.mp4', 'yoga'), ('my videos/abseiling/dd.mp4', 'abseiling'),
  ]
  assert seen(splits['val'], tmp_path) == [('my videos/val/cc_000007_000017.mp4', 'yoga')]
  assert splits['train'].count == '3 of 4 present' and splits['val'].count == '1'
  for text, message in (
    (head + 'sing,cc,7,17,val\n', "line 2: label 'sing' is none of the 3 classes"),
    (head + 'yoga,cc,x,17,val\n', 'line 2: time_start and time_end must be seconds'),
    ('youtube_id,time_start,time_end,split\ncc,1,2,test\n', 'header must hold label,youtube_id'),
    (head + 'yoga,zz,7,17,val\n', '0 of 1 videos are present; .*zz_000007_000017.mp4 or zz.mp4'),
  ):
    write(tmp_path / 'val.csv', text)
    with pytest.raises(ValueError, match=message):
      open_data('kinetics', tmp_path, videos='my videos')


def test_hmdb51_splits_read_as_published(tmp_path):
  for split in (1, 2):
    write(tmp_path / f'splits/brush_hair_test_split{split}.txt',
          f'#20_hair_u_nm.avi {split} \nApril (1).avi {3 - split} \nunused.avi 0 \n')
    write(tmp_path / f'splits/kick_test_split{split}.txt', 'k.avi 1 \n')
  first = open_data('hmdb51', tmp_path, split_files='splits', videos='avi')
  assert first['train'].classes.names == ('brush hair', 'kick')
  assert seen(first['train'], tmp_path) == [
    ('avi/brush_hair/#20_hair_u_nm.avi', 'brush hair'), ('avi/kick/k.avi', 'kick')]
  assert seen(first['val'], tmp_path) == [('avi/brush_hair/April (1).avi', 'brush hair')]
  second = open_data('hmdb51', tmp_path, split_files='splits', videos='avi', split=2)
  assert seen(second['val'], tmp_path) == [('avi/brush_hair/#20_hair_u_nm.avi', 'brush hair')]
  with pytest.raises(ValueError, match='official splits 1, 2 and 3, found 4'):
    open_data('hmdb51', tmp_path, split_files='splits', split=4)
  with pytest.raises(ValueError, match='holds no files <class>_test_split3'):
    open_data('hmdb51', tmp_path, split_files='splits', split=3)
  write(tmp_path / 'splits/kick_test_split1.txt', 'k.avi 1\nl.avi 3\n')
  with pytest.raises(ValueError, match=r"kick_test_split1.txt, line 2: `name 0\|1\|2` wanted"):
    open_data('hmdb51', tmp_path, split_files='splits')


def test_ucf101_splits_read_as_published(tmp_path):
  write(tmp_path / 'classInd.txt', '1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n')
  write(tmp_path / 'trainlist02.txt', 'YoYo/v_YoYo_g08_c01.avi 3\r\nApplyEyeMakeup/v a.avi 1\r\n')
  write(tmp_path / 'testlist02.txt', 'HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n')
  splits = open_data('ucf101', tmp_path, split=2, videos='UCF-101')
  assert splits['val'].classes.names == ('Apply Eye Makeup', 'Handstand Pushups', 'Yo Yo')
  assert seen(splits['train'], tmp_path) == [
    ('UCF-101/YoYo/v_YoYo_g08_c01.avi', 'Yo Yo'),
    ('UCF-101/ApplyEyeMakeup/v a.avi', 'Apply Eye Makeup')]
  assert [label for _, label in seen(splits['val'], tmp_path)] == ['Handstand Pushups']
  for name, text, message in (
    ('testlist02.txt', 'Yoyo/a.avi\n', 'line 1: `Class/name.avi` wanted'),
    ('trainlist02.txt', 'YoYo/a.avi 2\n', 'line 1: YoYo is class 3, found 2'),
    ('classInd.txt', '1 A\n3 B\n', 'line 2: `2 ClassName` wanted'),
  ):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
      open_data('ucf101', tmp_path, split=2)


def test_a_published_split_can_be_written_as_lists(tmp_path, capsys):
  write(tmp_path / 'classInd.txt', '1 ApplyEyeMakeup\n2 YoYo\n')
  write(tmp_path / 'trainlist01.txt', 'YoYo/a, b.avi 2\nApplyEyeMakeup/é.avi 1\n')
  write(tmp_path / 'testlist01.txt', 'YoYo/c.avi\n')
  args = ['data', 'lists', 'ucf101', str(tmp_path), '--videos', 'v', '-o', str(tmp_path / 'lists')]
  assert main.main(args) == 0
  want = open_data('ucf101', tmp_path, videos='v')
  names = {'train': 'lists/train.csv', 'val': 'lists/val.csv', 'classes': 'lists/classes.csv'}
  got = open_data('files', tmp_path, **names)
  for name, split in want.items():
    assert got[name].videos.fingerprint == split.videos.fingerprint
    assert got[name].classes == split.classes
  assert main.main(args) == 2 and 'add --overwrite' in capsys.readouterr().err
  args[2] = 'files'
  assert main.main(args) == 2 and 'has lists already' in capsys.readouterr().err


def test_something_something_templates_are_the_classes(tmp_path):
  write(tmp_path / 'labels.json', json.dumps({'Tilting something, slightly': '1',
                                              'Closing something': '0'}))
  entry = dict(id='74225', label='tilting a box, slightly', placeholders=['a box'],
               template='Tilting [something], slightly')
  write(tmp_path / 'train.json', json.dumps([entry]))
  write(tmp_path / 'validation.json', json.dumps([entry | {'id': 3}]))
  fields = dict(train='train.json', val='validation.json', classes='labels.json', videos='v')
  splits = open_data('ssv2', tmp_path, **fields)
  assert splits['train'].classes.names == ('Closing something', 'Tilting something, slightly')
  assert seen(splits['train'], tmp_path) == [('v/74225.webm', 'Tilting something, slightly')]
  assert splits['val'].videos[0]['path'].endswith('v/3.webm')
  found = public_formats.read_ssv2(tmp_path / 'train.json', 'v', splits['train'].classes)
  assert found.examples[0].caption == 'tilting a box, slightly'
  assert splits['train'].captions == ['tilting a box, slightly']
  args = ['data', 'lists', 'ssv2', str(tmp_path), '--videos', 'v', '-o', str(tmp_path / 'lists')]
  assert main.main([*args, '--train', 'train.json', '--val', 'validation.json']) == 0
  assert 'v/74225.webm,1' in (tmp_path / 'lists/train.csv').read_text()
  for text, message in (
    (json.dumps([{'id': '1'}]), 'entry 1: id and template wanted.*test list has no templates'),
    (json.dumps([entry | {'template': '[x]'}]), "entry 1: template 'x' is none of the 2"),
    ('[\n{', 'line 2: not valid JSON'), ('{}', 'must hold a list'), ('[]', 'lists no videos'),
  ):
    write(tmp_path / 'train.json', text)
    with pytest.raises(ValueError, match=message):
      open_data('ssv2', tmp_path, **fields)


def test_comments_come_before_a_list_and_lines_still_count(tmp_path):
  path = write(tmp_path / 'a.csv', '# of train.csv\n# seed 1\npath,label\na.mp4,0\nb.mp4,9\n')
  with pytest.raises(ValueError, match=r"line 5: label must be .* found '9'"):
    annotations.read_annotations(path, tmp_path, CLASSES)
  path = write(tmp_path / 'a.txt', '# note\n#20 hair.avi 1\n')
  (example,) = annotations.read_annotations(path, tmp_path, CLASSES)
  assert example == annotations.Example(str(tmp_path / '#20 hair.avi'), 1)
  path = write(tmp_path / 'c.csv', '# note\nid,name\n0,run\n')
  assert annotations.read_classes(path).names == ('run',)


def test_a_list_with_several_labels_gives_tuples_and_no_run(tmp_path):
  path = write(tmp_path / 'train.csv', 'path,label\na.mp4,0; run\nb.mp4,null\n')
  examples = annotations.read_annotations(path, tmp_path, CLASSES)
  assert [e.label for e in examples] == [(0, 2), (1,)]
  listed = pickle.loads(pickle.dumps(annotations.VideoList(examples, CLASSES, tmp_path)))
  assert listed[0] == dict(path=str(tmp_path / 'a.mp4'), label=(0, 2), index=0)
  assert not listed.is_single_label and len(listed.fingerprint) == 64
  write(tmp_path / 'classes.csv', 'id,name\n0,kick ball\n1,null\n2,run\n')
  with pytest.raises(ValueError, match=r'train.csv: gives a video several labels'):
    open_data('files', tmp_path)
  for label, message in (('0;0', "'0;0' names a class twice"), ('0;9', "found '9'"),
                         (';', "found ''")):
    write(tmp_path / 'train.csv', f'path,label\na.mp4,{label}\n')
    with pytest.raises(ValueError, match=f'line 2: .*{message}'):
      annotations.read_annotations(path, tmp_path, CLASSES)
  odd = annotations.ClassList(('run; walk', 'run'), (None, None))       # a name is a name
  write(tmp_path / 'train.csv', 'path,label\na.mp4,run; walk\n')
  assert annotations.read_annotations(path, tmp_path, odd)[0].label == 0


def test_captions_pair_videos_with_texts_and_no_run(tmp_path):
  path = write(tmp_path / 'train.csv', 'path,caption\na b.mp4,"one, two"\na b.mp4,走る\n')
  examples = annotations.read_captions(path, tmp_path)
  assert [(e.path, e.label, e.caption) for e in examples] == [
    (f'{tmp_path}/a b.mp4', None, 'one, two'), (f'{tmp_path}/a b.mp4', None, '走る')]
  write(tmp_path / 'classes.csv', 'id,name\n0,run\n')
  with pytest.raises(ValueError, match=r'train.csv: gives captions and no labels'):
    open_data('files', tmp_path)
  write(tmp_path / 'train.csv', 'path,caption\na.mp4,\n')
  with pytest.raises(ValueError, match='line 2: the caption is empty'):
    annotations.read_captions(path, tmp_path)
  with pytest.raises(ValueError, match='path,caption needs a CSV'):
    annotations.read_captions(write(tmp_path / 'a.txt', 'a.mp4 1\n'), tmp_path)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp('videos') / 'a.mp4'
  return videos.write_video(path, videos.barcode_frames(12, 32, 32))


@pytest.fixture
def shard(tmp_path, clip):
  """An archive of two clips, one name long and in Unicode, and a text."""
  path = tmp_path / 'my shard.tar'
  with tarfile.open(path, 'w') as tar:
    tar.add(clip, './top.mp4')
    tar.add(clip, 'in ner/' + 'x' * 120 + '/走る é.mp4')
    info = tarfile.TarInfo('notes.txt')
    info.size = 5
    tar.addfile(info, io.BytesIO(b'hello'))
  return path


def test_a_clip_in_a_tar_reads_like_its_file(tmp_path, shard, clip):
  want = decode.read_video(clip, lambda n: np.array([3, 11]))
  for name in ('top.mp4', 'in ner/' + 'x' * 120 + '/走る é.mp4'):
    path = f'{shard}/{name}'
    assert decode.count_frames(path) == 12
    np.testing.assert_array_equal(decode.read_video(path, lambda n: np.array([3, 11])), want)
  folder = tmp_path / 'looks like.tar'                              # but is a folder
  folder.mkdir()
  (folder / 'a.mp4').write_bytes(open(clip, 'rb').read())
  assert decode.count_frames(folder / 'a.mp4') == 12


def test_an_archive_is_indexed_once_and_again_when_it_was_replaced(shard, clip, monkeypatch):
  opened, real = [], tarfile.open
  monkeypatch.setattr(archives.tarfile, 'open', lambda *a, **options: (
    opened.append(a) or real(*a, **options)))
  for _ in range(3):
    decode.count_frames(f'{shard}/top.mp4')
  assert len(opened) == 1
  with real(shard, 'a') as tar:
    tar.add(clip, 'late.mp4')
  assert decode.count_frames(f'{shard}/late.mp4') == 12


def test_what_is_wrong_in_an_archive_is_named(tmp_path, shard):
  whole = shard.read_bytes()
  cut = tmp_path / 'cut.tar'
  cut.write_bytes(whole[:len(whole) // 2])
  assert decode.count_frames(f'{cut}/top.mp4') == 12                # what is whole can be used
  (tmp_path / 'zip.tar').write_bytes(b'PK' * 600)
  for path, message in ((f'{shard}/gone.mp4', 'no such file among the 3 in the archive'),
                        (f'{shard}/notes.txt', 'cannot be read as a video'),
                        (f'{tmp_path}/zip.tar/a.mp4', 'not an uncompressed tar file'),
                        (f'{tmp_path}/gone.tar/a.mp4', 'No such file')):
    with pytest.raises(decode.VideoError, match=message) as raised:
      decode.read_video(path, lambda n: np.arange(1))
    assert str(raised.value).startswith(path)


def test_a_list_of_clips_in_shards_feeds_the_pipeline(tmp_path, shard):
  write(tmp_path / 'train.csv', 'path,label\nmy shard.tar/top.mp4,1\nmy shard.tar/notes.txt,2\n')
  listed = annotations.VideoList(
    annotations.read_annotations(tmp_path / 'train.csv', tmp_path, CLASSES), CLASSES, tmp_path)
  assert len(pickle.dumps(listed)) < 1000                           # paths, not contents
  with reading.open_evaluation(
    listed, augment.EvalTransform(32), num_frames=2, batch_size=2, threads=1) as batches:
    (batch,) = batches
  assert batch['mask'].tolist() == [True, False] and batch['label'].tolist() == [1, 2]
  assert batch['error'][1].decode().startswith(f'{shard}/notes.txt: ')


def test_an_unknown_kind_of_data_is_named_with_those_there_are():
  c = types.SimpleNamespace(name='webdataset')
  with pytest.raises(ValueError, match='unknown; one of files, folder, kinetics, hmdb51, ucf101'):
    data.open_splits(c)


def number(value):
  """Writes a number as GNU tar writes large and negative ones: in base 256."""
  return (b'\x80' if value >= 0 else b'\xff') + (value % 256**11).to_bytes(11, 'big')


@pytest.mark.parametrize('kind, size', [
  ('0', number(2**70)), ('0', number(-1024)), ('0', number(-2**40)), ('L', number(2**60)),
  ('L', number(-512)), ('x', number(2**34)), ('x', number(-512)), ('0', b'zzzzzzzzzzz\0')])
def test_an_absurd_entry_of_an_archive_costs_itself_only(shard, clip, kind, size):
  header = bytearray(tarfile.TarInfo('absurd.mp4').tobuf())
  header[124:136], header[156:157] = size, kind.encode()
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  content = shard.read_bytes()
  end = len(content.rstrip(b'\0')) + 511 & -512
  shard.write_bytes(content[:end] + header + bytes(1024))
  assert decode.count_frames(f'{shard}/top.mp4') == 12
  with pytest.raises(decode.VideoError, match=r'my shard\.tar/absurd\.mp4: cannot be read as a'):
    decode.count_frames(f'{shard}/absurd.mp4')
  shard.write_bytes(bytes(header) + bytes(1024))
  with pytest.raises(decode.VideoError, match=r'my shard\.tar/absurd\.mp4: cannot be read as a'):
    decode.count_frames(f'{shard}/absurd.mp4')


def colored(path, *parts):
  """A video of a frame every half second: (colour, seconds)."""
  frames = np.concatenate([
    np.broadcast_to(np.uint8(color), (2 * seconds, 32, 32, 3)) for color, seconds in parts])
  path.parent.mkdir(parents=True, exist_ok=True)
  return videos.write_video(path, frames, fps=2)


RED, GREEN, BLUE = (200, 20, 20), (20, 200, 20), (20, 20, 200)


def test_clips_of_whole_uploads_are_their_spans(tmp_path):
  head = 'label,youtube_id,time_start,time_end,split\n'
  write(tmp_path / 'train.csv', head + 'red,up,0,10,train\ngreen,up,10,20,train\n'
        'green,cut,30,40,train\nblue,wide,5,15,train\n')
  write(tmp_path / 'val.csv', head + 'blue,up,25.5,35.5,val\n')
  colored(tmp_path / 'videos/up.mp4', (RED, 10), (GREEN, 10), (BLUE, 20))
  colored(tmp_path / 'videos/cut.mp4', (GREEN, 10))
  colored(tmp_path / 'videos/wide.mp4', (BLUE, 13))         # cut, from an earlier key frame
  splits = open_data('kinetics', tmp_path, videos='videos')
  assert seen(splits['train'], tmp_path) == [
    ('videos/up.mp4#t=0,10', 'red'), ('videos/up.mp4#t=10,20', 'green'),
    ('videos/cut.mp4', 'green'), ('videos/wide.mp4', 'blue')]
  assert seen(splits['val'], tmp_path) == [('videos/up.mp4#t=25.5,35.5', 'blue')]
  for split in splits.values():
    for row in (split.videos[i] for i in range(len(split.videos))):
      frames = decode.read_video(row['path'], np.arange)
      channel = {'red': 0, 'green': 1, 'blue': 2}[split.classes.names[row['label']]]
      assert (frames.mean((1, 2)).argmax(-1) == channel).all()
      assert len(frames) == (26 if 'wide' in row['path'] else 20)
  assert main.main(['data', 'lists', 'kinetics', str(tmp_path), '--videos', 'videos', '-o',
                    str(tmp_path / 'lists')]) == 0
  classes = annotations.read_classes(tmp_path / 'lists/classes.csv')
  listed = annotations.read_annotations(tmp_path / 'lists/train.csv', tmp_path, classes)
  assert [example.path for example in listed] == [
    splits['train'].videos[i]['path'] for i in range(4)]


def test_one_file_is_not_two_clips(tmp_path):
  head = 'label,youtube_id,time_start,time_end,split\n'
  write(tmp_path / 'train.csv', head + 'red,up,0,10,train\ngreen,up,10,20,train\n')
  colored(tmp_path / 'videos/up.mp4', (RED, 10))
  with pytest.raises(ValueError, match=r'line 3: .*up\.mp4 would be this clip and that of line 2'):
    public_formats.read_kinetics(tmp_path / 'train.csv', tmp_path / 'videos')


def test_a_list_may_give_the_times_of_its_rows(tmp_path):
  colored(tmp_path / 'a.mp4', (RED, 10), (GREEN, 10))
  path = write(tmp_path / 'list.csv', 'path,label,time_start,time_end\n'
               'a.mp4,kick ball,0,9.5\na.mp4,run,10,\na.mp4,null,,\n')
  examples = annotations.read_annotations(path, tmp_path, CLASSES)
  assert [x.path.removeprefix(f'{tmp_path}/') for x in examples] == [
    'a.mp4#t=0,9.5', 'a.mp4#t=10', 'a.mp4']
  assert [decode.count_frames(x.path) for x in examples] == [19, 20, 40]
  for row in ('a.mp4,run,5,5', 'a.mp4,run,x,5', 'a.mp4,run,-1,5', 'a.mp4,run,0,inf',
              'a.mp4,run,nan,5'):
    write(path, f'path,label,time_start,time_end\n{row}\n')
    with pytest.raises(ValueError, match='line 2: time_start and time_end must be seconds'):
      annotations.read_annotations(path, tmp_path, CLASSES)
