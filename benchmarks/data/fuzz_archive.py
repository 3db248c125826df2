"""Random damage to weight files, which readers must read or refuse and nothing else.

  python benchmarks/data/fuzz_archive.py --files 10000 --seed 0

For every kind of file: how many were read, how many refused with `ArchiveError`, and how many did
anything else (another exception, a crash, over 5 seconds, over 1 GiB, a call or an import). Prints
a table and a JSON line for each kind; exits 1 if there was anything else.
"""

import argparse
import collections
import faulthandler
import json
import mmap
import os
import pathlib
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests/weights')]

import torch_files  # noqa: E402
from torch_files import Call, Global  # noqa: E402
from xclip_jax.weights.files import archive  # noqa: E402

SECONDS, MEMORY = 5, 1 << 30
ARRAYS = {
  'visual.conv1.weight': np.arange(48, dtype=np.float16).reshape(4, 3, 2, 2),
  'text_projection': np.arange(12, dtype=np.float32).reshape(3, 4),
  'ids': np.arange(5), 'mask': np.array([True, False]), 'logit_scale': np.array(4.6, np.float32),
}
WORDS = [
  b'cposix\nsystem\n', b'cos\nsystem\n', b'cbuiltins\neval\n', b'cbuiltins\ngetattr\n', b'\x93',
  b'cbuiltins\nbytearray\n', b'cnumpy\ndtype\n', b'cnumpy.core.multiarray\n_reconstruct\n',
  b'cnumpy.core.multiarray\nscalar\n', b'cnumpy\nndarray\n', b'ccollections\nOrderedDict\n',
  b'cbuiltins\nset\n', b'ctorch\nSize\n', b'ctorch._utils\n_rebuild_tensor_v2\n', b'\x85R', b')R',
  b')\x81', b'}b', b'tR', b'(', b't', b'Q', b'}', b']', b'e', b'u', b's', b'a', b'2', b'0', b'1',
  b'\x94', b'h\x00', b'q\x00', b'r\xff\xff\xff\x7f', b'\x8a\x09' + b'\xff' * 8 + b'\x7f', b'N.',
  b'\x8e' + b'\xff' * 7 + b'\x00', b'\x96' + b'\xff' * 7 + b'\x00', b'X\xff\xff\xff\x7f', b'\x8f',
  b'U\x02f8', b'U\x02O8', b'K\x00', b'J\xff\xff\xff\xff', b'\x85' * 50, b'(' * 50, b'2' * 50,
]


class TooSlow(BaseException):
  """Not an Exception, so that nothing takes it for a damaged file."""


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


def damage(data: bytes, rng: random.Random) -> bytes:
  """Applies one to four random changes, as transport errors and attackers make them."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    size = max(len(data), 1)
    at, run = rng.randrange(size), min(rng.choice((1, 2, 4, 8, 64, 512)), size)
    match rng.randrange(9):
      case 0:
        for _ in range(rng.choice((1, 1, 2, 8))):
          if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
      case 1:
        data[at:at + run] = rng.randbytes(run)
      case 2:
        data[at:at + run] = bytes([rng.choice((0, 255, 127, 128))]) * run
      case 3:
        del data[at:]
      case 4:
        del data[at:at + run]
      case 5:
        data[at:at] = data[at:at + run] * rng.choice((1, 2, 20))
      case 6:
        other = rng.randrange(size)
        data[at:at + run] = data[other:other + run]
      case 7:
        value = rng.choice((0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, len(data), rng.getrandbits(33)))
        code = rng.choice(('<H', '<I', '<Q'))
        width = struct.calcsize(code)
        data[at:at + width] = struct.pack(code, value % (1 << 8 * width))
      case 8:
        data[at:at] = rng.choice(WORDS)
  return bytes(data)


class Maker:
  """Write damaged files of one kind, one after another, under one name."""

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
    """A whole file; with rng, one whose pickle alone is damaged, so that the rest is sound."""
    protocol = 2 if rng is None else rng.choice((2, 2, 4, 5))
    pickled = None if rng is None else damage(torch_files.dumps(self.tree, protocol)[0], rng)
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
        torch_files.write_safetensors(self.path, damage(raw[8:8 + size], rng), raw[8 + size:])
    else:
      names = list(ARRAYS)
      archive.write_torch(self.folder / 'b.bin', {name: ARRAYS[name] for name in names[:2]})
      archive.write_torch(self.folder / 'c.bin', {name: ARRAYS[name] for name in names[2:]})
      self.path.write_text(json.dumps(
        {'weight_map': {name: 'b.bin' if name in names[:2] else 'c.bin' for name in names}}))
      if rng is not None:
        (self.folder / 'b.bin').write_bytes(damage((self.folder / 'b.bin').read_bytes(), rng))

  def next(self, rng: random.Random) -> None:
    if self.kind == 'index':
      (self.folder / 'b.bin').write_bytes(self.shard)
    if rng.random() < (0.2 if self.kind == 'index' else 0.6):
      self.write(rng)
    else:
      self.path.write_bytes(damage(self.whole, rng))


def touch(value: object, depth: int = 0) -> None:
  """Look at every array in a tree, where a wrong view would crash."""
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


def memory() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(kind: str, files: int, seed: int, folder: pathlib.Path, progress: mmap.mmap) -> dict:
  """Read `files` damaged files; counts by outcome."""
  canary = folder / 'canary'
  maker = Maker(kind, folder, canary)
  archive.state_dict(archive.read(maker.path))  # imports what reading imports
  events, reading = [], [False]

  def watch(event: str, args: tuple) -> None:
    # Python loads the code of a text encoding when it is first used.
    harmless = 'encodings' in str(args[0] if event == 'import' else args)
    risky = event.startswith(('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess',
                              'socket', 'exec', 'compile', 'import', 'ctypes', 'shutil', 'os.re'))
    if reading[0] and risky and not harmless:
      events.append(f'{event}{args!r:.200}')

  sys.addaudithook(watch)
  start = time.monotonic()
  counts, reasons, base = collections.Counter(), collections.Counter(), memory()
  slowest = 0.0
  for index in range(files):
    progress[:8] = struct.pack('<q', index)
    maker.next(random.Random(f'{seed} {kind} {index}'))
    began, before, cause = time.monotonic(), memory(), None
    try:
      signal.setitimer(signal.ITIMER_REAL, SECONDS)
      reading[0] = True
      contents = archive.read(maker.path)
      touch(contents.tree)
      archive.state_dict(contents)
      outcome = 'read'
    except archive.ArchiveError as error:
      outcome, cause = 'refused', error.__cause__
      named = str(error).startswith(str(maker.path))
    except TooSlow:
      outcome = 'hang'
    except Exception as error:
      outcome = type(error).__name__
    finally:
      reading[0] = False
      signal.setitimer(signal.ITIMER_REAL, 0)
    slowest = max(slowest, time.monotonic() - began)
    contents = None
    if outcome == 'refused':
      while cause is not None and not isinstance(cause, MemoryError):
        cause = cause.__cause__
      outcome = 'memory' if cause is not None else outcome if named else 'unnamed'
    if memory() - before > MEMORY:
      outcome = 'memory'
    if events or canary.exists():
      outcome = f'ran {sorted(set(events))}'
      events.clear()
      canary.unlink(missing_ok=True)
    counts[outcome] += 1
    if outcome not in ('read', 'refused'):
      reasons[f'{outcome} at {index}'] += 1
  other = files - counts['read'] - counts['refused']
  return dict(
    kind=kind, files=files, read=counts['read'], refused=counts['refused'], other=other,
    seconds=round(time.monotonic() - start, 1), slowest_ms=round(slowest * 1000, 1),
    grown_mb=(memory() - base) >> 20, details=[*reasons][:20])


def fuzz_apart(kind: str, files: int, seed: int) -> dict:
  """Reads a file in a process of its own, which may crash."""
  progress = mmap.mmap(-1, 16)
  with tempfile.TemporaryDirectory() as folder:
    result = pathlib.Path(folder) / 'result.json'
    child = os.fork()
    if not child:
      faulthandler.enable()
      used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * mmap.PAGESIZE
      resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEMORY,) * 2)

      def ring(*_):
        raise TooSlow
      signal.signal(signal.SIGALRM, ring)
      os.fsync = lambda file: None  # nothing here outlives the process
      work = pathlib.Path(folder) / 'files'
      work.mkdir()
      result.write_text(json.dumps(fuzz(kind, files, seed, work, progress)))
      os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
      index = struct.unpack('<q', progress[:8])[0]
      return dict(kind=kind, files=index + 1, read=0, refused=0, other=1, seconds=0, slowest_ms=0,
                  grown_mb=0, details=[f'crash at {index}, status {status}'])
    return json.loads(result.read_text())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  kinds = ('torchscript', 'torch zip', 'torch legacy', 'safetensors', 'index')
  parser.add_argument('--files', type=int, default=10_000, help='of each kind')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kind', choices=kinds, action='append')
  args = parser.parse_args()
  rows = [fuzz_apart(kind, args.files, args.seed) for kind in args.kind or kinds]
  columns = ('kind', 'files', 'read', 'refused', 'other', 'seconds', 'slowest_ms', 'grown_mb')
  print(' '.join(f'{name:>12}' for name in columns))
  for row in rows:
    print(' '.join(f'{row[name]!s:>12}' for name in columns))
  for row in rows:
    print(json.dumps(row))
  sys.exit(any(row['other'] for row in rows))


if __name__ == '__main__':
  main()
