"""Files, logs, lists and weights in gs:// buckets, and the paths that are refused."""

import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from test_weight_curve import random_weights

import gcs_server
import tiny
from gcs_server import upload
from xclip_jax import data, files
from xclip_jax.cli import main
from xclip_jax.storage import bucket_log, metrics_log
from xclip_jax.training import run as run_lib
from xclip_jax.weights import hub, native, opening, remote
from xclip_jax.weights.files import archive, archive_writers


@pytest.fixture(scope='module')
def server():
  with gcs_server.running('bucket', 'locked', 'closed', 'anonymous', 'objects') as found:
    found.buckets['locked'].forbidden = {'POST', 'DELETE'}
    found.buckets['closed'].forbidden = {'GET', 'POST', 'DELETE'}
    found.buckets['anonymous'].forbidden = {'GET', 'POST', 'DELETE'}
    found.buckets['anonymous'].status = 401
    found.buckets['objects'].forbidden = {'bucket'}          # as Storage Object User alone
    yield found


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


# --- logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('part', [1 << 20, 500, 120, 1])
def test_wherever_a_process_is_killed_all_but_the_last_row_are_in_the_bucket(
    server, monkeypatch, part):
  """After every single write and delete the bucket has the rows so far, each once, in order."""
  monkeypatch.setattr(bucket_log, 'PART', part)
  workdir = files.as_path(f'gs://bucket/logs/{part}')
  steps = lambda: [row['step'] for row in metrics_log.read_metrics(workdir / 'metrics.jsonl')]
  name, held, states = f'logs/{part}/metrics', server.buckets['bucket'], []
  seen = lambda: {key: held[key] for key in list(held) if key.startswith(name)}
  monkeypatch.setattr(server, 'on_change', lambda: states.append((written, seen())))
  written = 0
  writer = metrics_log.MetricsWriter(workdir)
  for written in range(1, 21):
    writer.write(written, {'loss': written / 3})
    writer._copy._copy.result()
    assert steps() == list(range(1, written + 1))
  writer.close()
  assert [*seen()] == [name + '.jsonl']
  monkeypatch.undo()
  assert any(len(state) == 2 for _, state in states) == (part in (500, 120))
  for written, state in states:
    for key in seen():
      del held[key]
    held.update(state)
    count = len(found := steps())
    assert found == list(range(1, count + 1)) and count >= written - 1


def test_rows_that_two_objects_hold_are_read_once(server):
  workdir = files.as_path('gs://bucket/twice')
  lines = [json.dumps({'step': step}) + '\n' for step in range(20)]
  for end, begin in ((20, 15), (20, 0), (12, 12), (12, 5), (0, 0)):
    files.write_text(workdir / 'metrics.jsonl', ''.join(lines[:end]))
    files.write_text(workdir / 'metrics.tail.jsonl', ''.join(lines[begin:]))
    rows = metrics_log.read_metrics(workdir / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(20)), (end, begin)
  files.write_text(workdir / 'metrics.jsonl', ''.join(lines))
  files.write_text(workdir / 'metrics.tail.jsonl', ''.join(lines[12:17]))      # an older one
  assert len(metrics_log.read_metrics(workdir / 'metrics.jsonl')) == 20


def test_a_log_row_uploads_no_more_than_a_part_however_long_the_run(server, monkeypatch):
  monkeypatch.setattr(bucket_log, 'PART', 2000)
  workdir, uploaded = files.as_path('gs://bucket/long'), []
  write = files.write_bytes
  monkeypatch.setattr(
    files, 'write_bytes', lambda path, content: (uploaded.append((path.name, len(content))),
                                                 write(path, content)))
  writer = metrics_log.MetricsWriter(workdir)
  for step in range(1, 301):
    writer.write(step, {'loss': step / 3, 'accuracy': 0.5})
    writer._copy._copy.result()
  size = len(server.read('bucket', 'long/metrics.jsonl'))
  long = [n for name, n in uploaded if name == 'metrics.jsonl' and n > 2000]
  assert size > 10_000 and len(long) <= size // 2000 + 1           # once for each part
  assert max(n for name, n in uploaded if 'tail' in name) <= 2000
  events = [name for name in server.names('bucket', 'long/tensorboard/')]
  assert len(events) > 3 and events == sorted(events)
  assert max(n for name, n in uploaded if 'tfevents' in name) < 3000
  writer.close()
  rows = metrics_log.read_metrics(workdir / 'metrics.jsonl')
  assert [row['step'] for row in rows] == list(range(1, 301))


def test_rows_after_the_checkpoint_are_cut_off_when_a_run_goes_on(server, monkeypatch):
  monkeypatch.setattr(bucket_log, 'PART', 100)
  workdir = files.as_path('gs://bucket/cut')
  writer = metrics_log.MetricsWriter(workdir)
  for step in range(1, 11):
    writer.write(step, {'loss': 1.0})
    writer._copy._copy.result()          # and then the process is gone: never closed
  again = metrics_log.MetricsWriter(workdir, start_step=7)
  assert [row['step'] for row in again.rows] == list(range(1, 8))
  assert [row['step'] for row in metrics_log.read_metrics(workdir / 'metrics.jsonl')] == list(
    range(1, 8))
  again.close()
  assert server.names('bucket', 'cut/metrics') == ['cut/metrics.jsonl']


def test_a_failed_last_copy_is_an_error_unless_there_is_another(server, monkeypatch, capsys):
  fail = lambda *_: (_ for _ in ()).throw(ValueError('no network'))
  for n, error in enumerate((None, RuntimeError('the loss is nan'))):
    writer = metrics_log.MetricsWriter(files.as_path(f'gs://bucket/ends/{n}'))
    with monkeypatch.context() as m:
      m.setattr(files, 'write_bytes', fail)
      with pytest.raises(Exception, match='the loss is nan' if error else 'no network'):
        with contextlib.closing(writer):
          if error:
            raise error
  assert 'gs://bucket/ends/1' in capsys.readouterr().err


def test_a_failed_copy_is_told_and_made_up_for(server, monkeypatch, capsys):
  workdir = files.as_path('gs://bucket/flaky')
  writer = metrics_log.MetricsWriter(workdir)
  with monkeypatch.context() as m:
    m.setattr(files, 'write_bytes', lambda *_: (_ for _ in ()).throw(ValueError('no network')))
    writer.write(1, {'loss': 1.0})
    writer._copy._copy.exception()
  writer.write(2, {'loss': 2.0})
  writer._copy._copy.result()
  assert 'gs://bucket/flaky' in (said := capsys.readouterr().err) and 'no network' in said
  assert len(metrics_log.read_metrics(workdir / 'metrics.jsonl')) == 2
  writer.close()


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('where', ['local', 'bucket'])
def test_files_are_written_read_and_moved_alike(server, tmp_path, where):
  folder = tmp_path / 'a' if where == 'local' else files.as_path('gs://bucket/files/a')
  assert not files.exists(folder)
  files.make_folder(folder / 'sub')
  big = os.urandom(7 << 20)                            # more than one part of an upload
  files.write_bytes(folder / 'big', big)
  files.write_text(folder / 'sub/text', 'Größe\n')
  files.write_npz(folder / 'x.npz', x=np.arange(3))
  files.write_text(folder / 'sub/text', 'anew\n')
  assert files.exists(folder) and files.exists(folder / 'sub') and files.exists(folder / 'big')
  assert (folder / 'big').read_bytes() == big
  with np.load((folder / 'x.npz').open('rb')) as found:
    assert found['x'].tolist() == [0, 1, 2]
  other = folder.parent / 'aside' / 'a_1'
  files.move_folder(folder, other)
  assert not files.exists(folder) and (other / 'sub/text').read_bytes() == b'anew\n'
  assert {x.name for x in other.iterdir()} == {'big', 'sub', 'x.npz'}
  files.remove(other / 'big')
  files.remove(other / 'big')                          # is gone: no error
  assert not files.exists(other / 'big')


def test_a_busy_server_is_asked_again(server):
  server.busy.add('busy')
  files.write_text(files.as_path('gs://bucket/busy'), 'content')
  assert server.read('bucket', 'busy') == b'content'


@pytest.mark.parametrize('kind', ['native', 'file'])
def test_weights_in_a_bucket_are_those_in_a_folder(server, tmp_path, kind):
  weights = random_weights(0)
  folder = native.save(tmp_path / 'weights', weights)
  upload(folder, 'gs://bucket/weights')
  if kind == 'native':
    found = opening.open_weights('gs://bucket/weights')
    assert found.config == weights.config
    assert native.fingerprint(found.params) == native.fingerprint(weights.params)
    return
  name = 'model.safetensors'
  archive_writers.write_safetensors(tmp_path / name, {'x': np.ones(3, np.float32)}, {})
  upload(tmp_path, 'gs://bucket/other')
  errors = []
  for place in (tmp_path / name, f'gs://bucket/other/{name}'):
    with pytest.raises(ValueError) as caught:          # read, and found to be no model
      hub.read(place)
    errors.append(str(caught.value).split('model.safetensors')[-1])
  assert errors[0] == errors[1]


def test_an_index_brings_its_shards(server, tmp_path):
  index = {'weight_map': {'a': 'part-1.safetensors', 'b': 'part-2.safetensors'}}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'unused.bin').write_text('large')
  for name, file in index['weight_map'].items():
    archive_writers.write_safetensors(tmp_path / file, {name: np.ones(3, np.float32)}, {})
  upload(tmp_path, 'gs://bucket/shards')
  with remote.local_copy('gs://bucket/shards') as copy:
    assert not (copy / 'unused.bin').exists() and (copy / 'config.json').exists()
    found = archive.read(copy / 'model.safetensors.index.json').tree
  assert not copy.exists() and found['b'].tolist() == [1, 1, 1]      # still readable: mapped


def test_lists_in_a_bucket_go_with_videos_in_a_folder(server, root):
  upload(root, 'gs://bucket/set')
  names = {k: f'gs://bucket/set/{k}.csv' for k in ('train', 'val', 'classes')}
  config = tiny.config(root, data__zero_shot='', **{f'data__{k}': v for k, v in names.items()})
  found, wanted = (data.open_splits(c.data) for c in (
    config, tiny.config(root, data__zero_shot='')))
  for name in ('train', 'val'):
    assert found[name].videos.fingerprint == wanted[name].videos.fingerprint
    assert os.path.exists(found[name].videos[0]['path'])


# --- what is refused, and when -------------------------------------------------------------------


@pytest.mark.parametrize('name, message', [
  ('s3://bucket/x', 's3:// is not supported. Mount it'),
  ('hdfs://host:9000/x', 'hdfs:// is not supported'),
  ('http://host/x', 'http:// is not supported'),
  ('file:///home/x', 'without file://'),
  ('gs:/bucket/x', 'write gs://bucket/x'),
  ('GS://bucket/x', 'write gs://bucket/x'),
  (pathlib.Path('gs://bucket/x'), 'write gs://bucket/x'),
  ('gs:///x', 'write gs://x'),
  ('gs://', 'names no bucket'),
  ('gs://bucket/../x', 'parts . and ..'),
  ('gs://bucket/run#1', 'choose another name'),
  ('gs://bucket/run[1]', 'choose another name'),
])
def test_a_path_that_cannot_be_used_is_refused_with_what_to_do(name, message):
  with pytest.raises(ValueError, match='workdir=') as caught:
    files.as_path(name, 'workdir')
  assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['a/b', '/a:b/c', 'C:/a', './gs:/a', 'microsoft/x', 'ViT-B/16'])
def test_names_without_a_scheme_are_left_alone(name):
  files.check_scheme(name, 'workdir')


@pytest.mark.parametrize('changes, message', [
  ({'data__root': 'gs://videos/k400'}, 'gcsfuse --implicit-dirs videos /mnt/videos'),
  ({'data__root': 's3://videos'}, 'config.data.root'),
  ({'data__videos': 'gs://videos/k400'}, 'set config.data.videos to /mnt/videos/k400'),
  ({'data__zero_shot_root': 'hdfs://videos'}, 'config.data.zero_shot_root'),
  ({'data__train': 's3://lists/train.csv'}, 'config.data.train'),
  ({'data__name': 'folder', 'data__train': 'gs://videos/train'}, 'config.data.train'),
  ({'data__descriptions': 'https://host/x.csv'}, 'config.data.descriptions'),
  ({'train__init_from': 's3://weights'}, 'config.train.init_from'),
  ({'train__init_from': 'gs:/weights'}, 'write gs://weights'),
])
def test_a_run_with_a_path_that_cannot_be_used_does_nothing(root, tmp_path, changes, message):
  with pytest.raises(ValueError) as caught:
    run_lib.run(tiny.config(root, **changes), tmp_path / 'run')
  assert message in str(caught.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('bucket, words', [
  ('missing', 'no bucket missing'), ('locked', 'bucket locked'), ('closed', 'bucket closed'),
  ('anonymous', 'bucket anonymous cannot be used.*gcloud auth'),
  ('objects', 'bucket objects cannot be used.*Storage Legacy Bucket Reader')])
def test_a_bucket_that_cannot_be_used_is_named_before_training(server, root, bucket, words):
  with pytest.raises(ValueError, match=f'gs://{bucket}/run.*{words}') as caught:
    run_lib.run(tiny.config(root), f'gs://{bucket}/run')
  assert len(str(caught.value).splitlines()) == 1
  assert not [line for line in server.log
              if f' {bucket}/' in line and '.write_check_0' not in line]


@pytest.mark.parametrize('source, words', [
  ('gs://bucket/nothing', 'is not there'), ('gs://closed/run', 'bucket closed cannot be used'),
  ('gs://missing/run', 'is not there'), ('s3://bucket/run', 's3:// is not supported')])
def test_weights_that_cannot_be_read_are_named(server, source, words):
  with pytest.raises(ValueError, match=words):
    opening.open_weights(source)


def test_without_gcsfs_the_error_says_how_to_install_it(root, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'gcsfs' else find(name))
  with pytest.raises(ValueError, match=r'pip install "xclip-jax\[gcs\]"'):
    run_lib.run(tiny.config(root), 'gs://bucket/run')
  with pytest.raises(ValueError, match=r'pip install "xclip-jax\[gcs\]"'):
    opening.open_weights('gs://bucket/run')


@pytest.mark.parametrize('arguments, message', [
  (['classify', 'gs://bucket/clip.mp4', '--labels', 'a', '--weights', 'w'], 'videos='),
  (['embed', 'clip.mp4', '--weights', 'w', '-o', 'gs://bucket/x.npz'], 'output='),
  (['eval', 'supervised', 's3://x/val.csv', '--weights', 'w', '-o', 'out'], 'list='),
  (['eval', 'supervised', 'gs://bucket/lists/val.csv', '--weights', 'w', '-o', 'out'], '--root'),
  (['data', 'check', 'gs://bucket/lists/val.csv'], 'list='),
  (['classify', 'clip.mp4', '--labels', 'a', '--weights', 'gs:/bucket/w'], 'gs://bucket/w'),
])
def test_the_command_line_refuses_paths_that_it_cannot_use(
    server, tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  assert main.main(arguments) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_local_files_need_neither_gcsfs_nor_tensorflow():
  program = tiny.REPO / 'tests/programs/modules_of_local_files.py'
  done = subprocess.run([sys.executable, program], env=tiny.environment(), text=True,
                        capture_output=True, check=True)
  assert done.stdout.strip() == '[]'
