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
EVERYTHING = {'xclip_jax'}

# room: (libraries, rooms of the house) that its modules may import; the longest name counts.
MAY_IMPORT = {
  'configs': (set(), {'configs', 'xclip_jax.config'}),
  'xclip_jax.config': ({'ml_collections'}, set()),
  'train': ({'absl', 'ml_collections'}, {
    f'xclip_jax.{x}' for x in ('distributed', 'ending', 'stopping', 'train')}),
  'xclip_jax': (set(), set()),
  'xclip_jax.files': ({'etils', 'fsspec', 'google', 'numpy'}, set()),
  'xclip_jax.bucket_log': ({'etils'}, {'xclip_jax.files'}),
  'xclip_jax.paths': ({'jax'}, set()),
  'xclip_jax.sharding': ({'jax', 'numpy'}, {'xclip_jax.paths'}),
  'xclip_jax.tokenizer': ({'ftfy', 'numpy', 'regex'}, set()),
  'xclip_jax.models': ({'flax', 'jax', 'numpy'}, {'xclip_jax.models', 'xclip_jax.sharding'}),
  'xclip_jax.data': (
    {'PIL', 'absl', 'array_record', 'av', 'cv2', 'grain', 'numpy', 'tqdm'},
    {'xclip_jax.data', 'xclip_jax.files'}),
  'xclip_jax.data.tfds_source': ({'numpy', 'tensorflow_datasets'}, {'xclip_jax.data'}),
  'xclip_jax.data.tfds_videos': (
    {'absl', 'apache_beam', 'av', 'cv2', 'etils', 'numpy', 'tensorflow_datasets'},
    {'xclip_jax.data'},
  ),
  'xclip_jax.data.tfds_build': (
    {'absl', 'apache_beam', 'tensorflow_datasets'}, {'xclip_jax.data'}),
  'xclip_jax.weights': (
    {'huggingface_hub', 'jax', 'numpy'},
    {'xclip_jax.weights', 'xclip_jax.files', 'xclip_jax.models', 'xclip_jax.paths'},
  ),
  'xclip_jax.prompts': (
    {'etils', 'jax', 'numpy'}, {f'xclip_jax.{x}' for x in (
      'data', 'files', 'models', 'tokenizer')}),
  'xclip_jax.text_features': ({'jax'}, {'xclip_jax.models', 'xclip_jax.sharding'}),
  'xclip_jax.accumulation': ({'jax'}, set()),
  'xclip_jax.losses': ({'jax', 'numpy'}, set()),
  'xclip_jax.colors': ({'jax'}, set()),
  'xclip_jax.duration': (set(), set()),
  'xclip_jax.batch_sizes': (set(), set()),
  'xclip_jax.continuation': (set(), {'xclip_jax.duration', 'xclip_jax.paths'}),
  'xclip_jax.objective': ({'jax'}, {
    f'xclip_jax.{x}' for x in (
      'colors', 'data', 'losses', 'models', 'prompts', 'sharding', 'targets', 'text_features')}),
  'xclip_jax.regularize': ({'jax'}, {'xclip_jax.models', 'xclip_jax.objective'}),
  'xclip_jax.compilation_cache': ({'jax'}, set()),
  'xclip_jax.cluster': (set(), set()),
  'xclip_jax.ending': ({'jax'}, set()),
  'xclip_jax.stopping': (set(), {'xclip_jax.ending'}),
  'xclip_jax.distributed': ({'jax', 'numpy'}, {
    f'xclip_jax.{x}' for x in ('cluster', 'ending', 'stopping')}),
  'xclip_jax.run_lock': ({'etils', 'jax'}, {'xclip_jax.ending'}),
  'xclip_jax.metrics': (
    {'jax', 'numpy', 'tensorboardX'}, {'xclip_jax.bucket_log', 'xclip_jax.files'}),
  'xclip_jax.protocols': ({'numpy'}, set()),
  'xclip_jax.scores': ({'numpy'}, {f'xclip_jax.{x}' for x in ('files', 'metrics', 'protocols')}),
  'xclip_jax.style': ({'matplotlib', 'numpy'}, set()),
  'xclip_jax.curves': ({'matplotlib', 'numpy'}, {'xclip_jax.style'}),
  'xclip_jax.report': ({'matplotlib', 'numpy'}, {
    f'xclip_jax.{x}' for x in ('curves', 'files', 'metrics', 'style')}),
  'xclip_jax.targets': ({'numpy'}, {'xclip_jax.data', 'xclip_jax.tokenizer'}),
  'xclip_jax.evaluate_lists': ({'jax', 'matplotlib', 'numpy'}, EVERYTHING),
  'xclip_jax.eval_report': ({'matplotlib', 'numpy'}, {
    f'xclip_jax.{x}' for x in ('files', 'protocols', 'report', 'scores', 'style')}),
  'xclip_jax.optim': ({'jax', 'optax'}, {'xclip_jax.paths'}),
  'xclip_jax.state': ({'flax', 'jax', 'optax'}, {'xclip_jax.models', 'xclip_jax.paths'}),
  'xclip_jax.checkpoint': ({'etils', 'jax', 'orbax'}, {'xclip_jax.distributed',
    'xclip_jax.ending', 'xclip_jax.files', 'xclip_jax.models', 'xclip_jax.paths',
    'xclip_jax.state'}),
  'xclip_jax.progress': ({'jax', 'numpy'}, {
    f'xclip_jax.{x}' for x in (
      'checkpoint', 'distributed', 'ending', 'files', 'models', 'stopping')}),
  'xclip_jax.evaluate': ({'jax', 'numpy', 'tqdm'}, {
    f'xclip_jax.{x}' for x in (
      'data', 'distributed', 'files', 'losses', 'metrics', 'models', 'progress', 'prompts',
      'report', 'sharding', 'text_features', 'tokenizer', 'view_batches', 'weights')
  }),
  'xclip_jax.view_batches': ({'jax', 'numpy'}, set()),
  'xclip_jax.scorer': ({'jax', 'numpy'}, {
    f'xclip_jax.{x}' for x in (
      'data', 'distributed', 'losses', 'models', 'prompts', 'sharding', 'text_features',
      'tokenizer', 'view_batches', 'weights')}),
  'xclip_jax.evaluation_sets': (
    {'numpy'}, {'xclip_jax.data', 'xclip_jax.files', 'xclip_jax.scores'}),
  'xclip_jax.evaluation_average': (set(), {
    f'xclip_jax.{x}' for x in ('protocols', 'report', 'style')}),
  'xclip_jax.evaluation_results': ({'numpy'}, EVERYTHING),
  'xclip_jax.workdir': (
    {'etils', 'jax'}, {f'xclip_jax.{x}' for x in (
      'config', 'continuation', 'data', 'distributed', 'files', 'prompts')}),
  'xclip_jax.train': ({'jax', 'numpy', 'optax', 'tqdm'}, EVERYTHING),
  'xclip_jax.finetune': ({'jax', 'numpy'}, EVERYTHING),
  'xclip_jax.finetune_cli': (set(), {f'xclip_jax.{x}' for x in (
    'answers', 'data', 'evaluation_sets', 'finetune', 'inference')}),
  'xclip_jax.inference': ({'cv2', 'jax', 'numpy'}, EVERYTHING),
  'xclip_jax.windows': ({'jax', 'numpy'}, {
    f'xclip_jax.{x}' for x in ('data', 'inference', 'losses')}),
  'xclip_jax.flops': (set(), {'xclip_jax.models'}),
  'xclip_jax.compiled': (set(), set()),
  'xclip_jax.plan': ({'jax', 'optax'}, {f'xclip_jax.{x}' for x in (
    'compiled', 'data', 'evaluate', 'flops', 'optim', 'regularize', 'sharding', 'state', 'train')}),
  'xclip_jax.rehearsal': ({'jax', 'numpy'}, {f'xclip_jax.{x}' for x in (
    'regularize', 'sharding', 'targets', 'train', 'view_batches')}),
  'xclip_jax.plan_cli': (set(), {f'xclip_jax.{x}' for x in (
    'answers', 'config', 'plan', 'rehearsal', 'sharding')}),
  'xclip_jax.answers': ({'tqdm'}, set()),
  'xclip_jax.data_cli': (
    {'tqdm'}, {'xclip_jax.answers', 'xclip_jax.data', 'xclip_jax.report'}),
  'xclip_jax.weights_curve': ({'matplotlib', 'numpy'}, {f'xclip_jax.{x}' for x in (
    'evaluation_sets', 'protocols', 'report', 'scorer', 'scores', 'sharding', 'style', 'weights')}),
  'xclip_jax.weights_cli': (set(), {f'xclip_jax.{x}' for x in (
    'answers', 'evaluation_sets', 'inference', 'weights', 'weights_curve')}),
  'xclip_jax.eval_cli': (set(), {
    f'xclip_jax.{x}' for x in (
      'answers', 'cluster', 'data', 'distributed', 'ending', 'eval_report', 'evaluation_average',
      'evaluation_results', 'evaluation_sets', 'inference', 'scorer', 'sharding')}),
  'xclip_jax.cli': ({'jax', 'numpy', 'tqdm'}, EVERYTHING),
}


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


def inside(module, rooms):
  return any(module == room or module.startswith(f'{room}.') for room in rooms)


HOUSE = [path for path in sources('xclip_jax', 'configs') if path.name != 'setup.py']


@pytest.mark.parametrize('path', HOUSE, ids=module_of)
def test_imports_go_one_way(path):
  module = module_of(path)
  rooms = [room for room in MAY_IMPORT if module == room or module.startswith(f'{room}.')]
  room = max(rooms, key=len)
  assert room != 'xclip_jax' or module == 'xclip_jax', f'{module} has no row in MAY_IMPORT'
  libraries, own = MAY_IMPORT[room]
  for name in imports(path):
    top = name.split('.')[0]
    if top in sys.stdlib_module_names:
      continue
    allowed = inside(name, own) if top in ('xclip_jax', 'configs') else top in libraries
    assert allowed, f'{module} may not import {name}'
    assert module == 'train' or room == 'configs' or top not in FOREIGN, f'{module}: {name}'


def test_each_row_of_the_table_forbids_what_the_house_forbids():
  for room, (libraries, own) in MAY_IMPORT.items():
    if room.startswith('xclip_jax'):
      assert not FOREIGN & (libraries | own), room
  assert 'jax' not in MAY_IMPORT['xclip_jax.data'][0] | MAY_IMPORT['xclip_jax.tokenizer'][0]


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
  """Which of `names` a fresh interpreter has loaded after the statement."""
  code = f'import sys; {statement}; print([n for n in {names!r} if n in sys.modules])'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return ast.literal_eval(done.stdout.splitlines()[-1])


def test_data_workers_never_load_jax():
  modules = ('data', 'data.decode', 'data.sampling', 'data.source', 'data.augment', 'tokenizer')
  statement = 'import ' + ', '.join(f'xclip_jax.{m}' for m in modules)
  names = ('jax', 'flax', 'torch', 'tensorflow', 'tensorflow_datasets')
  assert loaded_after(statement, *names) == []


def test_training_loads_neither_torch_nor_tensorflow():
  found = loaded_after(
    'import xclip_jax.train, xclip_jax.data.pipeline', 'jax', 'torch', 'tensorflow', 'decord',
    'tensorflow_datasets',
  )
  assert found == ['jax']
