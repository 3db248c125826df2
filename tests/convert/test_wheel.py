"""A wheel holds the package, its assets and the published configs, and nothing else."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel of this checkout; pip fetches setuptools for it, as `pip install .` does."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  tracked = subprocess.run(
    ['git', 'ls-files', '-z', 'xclip_jax', 'configs', 'pyproject.toml', 'setup.py', 'README.md',
     'LICENSE', 'NOTICE'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
  for name in filter(None, tracked.split('\0')):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, source / name)
  done = subprocess.run(
    [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '-q', '-w', folder, source],
    capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  file, = folder.glob('*.whl')
  return file


def test_a_wheel_holds_package_assets_and_configs(wheel):
  held = {x for x in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in x}
  modules = {x.relative_to(ROOT).as_posix() for x in (ROOT / 'xclip_jax').rglob('*.py')}
  configs = {f'xclip_jax/configs/{x.name}' for x in (ROOT / 'configs').glob('*.py')}
  assert held >= modules | configs | {'xclip_jax/py.typed', 'xclip_jax/assets/bpe_merges.txt.gz'}
  other = held - modules - configs - {'xclip_jax/py.typed'}
  assert all(x.startswith('xclip_jax/assets/') for x in other), other


def test_an_unpacked_wheel_has_the_published_configs(wheel, tmp_path):
  zipfile.ZipFile(wheel).extractall(tmp_path)
  code = ('import xclip_jax; from xclip_jax.config import published; '
          'print(xclip_jax.__file__, published.path("demo"), *published.names(), '
          'published.load("k400_b16_8f").model.variant, published.load("demo").train.steps)')
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, env={'PYTHONPATH': str(tmp_path)},
    capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  file, demo, *names, variant, steps = done.stdout.split()
  assert file == str(tmp_path / 'xclip_jax/__init__.py')
  assert demo == str(tmp_path / 'xclip_jax/configs/demo.py')
  assert len(names) == 18 and (variant, steps) == ('B/16', '1200')
