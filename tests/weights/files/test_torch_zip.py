"""Zip files are read by what is in them, and refused if that is not sound."""

import io
import struct
import zipfile

import numpy as np
import pytest

import archive_checks as checks
import torch_files
from torch_files import MATRIX, PLAIN, TENSORS
from xclip_jax.weights.files import archive


def test_deflated_members_read_like_stored_ones(tmp_path):
  path = torch_files.write_zip(tmp_path / 'a.pt', TENSORS, compression=zipfile.ZIP_DEFLATED)
  checks.same(archive.state_dict(archive.read(path))[0], PLAIN)


def test_a_local_header_with_padding_is_followed(tmp_path):
  path = tmp_path / 'a.pt'
  archive.write_torch(path, PLAIN)    # pads in the extra field
  with zipfile.ZipFile(path) as file:
    infos = file.infolist()
  assert any(info.extra for info in infos)
  # The directory need not repeat the padding: here it does not.
  data = path.read_bytes()
  with zipfile.ZipFile(io.BytesIO(data)) as file:
    start = file.start_dir
  directory = b''
  at = start
  for _ in infos:
    names, extras = struct.unpack_from('<HH', data, at + 28)
    directory += data[at:at + 30] + b'\0\0' + data[at + 32:at + 46 + names]
    at += 46 + names + extras
  end = bytearray(data[at:])
  struct.pack_into('<I', end, 12, len(directory))
  path.write_bytes(data[:start] + directory + end)
  checks.same(archive.state_dict(archive.read(path))[0], PLAIN)


def test_zip64_members_are_read(tmp_path):
  path = tmp_path / 'a.pt'
  data, storages = torch_files.dumps({'x': TENSORS['weight']})
  with zipfile.ZipFile(path, 'w') as file:
    for name, content in {'data.pkl': data, 'data/0': storages['0'].data}.items():
      with file.open(f'a/{name}', 'w', force_zip64=True) as member:
        member.write(content)
  checks.same(archive.state_dict(archive.read(path))[0], {'x': MATRIX})


def test_trailing_garbage_changes_nothing(zipped):
  zipped.write_bytes(zipped.read_bytes() + b'garbage' * 10)
  checks.same(archive.state_dict(archive.read(zipped))[0], PLAIN)


@pytest.mark.parametrize('keep', [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, write, keep):
  path = write(TENSORS)
  data = path.read_bytes()
  path.write_bytes(data[:int(len(data) * keep)])
  checks.fails(path)


def test_encrypted_members_are_refused(zipped):
  def encrypt(data):
    at = data.rindex(b'PK\x01\x02')
    data[at + 8] |= 1
  checks.fails(checks.rewrite(zipped, encrypt), 'encrypted')


def test_other_compressions_are_refused(tmp_path):
  path = torch_files.write_zip(tmp_path / 'a.pt', TENSORS, compression=zipfile.ZIP_LZMA)
  checks.fails(path, 'method')


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_member_twice_is_refused(zipped):
  with zipfile.ZipFile(zipped, 'a') as file:
    file.writestr('archive/data/0', b'other')
  checks.fails(zipped, 'two members')


@pytest.mark.parametrize('name', ['../x', 'archive/../../x', '/etc/x', 'a\\..\\x'])
def test_unsafe_member_names_are_refused(zipped, name):
  with zipfile.ZipFile(zipped, 'a') as file:
    file.writestr(name, b'x')
  checks.fails(zipped, 'unsafe name')


def test_a_wrong_local_header_is_refused(zipped):
  start = 0  # of the first member
  for change in (lambda d: d.__setitem__(start, 81), lambda d: d.__setitem__(start + 35, 81),
                 lambda d: d.__setitem__(start + 26, 99), lambda d: d.__setitem__(start + 8, 8),
                 lambda d: d.__setitem__(slice(start + 28, start + 30), b'\xff\xff')):
    data = zipped.read_bytes()
    checks.fails(checks.rewrite(zipped, change))
    zipped.write_bytes(data)


def test_overlapping_members_are_refused(zipped):
  def overlap(data):  # the last entry of the directory points at the first member
    at = data.rindex(b'PK\x01\x02')
    data[at + 42:at + 46] = b'\0\0\0\0'
  checks.fails(checks.rewrite(zipped, overlap))

  def grow(data):     # the first member is said to reach into the second
    at = data.index(b'PK\x01\x02')
    for field in (20, 24):
      size = struct.unpack_from('<I', data, at + field)[0]
      struct.pack_into('<I', data, at + field, size + 10)
  torch_files.write_zip(zipped, TENSORS)
  checks.fails(checks.rewrite(zipped, grow), 'damaged member')


def test_a_deflated_member_that_lies_about_itself_is_refused(tmp_path):
  data, _ = torch_files.dumps({'x': 'abc' * 1000})
  for field, value in ((24, 100), (24, 10**6), (16, 5)):  # shorter, longer, another checksum
    path = torch_files.write_zip(tmp_path / 'a.pt', {}, pickled=data,
                                 compression=zipfile.ZIP_DEFLATED)

    def lie(data, field=field, value=value):
      struct.pack_into('<I', data, data.index(b'PK\x01\x02') + field, value)
    checks.fails(checks.rewrite(path, lie), 'damaged')


def test_zip_bombs_are_refused_without_unpacking(tmp_path):
  path = torch_files.write_zip(tmp_path / 'a.pt', TENSORS, compression=zipfile.ZIP_DEFLATED)

  def claim(data, size=2_000_000_000):
    struct.pack_into('<I', data, data.index(b'PK\x01\x02') + 24, size)
  checks.fails(checks.rewrite(path, claim), '1000 times')

  def claim_all(data):
    at = -1
    while (at := data.find(b'PK\x01\x02', at + 1)) >= 0:
      struct.pack_into('<I', data, at + 24, 2**32 - 2)
  path = torch_files.write_zip(path, {f'{i}': torch_files.tensor(MATRIX) for i in range(20)})
  checks.fails(checks.rewrite(path, claim_all), '64 GiB')


def test_zips_of_other_kinds_say_what_they_are(tmp_path, zipped):
  nested = tmp_path / 'b.zip'
  with zipfile.ZipFile(nested, 'w') as file:
    file.write(zipped, 'x/model.pth')
  checks.fails(nested, 'zip around', 'unpack it')
  np.savez(tmp_path / 'c.npz', a=MATRIX)
  checks.fails(tmp_path / 'c.npz', '.npz')
  with zipfile.ZipFile(nested, 'w') as file:
    file.writestr('word/document.xml', '')
  checks.fails(nested, 'word/document.xml')
  with zipfile.ZipFile(nested, 'w') as file:
    pass
  checks.fails(nested, 'nothing')
  with zipfile.ZipFile(nested, 'w') as file:
    file.writestr('a/data.pkl', 'N.')
    file.writestr('b/data.pkl', 'N.')
  checks.fails(nested, '2 folders')
