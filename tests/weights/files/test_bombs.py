"""A file cannot make much more of itself than it is: neither in memory nor in time."""

import contextlib
import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

import archive_checks as checks
import torch_files
from torch_files import TENSORS, Call, Global
from xclip_jax.weights.files import archive, unpickle

MIB = 1 << 20


def most_memory(path, *words):
  """Reads a file, which is refused if `words` are given; returns the most bytes that it took."""
  tracemalloc.start()
  try:
    if words:
      checks.fails(path, *words)
    else:
      archive.read(path)
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def view_of(storage, view):
  return torch_files.tensor(torch_files.Storage(
    storage.data, storage.cls, storage.numel, key='0', view=view, six=True), (4,), (1,))


@pytest.mark.parametrize('numel', [4 * MIB, MIB // 2])
def test_views_of_one_storage_are_widened_once(tmp_path, numel):
  """150 views of 8 MiB in 9 kB took 2.4 GB."""
  storage = torch_files.Storage(bytes(2 * numel), Global('torch', 'BFloat16Storage'), numel)
  tree = {f'w{i}': view_of(storage, (f'v{i}', 0, numel)) for i in range(150)}
  path = torch_files.write_zip(tmp_path / 'a.pt', tree, compression=zipfile.ZIP_DEFLATED)
  words = ('unpack to more than', 'made to fill the memory') if numel > MIB else ()
  assert most_memory(path, *words) < 32 * MIB
  stored = torch_files.write_zip(tmp_path / 'b.pt', tree)
  assert most_memory(stored) < 3 * stored.stat().st_size + MIB


def test_many_deflated_members_are_counted_together(tmp_path):
  """60 members of 8 MiB, each of 8 kB: none is above a bound of its own."""
  zeros = torch_files.Storage(bytes(8 * MIB), Global('torch', 'FloatStorage'), 2 * MIB)
  tree = {f'w{i}': torch_files.tensor(torch_files.Storage(
    zeros.data, zeros.cls, zeros.numel, key=str(i)), (2 * MIB,), (1,)) for i in range(6)}
  path = torch_files.write_zip(tmp_path / 'a.pt', tree, compression=zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < MIB
  assert most_memory(path, 'unpack to more than') < 40 * MIB


def test_tensors_that_repeat_a_small_storage_are_counted_together(tmp_path):
  storage = torch_files.storage(np.zeros(16384, np.float32))
  tree = {f'w{i}': torch_files.tensor(storage, (60, 16384), (0, 1)) for i in range(9)}
  checks.fails(torch_files.write_zip(tmp_path / 'a.pt', tree), 'repeat its data')
  tied = {f'w{i}': torch_files.tensor(storage, (128, 128), (128, 1)) for i in range(9)}
  assert len(archive.read(torch_files.write_zip(tmp_path / 'b.pt', tied)).tree) == 9


def test_pending_signs_are_counted(tmp_path):
  storage = torch_files.storage(np.ones(2 * MIB, np.float32))
  args = (storage, 0, (2 * MIB,), (1,), False, {}, {'neg': True})
  tree = {f'w{i}': Call(Global('torch._utils', '_rebuild_tensor_v2'), args) for i in range(60)}
  checks.fails(torch_files.write_zip(tmp_path / 'a.pt', tree), 'more than')


def test_a_small_file_has_little_time(tmp_path):
  """3 MB of nested tuples took 8 s, and ended in the words of a RecursionError."""
  head = pickle.dumps(0x1950a86a20f9469cfc6c, 2) + b'\x80\x02M\xe9\x03'
  for count in (300_000, 2_000_000):
    path = tmp_path / 'a.pt'
    path.write_bytes(head + b'\x85' * count + b'.')
    before = time.process_time()
    message = checks.fails(path)
    assert time.process_time() - before < 4
    assert 'Recursion' not in message and len(message) < 400 + len(str(path))


@pytest.mark.parametrize('repeated', [
  b'cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x08S8388608tRh\x00tR0',
  b'cnumpy._core.numeric\n_frombuffer\n(h\x01cnumpy\ndtype\n(U\x02u1tRJ\0\0\x80\0tR0',
  b'ctorch\ndevice\nh\x00K\x01\x86R0', b'h\x02Q0', b'}h\x03Ns0',
], ids=['text', 'bytes', 'device', 'storage', 'key'])
def test_a_long_value_that_is_used_again_and_again_is_counted_again(tmp_path, repeated):
  """8 MiB of text or bytes, 100,000 arguments and a key of 60 x 60 x 60 parts, each used often."""
  size = (8 * MIB).to_bytes(8, 'little')
  text = b'X' + size[:4] + b'1' * 8 * MIB + b'q\x000'
  raw = b'\x96' + size + b'1' * 8 * MIB + b'q\x010'
  storage = (b'(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04' + b'N' * 100_000
             + b'tq\x020')
  key = b'K\x01q\x030' + b''.join(b'(' + b'h\x03' * 60 + b'tq\x030' for _ in range(3))
  parts = {b'h\x00': text, b'h\x01': raw, b'h\x02': storage, b'h\x03': key}
  needed = b''.join(value for name, value in parts.items() if name in repeated)
  path = torch_files.write_zip(
    tmp_path / 'a.pt', {}, pickled=b'\x80\x02' + needed + repeated * 20_000 + b'N.',
    members={'data/0': bytes(16)})
  before = time.process_time()
  with contextlib.suppress(archive.ArchiveError):
    archive.read(path)
  assert time.process_time() - before < 1.5


def test_keys_of_nested_tuples_and_complex_numbers_become_inert():
  """Their hashes take long, or are easily made to collide."""
  keys = lambda pickled: list(unpickle.load(pickled)[0])
  assert keys(pickle.dumps({(1, 'a'): 0}, 2)) == [(1, 'a')]
  assert keys(pickle.dumps({((1, 2), 3): 0}, 2)) == [archive.Inert('builtins.tuple')]
  assert keys(pickle.dumps({1 + 2j: 0}, 2)) == [archive.Inert('builtins.complex')]


def test_ordinary_compressed_files_are_read(tmp_path):
  path = torch_files.write_zip(tmp_path / 'a.pt', TENSORS, compression=zipfile.ZIP_DEFLATED)
  archive.read(path)
  zeros = torch_files.storage(np.zeros(MIB, np.float32))
  tree = {'zeros': torch_files.tensor(zeros, (MIB,), (1,))}
  path = torch_files.write_zip(path, tree, compression=zipfile.ZIP_DEFLATED)
  assert archive.read(path).tree['zeros'].shape == (MIB,)
