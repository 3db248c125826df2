"""Checks of weight files that several tests share: read as it is, or refused by name."""

import numpy as np
import pytest

from xclip_jax.weights.files import archive


def fails(path, *words):
  with pytest.raises(archive.ArchiveError) as error:
    archive.read(path)
  message = str(error.value)
  assert message.startswith(str(path)), message
  for word in words:
    assert word in message, message
  return message


def same(got, want):
  assert list(got) == list(want)
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
    assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
    assert type(got[name]) is np.ndarray and not got[name].flags.writeable, name


def read_tensor(write, tensor):
  found, rest = archive.state_dict(archive.read(write({'x': tensor})))
  assert list(found) == ['x'] and not rest
  return found['x']


def rewrite(path, change):
  data = bytearray(path.read_bytes())
  change(data)
  path.write_bytes(data)
  return path
