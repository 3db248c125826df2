"""A flipped bit in a weight file is noticed wherever the file has a checksum."""

import struct

import numpy as np
import pytest

import archive_checks as checks
import torch_files
from torch_files import MATRIX, PLAIN, TENSORS
from xclip_jax.weights.files import archive


def flip(path, part):
  """Flips one bit in the middle of the bytes `part` of a file."""
  def change(data):
    data[data.index(part) + len(part) // 2] ^= 4
  return checks.rewrite(path, change)


def test_a_flipped_bit_in_a_tensor_of_a_zip_is_noticed(tmp_path, zipped):
  contents = archive.read(zipped)
  contents.check(contents.tree.values())
  contents = archive.read(flip(zipped, MATRIX.tobytes()))
  with pytest.raises(archive.ArchiveError, match=r"a\.pt: has damaged data 'archive/data/0'"):
    contents.check(contents.tree.values())
  # What is not asked for is not read: an optimizer's state may be larger than the model.
  contents.check([x for name, x in contents.tree.items() if name != 'weight'])


def test_a_flipped_bit_in_the_pickle_is_noticed_when_the_file_is_read(zipped):
  checks.fails(flip(zipped, b'weight'), 'data.pkl', 'checksum')


def test_files_that_were_saved_without_checksums_are_read(zipped):
  """As with torch.serialization.set_crc32_options(False): all of them are 0."""
  def clear(data):
    at = -1
    while (at := data.find(b'PK\x01\x02', at + 1)) >= 0:
      struct.pack_into('<I', data, at + 16, 0)
  contents = archive.read(checks.rewrite(zipped, clear))
  contents.check(contents.tree.values())
  assert not contents.checksums


def test_one_missing_checksum_is_no_excuse(zipped):
  def clear_first(data):
    struct.pack_into('<I', data, data.index(b'PK\x01\x02') + 16, 0)
  checks.fails(checks.rewrite(zipped, clear_first), 'checksum')


def test_safetensors_have_checksums_if_they_were_written_with_them(tmp_path):
  path = tmp_path / 'a.safetensors'
  archive.write_safetensors(path, PLAIN, {'format': 'x'}, checksums=True)
  contents = archive.read(path)
  contents.check(contents.tree.values())
  checks.same({name: contents.tree[name] for name in PLAIN}, PLAIN)
  contents = archive.read(flip(path, MATRIX.tobytes()))
  with pytest.raises(archive.ArchiveError, match="damaged data 'weight'"):
    contents.check(contents.tree.values())
  archive.write_safetensors(path, PLAIN)
  assert not archive.read(path).checksums and archive.read(path).tree.keys() == PLAIN.keys()


@pytest.mark.parametrize('sums', ['{', '[]', '{}', '{"other": "0"}', '{"weight": "xyz"}',
                                  '{"weight": 3}'])
def test_checksums_that_cannot_be_read_are_damage(tmp_path, sums):
  path = tmp_path / 'a.safetensors'
  archive.write_safetensors(path, {'weight': MATRIX}, {archive.CHECKSUMS: sums})
  if sums == '{}':                                    # those of a file without tensors
    archive.read(path)
  else:
    checks.fails(path)


def test_shards_are_compared_with_their_own_checksums(tmp_path):
  torch_files.write_zip(tmp_path / 'a.bin', {'weight': TENSORS['weight']})
  torch_files.write_zip(tmp_path / 'b.bin', {'half': TENSORS['half']})
  index = tmp_path / 'pytorch_model.bin.index.json'
  index.write_text('{"weight_map": {"weight": "a.bin", "half": "b.bin"}}')
  contents = archive.read(index)
  contents.check(contents.tree.values())
  contents = None                                     # a mapped file is not rewritten
  flip(tmp_path / 'b.bin', np.asarray(PLAIN['half']).tobytes())
  contents = archive.read(index)
  with pytest.raises(archive.ArchiveError, match=r'b\.bin: has damaged data'):
    contents.check(contents.tree.values())
