"""Flax for a machine that has JAX and no network: wheels fetched beforehand, unpacked there."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = Path(__file__).resolve().parents[1] / '.wheels'
# What `import flax.linen` and optax import, without JAX and numpy, which the machine has. Later
# releases of Flax want a later JAX than the machine may have.
PACKAGES = (
  'flax==0.12.8', 'optax>=0.2.6,<0.3', 'absl-py', 'etils', 'msgpack', 'PyYAML', 'rich',
  'markdown-it-py', 'mdurl', 'pygments', 'typing_extensions')


def prepare(python: str) -> int:
  """Fetches wheels into benchmarks/.wheels for a Python version; returns pip's exit code."""
  shutil.rmtree(WHEELS, ignore_errors=True)
  code = subprocess.call([
    sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:',
    '--python-version', python, '--dest', str(WHEELS), *PACKAGES])
  if not code:
    print(f'{len(list(WHEELS.glob("*.whl")))} wheels in {WHEELS}: copy this checkout with them')
  return code


def unpack() -> None:
  """Unpacks the wheels, if any, into the folder where the worker looks last for packages."""
  site = WHEELS / 'site'
  if site.exists():
    return
  wheels, unfinished = sorted(WHEELS.glob('*.whl')), WHEELS / 'unfinished'
  for wheel in wheels:
    with zipfile.ZipFile(wheel) as archive:
      archive.extractall(unfinished)
  if wheels:
    unfinished.rename(site)
