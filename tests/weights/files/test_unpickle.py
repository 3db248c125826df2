"""Pickles give plain data, and nothing in them is believed or run."""

import collections
import os
import pickle
import struct
import sys

import numpy as np
import pytest

import archive_checks as checks
import torch_files
from torch_files import MATRIX, PLAIN, TENSORS, Call, Global
from xclip_jax.weights.files import archive, unpickle


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
    checks.same(archive.state_dict(archive.read(path))[0], {'x': MATRIX})
  assert tree == rest
  assert type(tree['od']) is dict


def test_pickles_of_python_2_are_read():
  assert unpickle.load(b'(dU\x01aS"b\\x41"\nsT\x01\x00\x00\x00cL5L\nsI01\nF1.5\ns.')[0] == {
    'a': 'bA', 'c': 5, True: 1.5}
  assert unpickle.load(b'U\x02\xff\xfe.')[0] == '\xff\xfe'
  assert unpickle.load(b'c__builtin__\nset\n((lI1\natR.')[0] == {1}
  assert unpickle.load(b'(icollections\nOrderedDict\n.')[0] == {}
  assert unpickle.load(b'(ccollections\nOrderedDict\no.')[0] == {}


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
  checks.same(found, PLAIN)
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
  checks.same(found, {'x': MATRIX})
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
  checks.fails(torch_files.write_zip(tmp_path / 'a.pt', {}, pickled=pickled))
  checks.fails(torch_files.write_legacy(tmp_path / 'b.pt', {}, pickled=pickled))


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
    checks.fails(torch_files.write_zip(path, {}, pickled=bomb), 'objects')
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
  checks.fails(path, 'MiB')
  checks.fails(torch_files.write_legacy(tmp_path / 'b.pt', {'x': 'a' * 5000}), 'bytes wanted')
