"""Compares what a device computes with what it should compute.

Needs jax, flax and numpy. Every check returns errors beside stated bounds, and 'passed'.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.hardware.speed import draw_params, fill
from xclip_jax.models.config import DTYPES, make_config
from xclip_jax.models.layers import Attention
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply, architecture
from xclip_jax.weights.files import archive

GOLDEN = Path(__file__).resolve().parents[2] / 'tests/goldens/hf_tiny_a'
# Largest error over the largest value of what is compared with. bfloat16 has 8 bits of mantissa, so
# one rounding costs up to 2^-9 = 0.2 %, and errors of a dozen layers add up.
BOUNDS = {
  ('logits', 'float32'): 2e-5, ('gradients', 'float32'): 1e-4,
  ('logits', 'bfloat16'): 5e-2, ('gradients', 'bfloat16'): 1e-1,
  ('attention', 'float32'): 2e-5, ('attention', 'bfloat16'): 3e-2}


class NotHere(Exception):
  """Says that a check makes no sense on this device, and why."""


def goldens(settings: dict[str, Any]) -> dict[str, Any]:
  """Compares logits and gradients with those that transformers computed (tests/goldens).

  float32 products of the model ask for full float32 by themselves, so 'default' precision, which
  allows TF32 on a GPU and bfloat16 on a TPU, must change nothing.
  """
  hf_config = json.loads((GOLDEN / 'config.json').read_text())
  state, _ = archive.state_dict(archive.read(GOLDEN / 'model.safetensors'))
  with np.load(GOLDEN / 'io.npz') as file:
    io = dict(file)
  config = architecture.infer_config(state, 'huggingface', hf_config)
  to_params = functools.partial(apply.to_params, dialect='huggingface', config=config)
  want = to_params({k.removeprefix('grad/'): v for k, v in io.items() if k.startswith('grad/')})
  dtype = settings['dtype']
  model = XCLIP(make_config('B/32', **vars(config) | {'dtype': dtype, 'residual_dtype': dtype}))
  video, token_ids = io['pixel_values'].transpose(0, 1, 3, 4, 2), io['input_ids']

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params):
    logits = model.apply({'params': params}, video, token_ids).logits
    return -jax.nn.log_softmax(logits)[np.arange(len(video)), io['labels']].mean(), logits

  with jax.default_matmul_precision(settings['precision']):
    (_, logits), gradients = jax.jit(loss)(to_params(state))
  errors = {
    'logits': error(logits, io['logits_per_video']),
    'gradients': error(vector(gradients), vector(want))}
  return verdict(errors, {name: BOUNDS[name, dtype] for name in errors})


def check_cudnn() -> None:
  """Raises NotHere where there is no NVIDIA GPU."""
  if jax.default_backend() != 'gpu':
    raise NotHere("cuDNN's attention needs an NVIDIA GPU")


def attention(settings: dict[str, Any]) -> dict[str, Any]:
  """Compares an attention layer, forward and backward, with XLA's in float32.

  Keys are one more than queries, as in a vision block, where a message is attended to. Lengths are
  those of the published sizes, odd ones among them: JAX has no cuDNN backward pass for these.
  """
  name, dtype = settings['implementation'], settings['dtype']
  if name == 'cudnn':
    check_cudnn()
  errors: dict[str, float] = {}
  for length in settings['lengths']:
    run = functools.partial(attend, length)
    got, want = run(name, dtype), run('xla', 'float32')
    for part, x, y in zip(('output', 'gradients'), got, want, strict=True):
      errors[f'{part} {length}'] = error(x, y)
  return verdict(errors, dict.fromkeys(errors, BOUNDS['attention', dtype]))


@functools.cache                      # the reference serves several rows
def attend(length: int, implementation: str, dtype: str) -> tuple[jax.Array, jax.Array]:
  """Returns output and gradients of one layer as vectors, on inputs that depend on length alone."""
  layer = Attention(12, DTYPES[dtype], implementation=implementation)
  rng = np.random.default_rng(length)
  x, message = (rng.standard_normal((8, n, 768), np.float32) for n in (length, 1))
  weight = rng.standard_normal(x.shape, np.float32)

  def loss(params, x, message):
    y = layer.apply({'params': params}, x, jnp.concatenate([x, message], axis=1))
    return jnp.sum(y * weight) / math.sqrt(y.size), y
  shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, x)['params'])
  params = fill(shapes, 768 ** -0.5)
  gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, x, message)
  return y, vector(gradients)


def dtypes(settings: dict[str, Any]) -> dict[str, Any]:
  """Compares bfloat16 logits of a published size on random weights with float32 ones."""
  config = make_config(**settings['model'])
  params = jax.device_put(draw_params(XCLIP(config)))
  rng = np.random.default_rng(0)
  shape = (2, config.num_frames, config.image_size, config.image_size, 3)
  video = rng.standard_normal(shape, np.float32)
  text = rng.standard_normal((16, config.embed_dim), np.float32)

  def logits(dtype):
    model = XCLIP(make_config(**settings['model'], dtype=dtype, residual_dtype=dtype))
    run = jax.jit(lambda p: model.apply({'params': p}, video, text, method='classify').logits)
    return run(params)
  errors = {'logits': error(logits('bfloat16'), logits('float32'))}
  return verdict(errors, {'logits': BOUNDS['logits', 'bfloat16']})


def error(got: Any, want: Any) -> float:
  """Returns the largest difference over the largest value of `want`; nan where a value is none."""
  got, want = (np.asarray(x, np.float64) for x in (got, want))
  return float(np.abs(got - want).max() / np.abs(want).max())


def vector(tree: Any) -> np.ndarray:
  """Joins all leaves into one vector, in the order of their names."""
  flat = tree_names.flatten(tree)
  return np.concatenate([np.asarray(flat[k], np.float64).ravel() for k in sorted(flat)])


def verdict(errors: dict[str, float], bounds: dict[str, float]) -> dict[str, Any]:
  """Returns errors, bounds and whether all errors are within; nan, written as None, never is."""
  return {'passed': all(e <= bounds[k] for k, e in errors.items()),
          'errors': {k: e if math.isfinite(e) else None for k, e in errors.items()},
          'bounds': bounds}
