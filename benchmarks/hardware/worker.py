"""Answers rows of benchmarks/hardware/run.py on the device: JSON in, JSON out, a line each.

The first line out says what the device is. The process ends with its standard input, whatever it is
doing then: a process that outlived the program that started it would keep the device.
"""

import gc
import importlib.util
import json
import os
import queue
import sys
import threading
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / 'benchmarks/.wheels/site'))      # last: what is installed comes first
VERSIONS = ('jax', 'jaxlib', 'flax', 'numpy')


def main() -> None:
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)                                 # libraries print to 1: answers have their own pipe
  platform = sys.argv[1]
  about = describe(platform)
  send(answers, about)
  if 'unusable' in about:
    return
  asked: queue.Queue[str] = queue.Queue()
  threading.Thread(target=read_rows, args=(asked,), daemon=True).start()
  while True:
    send(answers, answer(json.loads(asked.get())))
    gc.collect()                                # arrays of this row leave the device


def send(answers: TextIO, value: dict[str, Any]) -> None:
  print(json.dumps(value), file=answers, flush=True)


def read_rows(asked: queue.Queue) -> None:
  for line in sys.stdin:
    asked.put(line)
  os._exit(0)


def describe(platform: str) -> dict[str, Any]:
  """Returns device and versions, or under 'unusable' why no row can be measured here.

  Args:
    platform: 'gpu', 'tpu' or 'cpu', which JAX must have found.
  """
  missing = [name for name in ('jax', 'flax', 'numpy') if importlib.util.find_spec(name) is None]
  if missing:
    return {'unusable': f'{", ".join(missing)} is not installed for {sys.executable}'}
  import jax
  try:
    devices = jax.devices()
  except RuntimeError as error:
    return {'unusable': f'JAX finds no {platform.upper()}: {error}'}
  if devices[0].platform != platform:
    return {'unusable': f'JAX finds no {platform.upper()}, only {devices[0].device_kind!r}'}
  stats = devices[0].memory_stats() or {}
  return {
    'platform': platform, 'device': devices[0].device_kind, 'devices': len(devices),
    'memory_limit': stats.get('bytes_limit'), 'python': sys.version.split()[0],
    **{name: metadata.version(name) for name in VERSIONS}}


def answer(row: dict[str, Any]) -> dict[str, Any]:
  """Measures a row; what goes wrong is an answer too.

  Returns:
    'status' (ok, failed, out of memory, not run or error) with the measurement or a 'reason'.
  """
  from benchmarks.hardware import checks as hardware_checks
  from benchmarks.hardware import speed as hardware_speed
  try:
    checks = {'goldens': hardware_checks.goldens, 'attention': hardware_checks.attention,
              'dtypes': hardware_checks.dtypes}
    kind, settings = row['kind'], row['settings']
    if kind in checks:
      found = checks[kind](settings)
      return {'status': 'ok' if found['passed'] else 'failed', **found}
    if settings['model']['attention'] == 'cudnn':
      hardware_checks.check_cudnn()
    if kind == 'profile':
      return {'status': 'ok', **hardware_speed.profile(settings, Path(row['profile']))}
    return {'status': 'ok', **hardware_speed.measure(settings)}
  except hardware_checks.NotHere as error:
    return {'status': 'not run', 'reason': str(error)}
  except Exception as error:
    text = str(error)
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text:
      return {'status': 'out of memory', 'reason': first_line(text)}
    traceback.print_exc()
    return {'status': 'error', 'reason': f'{type(error).__name__}: {first_line(text)}'}


def first_line(text: str) -> str:
  return (text.strip().splitlines() or ['no message'])[0][:300]


if __name__ == '__main__':
  main()
