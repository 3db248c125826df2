"""Tests of weight files recognised by their bytes, and of the parameters read from them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import archive_checks as checks
import torch_files
from torch_files import MATRIX, PLAIN, TENSORS, Call, Global
from xclip_jax.weights.files import archive

# Where the state dict is.

@pytest.mark.parametrize('key', ['model', 'state_dict', 'model_state_dict', 'module'])
def test_wrapped_parameters_are_found_and_the_rest_is_kept(write, key):
  found, rest = archive.state_dict(archive.read(write({
    'epoch': 3, 'max_accuracy': TENSORS['scalar'], key: {'x': TENSORS['weight'], 'note': 'hi'}})))
  checks.same(found, {'x': MATRIX})
  assert set(rest) == {'epoch', 'max_accuracy', f'{key}.note'} and rest['epoch'] == 3


def test_a_prefix_all_names_share_is_stripped(write):
  tree = {'module.a': TENSORS['weight'], 'module.b': TENSORS['int']}
  found, _ = archive.state_dict(archive.read(write({'state_dict': tree})))
  checks.same(found, {'a': MATRIX, 'b': PLAIN['int']})
  found, _ = archive.state_dict(archive.read(write({**tree, 'c': TENSORS['int']})))
  assert list(found) == ['module.a', 'module.b', 'c']


def test_a_file_without_parameters_says_what_it_holds(write):
  whole = Call(Global('my.models', 'Net'), new=True, state={'_modules': {}})
  for tree, words in ((whole, r'my\.models\.Net'), ([1], 'list'), (TENSORS['weight'], 'ndarray'),
                      ({'model': whole, 'epoch': 1}, r'my\.models\.Net'), ({}, 'nothing')):
    with pytest.raises(archive.ArchiveError, match=words) as error:
      archive.state_dict(archive.read(write(tree)))
    assert 'a.pt' in str(error.value)


# Shards.

def shards(folder, change=lambda index: None, kind='zip'):
  names = ('a.bin', 'b.bin')
  for name, key in zip(names, ('weight', 'half'), strict=True):
    if kind == 'zip':
      torch_files.write_zip(folder / name, {key: TENSORS[key]})
    else:
      archive.write_safetensors(folder / name, {key: PLAIN[key]}, {'format': 'pt'})
  index = {'metadata': {'total_size': 1}, 'weight_map': {'weight': 'a.bin', 'half': 'b.bin'}}
  change(index['weight_map'])
  path = folder / 'pytorch_model.bin.index.json'
  path.write_text(json.dumps(index))
  return path


@pytest.mark.parametrize('kind', ['zip', 'safetensors'])
def test_shards_read_like_one_file(tmp_path, kind):
  contents = archive.read(shards(tmp_path, kind=kind))
  assert contents.kind == {'zip': 'torch zip'}.get(kind, kind)
  assert [f.name for f in contents.files] == ['pytorch_model.bin.index.json', 'a.bin', 'b.bin']
  checks.same(archive.state_dict(contents)[0], {name: PLAIN[name] for name in ('weight', 'half')})


@pytest.mark.parametrize('change', [
  lambda m: m.update(other='a.bin'), lambda m: m.update(half='a.bin'),
  lambda m: m.update(half='c.bin'), lambda m: m.update(half='../b.bin'), lambda m: m.clear(),
  lambda m: m.update(half='/b.bin'), lambda m: m.update(half='sub/b.bin'),
  lambda m: m.update(half='..'), lambda m: m.update(half=''), lambda m: m.update(half=3),
  lambda m: m.update(half='a\\b.bin'), lambda m: m.update(half='pytorch_model.bin.index.json'),
])
def test_shards_that_disagree_with_the_index_are_refused(tmp_path, change):
  checks.fails(shards(tmp_path, change))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  path = shards(tmp_path)
  torch_files.write_zip(tmp_path / 'b.bin', {'half': TENSORS['half'], 'weight': TENSORS['weight']})
  checks.fails(path, 'weight', 'a.bin')


def test_shards_of_two_kinds_are_refused(tmp_path):
  path = shards(tmp_path)
  archive.write_safetensors(tmp_path / 'b.bin', {'half': PLAIN['half']})
  checks.fails(path, 'different kinds')


@pytest.mark.parametrize('text', [
  '{', '{}', '{"weight_map": []}', '{"weight_map": {"a": "b", "a": "c"}}', '{"a": ' * 5000,
  '{"weight_map": ' + '9' * 5000 + '}'])
def test_json_that_is_no_index_is_refused(tmp_path, text):
  path = tmp_path / 'a.json'
  path.write_text(text)
  checks.fails(path)


# Files that are something else.

@pytest.mark.parametrize('content, words', [
  (b'', ['empty']),
  (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n', ['git lfs pull']),
  (b'<!DOCTYPE html><html>', ['web page']), (b'\n <html>', ['web page']),
  (b'\x1f\x8b\x08', ['gzip']), (b'BZh9', ['bzip2']),
  (b'\x89HDF\r\n\x1a\n', ['not a PyTorch or safetensors file', 'HDF']),
  (b'\x82\xa6params', ['not a PyTorch or safetensors file', 'params']),
  (b'\x93NUMPY', ['not a PyTorch']), (b'hello', ['not a PyTorch']), (b'P', ['not a PyTorch']),
  (b'\x80', []), (b'\0' * 257 + b'ustar' + b'\0' * 300, ['tar', '0.2']), (b'PK\x03\x04', ['zip']),
])
def test_files_of_other_kinds_say_what_they_are(tmp_path, content, words):
  path = tmp_path / 'a.pt'
  path.write_bytes(content)
  checks.fails(path, *words)


def test_folders_and_missing_files_say_so(tmp_path):
  checks.fails(tmp_path, 'folder')
  checks.fails(tmp_path / 'none.pt', 'no such file')
  checks.fails(pathlib.Path(os.devnull), 'not a regular file')
  with pytest.raises(archive.ArchiveError):
    archive.read('a\0b')


def test_reading_needs_neither_torch_nor_jax():
  code = ('import sys; from xclip_jax.weights.files import archive; '
          'print(sorted({"torch", "jax", "safetensors", "ml_dtypes"} & set(sys.modules)))')
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'
