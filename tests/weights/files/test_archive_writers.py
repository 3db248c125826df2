"""Tests of writers of weight files: written files are read back, failed writes lose nothing."""

import io
import os
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import archive_checks as checks
from torch_files import MATRIX, PLAIN
from xclip_jax.weights.files import archive


@pytest.mark.parametrize('wrap', [None, 'model'])
def test_what_write_torch_writes_is_read_back(tmp_path, wrap):
  path = tmp_path / 'a.pt'
  tensors = PLAIN | {'turned': MATRIX.T, 'big': MATRIX.astype('>f4')}
  archive.write_torch(path, tensors, wrap)
  contents = archive.read(path)
  assert contents.kind == 'torch zip' and list(contents.tree) == ([wrap] if wrap else [*tensors])
  checks.same(archive.state_dict(contents)[0], tensors | {'big': MATRIX})
  with zipfile.ZipFile(path) as file:
    assert file.testzip() is None
    for info in file.infolist():
      name, extra = struct.unpack_from('<HH', path.read_bytes(), info.header_offset + 26)
      assert (info.header_offset + 30 + name + extra) % 64 == 0
    pickletools.dis(file.read('archive/data.pkl'), io.StringIO())
  assert os.listdir(tmp_path) == ['a.pt']


def test_what_write_safetensors_writes_is_read_by_the_safetensors_package(tmp_path):
  path = tmp_path / 'a.safetensors'
  plain = {name: array for name, array in PLAIN.items() if array.dtype.kind != 'c'}
  plain |= {'turned': MATRIX.T, 'é': MATRIX}
  archive.write_safetensors(path, plain, {'format': 'pt'})
  got = safetensors.numpy.load_file(path)
  assert got.keys() == plain.keys()
  for name, array in plain.items():
    np.testing.assert_array_equal(got[name], array)
  found, rest = archive.state_dict(archive.read(path))
  checks.same(dict(sorted(found.items())), dict(sorted(plain.items())))
  assert rest == {'__metadata__': {'format': 'pt'}}
  assert all(array.flags.aligned for array in found.values())
  archive.write_safetensors(path, {})
  assert archive.read(path).tree == {}


def test_bfloat16_arrays_are_written_as_they_are(tmp_path):
  ml_dtypes = pytest.importorskip('ml_dtypes')
  array = np.array([1.5, -2], ml_dtypes.bfloat16)
  for write in (archive.write_torch, archive.write_safetensors):
    write(tmp_path / 'a', {'x': array})
    found, _ = archive.state_dict(archive.read(tmp_path / 'a'))
    checks.same(found, {'x': array.astype(np.float32)})
  assert safetensors.numpy.load_file(tmp_path / 'a')['x'].dtype == array.dtype


def test_a_failed_write_leaves_the_old_file(tmp_path):
  class Broken(dict):
    def values(self):
      raise RuntimeError('no more')
  path = tmp_path / 'a.pt'
  path.write_bytes(b'old')
  for write, tensors in ((archive.write_torch, {'a': np.array('text')}),
                         (archive.write_safetensors, {'a': np.array('text')}),
                         (archive.write_torch, Broken(a=MATRIX))):
    with pytest.raises((archive.ArchiveError, RuntimeError)):
      write(path, tensors)
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.pt']


def test_a_file_may_be_rewritten_from_its_own_arrays(tmp_path):
  path = tmp_path / 'a.pt'
  archive.write_torch(path, PLAIN)
  archive.write_torch(path, archive.state_dict(archive.read(path))[0])
  checks.same(archive.state_dict(archive.read(path))[0], PLAIN)
