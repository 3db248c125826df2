"""benchmarks/gpu.sh and tpu.sh: one prepared command for the first minutes on a device."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.hardware import results as hardware_results
from benchmarks.hardware import rows as hardware_rows
from benchmarks.hardware import run as hardware
from benchmarks.hardware import speed as hardware_speed
from benchmarks.hardware import tables as hardware_tables
from benchmarks.hardware.rows import Row
from xclip_jax import config as run_config
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.models.config import make_config
from xclip_jax.models.xclip import XCLIP
from xclip_jax.planning import flops, plan
from xclip_jax.storage import state as state_lib
from xclip_jax.training import optimizer as optimizer_lib
from xclip_jax.training import step as step_lib

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ROOT / 'tests/programs'
# Importable on a machine with all of this package, not on a bare one.
ABSENT = (
  'PIL', 'array_record', 'av', 'cv2', 'ftfy', 'grain', 'huggingface_hub', 'matplotlib',
  'ml_collections', 'optax', 'orbax', 'regex', 'safetensors', 'tensorboardX',
  'tensorflow_datasets', 'torch', 'tqdm', 'transformers')


@pytest.fixture
def bare(tmp_path):
  """Returns the environment of a machine with jax, flax and numpy alone: no other import works."""
  folder = tmp_path / 'bare'
  folder.mkdir()
  shutil.copy(PROGRAMS / 'hide_packages.py', folder / 'sitecustomize.py')
  return os.environ | {
    'PYTHONPATH': str(folder), 'PYTHON': sys.executable, 'ABSENT_PACKAGES': ' '.join(ABSENT)}


def infer_row(**changes) -> Row:
  settings = hardware_rows.speed_settings('B/16', 'infer', 'float32', 'xla', True) | changes
  return Row('B/16 infer float32 xla', 'speed', settings)


def measure(path, groups, seconds=600):
  run = hardware.Run('gpu', True, hardware_results.Results(path), seconds)
  with contextlib.closing(run):
    code = run.measure(groups)
  return code, [json.loads(line) for line in path.read_text().splitlines()]


def record(**changes):
  return {'row': 'B/16 infer bfloat16 cudnn', 'date': '2026-01-02', 'platform': 'gpu',
          'device': 'NVIDIA H100 80GB HBM3', 'jax': '0.10.2', 'flax': '0.12.8', 'commit': 'abc',
          'tiny': False, 'status': 'ok'} | changes


# --- what is measured ---------------------------------------------------------------------------


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_the_most_valuable_rows_come_first(platform):
  rows = [row for group in hardware_rows.plan(platform) for row in group]
  names = [row.name for row in rows]
  assert len(set(names)) == len(names)
  is_check = [row.kind in ('goldens', 'attention', 'dtypes') for row in rows]
  assert is_check == sorted(is_check, reverse=True) and is_check[0]          # correctness first
  fastest = hardware_rows.ATTENTION[platform][0]
  order = [row.settings['model']['attention'] for row in rows if row.kind == 'speed']
  assert order[:6] == 6 * [fastest] and fastest not in order[6:]
  for variant in hardware_rows.VARIANTS:
    for step in ('infer', 'train'):
      for name in hardware_rows.ATTENTION[platform]:
        assert f'{variant} {step} bfloat16 {name}' in names
  assert ('transformers B/16 train bfloat16' in names) == (platform == 'gpu')


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_rows_of_a_process_need_more_memory_one_after_the_other(platform):
  for group in hardware_rows.plan(platform):
    steps = [row.settings['step'] for row in group if row.kind == 'speed']
    assert steps == sorted(steps)                # infer, then train: the peak is each row's own


def test_batches_fit_smaller_devices_in_proportion():
  settings = hardware_rows.speed_settings('B/16', 'train', 'bfloat16', 'xla', False)
  sizes = {gib: hardware_rows.batch_size(settings, int(gib * 2**30))
           for gib in (140, 73, 36, 15.7, 0.1)}
  assert sizes == {140: 64, 73: 64, 36: 32, 15.7: 8, 0.1: 1}
  assert hardware_rows.batch_size(settings, None) == 64


def test_peaks_are_those_of_plan():
  kinds = {'v4': 'TPU v4', 'v5e': 'TPU v5 lite', 'v5p': 'TPU v5', 'v6e': 'TPU v6 lite'}
  for name, kind in kinds.items():
    assert hardware_speed.published_peak(kind) == plan.CHIPS[name].peak
  assert hardware_speed.published_peak('NVIDIA H100 80GB HBM3') == 989e12
  assert hardware_speed.published_peak('NVIDIA H100 PCIe') == 756e12
  assert hardware_speed.published_peak('NVIDIA A100-SXM4-80GB') == 312e12
  assert hardware_speed.published_peak('NVIDIA L4') == 121e12
  assert hardware_speed.published_peak('NVIDIA L40S') is None
  assert hardware_speed.published_peak('cpu') is None


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['optax', 'plain'])
def test_the_timed_training_step_is_that_of_a_run(optimizer, monkeypatch):
  fields = hardware_rows.model_fields('B/16', True)
  model, B, K = XCLIP(make_config(**fields)), 4, 7
  params = hardware_speed.draw_params(model)
  rng = np.random.default_rng(0)
  batch = {'video': rng.integers(0, 256, (B, 8, 32, 32, 3), np.uint8),
           'label': rng.integers(0, K, B, np.int32), 'mask': np.array([1, 1, 1, 0], bool)}
  text = rng.standard_normal((K, 32), np.float32)
  # Large enough a rate that a wrong update shows, and an epsilon that keeps rounding out of it.
  changed = {'lr': 1e-2, 'eps': 1e-3}
  monkeypatch.setattr(hardware_speed, 'OPTIM', SimpleNamespace(
    **vars(hardware_speed.OPTIM) | changed))
  with monkeypatch.context() as without:
    if optimizer == 'plain':
      without.setitem(sys.modules, 'optax', None)
    init, update, name = hardware_speed.make_optimizer(params)
  assert name == optimizer
  ours = jax.jit(hardware_speed.make_train_step(model, update))

  c = run_config.get_config()
  c.augment.mixup = c.augment.cutmix = 0.0
  c.optim.update(changed | {'floor': 1.0, 'groups': ((r'.*', 1.0),), 'lag_steps': 0})
  tx, _ = optimizer_lib.make(c.optim, params, 1000, 0, 1, freeze_text=True)
  names = ClassList(tuple(f'class {k}' for k in range(K)), (None,) * K)
  theirs = jax.jit(step_lib.make_train_step(step_lib.StepParts(model, tx, c, names)))

  state, run = (params, init(params)), state_lib.create(params, tx)
  for _ in range(2):
    state, metrics = ours(state, batch, text)
    run, want = theirs(run, batch, text, jax.random.key(0))
    np.testing.assert_allclose(metrics['loss'], want['loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics['grad_norm'], want['grad_norm'], rtol=1e-4)
  moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), params, run.params)
  assert moved['vision']['patch_embed']['kernel'] > 1e-3 and not any(
    jax.tree.leaves(moved['text'])) and not moved['logit_scale']
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), state[0], run.params)


def test_operations_are_those_that_flops_counts():
  config = make_config(**hardware_rows.model_fields('B/16', True))
  assert hardware_speed.build(infer_row().settings, 3).flops == 3 * (
    flops.encode_video(config) + flops.classify(config, 7))


# --- on what machine ----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_timed_needs_jax_flax_and_numpy_alone(bare, tmp_path):
  rows = [
    {'kind': 'goldens', 'settings': {'dtype': 'float32', 'precision': 'highest'}},
    infer_row()._asdict()]
  done = subprocess.run(
    [sys.executable, PROGRAMS / 'answer_hardware_rows.py', ROOT, json.dumps(rows)], env=bare,
    cwd=tmp_path, text=True, capture_output=True, timeout=300)
  assert done.returncode == 0, done.stderr
  statuses, (optimizer, version), loaded = map(json.loads, done.stdout.splitlines()[-3:])
  assert statuses == ['ok', 'ok'] and optimizer == 'plain' and version and loaded == []


@pytest.mark.parametrize(('platform', 'hint'), [('gpu', 'nvidia-smi'), ('tpu', 'TPU VM')])
def test_without_the_device_one_message_says_what_to_do(platform, hint, tmp_path):
  done = subprocess.run(
    [ROOT / f'benchmarks/{platform}.sh', '--output', tmp_path / 'x.jsonl'], text=True,
    capture_output=True, env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHON': sys.executable},
    timeout=300)
  assert done.returncode == 2 and hint in done.stderr and '--tiny' in done.stderr
  assert f'JAX finds no {platform.upper()}' in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'x.jsonl').exists()


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_row_out_of_memory_or_out_of_time_does_not_end_the_run(tmp_path):
  path = tmp_path / 'rows.jsonl'
  groups = [
    [infer_row(batch=10**11)._replace(name='huge'), infer_row()],
    [infer_row()._replace(name='slow', limit=0.01)],
    [infer_row(classes='many')._replace(name='broken'), infer_row()._replace(name='last')]]
  code, rows = measure(path, groups)
  found = {row['row']: row for row in rows}
  assert {name: row['status'] for name, row in found.items()} == {
    'huge': 'out of memory', 'B/16 infer float32 xla': 'ok', 'slow': 'error', 'broken': 'error',
    'last': 'ok'}
  assert code == 1                                             # there were errors
  assert found['slow']['reason'] == 'took longer than 0.01 s'
  assert found['last']['videos_per_second'] > 0 and found['last']['compiled_bytes'] > 0
  # Again: what is done is not, and what went wrong is, and may be right now.
  code, again = measure(path, [[row._replace(limit=120) for row in group if row.name != 'broken']
                               for group in groups])
  assert [row['row'] for row in again[len(rows):]] == ['slow'] and again[-1]['status'] == 'ok'
  assert code == 0


@pytest.mark.slow
def test_rows_beyond_the_deadline_are_written_as_not_run(tmp_path):
  path = tmp_path / 'rows.jsonl'
  code, rows = measure(path, [[infer_row()]], seconds=6)
  assert [(row['status'], row['reason']) for row in rows] == [
    ('not run', 'the 0.1 minutes were over')]
  assert measure(path, [[infer_row()]], seconds=6)[1] == rows and code == 0       # once
  assert [row['status'] for row in measure(path, [[infer_row()]])[1]] == ['not run', 'ok']


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
  path = tmp_path / 'rows.jsonl'
  results, row = hardware_results.Results(path), infer_row()
  about = {'device': 'cpu', 'status': 'ok'}
  results.add(row, about)
  results.add(row._replace(name='cut'), about)
  path.write_bytes(path.read_bytes()[:-30])
  results = hardware_results.Results(path)
  groups = [[row, row._replace(name='cut')]]
  assert [x.name for group in results.missing(groups, 'cpu') for x in group] == ['cut']
  assert len(results.missing(groups, 'another device')[0]) == 2
  results.add(row._replace(name='cut'), about)
  assert [x['row'] for x in hardware_results.read(path)] == [row.name, 'cut']


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_the_command_ends_well_on_a_bare_machine_also_when_it_was_killed(platform, bare, tmp_path):
  path = tmp_path / 'rows.jsonl'
  command = [ROOT / f'benchmarks/{platform}.sh', '--tiny', '--output', path]
  bare['JAX_COMPILATION_CACHE_DIR'] = str(tmp_path / 'compiled')
  first = subprocess.Popen(command, env=bare, stdout=subprocess.PIPE, text=True)
  for line in first.stdout:
    if line.startswith('ok'):
      break
  workers = children(first.pid)
  assert workers
  first.send_signal(signal.SIGKILL)
  first.wait()
  until = time.monotonic() + 60
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in workers):
    assert time.monotonic() < until, 'a process still holds the device'
    time.sleep(0.1)
  written = hardware_results.read(path)
  assert written
  done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stdout + done.stderr
  rows = hardware_results.read(path)
  assert rows[:len(written)] == written
  names = [row.name for group in hardware_rows.plan(platform, True) for row in group]
  assert sorted(names) == sorted(row['row'] for row in rows)              # each once
  found = {row['row']: row for row in rows}
  absent = {name for name in names if 'cudnn' in name or 'transformers' in name}
  assert {name for name in names if found[name]['status'] == 'not run'} == absent
  assert {found[name]['status'] for name in names if name not in absent} == {'ok'}
  assert found['B/16 train bfloat16 chunked']['optimizer'] == 'plain'
  assert path.with_suffix('.xplane.pb').stat().st_size > 1000


def children(pid):
  """Ids of the processes that a process started."""
  found = []
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      if stat.read_text().rpartition(')')[2].split()[1] == str(pid):
        found.append(int(stat.parent.name))
  return found


# --- what is published --------------------------------------------------------------------------


def test_the_tables_of_docs_are_made_from_result_files():
  page = (ROOT / 'docs/speed.md').read_text()
  records = hardware_tables.measured(ROOT / 'benchmarks/results')
  assert hardware_tables.insert(page, hardware_tables.make(records)) == page, (
    'run python benchmarks/hardware/tables.py --write')


def test_tables_say_what_was_measured_and_what_was_not(tmp_path):
  speed = {'batch': 128, 'ms': 99.5, 'videos_per_second': 1286.4, 'mfu': 0.412,
           'compile_seconds': 31.2, 'peak_bytes': 5 * 2**30, 'compiled_bytes': 4 * 2**30}
  lines = [
    record(status='error', reason='a | b'), record(**speed),           # the last one counts
    record(row='transformers B/16 infer bfloat16', videos_per_second=900.0),
    record(row='L/14 train bfloat16 cudnn', status='out of memory'),
    record(row='B/32 train bfloat16 cudnn', status='error', reason='a | b'),
    record(row='goldens bfloat16', status='failed', passed=False, bounds={'x': 0.1, 'y': 0.1},
           errors={'x': 0.01, 'y': None}),
    record(row='goldens float32', passed=True, bounds={'x': 2e-5}, errors={'x': 1e-6})]
  (tmp_path / '2026-01-02_gpu.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  (tmp_path / '2026-01-03_gpu.jsonl').write_text('\n'.join(map(json.dumps, [
    record(tiny=True, status='error'), record(platform='cpu', device='cpu')])) + '\n')
  table = hardware_tables.make(hardware_tables.measured(tmp_path))
  assert '| B/16 infer bfloat16 cudnn | 128 | 1286.4 | 99.5 | 41% | 5.00 | 31 | 900.0 |' in table
  assert '| L/14 train bfloat16 cudnn | | out of memory | | | | | |' in table
  assert '| B/32 train bfloat16 cudnn | | error: a / b | | | | | |' in table
  assert '| B/32 infer bfloat16 cudnn | | not run | | | | | |' in table
  assert '| goldens bfloat16 | nan (y) | 1e-01 | **failed** |' in table
  assert '| goldens float32 | 1.0e-06 (x) | 2e-05 | passed |' in table
  assert '### cpu' not in table and '### NVIDIA H100\n' not in table
  assert '| all 23 of `benchmarks/tpu.sh` | not run |' in table


def test_a_page_without_markers_is_an_error():
  with pytest.raises(ValueError, match='once each, in this order'):
    hardware_tables.insert(f'{hardware_tables.END} {hardware_tables.BEGIN}', '')
