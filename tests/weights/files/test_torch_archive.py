"""Tensors of PyTorch files give exactly their numbers, and are not believed."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

import archive_checks as checks
import torch_files
from torch_files import MATRIX, PLAIN, TENSORS, Call, Global, Storage
from xclip_jax.weights.files import archive


def test_every_dtype_and_shape_is_read_as_stored(write):
  contents = archive.read(write(torch_files.ordered(TENSORS)))
  assert contents.kind in ('torch zip', 'torch legacy')
  assert [file.name for file in contents.files] == ['a.pt']
  found, rest = archive.state_dict(contents)
  checks.same(found, PLAIN)
  assert rest == {}


def test_bfloat16_is_widened_exactly(write):
  bits = np.arange(0, 65536, 7, dtype=np.uint16)
  want = (bits.astype(np.uint32) << 16).view(np.float32)
  storage = Storage(bits.tobytes(), Global('torch', 'BFloat16Storage'), bits.size)
  got = checks.read_tensor(write, torch_files.tensor(storage, (bits.size,), (1,)))
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))  # NaNs too


def test_a_transposed_tensor_is_right(write):
  got = checks.read_tensor(write, torch_files.tensor(torch_files.storage(MATRIX), (6, 4), (1, 6)))
  np.testing.assert_array_equal(got, MATRIX.T)


def with_metadata(array, metadata, dtype=None):
  """As PyTorch saves a tensor whose sign or conjugate is pending, e.g. x.conj().imag."""
  args = (*torch_files.tensor(array).args, *([dtype] if dtype else []), metadata)
  return Call(Global('torch._utils', f'_rebuild_tensor_v{3 if dtype else 2}'), args)


@pytest.mark.parametrize('dtype', [None, Global('torch', 'float32')])
def test_a_pending_sign_is_followed(write, dtype):
  for array in (MATRIX, np.array(4.5, np.float32)):
    for metadata, want in (({'neg': True}, -array), ({'neg': False}, array), ({}, array)):
      got = checks.read_tensor(write, with_metadata(array, metadata, dtype))
      checks.same({'x': got}, {'x': np.asarray(want)})
  got = checks.read_tensor(write, torch_files.parameter(MATRIX))
  np.testing.assert_array_equal(got, MATRIX)


def test_a_pending_conjugate_is_followed(write):
  array = PLAIN['complex']
  got = checks.read_tensor(write, with_metadata(array, {'conj': True}))
  np.testing.assert_array_equal(got, array.conj())
  got = checks.read_tensor(write, with_metadata(array, {'conj': True, 'neg': True}))
  np.testing.assert_array_equal(got, -array.conj())


@pytest.mark.parametrize('metadata', [
  {'zero': True}, {'neg': 1}, {'neg': True, 'backend': 'x'}, [1], 'neg', Global('a', 'B')])
def test_other_metadata_of_tensors_are_refused(write, metadata):
  path = write({'x': with_metadata(MATRIX, metadata)})
  checks.fails(path, "tensor 'x'", 'metadata', 'resolve_neg')


def test_a_slice_of_a_storage_is_right(write):
  got = checks.read_tensor(
    write, torch_files.tensor(torch_files.storage(MATRIX), (2, 3), (12, 2), 1))
  np.testing.assert_array_equal(got, MATRIX[::2, 1::2])


def test_shared_storages_stay_shared(write):
  storage = torch_files.storage(MATRIX)
  found, _ = archive.state_dict(archive.read(write({
    'a': torch_files.tensor(storage, (4, 6), (6, 1)),
    'b': torch_files.tensor(storage, (6,), (1,), 18)})))
  np.testing.assert_array_equal(found['a'], MATRIX)
  np.testing.assert_array_equal(found['b'], MATRIX[3])
  assert np.shares_memory(found['a'], found['b'])


def test_an_expanded_tensor_is_right_but_bounded(write):
  storage = torch_files.storage(MATRIX[0])
  got = checks.read_tensor(write, torch_files.tensor(storage, (1000, 6), (0, 1)))
  np.testing.assert_array_equal(got, np.broadcast_to(MATRIX[0], (1000, 6)))
  checks.fails(write({'x': torch_files.tensor(storage, (2**40, 6), (0, 1))}),
               "'x'", 'repeats 6 elements')


def test_parameters_and_older_builders_are_read(write):
  found, _ = archive.state_dict(archive.read(write({
    'old': torch_files.tensor(MATRIX, function='_rebuild_tensor'),
    'parameter': torch_files.parameter(MATRIX),
    'typed': Call(Global('torch._tensor', '_rebuild_from_type_v2'), (
      Global('torch._utils', '_rebuild_tensor_v2'), Global('torch.nn.parameter', 'Parameter'),
      TENSORS['weight'].args, {})),
  })))
  checks.same(found, dict.fromkeys(['old', 'parameter', 'typed'], MATRIX))


def test_dtypes_without_a_storage_class_are_read(write):
  array = np.array([1, 65535], np.uint16)
  storage = Storage(array.tobytes(), Global('torch.storage', 'UntypedStorage'), 4)
  build = lambda dtype: {'x': Call(Global('torch._utils', '_rebuild_tensor_v3'), (
    storage, 0, (2,), (1,), False, {}, Global('torch', dtype)))}
  checks.same(archive.state_dict(archive.read(write(build('uint16'))))[0], {'x': array})
  checks.fails(write(build('float8_e4m3fn')), "'x'", 'float8_e4m3fn')


def test_a_view_of_a_legacy_storage_is_right(tmp_path):
  whole = torch_files.storage(MATRIX, key='0', six=True)
  view = torch_files.storage(MATRIX, key='0', six=True, view=('1', 6, 12))
  path = torch_files.write_legacy(tmp_path / 'a.pt', {
    'whole': torch_files.tensor(whole, (4, 6), (6, 1)),
    'view': torch_files.tensor(view, (2, 6), (6, 1))})
  found, _ = archive.state_dict(archive.read(path))
  np.testing.assert_array_equal(found['whole'], MATRIX)
  np.testing.assert_array_equal(found['view'], MATRIX[1:3])
  view.view = ('1', 20, 5)
  torch_files.write_legacy(path, {'x': torch_files.tensor(view, (5,), (1,))})
  checks.fails(path, 'outside')


def test_big_endian_data_have_the_right_values(tmp_path):
  tree = {}
  for name in ('weight', 'half', 'long', 'complex'):
    array = PLAIN[name]
    swapped = array.astype(array.dtype.newbyteorder('>')).tobytes()
    storage = Storage(swapped, Global('torch', torch_files.STORAGES[array.dtype.name]), array.size)
    tree[name] = torch_files.tensor(
      storage, array.shape, tuple(s // array.itemsize for s in array.strides))
  path = torch_files.write_zip(tmp_path / 'a.pt', tree, order='big')
  checks.same(archive.state_dict(archive.read(path))[0], {name: PLAIN[name] for name in tree})
  checks.fails(torch_files.write_zip(path, tree, order='middle'), 'byte order')


def test_stored_arrays_are_views_of_the_file(write):
  array = checks.read_tensor(write, TENSORS['weight'])
  while isinstance(array.base, np.ndarray):
    array = array.base
  assert 'mmap' in type(getattr(array.base, 'obj', array.base)).__name__


# TorchScript.

def script_tree():
  conv = torch_files.module('Conv2d', weight=torch_files.tensor(PLAIN['half']), bias=None)
  blocks = torch_files.module('Sequential', **{'0': torch_files.module('Block', proj=conv)})
  visual = torch_files.module('VisionTransformer', conv1=conv, resblocks=blocks)
  build = lambda kind, values: Call(Global('torch.jit._pickle', f'build_{kind}list'), (values,))
  return torch_files.module(
    'CLIP', visual=visual, input_resolution=TENSORS['scalar'], sizes=build('int', [1, 2]),
    scales=build('double', [0.5]), flags=build('bool', [True]),
    extra=build('tensor', [TENSORS['int']]), name='ViT',
    tags=Call(Global('torch.jit._pickle', 'restore_type_tag'), ({'a': 1}, 'Dict[str, int]')))


def test_torchscript_gives_dotted_names_and_runs_no_code(tmp_path):
  contents = archive.read(torch_files.write_zip(tmp_path / 'a.pt', script_tree(), script=True))
  assert contents.kind == 'torchscript'
  np.testing.assert_array_equal(contents.tree['visual']['conv1']['weight'], PLAIN['half'])
  found, rest = archive.state_dict(contents)
  assert sorted(found) == [
    'input_resolution', 'visual.conv1.weight', 'visual.resblocks.0.proj.weight']
  np.testing.assert_array_equal(found['visual.conv1.weight'], PLAIN['half'])
  assert found['visual.conv1.weight'].dtype == np.float16
  assert found['input_resolution'].shape == () and int(found['input_resolution']) == 224
  np.testing.assert_array_equal(rest.pop('extra')[0], PLAIN['int'])
  assert rest == {
    'sizes': [1, 2], 'scales': [0.5], 'flags': [True], 'name': 'ViT', 'tags': {'a': 1},
    'visual.conv1.bias': None, 'visual.resblocks.0.proj.bias': None}


@pytest.mark.parametrize('members', [
  {'code/a.py': b'x'}, {'constants.pkl': b'\x80\x02).', 'constants/0': b'1234'}])
def test_torchscript_is_known_by_any_of_its_marks(tmp_path, members):
  tree = torch_files.module('A', x=TENSORS['weight'])
  contents = archive.read(torch_files.write_zip(tmp_path / 'a.pt', tree, members=members))
  assert contents.kind == 'torchscript'
  checks.same(archive.state_dict(contents)[0], {'x': MATRIX})


def test_a_module_inside_itself_is_refused(tmp_path):
  tree = torch_files.module('A', x=TENSORS['weight'])
  tree.state |= {'a': tree, 'b': tree}
  contents = archive.read(torch_files.write_zip(tmp_path / 'a.pt', tree, script=True))
  with pytest.raises(archive.ArchiveError, match='without end'):
    archive.state_dict(contents)


def test_torchscript_before_1_4_is_refused(tmp_path):
  path = tmp_path / 'a.pt'
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('a/model.json', '{}')
  checks.fails(path, 'before 1.4')


# Tensors that lie.

@pytest.mark.parametrize('fields', [
  dict(size=(5, 6)), dict(offset=1), dict(offset=-1), dict(size=(-1, 6)), dict(stride=(-6, 1)),
  dict(stride=(7, 1)), dict(stride=(6,)), dict(size=(True, 6)), dict(size=(4.0, 6)),
  dict(size=(2**70, 6)), dict(stride=(2**70, 1)), dict(offset=2**70), dict(offset=True),
  dict(offset=None), dict(size=None), dict(size='46'), dict(size=(1,) * 40, stride=(1,) * 40),
  dict(size=(2**61, 2**61, 0), stride=(1, 1, 1)),
])
def test_a_tensor_outside_its_storage_is_refused(write, fields):
  options = dict(size=(4, 6), stride=(6, 1), offset=0) | fields
  tree = {'visual.proj': torch_files.tensor(torch_files.storage(MATRIX), **options)}
  checks.fails(write(tree), "'visual.proj'")


@pytest.mark.parametrize('numel', [23, 25, -1, 2**62, True, 24.0, None])
def test_a_storage_of_another_size_is_refused(tmp_path, numel):
  storage = torch_files.storage(MATRIX)
  storage.numel = numel
  path = torch_files.write_zip(tmp_path / 'a.pt', {'x': torch_files.tensor(storage, (2,), (1,))})
  checks.fails(path, "'x'", 'storage')


@pytest.mark.parametrize('cls', ['QInt8Storage', 'Float8_e4m3fnStorage', 'OddStorage'])
def test_an_unknown_element_type_is_named(write, cls):
  storage = Storage(b'1234', Global('torch', cls), 4)
  checks.fails(write({'a': 1, 'visual.proj': torch_files.tensor(storage, (4,), (1,))}),
               "'visual.proj'", cls)


@pytest.mark.parametrize('builder', ['_rebuild_qtensor', '_rebuild_sparse_tensor'])
def test_a_quantized_or_sparse_tensor_is_named(write, builder):
  checks.fails(write({'visual.proj': torch_files.tensor(MATRIX, function=builder)}),
               "'visual.proj'", builder)


def test_a_missing_storage_is_named(tmp_path):
  data, _ = torch_files.dumps({'x': TENSORS['weight']})
  checks.fails(torch_files.write_zip(tmp_path / 'a.pt', {}, pickled=data), "'x'", 'not in the file')


# Legacy files.

def test_legacy_files_that_lie_are_refused(tmp_path):
  path = torch_files.write_legacy(tmp_path / 'a.pt', {'x': TENSORS['weight']})
  data = path.read_bytes()
  keys = data.rindex(b'\x80\x02')
  for damaged in (
    data[:keys] + pickle.dumps([], 2) + data[keys:],
    data[:keys] + pickle.dumps(['0', '0'], 2),
    data[:keys] + pickle.dumps(['1'], 2),
    data[:keys] + pickle.dumps(None, 2),
    data[:keys] + data[keys:].replace(struct.pack('<q', 24), struct.pack('<q', 25)),
    data[:keys] + data[keys:].replace(struct.pack('<q', 24), struct.pack('<q', -1)),
    data[:-1],
    data.replace(pickle.dumps(1001, 2), pickle.dumps(1000, 2)),
    pickle.dumps({'x': 1}, 2),
    pickle.dumps(float(0x1950a86a20f9469cfc6c), 2),
  ):
    path.write_bytes(damaged)
    checks.fails(path)
