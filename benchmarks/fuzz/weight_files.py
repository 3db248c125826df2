"""Damaged weight files: three formats of PyTorch, safetensors, and lists of shards."""

import functools
import json
import pathlib
import random
import zipfile

import numpy as np

import torch_files
from benchmarks.fuzz import harness
from torch_files import Call, Global
from xclip_jax.weights.files import archive

ARRAYS = {
  'visual.conv1.weight': np.arange(48, dtype=np.float16).reshape(4, 3, 2, 2),
  'text_projection': np.arange(12, dtype=np.float32).reshape(3, 4),
  'ids': np.arange(5), 'mask': np.array([True, False]), 'logit_scale': np.array(4.6, np.float32),
}
WORDS = (
  b'cposix\nsystem\n', b'cos\nsystem\n', b'cbuiltins\neval\n', b'cbuiltins\ngetattr\n', b'\x93',
  b'cbuiltins\nbytearray\n', b'cnumpy\ndtype\n', b'cnumpy.core.multiarray\n_reconstruct\n',
  b'cnumpy.core.multiarray\nscalar\n', b'cnumpy\nndarray\n', b'ccollections\nOrderedDict\n',
  b'cbuiltins\nset\n', b'ctorch\nSize\n', b'ctorch._utils\n_rebuild_tensor_v2\n', b'\x85R', b')R',
  b')\x81', b'}b', b'tR', b'(', b't', b'Q', b'}', b']', b'e', b'u', b's', b'a', b'2', b'0', b'1',
  b'\x94', b'h\x00', b'q\x00', b'r\xff\xff\xff\x7f', b'\x8a\x09' + b'\xff' * 8 + b'\x7f', b'N.',
  b'\x8e' + b'\xff' * 7 + b'\x00', b'\x96' + b'\xff' * 7 + b'\x00', b'X\xff\xff\xff\x7f', b'\x8f',
  b'U\x02f8', b'U\x02O8', b'K\x00', b'J\xff\xff\xff\xff', b'\x85' * 50, b'(' * 50, b'2' * 50,
)


def checkpoint(canary: pathlib.Path) -> dict:
  """Returns a pickle like that of a training run, with objects that try to run code."""
  shared = torch_files.storage(ARRAYS['text_projection'])
  return {
    'model': torch_files.ordered({
      **{name: torch_files.tensor(array) for name, array in ARRAYS.items()},
      'turned': torch_files.tensor(shared, (4, 3), (1, 4)),
      'tied': torch_files.tensor(shared, (4,), (1,), 4),
      'parameter': torch_files.parameter(ARRAYS['text_projection'])}),
    'epoch': 29, 'best': np.float64(0.5), 'table': np.arange(4.0),
    'config': Call(Global('yacs.config', 'CfgNode'), new=True, items={'T': 8}, state={'x': 1}),
    'attack': [Call(Global('posix', 'system'), (f'touch {canary}',)),
               Call(Global('builtins', 'eval'), (f'open({str(canary)!r}, "w")',))],
    'set': {1, 'a'}, 'bytes': b'\xff\x00', 'large': 2**80,
  }


def script() -> Call:
  visual = torch_files.module(
    'VisionTransformer', conv1=torch_files.module(
      'Conv2d', weight=torch_files.tensor(ARRAYS['visual.conv1.weight'])))
  return torch_files.module(
    'CLIP', visual=visual, input_resolution=torch_files.tensor(ARRAYS['ids']),
    sizes=Call(Global('torch.jit._pickle', 'build_intlist'), ([1, 2],)))


class Maker:
  """Writes damaged files of one kind, one after another, under one name."""

  def __init__(self, kind: str, folder: pathlib.Path, canary: pathlib.Path):
    self.kind, self.folder, self.canary = kind, folder, canary
    self.path = folder / ('a.index.json' if kind == 'index' else 'a.pt')
    tree = script() if kind == 'torchscript' else checkpoint(canary)
    self.tree = tree
    self.write(None)
    self.whole = self.path.read_bytes()
    if kind == 'index':
      self.shard = (folder / 'b.bin').read_bytes()

  def write(self, rng: random.Random | None) -> None:
    """Writes a sound file; with rng, one in which the pickle alone is damaged."""
    protocol = 2 if rng is None else rng.choice((2, 2, 4, 5))
    pickled = None
    if rng is not None:
      pickled = harness.damage(torch_files.dumps(self.tree, protocol)[0], rng, WORDS)
    if self.kind in ('torchscript', 'torch zip'):
      deflated = rng is not None and rng.random() < 0.2
      torch_files.write_zip(
        self.path, self.tree, script=self.kind == 'torchscript', pickled=pickled,
        compression=zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED,
        order=None if rng is None else rng.choice(('little', 'big')))
    elif self.kind == 'torch legacy':
      torch_files.write_legacy(self.path, self.tree, pickled=pickled)
    elif self.kind == 'safetensors':
      archive.write_safetensors(self.path, ARRAYS, {'format': 'pt'})
      if rng is not None:
        raw = self.path.read_bytes()
        size = int.from_bytes(raw[:8], 'little')
        header = harness.damage(raw[8:8 + size], rng, WORDS)
        torch_files.write_safetensors(self.path, header, raw[8 + size:])
    else:
      names = list(ARRAYS)
      archive.write_torch(self.folder / 'b.bin', {name: ARRAYS[name] for name in names[:2]})
      archive.write_torch(self.folder / 'c.bin', {name: ARRAYS[name] for name in names[2:]})
      self.path.write_text(json.dumps(
        {'weight_map': {name: 'b.bin' if name in names[:2] else 'c.bin' for name in names}}))
      if rng is not None:
        shard = (self.folder / 'b.bin').read_bytes()
        (self.folder / 'b.bin').write_bytes(harness.damage(shard, rng, WORDS))

  def next(self, rng: random.Random) -> pathlib.Path:
    """Writes the next file and returns its path."""
    if self.kind == 'index':
      (self.folder / 'b.bin').write_bytes(self.shard)
    if rng.random() < (0.2 if self.kind == 'index' else 0.6):
      self.write(rng)
    else:
      self.path.write_bytes(harness.damage(self.whole, rng, WORDS))
    return self.path


def touch(value: object, depth: int = 0) -> None:
  """Looks at every array in a tree, where a wrong view would crash."""
  if depth > 20:
    return
  if isinstance(value, np.ndarray) and value.nbytes <= 64 << 20:
    value.tobytes()
  elif isinstance(value, dict):
    for part in value.values():
      touch(part, depth + 1)
  elif isinstance(value, list | tuple) and len(value) < 1000:
    for part in value:
      touch(part, depth + 1)


def read(path: pathlib.Path) -> None:
  contents = archive.read(path)
  touch(contents.tree)
  archive.state_dict(contents)


def _prepare(name: str, folder: pathlib.Path, canary: pathlib.Path):
  maker = Maker(name, folder, canary)
  read(maker.path)                        # imports what reading imports
  return maker.next


KINDS = [
  harness.Kind(name, functools.partial(_prepare, name), read, strict=True)
  for name in ('torchscript', 'torch zip', 'torch legacy', 'safetensors', 'index')]
