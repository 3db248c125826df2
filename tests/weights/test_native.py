"""Our own format loses nothing, needs numpy alone, and is whole or not there."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from goldens_io import Case
from xclip_jax.errors import UserError
from xclip_jax.parallel import tree_names
from xclip_jax.weights import native


@pytest.fixture(scope='module')
def weights():
  case = Case('hf_tiny_a')
  preprocess = native.Preprocess((1.0, 2.0, 3.0), (4.0, 5.0, 6.5), 1.25, 'pillow')
  return native.Weights(
    case.config, case.params, preprocess, 'a video of {}', 'owner/name', 'huggingface', 'MIT'
  )


@pytest.fixture
def folder(weights, tmp_path):
  return native.save(tmp_path / 'weights', weights)


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_saved_is_read_back(weights, folder):
  found = native.read(folder)
  for field in dataclasses.fields(native.Weights):
    if field.name not in ('params', 'notes'):
      assert getattr(found, field.name) == getattr(weights, field.name), field.name
  jax.tree.map(np.testing.assert_array_equal, found.params, weights.params)


def test_numpy_alone_reads_the_parameters(weights, folder):
  data = (folder / 'params.safetensors').read_bytes()
  size = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8:8 + size])
  row = header['vision/blocks_0/attn/query/kernel']
  begin, end = row['data_offsets']
  array = np.frombuffer(data[8 + size:][begin:end], '<f4').reshape(row['shape'])
  want = weights.params['vision']['blocks_0']['attn']['query']['kernel']
  np.testing.assert_array_equal(array, want)
  assert set(header) - {'__metadata__'} == set(tree_names.flatten(weights.params))


def test_the_folder_says_whose_weights_it_holds(folder):
  text = (folder / 'LICENSE').read_text()
  assert 'owner/name' in text and 'MIT' in text
  assert json.loads((folder / 'config.json').read_text())['tokenizer'] == 'clip-bpe-49408'


def test_no_path_of_this_machine_is_saved(weights, tmp_path):
  source = tmp_path / 'file.pth'
  source.touch()
  folder = native.save(tmp_path / 'out', dataclasses.replace(weights, source=str(source)))
  assert native.read(folder).source == 'file.pth'
  assert str(tmp_path) not in (folder / 'config.json').read_text()


def test_nothing_is_overwritten_unasked(weights, folder, tmp_path):
  with pytest.raises(FileExistsError, match='exists; choose another name'):
    native.save(folder, weights)
  assert native.save(folder, dataclasses.replace(weights, licence='mine'), overwrite=True)
  assert native.read(folder).licence == 'mine'
  other = tmp_path / 'photos'
  other.mkdir()
  (other / 'holiday.jpg').touch()
  with pytest.raises(FileExistsError, match='not a folder with weights'):
    native.save(other, weights, overwrite=True)
  assert (other / 'holiday.jpg').exists()


def test_a_failed_save_leaves_the_old_weights_alone(weights, folder, tmp_path, monkeypatch):
  def fail(*_, **__):
    raise OSError('No space left on device')
  monkeypatch.setattr(native.archive, 'write_safetensors', fail)
  with pytest.raises(OSError, match='No space'):
    native.save(folder, weights, overwrite=True)
  assert [p.name for p in tmp_path.iterdir()] == ['weights']
  monkeypatch.undo()
  jax.tree.map(np.testing.assert_array_equal, native.read(folder).params, weights.params)


def test_a_flipped_bit_is_noticed_unless_checksums_are_skipped(weights, folder):
  path = folder / 'params.safetensors'
  data = bytearray(path.read_bytes())
  data[-100] ^= 4
  path.write_bytes(data)
  with pytest.raises(UserError, match=r'params\.safetensors: has damaged data'):
    native.read(folder)
  native.read(folder, checksums=False)


@pytest.mark.parametrize('change, words', [
  (dict(version=2), 'version is 2'),
  (dict(tokenizer='t5'), 'tokenizer is "t5"'),
  (dict(model={'patch_size': 3}), 'config.json, model: .*multiple of patch_size'),
  (dict(model={'patchsize': 3}), 'config.json, model: .*patchsize'),
])
def test_a_wrong_config_is_refused_by_name(folder, change, words):
  edit(folder / 'config.json', **change)
  with pytest.raises(ValueError, match=words):
    native.read(folder)


def test_parameters_of_another_size_are_listed(folder):
  model = json.loads((folder / 'config.json').read_text())['model']
  edit(folder / 'config.json', model=model | {'num_frames': 6, 'text_layers': 3})
  with pytest.raises(ValueError) as error:
    native.read(folder)
  assert 'mit/pos_embed: [4, 32], wanted [6, 32]' in str(error.value)
  assert 'text/blocks_2/attn/key/bias: missing' in str(error.value)


@pytest.mark.parametrize('file, field, words', [
  ('config.json', 'text_heads', "config.json, model: the field 'text_heads' is missing"),
  ('preprocess.json', 'mean', "preprocess.json, its top level: the field 'mean' is missing"),
])
def test_what_no_shape_tells_must_be_said(folder, file, field, words):
  content = json.loads((folder / file).read_text())
  del (content['model'] if file == 'config.json' else content)[field]
  (folder / file).write_text(json.dumps(content))
  with pytest.raises(UserError, match=words):
    native.read(folder)


def test_only_other_ways_of_resizing_take_the_newer_fields(weights, folder, tmp_path):
  held = json.loads((folder / 'preprocess.json').read_text())
  assert held.keys() == {'mean', 'std', 'resize_ratio', 'filter'}
  stretched = native.Preprocess(resize='stretch', second_ratio=1.5, filter='pillow-bicubic')
  other = native.save(tmp_path / 'b', dataclasses.replace(weights, preprocess=stretched))
  assert native.read(other).preprocess == stretched


@pytest.mark.parametrize('name', ['config.json', 'preprocess.json', 'params.safetensors'])
def test_a_missing_or_damaged_file_is_named(folder, name):
  (folder / name).write_bytes(b'{"a": ')
  with pytest.raises(ValueError, match=name):
    native.read(folder)
  (folder / name).unlink()
  with pytest.raises(ValueError, match=name):
    native.read(folder)


@pytest.mark.parametrize('change, words', [
  (dict(mean=5), r'preprocess\.json: mean must be three numbers, found 5'),
  (dict(std=[1, 2]), r'preprocess\.json: std must be three numbers'),
])
def test_wrong_statistics_are_refused_by_name(folder, change, words):
  edit(folder / 'preprocess.json', **change)
  with pytest.raises(UserError, match=words):
    native.read(folder)


def test_a_bug_in_our_own_checks_is_no_mistake_of_the_user(folder, monkeypatch):
  monkeypatch.setattr(native, 'is_numbers', lambda *_: int('a bug'))
  with pytest.raises(ValueError, match='a bug') as error:
    native.read(folder)
  assert not isinstance(error.value, UserError)
