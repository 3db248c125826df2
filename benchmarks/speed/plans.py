"""Memory and estimated time of every model size on TPUs and GPUs, by compiling for them.

  python benchmarks/speed/plans.py --out tpu_plan.jsonl [--only B/16 --platform v5e]
  python benchmarks/speed/plans.py --out gpu_plan.jsonl --platform cuda:h100_sxm.txtpb

Compiles evaluation and training steps for chips that are not here (`xclip plan`; needs libtpu, or
the plugin of jax[cuda12] and a file: docs/plan.md); prints a JSON line for each, then a table.
Nothing is run. The compiler's estimate of time, which was not checked on hardware, compares
variants; for GPUs it has none.
"""

import argparse
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_MIN_LOG_LEVEL': '3',
               'TPU_STDERR_LOG_LEVEL': '3', 'TPU_WORKER_HOSTNAMES': 'localhost',
               'TPU_ACCELERATOR_TYPE': 'none'}
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CHUNKED = {'model.attention': 'chunked'}
# (variant, frames, step, videos a chip, chips, changes): one view of 400 cached labels.
CASES = [
  ('B/32', 8, 'eval', 32, 1, {}),
  ('B/16', 8, 'eval', 8, 1, {}),
  ('L/14', 8, 'eval', 8, 1, {}),
  ('L/14@336', 16, 'eval', 2, 1, {}),
  ('B/32', 8, 'train', 16, 1, {}),
  ('B/16', 8, 'train', 8, 1, {}),
  ('B/32', 8, 'eval', 32, 1, CHUNKED),
  ('B/16', 8, 'eval', 8, 1, CHUNKED),
  ('L/14', 8, 'eval', 8, 1, CHUNKED),
  ('L/14@336', 16, 'eval', 2, 1, CHUNKED),
  ('B/32', 8, 'train', 16, 1, CHUNKED),
  ('B/16', 8, 'train', 8, 1, CHUNKED),
  ('B/16', 8, 'train', 16, 1, {'model.remat': 'dots'}),
  ('L/14', 8, 'train', 4, 1, {'model.remat': 'dots'}),
  ('L/14', 8, 'train', 8, 1, {'model.remat': 'nothing'}),
  ('L/14', 8, 'train', 8, 1, {**CHUNKED, 'model.remat': 'nothing'}),
]
# Cases of one GPU.
CUDNN = {'model.attention': 'cudnn'}
GPU_CASES = [
  ('B/16', 8, 'eval', 8, 1, {}),
  ('B/16', 8, 'eval', 8, 1, CUDNN),
  ('B/16', 8, 'train', 8, 1, {}),
  ('B/16', 8, 'train', 8, 1, CUDNN),
  ('B/16', 8, 'train', 8, 1, {**CUDNN, 'model.remat': 'dots'}),
  ('B/16', 8, 'train', 8, 1, {**CUDNN, 'model.remat': 'nothing'}),
  ('L/14', 8, 'train', 8, 1, {**CUDNN, 'model.remat': 'nothing'}),
]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--platform', default='v5e', help='one chip, as `xclip plan` takes it')
  parser.add_argument('--only', help='one variant')
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  arguments = parser.parse_args()
  about = {'date': time.strftime('%Y-%m-%d'), 'jax': metadata.version('jax'),
           'libtpu': _version('libtpu'), 'python': sys.version.split()[0]}
  lines = [about]
  print(json.dumps(about), flush=True)
  for case in GPU_CASES if arguments.platform.startswith('cuda:') else CASES:
    if arguments.only in (None, case[0]):
      lines.append(plan_case(arguments.platform, *case))
      print(json.dumps(lines[-1]), flush=True)
      if arguments.out:
        Path(arguments.out).write_text('\n'.join(map(json.dumps, lines)) + '\n')
  print_table(lines[1:])


def plan_case(platform: str, *case: Any) -> dict[str, Any]:
  """Compiles one row of CASES for a platform and returns its numbers."""
  from xclip_jax import config
  from xclip_jax.planning import plan

  variant, frames, step, videos, chips, changes = case
  c = config.get_config()
  c.model.update(variant=variant, num_frames=frames, dtype='bfloat16', residual_dtype='bfloat16')
  c.train.batch_size = c.eval.batch_size = videos * chips
  c.update_from_flattened_dict(changes)
  found = plan.make(c, platform, step)
  memory = found.memory
  return {
    'platform': Path(platform).stem, 'variant': variant, 'frames': frames, 'step': step,
    'videos': videos, 'changes': changes, 'fits': found.fits, 'bytes_needed': found.bytes_needed,
    'temporary': memory.temporary if memory else None,
    'state': memory.arguments if memory else None,
    'tflop': found.model_flops / 1e12, 'estimated_ms': found.seconds and 1e3 * found.seconds,
    'estimated_mfu': found.mfu, 'compile_seconds': round(found.compile_seconds, 1),
  }


def print_table(rows: list[dict[str, Any]]) -> None:
  gib = lambda n: '' if n is None else f'{n / 2**30:.2f}'
  print('| chip | step | videos | memory, GiB | of it temporary | TFLOP | estimated ms | of peak |')
  print('|---' * 8 + '|')
  for x in rows:
    changes = ''.join(f', {k.rpartition(".")[2]} {v}' for k, v in x['changes'].items())
    shown = [
      x['platform'], f'{x["variant"]} {x["frames"]}f {x["step"]}{changes}', x['videos'],
      gib(x['bytes_needed']) + ('' if x['fits'] else ': does not fit'), gib(x['temporary']),
      f'{x["tflop"]:.2f}', *((f'{x["estimated_ms"]:.1f}', f'{100 * x["estimated_mfu"]:.0f} %')
                             if x['estimated_ms'] else ('', ''))]
    print('| ' + ' | '.join(map(str, shown)) + ' |')


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


if __name__ == '__main__':
  main()
