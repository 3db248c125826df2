"""Safetensors files give exactly their numbers, or are refused."""

import struct

import pytest
import safetensors.numpy

import archive_checks as checks
import torch_files
from torch_files import PLAIN
from xclip_jax.weights.files import archive


def test_safetensors_give_what_the_safetensors_package_gives(tmp_path):
  plain = {name: array for name, array in PLAIN.items() if array.dtype.kind != 'c'}
  path = tmp_path / 'a.bin'  # the ending does not matter
  safetensors.numpy.save_file(plain, path, {'format': 'pt'})
  contents = archive.read(path)
  assert contents.kind == 'safetensors' and contents.files == (path,)
  found, rest = archive.state_dict(contents)
  checks.same(dict(sorted(found.items())), dict(sorted(plain.items())))
  assert rest == {'__metadata__': {'format': 'pt'}}


def test_bfloat16_of_safetensors_is_widened(tmp_path):
  path = torch_files.write_safetensors(
    tmp_path / 'a', {'x': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}},
    b'\x80\x3f\x00\xc0')
  assert archive.read(path).tree['x'].tolist() == [1.0, -2.0]


ENTRY = {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}


@pytest.mark.parametrize('entry', [
  {'dtype': 'F8_E4M3'}, {'dtype': 'f32'}, {'dtype': None}, {'dtype': ['F32']}, {'shape': [2, 3]},
  {'shape': [-2, -2]}, {'shape': [2.0, 2]}, {'shape': [True, 4]}, {'shape': 4}, {'shape': None},
  {'shape': [2**80, 2**80]}, {'shape': [1] * 70}, {'data_offsets': [16, 0]},
  {'data_offsets': [0, 12]}, {'data_offsets': [4, 20]}, {'data_offsets': [-16, 0]},
  {'data_offsets': [0]}, {'data_offsets': [0, 16, 16]}, {'data_offsets': 'ab'},
  {'data_offsets': [0.0, 16.0]}, {'data_offsets': None}, {'data_offsets': [0, 2**64]},
])
def test_safetensors_that_lie_are_refused(tmp_path, entry):
  path = torch_files.write_safetensors(tmp_path / 'a', {'x': ENTRY | entry}, b'0' * 16)
  checks.fails(path)


@pytest.mark.parametrize('header', [
  b'{"x": 1}', b'{"x": []}', b'{"x": {}}', b'[]', b'{', b'{"a": NaN', b'{}' + b'x', b'{\xff}',
  b'{"__metadata__": {"a": 1}}', b'{"__metadata__": []}', b'{"a":' * 3000,
  b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
  b'"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
])
def test_safetensors_headers_that_are_wrong_are_refused(tmp_path, header):
  checks.fails(torch_files.write_safetensors(tmp_path / 'a', header, b'0' * 16))


def test_safetensors_overlap_gap_and_length_are_checked(tmp_path):
  path = tmp_path / 'a'
  part = lambda begin, end: {'dtype': 'U8', 'shape': [end - begin], 'data_offsets': [begin, end]}
  good = torch_files.write_safetensors(path, {'a': part(0, 4), 'b': part(4, 8)}, b'01234567')
  assert bytes(archive.read(good).tree['b']) == b'4567'
  for a, b, data in (((0, 4), (3, 8), b'01234567'), ((0, 3), (4, 8), b'01234567'),
                     ((1, 4), (4, 8), b'01234567'), ((0, 4), (4, 8), b'012345678'),
                     ((0, 4), (4, 8), b'0123456'), ((0, 8), (0, 8), b'01234567')):
    checks.fails(torch_files.write_safetensors(path, {'a': part(*a), 'b': part(*b)}, data))
  for size in (2**40, 200_000_000, 10**5):
    path.write_bytes(struct.pack('<Q', size) + b'{}')
    checks.fails(path, 'header')
