"""Weight files give exactly their numbers, and nothing in them is believed or run."""

import collections
import io
import json
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch_files
from torch_files import Call, Global, Storage

from xclip_jax.weights import archive, unpickle

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(4, 6)).astype(np.float32)
PLAIN = {
  'weight': MATRIX,
  'half': RANDOM.normal(size=(3, 2)).astype(np.float16),
  'double': RANDOM.normal(size=5),
  'long': np.array([[-(2**60), 2**60]]),
  'int': np.arange(3, dtype=np.int32), 'short': np.arange(3, dtype=np.int16),
  'char': np.arange(-2, 3, dtype=np.int8), 'byte': np.arange(250, 256, dtype=np.uint8),
  'bool': np.array([True, False, True]),
  'complex': np.array([1 + 2j, -3j], np.complex64),
  'scalar': np.array(224),
  'empty': np.zeros((0, 7), np.float32),
}
TENSORS = {name: torch_files.tensor(array) for name, array in PLAIN.items()}
WRITERS = {'zip': torch_files.write_zip, 'legacy': torch_files.write_legacy}


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


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
  return lambda tree, **options: WRITERS[request.param](tmp_path / 'a.pt', tree, **options)


def read_tensor(write, tensor):
  found, rest = archive.state_dict(archive.read(write({'x': tensor})))
  assert list(found) == ['x'] and not rest
  return found['x']


# Values.

def test_every_dtype_and_shape_is_read_as_stored(write):
  contents = archive.read(write(torch_files.ordered(TENSORS)))
  assert contents.kind in ('torch zip', 'torch legacy')
  assert [file.name for file in contents.files] == ['a.pt']
  found, rest = archive.state_dict(contents)
  same(found, PLAIN)
  assert rest == {}


@pytest.mark.parametrize('protocol', range(6))
def test_every_pickle_protocol_is_read(tmp_path, protocol):
  rest = {'n': [1, -1, 300, 70000, 2**40, -2**70, 2.5, None, True, False, 'é€', b'\xff', (), (1,),
                (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 'a'}, frozenset([2]), bytearray(b'ab'), 1j],
          'od': collections.OrderedDict(a=1), 'counter': collections.Counter('aab'),
          'best': np.float64(0.5), 'array': np.arange(6, dtype='>i4').reshape(2, 3).T,
          'words': np.array(['ab', 'c']), 'default': collections.defaultdict(list, b=[1])}
  data = pickle._dumps(rest, protocol)
  tree, end = unpickle.load(data)
  assert end == len(data)
  array = tree.pop('array')
  np.testing.assert_array_equal(array, rest.pop('array'))
  assert tree.pop('words').tolist() == rest.pop('words').tolist()
  if protocol >= 1:  # protocol 0 has no tensors: persistent ids are text
    path = torch_files.write_zip(tmp_path / 'a.pt', {'x': TENSORS['weight']}, protocol=protocol)
    same(archive.state_dict(archive.read(path))[0], {'x': MATRIX})
  assert tree == rest
  assert type(tree['od']) is dict


def test_pickles_of_python_2_are_read():
  assert unpickle.load(b'(dU\x01aS"b\\x41"\nsT\x01\x00\x00\x00cL5L\nsI01\nF1.5\ns.')[0] == {
    'a': 'bA', 'c': 5, True: 1.5}
  assert unpickle.load(b'U\x02\xff\xfe.')[0] == '\xff\xfe'
  assert unpickle.load(b'c__builtin__\nset\n((lI1\natR.')[0] == {1}
  assert unpickle.load(b'(icollections\nOrderedDict\n.')[0] == {}
  assert unpickle.load(b'(ccollections\nOrderedDict\no.')[0] == {}


def test_bfloat16_is_widened_exactly(write):
  bits = np.arange(0, 65536, 7, dtype=np.uint16)
  want = (bits.astype(np.uint32) << 16).view(np.float32)
  storage = Storage(bits.tobytes(), Global('torch', 'BFloat16Storage'), bits.size)
  got = read_tensor(write, torch_files.tensor(storage, (bits.size,), (1,)))
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))  # NaNs too


def test_a_transposed_tensor_is_right(write):
  got = read_tensor(write, torch_files.tensor(torch_files.storage(MATRIX), (6, 4), (1, 6)))
  np.testing.assert_array_equal(got, MATRIX.T)


def test_a_slice_of_a_storage_is_right(write):
  got = read_tensor(write, torch_files.tensor(torch_files.storage(MATRIX), (2, 3), (12, 2), 1))
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
  got = read_tensor(write, torch_files.tensor(storage, (1000, 6), (0, 1)))
  np.testing.assert_array_equal(got, np.broadcast_to(MATRIX[0], (1000, 6)))
  fails(write({'x': torch_files.tensor(storage, (2**40, 6), (0, 1))}), "'x'", 'repeats 6 elements')


def test_parameters_and_older_builders_are_read(write):
  found, _ = archive.state_dict(archive.read(write({
    'old': torch_files.tensor(MATRIX, function='_rebuild_tensor'),
    'parameter': torch_files.parameter(MATRIX),
    'typed': Call(Global('torch._tensor', '_rebuild_from_type_v2'), (
      Global('torch._utils', '_rebuild_tensor_v2'), Global('torch.nn.parameter', 'Parameter'),
      TENSORS['weight'].args, {})),
  })))
  same(found, dict.fromkeys(['old', 'parameter', 'typed'], MATRIX))


def test_dtypes_without_a_storage_class_are_read(write):
  array = np.array([1, 65535], np.uint16)
  storage = Storage(array.tobytes(), Global('torch.storage', 'UntypedStorage'), 4)
  build = lambda dtype: {'x': Call(Global('torch._utils', '_rebuild_tensor_v3'), (
    storage, 0, (2,), (1,), False, {}, Global('torch', dtype)))}
  same(archive.state_dict(archive.read(write(build('uint16'))))[0], {'x': array})
  fails(write(build('float8_e4m3fn')), "'x'", 'float8_e4m3fn')


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
  fails(torch_files.write_legacy(path, {'x': torch_files.tensor(view, (5,), (1,))}), 'outside')


def test_big_endian_data_have_the_right_values(tmp_path):
  tree = {}
  for name in ('weight', 'half', 'long', 'complex'):
    array = PLAIN[name]
    swapped = array.astype(array.dtype.newbyteorder('>')).tobytes()
    storage = Storage(swapped, Global('torch', torch_files.STORAGES[array.dtype.name]), array.size)
    tree[name] = torch_files.tensor(
      storage, array.shape, tuple(s // array.itemsize for s in array.strides))
  path = torch_files.write_zip(tmp_path / 'a.pt', tree, order='big')
  same(archive.state_dict(archive.read(path))[0], {name: PLAIN[name] for name in tree})
  fails(torch_files.write_zip(path, tree, order='middle'), 'byte order')


def test_deflated_members_read_like_stored_ones(tmp_path):
  path = torch_files.write_zip(tmp_path / 'a.pt', TENSORS, compression=zipfile.ZIP_DEFLATED)
  same(archive.state_dict(archive.read(path))[0], PLAIN)


def test_stored_arrays_are_views_of_the_file(write):
  array = read_tensor(write, TENSORS['weight'])
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
  same(archive.state_dict(contents)[0], {'x': MATRIX})


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
  fails(path, 'before 1.4')


# What is not rebuilt.

def test_other_classes_become_inert_and_keep_what_they_held(write):
  config = Call(Global('yacs.config', 'CfgNode'), new=True, items={'MODEL': 'ViT', 'T': 8},
                state={'__immutable__': True})
  namespace = Call(Global('argparse', 'Namespace'), new=True, state={'lr': 1e-3})
  slots = Call(Global('a', 'Slotted'), new=True, state=(None, {'x': 1}))
  items = Call(Global('my', 'List'), new=True, values=[1, 2])
  found, rest = archive.state_dict(archive.read(write({
    'model': torch_files.ordered(TENSORS), 'config': config, 'args': namespace, 'slots': slots,
    'list': items, 'epoch': 29, 'optimizer': {'state': {0: {'exp_avg': TENSORS['weight']}}},
    'partial': Call(Global('functools', 'partial'), (Global('builtins', 'eval'),)),
    'cls': Global('builtins', 'getattr')})))
  same(found, PLAIN)
  assert rest['config'].name == 'yacs.config.CfgNode'
  assert rest['config'].items == {'MODEL': 'ViT', 'T': 8, '__immutable__': True}
  assert rest['args'].items == {'lr': 1e-3} and rest['slots'].items == {'x': 1}
  assert rest['list'].values == [1, 2]
  assert rest['partial'] == archive.Inert('functools.partial')
  assert rest['cls'] == archive.Inert('builtins.getattr')
  assert rest['epoch'] == 29
  np.testing.assert_array_equal(rest['optimizer']['state'][0]['exp_avg'], MATRIX)
  assert set(rest) == {'config', 'args', 'slots', 'list', 'partial', 'cls', 'epoch', 'optimizer'}
  assert len(repr(rest['config'])) < 60


ATTACKS = {
  'os.system': (Global('os', 'system'), ('touch {}',)),
  'posix.system': (Global('posix', 'system'), ('touch {}',)),
  'eval': (Global('builtins', 'eval'), ("open('{}', 'w')",)),
  'exec': (Global('__builtin__', 'exec'), ("open('{}', 'w')",)),
  'open': (Global('builtins', 'open'), ('{}', 'w')),
  'getattr': (Global('builtins', 'getattr'), (Global('os', 'system'), '__call__')),
  'subprocess': (Global('subprocess', 'Popen'), (['touch', '{}'],)),
  'torch.load': (Global('torch.storage', '_load_from_bytes'), (b'cos\nsystem\n(U\x08touch {}tR.',)),
  'runpy': (Global('runpy', '_run_code'), ("open('{}', 'w')", {})),
  'codecs': (Global('_codecs', 'encode'), ('{}', 'rot13')),
  'dotted': (Global('os', 'path.os.system'), ('touch {}',)),
  'import': (Global('canary_module', 'attack'), ()),
  'set': (Global('builtins', 'bytearray'), (10**15,)),
}


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize('new', [False, True])
def test_a_malicious_pickle_runs_nothing(write, tmp_path, monkeypatch, attack, new):
  canary, run = tmp_path / 'canary', []
  (tmp_path / 'canary_module.py').write_text(f'open({str(canary)!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path)
  for place in ('system', 'popen', 'execv'):
    monkeypatch.setattr(os, place, lambda *args: run.append(args))
  function, args = ATTACKS[attack]
  fill = lambda x: x.replace('{}', str(canary)) if isinstance(x, str) else x
  call = Call(function, tuple(map(fill, args)), new=new, state={'x': 1})
  before = set(sys.modules)
  contents = archive.read(write({'model': {'x': TENSORS['weight']}, 'attack': call}))
  found, rest = archive.state_dict(contents)
  same(found, {'x': MATRIX})
  assert isinstance(rest['attack'], archive.Inert)
  assert not canary.exists() and not run
  assert 'canary_module' not in set(sys.modules) - before


@pytest.mark.parametrize('pickled', [
  b'\x80\x02\x82\x01.', b'\x80\x02\x83\x01\x00.', b'\x80\x02\x84\x01\x00\x00\x00.',  # EXT1, 2, 4
  b'\x80\x05\x97.', b'\x80\x05N\x98.',                                              # out of band
  b'', b'\x80', b'.', b'(', b'0.', b'N', b'\xff.', b'\x80\x02R.', b'NNR.', b'K\x01)R.',
  b'cos\nsystem\nNR.', b'\x80\x02X\xff\xff\xff\xffabc.', b'\x80\x04\x8e' + b'\xff' * 8 + b'.',
  b'\x80\x05\x96' + b'\xff' * 7 + b'\x00.', b'\x8b\xff\xff\xff\x7f.', b'\x8b\xff\xff\xff\xff.',
  b'T\xff\xff\xff\xff.', b'L' + b'9' * 5000 + b'L\n.', b'Ix\n.', b'F1e\n.', b'Sabc\n.', b'S"\n.',
  b'V\\ud8\n.', b'g7\n.', b'h\x01.', b'q\x01.', b'p-\n.', b'Na.', b'K\x01K\x02s.', b'}K\x01a.',
  b'](K\x01K\x02u.', b'}(K\x01u.', b'Nb.', b'K\x01}b.', b'\x8f(K\x01\x90N(\x90.', b'P1\n.', b'NQ.',
  b'K\x01K\x02\x93.', b'c' + b'a' * 2000 + b'\nb\n.', b'cno newline', b'(o.', b'(K\x01o.',
  b'ccollections\nOrderedDict\n(K\x01tR.', b'cbuiltins\nset\n(ctorch\nSize\ntR.',
  b'X\x01\x00\x00\x00\xff.', b'cbuiltins\ncomplex\n(U\x01xK\x01tR.',
  b'ctorch._utils\n_rebuild_tensor_v2\n)R.', b'ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.',
  b'cnumpy\ndtype\n(U\x02f8tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb.',
  b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(J\xff\xff\xff\x7ftc'
  b'numpy\ndtype\n(U\x02f8tRK\x00U\x01atb.',
  b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01tc'
  b'numpy\ndtype\n(U\x02O8tRK\x00U\x08aaaaaaaatb.',
])
def test_a_damaged_pickle_is_an_archive_error(tmp_path, pickled):
  fails(torch_files.write_zip(tmp_path / 'a.pt', {}, pickled=pickled))
  fails(torch_files.write_legacy(tmp_path / 'b.pt', {}, pickled=pickled))


def test_a_small_pickle_cannot_make_a_large_thing(tmp_path, monkeypatch):
  monkeypatch.setattr(unpickle, 'MAX_WORK', 100_000)
  path = tmp_path / 'a.pt'
  bombs = {
    'dicts': b']' + b'(' + b'}' * 200_000 + b'e.',
    'copies': b'](' + b'K\x01' * 1000 + b'eq\x00' + b'cbuiltins\nset\n(h\x00tR0' * 1000 + b'.',
    'states': b'}(' + b''.join(b'M' + struct.pack('<H', i) + b'N' for i in range(1000)) + b'uq\x00'
              + b'ca\nB\n)\x81h\x00b0' * 1000 + b'.',
    'encoded': b'X\x00\x00\x10\x00' + b'a' * (1 << 20) + b'q\x000'
               + b'c_codecs\nencode\n(h\x00U\x06latin1tR0' * 100 + b'.',
  }
  for bomb in bombs.values():
    fails(torch_files.write_zip(path, {}, pickled=bomb), 'objects')
  # Slots of the memo cost what they hold; Python's own unpickler takes gigabytes here.
  tree, _ = unpickle.load(b'Nr\xff\xff\xff\xffp999999999999\n0g999999999999\n.')
  assert tree is None


def test_keys_that_overflow_the_stack_when_hashed_are_replaced():
  tree, _ = unpickle.load(b'}K\x00' + b'\x85' * 500_000 + b'Ns](K\x01K\x02e0}]K\x01s0.')
  assert list(tree.values()) == [None]
  assert unpickle.load(b'}]K\x01s.')[0] == {archive.Inert('builtins.list'): 1}


def test_a_pickle_beyond_its_bound_is_refused(tmp_path, monkeypatch):
  path = torch_files.write_zip(tmp_path / 'a.pt', {'x': 'a' * 5000})
  archive.read(path)
  monkeypatch.setattr(unpickle, 'MAX_BYTES', 4000)
  fails(path, 'MiB')
  fails(torch_files.write_legacy(tmp_path / 'b.pt', {'x': 'a' * 5000}), 'bytes wanted')


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
  fails(write(tree), "'visual.proj'")


@pytest.mark.parametrize('numel', [23, 25, -1, 2**62, True, 24.0, None])
def test_a_storage_of_another_size_is_refused(tmp_path, numel):
  storage = torch_files.storage(MATRIX)
  storage.numel = numel
  path = torch_files.write_zip(tmp_path / 'a.pt', {'x': torch_files.tensor(storage, (2,), (1,))})
  fails(path, "'x'", 'storage')


@pytest.mark.parametrize('cls', ['QInt8Storage', 'Float8_e4m3fnStorage', 'OddStorage'])
def test_an_unknown_element_type_is_named(write, cls):
  storage = Storage(b'1234', Global('torch', cls), 4)
  fails(write({'a': 1, 'visual.proj': torch_files.tensor(storage, (4,), (1,))}),
        "'visual.proj'", cls)


@pytest.mark.parametrize('builder', ['_rebuild_qtensor', '_rebuild_sparse_tensor'])
def test_a_quantized_or_sparse_tensor_is_named(write, builder):
  fails(write({'visual.proj': torch_files.tensor(MATRIX, function=builder)}),
        "'visual.proj'", builder)


def test_a_missing_storage_is_named(tmp_path):
  data, _ = torch_files.dumps({'x': TENSORS['weight']})
  fails(torch_files.write_zip(tmp_path / 'a.pt', {}, pickled=data), "'x'", 'not in the file')


# Where the state dict is.

@pytest.mark.parametrize('key', ['model', 'state_dict', 'model_state_dict', 'module'])
def test_wrapped_parameters_are_found_and_the_rest_is_kept(write, key):
  found, rest = archive.state_dict(archive.read(write({
    'epoch': 3, 'max_accuracy': TENSORS['scalar'], key: {'x': TENSORS['weight'], 'note': 'hi'}})))
  same(found, {'x': MATRIX})
  assert set(rest) == {'epoch', 'max_accuracy', f'{key}.note'} and rest['epoch'] == 3


def test_a_prefix_all_names_share_is_stripped(write):
  tree = {'module.a': TENSORS['weight'], 'module.b': TENSORS['int']}
  found, _ = archive.state_dict(archive.read(write({'state_dict': tree})))
  same(found, {'a': MATRIX, 'b': PLAIN['int']})
  found, _ = archive.state_dict(archive.read(write({**tree, 'c': TENSORS['int']})))
  assert list(found) == ['module.a', 'module.b', 'c']


def test_a_file_without_parameters_says_what_it_holds(write):
  whole = Call(Global('my.models', 'Net'), new=True, state={'_modules': {}})
  for tree, words in ((whole, r'my\.models\.Net'), ([1], 'list'), (TENSORS['weight'], 'ndarray'),
                      ({'model': whole, 'epoch': 1}, r'my\.models\.Net'), ({}, 'nothing')):
    with pytest.raises(archive.ArchiveError, match=words) as error:
      archive.state_dict(archive.read(write(tree)))
    assert 'a.pt' in str(error.value)


# Zip files.

def rewrite(path, change):
  data = bytearray(path.read_bytes())
  change(data)
  path.write_bytes(data)
  return path


@pytest.fixture
def zipped(tmp_path):
  return torch_files.write_zip(tmp_path / 'a.pt', TENSORS)


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
  same(archive.state_dict(archive.read(path))[0], PLAIN)


def test_zip64_members_are_read(tmp_path):
  path = tmp_path / 'a.pt'
  data, storages = torch_files.dumps({'x': TENSORS['weight']})
  with zipfile.ZipFile(path, 'w') as file:
    for name, content in {'data.pkl': data, 'data/0': storages['0'].data}.items():
      with file.open(f'a/{name}', 'w', force_zip64=True) as member:
        member.write(content)
  same(archive.state_dict(archive.read(path))[0], {'x': MATRIX})


def test_trailing_garbage_changes_nothing(zipped):
  zipped.write_bytes(zipped.read_bytes() + b'garbage' * 10)
  same(archive.state_dict(archive.read(zipped))[0], PLAIN)


@pytest.mark.parametrize('keep', [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, write, keep):
  path = write(TENSORS)
  data = path.read_bytes()
  path.write_bytes(data[:int(len(data) * keep)])
  fails(path)


def test_encrypted_members_are_refused(zipped):
  def encrypt(data):
    at = data.rindex(b'PK\x01\x02')
    data[at + 8] |= 1
  fails(rewrite(zipped, encrypt), 'encrypted')


def test_other_compressions_are_refused(tmp_path):
  fails(torch_files.write_zip(tmp_path / 'a.pt', TENSORS, compression=zipfile.ZIP_LZMA), 'method')


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_member_twice_is_refused(zipped):
  with zipfile.ZipFile(zipped, 'a') as file:
    file.writestr('archive/data/0', b'other')
  fails(zipped, 'two members')


@pytest.mark.parametrize('name', ['../x', 'archive/../../x', '/etc/x', 'a\\..\\x'])
def test_unsafe_member_names_are_refused(zipped, name):
  with zipfile.ZipFile(zipped, 'a') as file:
    file.writestr(name, b'x')
  fails(zipped, 'unsafe name')


def test_a_wrong_local_header_is_refused(zipped):
  start = 0  # of the first member
  for change in (lambda d: d.__setitem__(start, 81), lambda d: d.__setitem__(start + 35, 81),
                 lambda d: d.__setitem__(start + 26, 99), lambda d: d.__setitem__(start + 8, 8),
                 lambda d: d.__setitem__(slice(start + 28, start + 30), b'\xff\xff')):
    data = zipped.read_bytes()
    fails(rewrite(zipped, change))
    zipped.write_bytes(data)


def test_overlapping_members_are_refused(zipped):
  def overlap(data):  # the last entry of the directory points at the first member
    at = data.rindex(b'PK\x01\x02')
    data[at + 42:at + 46] = b'\0\0\0\0'
  fails(rewrite(zipped, overlap))

  def grow(data):     # the first member is said to reach into the second
    at = data.index(b'PK\x01\x02')
    for field in (20, 24):
      size = struct.unpack_from('<I', data, at + field)[0]
      struct.pack_into('<I', data, at + field, size + 10)
  torch_files.write_zip(zipped, TENSORS)
  fails(rewrite(zipped, grow), 'damaged member')


def test_a_deflated_member_that_lies_about_itself_is_refused(tmp_path):
  data, _ = torch_files.dumps({'x': 'abc' * 1000})
  for field, value in ((24, 100), (24, 10**6), (16, 5)):  # shorter, longer, another checksum
    path = torch_files.write_zip(tmp_path / 'a.pt', {}, pickled=data,
                                 compression=zipfile.ZIP_DEFLATED)

    def lie(data, field=field, value=value):
      struct.pack_into('<I', data, data.index(b'PK\x01\x02') + field, value)
    fails(rewrite(path, lie), 'damaged')


def test_zip_bombs_are_refused_without_unpacking(tmp_path):
  path = torch_files.write_zip(tmp_path / 'a.pt', TENSORS, compression=zipfile.ZIP_DEFLATED)

  def claim(data, size=2_000_000_000):
    struct.pack_into('<I', data, data.index(b'PK\x01\x02') + 24, size)
  fails(rewrite(path, claim), '1000 times')

  def claim_all(data):
    at = -1
    while (at := data.find(b'PK\x01\x02', at + 1)) >= 0:
      struct.pack_into('<I', data, at + 24, 2**32 - 2)
  path = torch_files.write_zip(path, {f'{i}': torch_files.tensor(MATRIX) for i in range(20)})
  fails(rewrite(path, claim_all), '64 GiB')


def test_zips_of_other_kinds_say_what_they_are(tmp_path, zipped):
  nested = tmp_path / 'b.zip'
  with zipfile.ZipFile(nested, 'w') as file:
    file.write(zipped, 'x/model.pth')
  fails(nested, 'zip around', 'unpack it')
  np.savez(tmp_path / 'c.npz', a=MATRIX)
  fails(tmp_path / 'c.npz', '.npz')
  with zipfile.ZipFile(nested, 'w') as file:
    file.writestr('word/document.xml', '')
  fails(nested, 'word/document.xml')
  with zipfile.ZipFile(nested, 'w') as file:
    pass
  fails(nested, 'nothing')
  with zipfile.ZipFile(nested, 'w') as file:
    file.writestr('a/data.pkl', 'N.')
    file.writestr('b/data.pkl', 'N.')
  fails(nested, '2 folders')


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
    fails(path)


# Safetensors.

def test_safetensors_give_what_the_safetensors_package_gives(tmp_path):
  plain = {name: array for name, array in PLAIN.items() if array.dtype.kind != 'c'}
  path = tmp_path / 'a.bin'  # the ending does not matter
  safetensors.numpy.save_file(plain, path, {'format': 'pt'})
  contents = archive.read(path)
  assert contents.kind == 'safetensors' and contents.files == (path,)
  found, rest = archive.state_dict(contents)
  same(dict(sorted(found.items())), dict(sorted(plain.items())))
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
  fails(path)


@pytest.mark.parametrize('header', [
  b'{"x": 1}', b'{"x": []}', b'{"x": {}}', b'[]', b'{', b'{"a": NaN', b'{}' + b'x', b'{\xff}',
  b'{"__metadata__": {"a": 1}}', b'{"__metadata__": []}', b'{"a":' * 3000,
  b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
  b'"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
])
def test_safetensors_headers_that_are_wrong_are_refused(tmp_path, header):
  fails(torch_files.write_safetensors(tmp_path / 'a', header, b'0' * 16))


def test_safetensors_overlap_gap_and_length_are_checked(tmp_path):
  path = tmp_path / 'a'
  part = lambda begin, end: {'dtype': 'U8', 'shape': [end - begin], 'data_offsets': [begin, end]}
  good = torch_files.write_safetensors(path, {'a': part(0, 4), 'b': part(4, 8)}, b'01234567')
  assert bytes(archive.read(good).tree['b']) == b'4567'
  for a, b, data in (((0, 4), (3, 8), b'01234567'), ((0, 3), (4, 8), b'01234567'),
                     ((1, 4), (4, 8), b'01234567'), ((0, 4), (4, 8), b'012345678'),
                     ((0, 4), (4, 8), b'0123456'), ((0, 8), (0, 8), b'01234567')):
    fails(torch_files.write_safetensors(path, {'a': part(*a), 'b': part(*b)}, data))
  for size in (2**40, 200_000_000, 10**5):
    path.write_bytes(struct.pack('<Q', size) + b'{}')
    fails(path, 'header')


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
  same(archive.state_dict(contents)[0], {name: PLAIN[name] for name in ('weight', 'half')})


@pytest.mark.parametrize('change', [
  lambda m: m.update(other='a.bin'), lambda m: m.update(half='a.bin'),
  lambda m: m.update(half='c.bin'), lambda m: m.update(half='../b.bin'), lambda m: m.clear(),
  lambda m: m.update(half='/b.bin'), lambda m: m.update(half='sub/b.bin'),
  lambda m: m.update(half='..'), lambda m: m.update(half=''), lambda m: m.update(half=3),
  lambda m: m.update(half='a\\b.bin'), lambda m: m.update(half='pytorch_model.bin.index.json'),
])
def test_shards_that_disagree_with_the_index_are_refused(tmp_path, change):
  fails(shards(tmp_path, change))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  path = shards(tmp_path)
  torch_files.write_zip(tmp_path / 'b.bin', {'half': TENSORS['half'], 'weight': TENSORS['weight']})
  fails(path, 'weight', 'a.bin')


def test_shards_of_two_kinds_are_refused(tmp_path):
  path = shards(tmp_path)
  archive.write_safetensors(tmp_path / 'b.bin', {'half': PLAIN['half']})
  fails(path, 'different kinds')


@pytest.mark.parametrize('text', [
  '{', '{}', '{"weight_map": []}', '{"weight_map": {"a": "b", "a": "c"}}', '{"a": ' * 5000,
  '{"weight_map": ' + '9' * 5000 + '}'])
def test_json_that_is_no_index_is_refused(tmp_path, text):
  path = tmp_path / 'a.json'
  path.write_text(text)
  fails(path)


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
  fails(path, *words)


def test_folders_and_missing_files_say_so(tmp_path):
  fails(tmp_path, 'folder')
  fails(tmp_path / 'none.pt', 'no such file')
  fails(pathlib.Path(os.devnull), 'not a regular file')
  with pytest.raises(archive.ArchiveError):
    archive.read('a\0b')


# Writers.

@pytest.mark.parametrize('wrap', [None, 'model'])
def test_what_write_torch_writes_is_read_back(tmp_path, wrap):
  path = tmp_path / 'a.pt'
  tensors = PLAIN | {'turned': MATRIX.T, 'big': MATRIX.astype('>f4')}
  archive.write_torch(path, tensors, wrap)
  contents = archive.read(path)
  assert contents.kind == 'torch zip' and list(contents.tree) == ([wrap] if wrap else [*tensors])
  same(archive.state_dict(contents)[0], tensors | {'big': MATRIX})
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
  same(dict(sorted(found.items())), dict(sorted(plain.items())))
  assert rest == {'__metadata__': {'format': 'pt'}}
  assert all(array.flags.aligned for array in found.values())
  archive.write_safetensors(path, {})
  assert archive.read(path).tree == {}


def test_bfloat16_arrays_are_written_as_they_are(tmp_path):
  ml_dtypes = pytest.importorskip('ml_dtypes')
  array = np.array([1.5, -2], ml_dtypes.bfloat16)
  for write in (archive.write_torch, archive.write_safetensors):
    write(tmp_path / 'a', {'x': array})
    same(archive.state_dict(archive.read(tmp_path / 'a'))[0], {'x': array.astype(np.float32)})
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
  same(archive.state_dict(archive.read(path))[0], PLAIN)


def test_reading_needs_neither_torch_nor_jax():
  code = ('import sys; from xclip_jax.weights import archive; '
          'print(sorted({"torch", "jax", "safetensors", "ml_dtypes"} & set(sys.modules)))')
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'


# Against PyTorch itself.

@pytest.fixture
def torch_tree():
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  base = torch.randn(6, 5)
  return {
    'plain': base, 'turned': base.t(), 'slice': base[1::2, 2:], 'expanded': base[:1].expand(9, 5),
    'half': base.half(), 'bfloat': base.bfloat16(), 'double': base.double(),
    'scalar': torch.tensor(224), 'empty': torch.zeros(0, 3), 'bool': base > 0,
    'complex': torch.complex(base, base), 'parameter': torch.nn.Parameter(base),
    **{name: torch.ones(3, dtype=getattr(torch, name)) for name in
       ('int8', 'uint8', 'int16', 'int32', 'int64', 'uint16', 'uint32', 'uint64')}}


def same_as_torch(found, tensors):
  assert list(found) == list(tensors)
  for name, tensor in tensors.items():
    tensor = tensor.detach()
    want = tensor.float().numpy() if str(tensor.dtype) == 'torch.bfloat16' else tensor.numpy()
    np.testing.assert_array_equal(found[name], want, err_msg=name)
    assert found[name].dtype == want.dtype


@pytest.mark.parity
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_what_torch_saves_is_read(tmp_path, torch_tree, zipped, protocol):
  torch = pytest.importorskip('torch')
  optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
  optimizer.param_groups[0]['params'][0].sum().backward()
  optimizer.step()
  path = tmp_path / 'a.pth'
  torch.save({'model': collections.OrderedDict(torch_tree), 'optimizer': optimizer.state_dict(),
              'epoch': 3, 'device': torch.device('cuda:0'), 'size': torch.Size([1, 2]),
              'dtype': torch.float16, 'best': np.float64(1)}, path,
             pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
  contents = archive.read(path)
  assert contents.kind == ('torch zip' if zipped else 'torch legacy')
  found, rest = archive.state_dict(contents)
  same_as_torch(found, torch_tree)
  assert np.shares_memory(found['plain'], found['turned'])
  assert rest['epoch'] == 3 and rest['device'] == 'cuda:0' and rest['size'] == (1, 2)
  assert rest['optimizer']['state'][0]['exp_avg'].shape == (3,) and rest['best'] == 1


@pytest.mark.parity
def test_what_torch_saves_of_a_module_is_read(tmp_path):
  torch = pytest.importorskip('torch')
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4)).half()
  torch.save(model.state_dict(), tmp_path / 'a.pth')
  found, rest = archive.state_dict(archive.read(tmp_path / 'a.pth'))
  same_as_torch(found, model.state_dict())
  assert rest == {}
  torch.save(model, tmp_path / 'b.pth')
  with pytest.raises(archive.ArchiveError, match='Sequential'):
    archive.state_dict(archive.read(tmp_path / 'b.pth'))


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('trace', [False, True])
def test_what_torchscript_saves_is_read(tmp_path, trace):
  torch = pytest.importorskip('torch')
  model = torch.nn.Sequential(
    torch.nn.Linear(4, 3), torch.nn.Sequential(torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))).eval()
  model.register_buffer('input_resolution', torch.tensor(224))
  model = model.half() if not trace else model
  script = torch.jit.trace(model, torch.ones(1, 4)) if trace else torch.jit.script(model)
  torch.jit.save(script, str(tmp_path / 'a.pt'))
  contents = archive.read(tmp_path / 'a.pt')
  assert contents.kind == 'torchscript'
  found, _ = archive.state_dict(contents)
  want = script.state_dict()
  same_as_torch({name: found[name] for name in want}, want)
  assert set(found) == set(want)


@pytest.mark.parity
@pytest.mark.parametrize('wrap', [None, 'model'])
@pytest.mark.parametrize('mapped', [False, True])
def test_torch_loads_what_is_written(tmp_path, wrap, mapped):
  torch = pytest.importorskip('torch')
  archive.write_torch(tmp_path / 'a.pt', PLAIN, wrap)
  loaded = torch.load(tmp_path / 'a.pt', weights_only=True, mmap=mapped)
  loaded = loaded[wrap] if wrap else loaded
  assert type(loaded) is collections.OrderedDict and list(loaded) == list(PLAIN)
  for name, array in PLAIN.items():
    np.testing.assert_array_equal(loaded[name].numpy(), array)
    assert loaded[name].numpy().dtype == array.dtype
