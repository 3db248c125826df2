"""The house: who may import whom, and what never gets loaded."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOREIGN = {'torch', 'tensorflow', 'decord', 'transformers', 'configs', 'convert', 'benchmarks'}
# Who may import whom: one row a folder. What stands in a row may import the rows below it, itself,
# and what its own row lists to its right.
FLOORS = (
  ('cli',),
  ('planning', 'export'),
  ('training',),
  ('inference', 'reports', 'evaluation'),
  ('weights',),
  ('storage', 'text'),
  ('models',),
  ('parallel',),
  ('data',),
  ('assets', 'compilation_cache', 'config', 'files', 'errors', 'text_format'),
)
# Libraries that the modules of a folder (or of one module, named in full) may import.
LIBRARIES = {
  'cli': {'numpy', 'tqdm'},
  'cli.commands.train': {'absl'},
  'cli.commands.videos.vector_files': {'numpy', 'pyarrow'},
  'planning': {'jax', 'numpy', 'optax'},
  'export': {'jax', 'numpy', 'onnxruntime'},
  'export.onnx': {'jax', 'numpy', 'onnx'},
  'export.scripts': {'jax', 'numpy', 'onnxruntime'},
  'training': {'jax', 'jaxtyping', 'matplotlib', 'numpy', 'optax', 'tqdm'},
  'inference': {'cv2', 'jax', 'numpy'},
  'reports': {'jax', 'matplotlib', 'numpy'},
  'evaluation': {'jax', 'jaxtyping', 'numpy', 'tqdm'},
  'weights': {'huggingface_hub', 'jax', 'numpy'},
  'weights.configs': set(),
  'weights.export': {'numpy', 'tqdm'},
  'weights.files': {'numpy'},
  'weights.state_dicts': {'numpy'},
  'storage': {'etils', 'flax', 'jax', 'numpy', 'optax', 'orbax', 'tensorboardX'},
  'text': {'etils', 'ftfy', 'jax', 'numpy', 'regex'},
  'models': {'flax', 'jax', 'jaxtyping', 'numpy'},
  'parallel': {'jax', 'numpy'},
  'data': {'PIL', 'absl', 'array_record', 'av', 'cv2', 'etils', 'grain', 'numpy', 'tqdm'},
  'data.datasets.tables': {'pyarrow'},
  'data.datasets.tfds_source': {'numpy', 'tensorflow_datasets'},
  'data.tools.tfds_videos': {
    'absl', 'apache_beam', 'av', 'cv2', 'etils', 'numpy', 'tensorflow_datasets'},
  'data.tools.tfds_build': {'absl', 'apache_beam', 'tensorflow_datasets'},
  'export.tokenizer_json': {'ftfy', 'regex'},
  'text.tokenizer': {'ftfy', 'numpy', 'regex'},
  'compilation_cache': {'jax'},
  'config': {'absl', 'ml_collections'},
  'files': {'etils', 'fsspec', 'google', 'numpy'},
  'assets': set(),
  'errors': set(),
  'text_format': set(),
}


def floor_of(room):
  """The place of a folder: what it may import has a larger one, or is further right in its row."""
  for depth, row in enumerate(FLOORS):
    if room in row:
      return depth, row.index(room)
  return None


def sources(*places):
  found = [path for place in places for path in sorted((ROOT / place).rglob('*.py'))]
  return [*found, ROOT / 'train.py', ROOT / 'setup.py']


def module_of(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(path):
  """Names of all modules that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        file = ROOT / inner.replace('.', '/')
        yield inner if file.is_dir() or file.with_suffix('.py').exists() else node.module


HOUSE = [path for path in sources('xclip_jax', 'configs') if path.name != 'setup.py']


def room_of(module):
  parts = module.split('.')
  return parts[1] if parts[0] == 'xclip_jax' and len(parts) > 1 else parts[0]


@pytest.mark.parametrize('path', HOUSE, ids=module_of)
def test_imports_go_one_way(path):
  module = module_of(path)
  room = room_of(module)
  top = room in ('xclip_jax', 'train', 'configs')    # the public surface, a command line, recipes
  here = floor_of(room)
  assert top or here, f'{module} has no row in FLOORS'
  for name in imports(path):
    there = room_of(name)
    if there not in ('xclip_jax', 'configs') and name.split('.')[0] == 'xclip_jax':
      assert floor_of(there), f'{module} imports {name}, which has no row in FLOORS'
      assert top or there == room or floor_of(there) > here, f'{module} may not import {name}'
    assert there != 'configs' or room == 'configs', f'{module} may not import {name}'


@pytest.mark.parametrize('path', HOUSE, ids=module_of)
def test_a_folder_knows_few_libraries(path):
  module = module_of(path)
  inner = module.removeprefix('xclip_jax.')
  rows = [row for row in LIBRARIES if inner == row or inner.startswith(f'{row}.')]
  allowed = LIBRARIES[max(rows, key=len)] if rows else set()
  for name in imports(path):
    library = name.split('.')[0]
    if library in sys.stdlib_module_names or library in ('xclip_jax', 'configs'):
      continue
    assert library in allowed, f'{module} may not import {name}'
    assert library not in FOREIGN, f'{module}: {name}'


def test_folders_without_jax_stay_without():
  for room in ('data', 'config', 'files', 'errors', 'text.tokenizer'):
    assert not {'jax', 'flax'} & LIBRARIES[room]
  assert not any(FOREIGN & libraries for libraries in LIBRARIES.values())


def test_a_folder_holds_at_most_nine_files():
  for folder in [ROOT / 'xclip_jax', *(ROOT / 'xclip_jax').rglob('*/'), ROOT / 'configs']:
    files = [x.name for x in folder.glob('*.py') if x.name not in ('__init__.py', '__main__.py')]
    assert len(files) <= 9, f'{folder.relative_to(ROOT)} holds {len(files)} files'


def test_a_folder_says_which_question_it_answers():
  for file in sorted((ROOT / 'xclip_jax').rglob('*/__init__.py')):
    about = ast.get_docstring(ast.parse(file.read_text())) or ''
    assert about and len(about.splitlines()[0]) <= 100, file.parent.relative_to(ROOT)


def test_only_conversion_and_parity_tests_know_torch():
  for path in sources('xclip_jax', 'configs', 'convert', 'benchmarks', 'tests'):
    if {'torch', 'transformers'} & {name.split('.')[0] for name in imports(path)}:
      where = path.relative_to(ROOT).parts[0]
      parity = where == 'tests' and 'pytest.mark.parity' in path.read_text()
      assert where == 'convert' or parity, path


DISTRIBUTIONS = {  # where the name to install is not the name to import
  'PIL': 'pillow', 'absl': 'absl-py', 'apache_beam': 'apache-beam', 'array_record': 'array-record',
  'cv2': 'opencv-python-headless', 'google': 'google-cloud-storage', 'orbax': 'orbax-checkpoint',
  'tensorflow_datasets': 'tensorflow-datasets',
}


def test_every_library_that_is_imported_is_declared():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  name = lambda requirement: re.match(r'[\w.-]+', requirement)[0]
  default = {name(line) for line in project['dependencies']}
  extras = {key: set(map(name, lines)) for key, lines in project['optional-dependencies'].items()}
  own = {path.stem for x in ('tests', 'benchmarks') for path in (ROOT / x).glob('**/*.py')} | {
    'xclip_jax', 'configs', 'convert', 'benchmarks', 'setuptools'}
  missing = []
  for path in sources('xclip_jax', 'configs', 'convert', 'benchmarks', 'tests'):
    place = path.relative_to(ROOT).parts[0]
    allowed = default | (extras['test'] if place == 'tests' else set())
    if place in ('convert', 'tests'):  # which may: the test above
      allowed |= extras['parity']
    if path.stem.startswith('tfds_'):  # which says how to get it where it is missing
      allowed |= extras['beam']
    if path.stem in ('vector_files', 'tables'):    # likewise
      allowed |= extras['parquet']
    if 'export' in path.relative_to(ROOT).parts:     # likewise
      allowed |= extras['export']
    if path.stem == 'files':           # likewise
      allowed |= extras['gcs']
    if place == 'benchmarks':          # measured where somebody has installed them
      allowed |= {'decord', 'torchcodec'}
    for library in {module.split('.')[0] for module in imports(path)} - sys.stdlib_module_names:
      if library not in own and DISTRIBUTIONS.get(library, library) not in allowed:
        missing.append(f'{path.relative_to(ROOT)}: {library}')
  assert not missing


def test_no_file_is_long_and_none_is_a_corridor():
  for path in sources('xclip_jax', 'configs', 'convert', 'benchmarks', 'tests'):
    assert len(path.read_text().splitlines()) <= 420, path
    assert path.stem not in ('utils', 'helpers', 'common', 'misc', 'util'), path


def loaded_after(statement, *names):
  """Returns the names among `names` that a fresh interpreter has loaded after the statement."""
  code = f'import sys; {statement}; print([n for n in {names!r} if n in sys.modules])'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return ast.literal_eval(done.stdout.splitlines()[-1])


def test_data_workers_never_load_jax():
  modules = (
    'data', 'data.video.decode', 'data.clips.sampling', 'data.clips.augment',
    'data.datasets.annotations', 'text.tokenizer')
  statement = 'import ' + ', '.join(f'xclip_jax.{m}' for m in modules)
  names = ('jax', 'flax', 'torch', 'tensorflow', 'tensorflow_datasets')
  assert loaded_after(statement, *names) == []


def test_training_loads_neither_torch_nor_tensorflow():
  found = loaded_after(
    'import xclip_jax.training.run, xclip_jax.data.clips.pipeline',
    'jax', 'torch', 'tensorflow', 'decord', 'tensorflow_datasets',
  )
  assert found == ['jax']


def test_a_run_loads_no_plotting_before_it_writes_a_page():
  names = ('matplotlib', 'xclip_jax.reports.run_page')
  assert loaded_after('import xclip_jax.training.run, xclip_jax.evaluation.compare', *names) == []
