"""Checks and times this repository on one GPU or TPU chip, in a few minutes.

  benchmarks/gpu.sh                     # or benchmarks/tpu.sh; 8 minutes at most
  benchmarks/gpu.sh --tiny              # on the CPU, with models of no size: does it run at all?
  benchmarks/gpu.sh --prepare 3.12      # on a machine with a network: fetch Flax for Python 3.12

The machine needs jax (with its plugin), flax and numpy. Correctness comes first, then speed and
memory, then the same models in transformers where torch is installed (GPU). Every row is written as
soon as it is measured. The same command again measures what is missing.
"""

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.hardware import rows as hardware_rows  # noqa: E402
from benchmarks.hardware import wheels as hardware_wheels  # noqa: E402
from benchmarks.hardware.process import Ended, Process, TimeUp  # noqa: E402
from benchmarks.hardware.results import Results, describe  # noqa: E402

START_LIMIT = 120            # seconds for a process to import JAX and find its device
LEAST_SECONDS = 10           # that a row is started with


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('platform', choices=('gpu', 'tpu'), help=argparse.SUPPRESS)
  parser.add_argument('--minutes', type=float, default=8, help='time limit (default: 8)')
  parser.add_argument('--output', type=Path, metavar='FILE',
                      help='JSON lines, read first and added to (default: benchmarks/results/'
                           'DATE_PLATFORM.jsonl)')
  parser.add_argument('--only', metavar='TEXT', help="rows with this in their name, e.g. 'B/16'")
  parser.add_argument('--tiny', action='store_true', help='models of no size, on the CPU')
  parser.add_argument('--prepare', metavar='VERSION',
                      help='fetch wheels for a machine with this Python and no network, and end')
  arguments = parser.parse_args()
  if arguments.prepare:
    return hardware_wheels.prepare(arguments.prepare)
  hardware_wheels.unpack()
  folder = ROOT / ('runs/hardware' if arguments.tiny else 'benchmarks/results')
  output = arguments.output or folder / f'{time.strftime("%Y-%m-%d")}_{arguments.platform}.jsonl'
  groups = [[row for row in group if (arguments.only or '') in row.name]
            for group in hardware_rows.plan(arguments.platform, arguments.tiny)]
  if not any(groups):
    parser.error(f'--only {arguments.only!r}: no row has that in its name')
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
  run = Run(arguments.platform, arguments.tiny, Results(output), 60 * arguments.minutes)
  try:
    return run.measure(groups)
  finally:
    run.close()


class Run:
  """Measures rows in one worker process after the other, until all rows or the time are done."""

  def __init__(self, platform: str, tiny: bool, results: Results, seconds: float):
    self.platform, self.tiny, self.results = platform, tiny, results
    self.minutes, self.deadline = seconds / 60, time.monotonic() + seconds
    self.environment = environment(platform, tiny)
    self.worker: Process | None = None

  def measure(self, groups: list[list[hardware_rows.Row]]) -> int:
    """Measures what `results` lacks; returns 1 if a row failed in this call or before, else 0."""
    try:
      about = self.start(START_LIMIT)
    except (TimeUp, Ended) as error:
      about = {'unusable': f'JAX did not start: {error}'}
    if 'unusable' in about:
      print(f'benchmarks/{self.platform}.sh: {about["unusable"]}. {self.advice()}', file=sys.stderr)
      return 2
    about |= {'commit': commit(), 'tiny': self.tiny}
    print(f'{about["device"]}, jax {about["jax"]}, flax {about["flax"]}: {self.results.path}',
          flush=True)
    for group in self.results.missing(groups, about['device']):
      for row in group:
        begun = time.monotonic()
        answer = self.answer(row)
        written = self.results.add(row, about | answer | {
          'seconds': round(time.monotonic() - begun, 1)})
        print(describe(written), flush=True)
      self.close()                       # the next model has the memory, and its peak, for itself
    return self.results.summary([row for group in groups for row in group], about['device'])

  def answer(self, row: hardware_rows.Row) -> dict[str, Any]:
    """Measures a row within its limit and the time that is left; what goes wrong is an answer."""
    left = self.deadline - time.monotonic()
    if left < LEAST_SECONDS:
      return {'status': 'not run', 'reason': f'the {self.minutes:g} minutes were over'}
    try:
      return self.peer(row, left) if row.kind == 'peer' else self.ask(row, min(left, row.limit))
    except TimeUp:
      self.close()
      if left < row.limit:
        return {'status': 'not run', 'reason': f'cut off: the {self.minutes:g} minutes were over'}
      return {'status': 'error', 'reason': f'took longer than {row.limit:g} s'}
    except Ended as ended:
      self.close()
      return {'status': 'error', 'reason': str(ended)}

  def ask(self, row: hardware_rows.Row, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    if self.worker is None:
      about = self.start(seconds)
      if 'unusable' in about:
        raise Ended(about['unusable'])
    answer = self.worker.ask(
      json.dumps({'kind': row.kind, 'settings': row.settings,
                  'profile': str(self.results.path.with_suffix('.xplane.pb'))}),
      deadline - time.monotonic())
    if answer['status'] in ('error', 'out of memory'):
      self.close()                       # what is left in its memory must not disturb the next row
    return answer

  def start(self, seconds: float) -> dict[str, Any]:
    """Starts a process that has the device, and returns what it says about the device."""
    expected = 'cpu' if self.tiny else self.platform
    self.worker = Process(
      [sys.executable, str(ROOT / 'benchmarks/hardware/worker.py'), expected], self.environment)
    return self.worker.receive(seconds)

  def peer(self, row: hardware_rows.Row, left: float) -> dict[str, Any]:
    """Times transformers on the same device, by convert/time_peer.py in a process of its own."""
    missing = [name for name in ('torch', 'transformers') if importlib.util.find_spec(name) is None]
    if missing:
      return {'status': 'not run', 'reason': f'{" and ".join(missing)} not installed'}
    self.close()
    settings, limit = row.settings, min(left, row.limit)
    model = dict(settings['model'])
    variant, frames = model.pop('variant'), model.pop('num_frames')
    fields = {k: v for k, v in model.items() if k not in ('dtype', 'residual_dtype')}
    batch = hardware_rows.batch_size(settings, self.results.memory_limit)
    self.worker = Process([
      sys.executable, '-m', 'convert.time_peer', '--variant', variant, '--frames', str(frames),
      '--fields', json.dumps(fields), '--batch', str(batch), '--step', settings['step'],
      '--classes', str(settings['classes']), '--dtype', 'bfloat16', '--how', settings['how']],
      self.environment | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'})
    deadline = time.monotonic() + limit
    ready = self.worker.receive(limit)
    if not self.tiny and ready['device'] != 'cuda':
      self.close()
      return {'status': 'not run', 'reason': f'torch finds no GPU, only {ready["device"]}'}
    self.worker.ask('2', deadline - time.monotonic())          # warm-up
    timed = self.worker.ask('10', deadline - time.monotonic())
    self.close()
    median = statistics.median(timed['seconds'])
    return {
      'status': 'ok', 'batch': batch, 'ms': 1e3 * median, 'ms_best': 1e3 * min(timed['seconds']),
      'ms_slowest': 1e3 * max(timed['seconds']), 'steps': len(timed['seconds']),
      'videos_per_second': batch / median, 'compile_seconds': ready['first_seconds'],
      'peak_bytes': timed['device_peak_bytes'],
      'peer': f'{ready["peer"]}, {ready["attention"]} attention'}

  def close(self) -> None:
    if self.worker is not None:
      self.worker.close()
      self.worker = None

  def advice(self) -> str:
    if self.platform == 'gpu':
      return ("Is there an NVIDIA GPU (nvidia-smi), and are jax[cuda12] or jax[cuda13], flax and "
              "numpy installed? Try it on the CPU: --tiny. Flax without a network: --prepare")
    return ('Is this a TPU VM, are jax[tpu], flax and numpy installed, and does no other process '
            'hold the chip? Try it on the CPU: --tiny. Flax without a network: --prepare')


def environment(platform: str, tiny: bool) -> dict[str, str]:
  """Returns the variables of the processes; those that are set already win, but for `tiny`."""
  defaults = {
    'JAX_COMPILATION_CACHE_DIR': str(ROOT / 'runs/hardware/compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5', 'TF_CPP_MIN_LOG_LEVEL': '2'}
  if platform == 'gpu':
    # Without preallocation the peak is what a step needs, and torch finds the GPU empty.
    defaults |= {'JAX_PLATFORMS': 'cuda', 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
                 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92'}
  else:
    # One chip, also on a host of a pod, which would wait for the other hosts.
    defaults |= {'JAX_PLATFORMS': 'tpu', 'TPU_VISIBLE_CHIPS': '0', 'TPU_PROCESS_BOUNDS': '1,1,1',
                 'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1'}
  chosen = defaults | os.environ
  if tiny:
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'
    chosen |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags.strip(), 'CUDA_VISIBLE_DEVICES': ''}
  return chosen


def commit() -> str | None:
  """Returns the commit of this checkout, with '+' if files differ from it; None without git."""
  git = ['git', '-C', str(ROOT)]
  try:
    name = subprocess.check_output([*git, 'rev-parse', '--short=12', 'HEAD'], text=True,
                                   stderr=subprocess.DEVNULL).strip()
    changed = subprocess.check_output([*git, 'status', '--porcelain', '--untracked-files=no'],
                                      stderr=subprocess.DEVNULL)
  except (OSError, subprocess.CalledProcessError):
    return None
  return name + ('+' if changed else '')


if __name__ == '__main__':
  sys.exit(main())
