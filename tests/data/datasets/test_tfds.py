"""A data set of TFDS: what is built holds the videos, and a run reads them from it."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import reading
import tensorflow_datasets as tfds

import videos
from configs import base
from xclip_jax import data
from xclip_jax.data import bad_files
from xclip_jax.data.clips import augment
from xclip_jax.data.datasets import annotations
from xclip_jax.data.tools import tfds_build
from xclip_jax.data.video import encode

ROOT = pathlib.Path(__file__).parents[3]
SMALL = encode.Encoding(short_side=48)


def write_clips(root, count):
  """A folder with lists of clips of 16, 17, ... frames, and one file that is no video."""
  root.mkdir(parents=True)
  for i in range(count):
    videos.write_video(root / f'clip é {i}.mp4', videos.barcode_frames(16 + i, 64, 96))
  (root / 'bad.mp4').write_bytes(b'no video')
  (root / 'classes.csv').write_text(
    'id,name,reverse\n0,opening,closing\n1,closing,opening\n2,sit,\n')
  rows = [f'clip é {i}.mp4,{i % 3},"take {i}, é"\n' for i in range(count)]
  (root / 'train.csv').write_text(''.join(['path,label,caption\n', *rows, 'bad.mp4,2,\n']))
  (root / 'val.csv').write_text('path,label\nclip é 1.mp4,closing\nclip é 0.mp4,opening\n')
  return root


def build(clips, folder, *more):
  args = ['files', str(clips), '--data-dir', str(folder), '--config-name', 'small']
  assert tfds_build.main([*args, '--short-side', '48', *more]) == 0
  return folder / 'xclip_videos/small/1.0.0'


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  return write_clips(tmp_path_factory.mktemp('clips') / 'my clips', 6)


@pytest.fixture(scope='module')
def built(clips, tmp_path_factory):
  return build(clips, tmp_path_factory.mktemp('built'))


def records(folder, split):
  """{path: example} as TFDS gives them."""
  found = tfds.builder_from_directory(folder).as_data_source(split)
  return {example['path'].decode(): example for example in found}


def open_data(root, **fields):
  c = base.get_config().data
  c.update(name='tfds', root=str(root), **fields)
  return data.open_splits(c)


def rows(listed):
  return [listed[i] for i in range(len(listed))]


def test_each_video_is_a_record_with_the_bytes_that_encode_gives(clips, built):
  found = records(built, 'train')
  assert sorted(found) == [f'clip é {i}.mp4' for i in range(6)]
  for i in range(6):
    example, want = found[f'clip é {i}.mp4'], encode.encode(clips / f'clip é {i}.mp4', SMALL)
    assert example['video'] == want.content
    assert (example['num_frames'], example['height'], example['width']) == (16 + i, 48, 72)
    assert example['psnr'] == np.float32(want.psnr)
    assert example['label'] == i % 3 and example['caption'].decode() == f'take {i}, é'
  assert sorted(records(built, 'val')) == ['clip é 0.mp4', 'clip é 1.mp4']
  assert records(built, 'val')['clip é 1.mp4']['caption'] == b''


def test_what_cannot_be_read_is_left_out_and_named(clips, built, tmp_path, capsys):
  text = (built / 'unreadable_train.txt').read_text()
  assert text == ('bad.mp4: cannot be read as a video (Invalid data found when processing input)\n')
  assert not (built / 'unreadable_val.txt').exists()
  build(clips, built.parents[2])                                    # again: it is there
  out = capsys.readouterr().out
  assert 'train: 6 videos' in out and 'train: 1 cannot be read and were left out' in out
  root = tmp_path / 'clips'
  shutil.copytree(clips, root)
  (root / 'val.csv').write_text('path,label\nbad.mp4,0\ngone.mp4,1\n')
  args = ['files', str(root), '--data-dir', str(tmp_path / 'out'), '--config-name', 'x']
  assert tfds_build.main(args) == 2
  assert 'error: not one of the 2 videos of val can be read; the first: bad.mp4: cannot' in (
    capsys.readouterr().err)
  assert not list((tmp_path / 'out').rglob('*.array_record*'))


def test_another_encoding_under_the_same_name_is_refused_or_replaces(clips, tmp_path, capsys):
  folder = build(clips, tmp_path)
  args = ['files', str(clips), '--data-dir', str(tmp_path), '--config-name', 'small']
  args += ['--format', 'jpeg', '--fps', '8', '--short-side', '32']
  assert tfds_build.main(args) == 2
  assert 'holds other videos, or stored otherwise' in capsys.readouterr().err
  assert tfds_build.main([*args, '--overwrite']) == 0
  want = encode.encode(clips / 'clip é 0.mp4', encode.Encoding('jpeg', 32, fps=8.0))
  assert records(folder, 'train')['clip é 0.mp4']['video'] == want.content
  for wrong, message in ((['--crf', '99'], 'crf must be a whole number in 0..51, found 99'),
                         (['--train', 'gone.csv'], 'gone.csv: cannot be read')):
    assert tfds_build.main([*args, *wrong, '--config-name', 'other']) == 2
    assert message in capsys.readouterr().err
  assert tfds_build.main(['tfds', *args[1:]]) == 2
  assert 'is stored as records already' in capsys.readouterr().err


def test_a_list_that_names_a_video_twice_gives_two_records(clips, tmp_path):
  (clips / 'twice.csv').write_text('path,label\nclip é 1.mp4,1\nclip é 1.mp4,0\n')
  found = open_data(build(clips, tmp_path, '--train', 'twice.csv'))['train'].videos
  assert sorted((r['path'], r['label']) for r in rows(found)) == [
    ('clip é 1.mp4', 0), ('clip é 1.mp4', 1)]


def test_classes_keep_their_ids_and_what_they_are_backwards(built):
  splits = open_data(built)
  for split in splits.values():
    assert split.classes.names == ('opening', 'closing', 'sit')
    assert split.classes.reverse == (1, 0, None)
    assert split.videos.is_single_label and split.count == str(len(split.videos))
  assert {r['path']: r['label'] for r in rows(splits['train'].videos)} == {
    f'clip é {i}.mp4': i % 3 for i in range(6)}
  assert [r['index'] for r in rows(splits['val'].videos)] == [0, 1]


def batches(videos_, workers=0, **more):
  transform = augment.TrainTransform(32, 'center', 0.0, 0.0, 0.0)
  with reading.open_training(
    videos_, transform, num_frames=3, batch_size=4, seed=5, workers=workers, threads=2, **more
  ) as stream:
    return [next(stream) for _ in range(3)]


def test_training_sees_the_frames_and_labels_of_the_files(clips, built):
  found = open_data(built)['train']
  listed = annotations.VideoList(
    [annotations.Example(str(clips / r['path']), r['label']) for r in rows(found.videos)],
    found.classes, clips)
  numbers = lambda batch: [[videos.read_barcode(x) for x in clip] for clip in batch['video']]
  for got, want in zip(batches(found.videos), batches(listed), strict=True):
    assert numbers(got) == numbers(want)
    for name in ('label', 'index', 'mask', 'failed', 'error'):
      np.testing.assert_array_equal(got[name], want[name])
    assert got['mask'].all()


@pytest.mark.slow
def test_workers_see_what_threads_see(built):
  found = open_data(built)['train'].videos
  for got, want in zip(batches(found, workers=2), batches(found), strict=True):
    for name in want:
      np.testing.assert_array_equal(got[name], want[name])


def test_a_split_is_small_to_send_and_known_wherever_it_lies(built, tmp_path):
  shutil.copytree(built, tmp_path / 'moved')
  found, moved = open_data(built)['train'].videos, open_data(tmp_path / 'moved')['train'].videos
  assert found.fingerprint == moved.fingerprint and len(found.fingerprint) == 64
  assert len(pickle.dumps(found)) < 1000
  copy = pickle.loads(pickle.dumps(found))
  assert rows(copy) == rows(found) and len(copy) == 6


def test_parts_of_splits_and_other_names_can_be_read(built):
  splits = open_data(built, train='train[:50%]', val='train[50%:]+val')
  whole = rows(open_data(built)['train'].videos)
  assert [r['path'] for r in rows(splits['train'].videos)] == [r['path'] for r in whole[:3]]
  assert [r['path'] for r in rows(splits['val'].videos)][:3] == [r['path'] for r in whole[3:]]
  assert len(splits['val'].videos) == 5
  assert splits['train'].videos.fingerprint != splits['val'].videos.fingerprint
  for wrong, message in (('nope', "has no split 'nope'; set .* to some of train, val"),
                         ('train[9:', r"has no split 'train\[9:'"),
                         ('train[:0]', r"split 'train\[:0\]' is empty")):
    with pytest.raises(ValueError, match=message):
      open_data(built, train=wrong)


def test_a_folder_that_is_no_data_set_is_refused(built, tmp_path):
  with pytest.raises(ValueError, match=r'no dataset_info.json.*it may be .*small/1\.0\.0'):
    open_data(built.parents[2])
  with pytest.raises(ValueError, match='is not a folder'):
    open_data(tmp_path / 'gone')
  features = json.loads((built / 'features.json').read_text())
  features['featuresDict']['features']['video'] = {
    'pythonClassName': 'tensorflow_datasets.core.features.video_feature.Video',
    'video': {'shape': {'dimensions': ['-1', '8', '8', '3']}, 'dtype': 'uint8'}}
  info = json.loads((built / 'dataset_info.json').read_text()) | {'fileFormat': 'tfrecord'}
  for file, text, message in (
    ('dataset_info.json', '{', 'cannot be read as a data set of TFDS'),
    ('features.json', '[', 'cannot be read as a data set of TFDS'),
    ('features.json', json.dumps(features), 'cannot be read without TensorFlow'),
    ('dataset_info.json', json.dumps(info), 'is stored as tfrecord'),
  ):
    shutil.copytree(built, tmp_path / 'copy')
    (tmp_path / 'copy' / file).write_text(text)
    with pytest.raises(ValueError, match=message):
      open_data(tmp_path / 'copy')
    shutil.rmtree(tmp_path / 'copy')


def damaged(built, folder):
  """Copies with the records of train flipped, cut off and gone."""
  for kind in ('flipped', 'cut', 'gone'):
    shutil.copytree(built, folder / kind)
    (shard,) = (folder / kind).glob('*train.array_record*')
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content if kind == 'flipped' else content[:len(content) // 2])
    if kind == 'gone':
      shard.unlink()
    yield folder / kind


def test_records_that_cannot_be_read_are_counted_as_bad_files(built, tmp_path):
  for folder in damaged(built, tmp_path):
    found = open_data(folder)['train'].videos
    with reading.open_evaluation(
      found, augment.EvalTransform(32), num_frames=2, batch_size=6, threads=1) as stream:
      (batch,) = stream
    assert not batch['mask'].any() and batch['failed'].tolist() == list(range(6))
    assert f'{folder.name}/train/5: the record is damaged (' in batch['error'][5].decode()
    with pytest.raises(ValueError, match='6 of 6 videos cannot be read'):
      bad_files.BadFiles(6, 0.5).update(batch)


class Foreign(tfds.core.GeneratorBasedBuilder):
  """A data set of somebody else: other names, and features nobody asked for."""

  VERSION = tfds.core.Version('2.0.0')
  features: dict

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples() for name in ('train', 'test')}

  def _generate_examples(self):
    for i in range(2):
      example = self.example | {'what': i - 1}
      yield i, {name: example[name] for name in self.features}


def test_any_data_set_with_the_bytes_of_videos_and_a_label_can_be_read(clips, tmp_path):
  text, picture = tfds.features.Text(), tfds.features.Tensor(shape=(2,), dtype=np.uint8)
  known = dict(about=text, clip=text, other=text, picture=picture,
               what=tfds.features.ClassLabel(names=['a', 'b']))
  clip, other = ((clips / f'clip é {i}.mp4').read_bytes() for i in (3, 4))
  Foreign.example = dict(about='a text', clip=clip, other=other, picture=np.zeros(2, np.uint8))

  def read(*names):
    Foreign.features = {name: known[name] for name in names}
    folder = tmp_path / '_'.join(names)
    builder = Foreign(data_dir=folder, file_format='array_record')
    builder.download_and_prepare()
    return open_data(builder.data_dir)

  splits = read('about', 'clip', 'picture', 'what')
  assert splits['train'].classes == annotations.ClassList(('a', 'b'), (None, None))
  unlabelled, labelled = sorted(rows(splits['val'].videos), key=lambda r: 'video' in r)
  assert labelled['label'] == 0 and labelled['video'] == clip
  assert labelled['path'].endswith(f'2.0.0/test/{labelled["index"]}')
  assert unlabelled['error'] == 'the record has no class label'
  for names, message in (
    (('picture', 'what'), 'holds the bytes of video files .* found none among'),
    (('clip', 'other', 'what'), 'found clip, other among clip, other, what'),
    (('clip',), r'a class label .* found none among clip'),
  ):
    with pytest.raises(ValueError, match=message):
      read(*names)


def test_building_and_reading_load_no_tensorflow(clips, tmp_path):
  program = ROOT / 'tests/programs/build_and_read_tfds.py'
  done = subprocess.run(
    [sys.executable, str(program), str(clips), str(tmp_path)], cwd=ROOT, capture_output=True,
    text=True, check=False, env=os.environ | {'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.splitlines()[-1] == '[]'


def test_asking_for_beam_without_it_says_what_to_install(clips, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  monkeypatch.setitem(sys.modules, 'apache_beam.options.pipeline_options', None)
  args = ['files', str(clips), '--data-dir', str(tmp_path), '--beam', 'runner=DirectRunner']
  assert tfds_build.main(args) == 2
  assert "pip install -e '.[beam]'" in capsys.readouterr().err


@pytest.mark.parametrize('workers', [1, 2])
def test_beam_builds_what_one_process_builds(clips, built, tmp_path, workers):
  pytest.importorskip('apache_beam')
  options = 'runner=DirectRunner'
  if workers > 1:
    options += f',direct_num_workers={workers},direct_running_mode=multi_processing'
  folder = build(clips, tmp_path, '--beam', options)
  for split in ('train', 'val'):
    assert records(folder, split) == records(built, split)
  for name in ('unreadable_train.txt', 'label.labels.txt'):
    assert (folder / name).read_text() == (built / name).read_text()
  for name in ('features.json', 'metadata.json'):
    assert json.loads((folder / name).read_text()) == json.loads((built / name).read_text())
  assert sorted(x.name for x in folder.iterdir()) == sorted(x.name for x in built.iterdir())


def test_beam_stops_where_not_one_video_can_be_read(clips, tmp_path, capsys):
  pytest.importorskip('apache_beam')
  (clips / 'bad.csv').write_text('path,label\nbad.mp4,0\n')
  args = ['files', str(clips), '--data-dir', str(tmp_path), '--val', 'bad.csv']
  assert tfds_build.main([*args, '--beam', 'runner=DirectRunner']) == 2
  assert 'not one of the 1 videos of val can be read' in capsys.readouterr().err
  assert not list(tmp_path.rglob('*.array_record*'))
