"""Time of inference and training steps of every model size, here and in the PyTorch peer.

  pip install -e '.[test,parity]'
  python benchmarks/speed/step.py --out step.jsonl               # all rows, an hour or more
  python benchmarks/speed/step.py --only 'B/32 b1 infer bfloat16' --rounds 5
  python benchmarks/speed/step.py --ours-only                              # without PyTorch

Each program lives in a process of its own, and they take turns: in every round each runs a few
times while the others wait. A row gives the best and the median second of each, and the ratio of
medians. Texts are encoded already on both sides (400 of them). The peer is transformers.XCLIPModel
on random weights: eager; compiled (and for inference frozen); and on a CPU in float32 with linear
layers through oneDNN, put in by hand, which is the best that a CPU can do with PyTorch.
On a GPU both sides find it by themselves.
"""

import argparse
import ast
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# (variant, frames, videos, step, dtype, hows of the peer)
_INFER32, _INFER16, _TRAIN = ('eager', 'onednn'), ('eager', 'compiled'), ('eager', 'compiled')
ROWS = [
  *(row for variant, videos in (('B/32', 1), ('B/32', 4), ('B/16', 1), ('L/14', 1))
    for row in ((variant, 8, videos, 'infer', 'float32', _INFER32),
                (variant, 8, videos, 'infer', 'bfloat16', _INFER16))),
  ('B/32', 8, 4, 'train', 'float32', _TRAIN),
  ('B/32', 8, 4, 'train', 'bfloat16', _TRAIN),
  ('B/16', 8, 1, 'train', 'float32', ('eager',)),
  ('B/16', 8, 1, 'train', 'bfloat16', ('eager',)),
  ('L/14@336', 16, 1, 'infer', 'bfloat16', ('eager',)),
]
GPU_ROWS = [
  (variant, 8, videos, step, 'bfloat16', ('eager', 'compiled'))
  for variant, videos in (('B/32', 64), ('B/16', 32), ('L/14', 8)) for step in ('infer', 'train')]
K = 400


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', action='append', help="rows, e.g. 'B/32 b1 infer bfloat16'")
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--runs', type=int, default=3, help='of each program in a round')
  parser.add_argument('--ours-only', action='store_true')
  parser.add_argument('--gpu', action='store_true', help='the rows of a GPU')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                      help='a field of XCLIPConfig, e.g. attention=cudnn')
  parser.add_argument('--out', type=Path, help='file for the JSON lines')
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  a = parser.parse_args()
  if a.worker:
    return work(json.loads(a.worker))
  lines = [{
    'date': time.strftime('%Y-%m-%d'), 'cpu': cpu(), 'cores': os.cpu_count(),
    'malloc': os.environ.get('GLIBC_TUNABLES', ''),
    'python': sys.version.split()[0],
    **{name: version(name) for name in ('jax', 'flax', 'torch', 'transformers')}}]
  print(json.dumps(lines[0]), flush=True)
  for row in GPU_ROWS if a.gpu else ROWS:
    name = '{} b{} {} {}'.format(row[0], *row[2:5])
    if a.only and name not in a.only:
      continue
    lines.append({'row': name} | measure(row, a))
    print(json.dumps(lines[-1]), flush=True)
    if a.out:
      a.out.write_text('\n'.join(map(json.dumps, lines)) + '\n')
  print_table(lines[1:])


def measure(row: tuple, a: argparse.Namespace) -> dict[str, Any]:
  variant, frames, videos, step, dtype, hows = row
  told = {'variant': variant, 'frames': frames, 'videos': videos, 'step': step, 'dtype': dtype,
          'set': a.set}
  commands = {'ours': [sys.executable, __file__, '--worker', json.dumps(told)]}
  if not a.ours_only:
    commands |= {how: [
      sys.executable, '-m', 'convert.time_peer', '--variant', variant, '--frames', str(frames),
      '--batch', str(videos), '--step', step, '--dtype', dtype, '--how', how] for how in hows}
  found = alternate(commands, a.rounds, a.runs)
  return {'flops': found['ours'].pop('flops')} | found


def alternate(commands: dict[str, list[str]], rounds: int, runs: int) -> dict[str, dict[str, Any]]:
  """Starts programs one after the other, then lets them take turns: their numbers by name."""
  programs, found = {}, {}
  try:
    for name, command in commands.items():
      programs[name] = subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=os.environ | {'PYTHONPATH': str(ROOT)})
      found[name] = answer(programs[name], name) | {'seconds': [], 'stolen': []}
    for _ in range(rounds):
      for name, program in programs.items():
        stolen = others()
        program.stdin.write(f'{runs}\n')
        program.stdin.flush()
        got = answer(program, name)
        found[name]['seconds'] += got['seconds']
        found[name]['peak_mib'] = got['peak_mib']
        found[name]['stolen'].append(stolen())
  finally:
    for program in programs.values():
      program.kill()
  for x in found.values():
    seconds = x.pop('seconds')
    x.update(best=round(min(seconds), 4), median=round(statistics.median(seconds), 4),
             slowest=round(max(seconds), 4), stolen_cores=round(max(x.pop('stolen')), 2))
  return found


def answer(program: subprocess.Popen, name: str) -> dict[str, Any]:
  for line in program.stdout:
    if line.startswith('{'):
      return json.loads(line)
  raise SystemExit(f'{name} ended without an answer: {" ".join(map(str, program.args))}')


def others() -> Any:
  """Cores that other machines took from this one meanwhile, by /proc/stat."""
  def read():
    fields = [int(x) for x in Path('/proc/stat').read_text().splitlines()[0].split()[1:9]]
    return fields[7], time.perf_counter()
  stolen, begun = read()
  return lambda: (read()[0] - stolen) / os.sysconf('SC_CLK_TCK') / (time.perf_counter() - begun)


# --- our side, in a process of its own ----------------------------------------------------------


def work(told: dict[str, Any]) -> None:
  import jax
  import numpy as np

  from xclip_jax.planning import flops

  fields = dict(map(field, told['set']))
  make = infer_step if told['step'] == 'infer' else train_step
  peak_flops = matmul_peak(told)
  step, program, config, compiled = make(told, fields)
  begun = time.perf_counter()
  value = float(step())
  B = told['videos']
  need = (B * (flops.encode_video(config) + flops.classify(config, K)) if told['step'] == 'infer'
          else flops.train_step(config, B, K))
  memory = program.memory_analysis()
  cost = program.cost_analysis() or {}
  print(json.dumps({
    'ready': True, 'value': value,
    'first_seconds': round(compiled + time.perf_counter() - begun, 2),
    'compile_seconds': round(compiled, 2), 'flops': need,
    'hlo_over_analytic': round(cost.get('flops', 0) / need, 4),
    'matmul_gflops': round(peak_flops / 1e9),
    'temporary_mib': round(memory.temp_size_in_bytes / 2**20),
    'device': jax.devices()[0].device_kind}), flush=True)
  for line in sys.stdin:
    seconds = []
    for _ in range(int(line)):
      begun = time.perf_counter()
      float(np.asarray(step()))
      seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({'seconds': seconds, 'peak_mib': round(peak)}), flush=True)


def field(text: str) -> tuple[str, Any]:
  name, _, value = text.partition('=')
  try:
    return name, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return name, value


def matmul_peak(told: dict[str, Any]) -> float:
  """Operations a second of the product that most of a step is: the first of an MLP, best of 30."""
  import jax
  import jax.numpy as jnp

  from xclip_jax.models.config import DTYPES, make_config
  from xclip_jax.models.layers import einsum

  c = make_config(told['variant'])
  rows = told['videos'] * told['frames'] * ((c.image_size // c.patch_size) ** 2 + 1)
  x = jnp.ones((rows, c.vision_width), DTYPES[told['dtype']])
  kernel = jnp.ones((c.vision_width, c.vision_mlp), x.dtype)
  product = jax.jit(lambda x, kernel: einsum('XD,DE->XE', x, kernel))
  product(x, kernel).block_until_ready()
  best = float('inf')
  for _ in range(30):
    begun = time.perf_counter()
    product(x, kernel).block_until_ready()
    best = min(best, time.perf_counter() - begun)
  return 2 * x.size * c.vision_mlp / best


def infer_step(told: dict[str, Any], fields: dict[str, str]) -> tuple[Any, Any, Any, float]:
  """Returns the prediction that Scorer and Classifier run for a batch, and its text features."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from xclip_jax.models.config import DTYPES, make_config
  from xclip_jax.models.inference_options.quantisation import cast_for_inference
  from xclip_jax.models.xclip import XCLIP, init_params
  from xclip_jax.parallel import tree_names

  config = make_config(told['variant'], num_frames=told['frames'], dtype=told['dtype'], **fields)
  model = XCLIP(config)
  side = config.image_size
  rng = np.random.default_rng(0)

  # One array at a time, as weights are read from a file; see cast_for_inference.
  def draw(name, x):
    kind = DTYPES[config.dtype] if name.endswith('/kernel') else x.dtype
    value = rng.normal(size=x.shape).astype(np.float32) * 0.02
    return jnp.asarray(value + name.endswith('/scale'), kind)

  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  params = tree_names.map_with_names(draw, shapes)
  if config.int8_kernels:
    params = jax.device_put(cast_for_inference(params, config))
  begun = time.perf_counter()
  shape = (told['videos'], told['frames'], side, side, 3)
  video = jax.random.normal(jax.random.key(1), shape)
  text = jax.random.normal(jax.random.key(2), (K, config.embed_dim))
  forward = jax.jit(
    lambda p, v, t: model.apply({'params': p}, v, t, method='classify').logits)
  program = forward.lower(params, video, text).compile()
  compiled = time.perf_counter() - begun
  return lambda: jnp.sum(program(params, video, text)), program, config, compiled


def train_step(told: dict[str, Any], fields: dict[str, str]) -> tuple[Any, Any, Any, float]:
  """The step that `train.run` jits, without the blending of clips, which the peer has not."""
  import jax
  import numpy as np
  import optax

  from xclip_jax import config as run_config
  from xclip_jax.data.datasets.annotations import ClassList
  from xclip_jax.parallel import mesh as mesh_lib
  from xclip_jax.storage import state as state_lib
  from xclip_jax.training import job as job_lib
  from xclip_jax.training import optimizer
  from xclip_jax.training import step as step_lib

  c = run_config.get_config()
  c.model.update(variant=told['variant'], num_frames=told['frames'], dtype=told['dtype'],
                 **fields)
  c.augment.mixup = c.augment.cutmix = 0.0
  c.train.batch_size = told['videos']
  model = job_lib.make_model(c)
  params = state_lib.abstract(model, optax.identity()).params
  tx, _ = optimizer.make(c.optim, params, 1000, 100, 1, True)
  mesh = mesh_lib.make_mesh(c.mesh)
  places = mesh_lib.infer(state_lib.abstract(model, tx), c.sharding, mesh)
  holder = {'state': state_lib.init(model, tx, 0, places)}
  rng, side, B = np.random.default_rng(0), model.config.image_size, told['videos']
  batch = mesh_lib.put_batch({
    'video': rng.integers(0, 255, (B, told['frames'], side, side, 3), np.uint8),
    'label': rng.integers(0, K, B).astype(np.int32), 'mask': np.ones(B, bool)}, mesh)
  everywhere = mesh_lib.replicated(mesh)
  text = jax.device_put(rng.normal(size=(K, model.config.embed_dim)).astype(np.float32), everywhere)
  key = jax.jit(lambda: jax.random.key(0), out_shardings=everywhere)()
  names = ClassList(tuple(f'class {k}' for k in range(K)), (None,) * K)
  with jax.set_mesh(mesh):
    step = step_lib.jit_train_step(step_lib.StepParts(model, tx, c, names), places, mesh)
    begun = time.perf_counter()
    program = step.lower(holder['state'], batch, text, key).compile()
    compiled = time.perf_counter() - begun

  def one():
    holder['state'], metrics = program(holder['state'], batch, text, key)
    return metrics['loss']
  return one, program, model.config, compiled


def cpu() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next(x.split(':')[1].strip() for x in lines if x.startswith('model name'))
  except (OSError, StopIteration):
    return platform.processor()


def version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def print_table(rows: list[dict[str, Any]]) -> None:
  print('| row | ours, s (best) | peak RSS, MiB | GFLOP/s, of one product | peer, s (best), RSS | '
        'ours is faster | compile, s |')
  print('|---' * 7 + '|')
  for x in rows:
    ours = x['ours']
    hows = [how for how in ('eager', 'compiled', 'onednn') if how in x]
    print('| ' + ' | '.join([
      x['row'], f'{ours["median"]:.3f} ({ours["best"]:.3f})', str(ours['peak_mib']),
      f'{(rate := x["flops"] / ours["median"] / 1e9):.0f}, {rate / ours["matmul_gflops"]:.0%}',
      '; '.join(f'{how} {x[how]["median"]:.3f} ({x[how]["best"]:.3f}), {x[how]["peak_mib"]}'
                for how in hows),
      ', '.join(f'{x[how]["median"] / ours["median"]:.2f}x {how}' for how in hows),
      f'{ours["compile_seconds"]}']) + ' |')


if __name__ == '__main__':
  main()
