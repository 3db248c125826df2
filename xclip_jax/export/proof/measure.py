"""A program that measures one runtime in a process of its own: seconds a call, and memory.

  python -m xclip_jax.export.proof.measure RUNTIME FOLDER CLIP.npz

RUNTIME is ours (FOLDER holds weights), stablehlo or onnx (FOLDER is an export). The last line of
the output is JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CALLS = 5


def open_ours(folder: Path) -> Any:
  """Returns a function from frames and token ids to logits: this package, as it runs videos."""
  import jax

  from xclip_jax.data.clips.augment import EvalTransform
  from xclip_jax.models.inference_options.quantisation import cast_for_inference
  from xclip_jax.models.xclip import XCLIP, classify_pixels
  from xclip_jax.weights.opening import open_weights

  weights = open_weights(folder)
  config, model = weights.config, XCLIP(weights.config)
  params = jax.device_put(cast_for_inference(weights.params, config))
  transform = EvalTransform.of(weights.preprocess, config.image_size)
  encode = jax.jit(lambda params, ids: model.apply({'params': params}, ids, method='encode_text'))
  score = jax.jit(lambda params, pixels, text: classify_pixels(
    model, params, pixels, text, weights.preprocess).logits)

  def call(frames: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    pixels = np.stack([transform(video) for video in frames])
    return np.asarray(score(params, pixels, encode(params, token_ids)))

  return call


def open_exported(runtime: str, folder: Path) -> Any:
  """Returns a function from frames and token ids to logits: the graphs of an export."""
  from xclip_jax.export import runtimes

  run = runtimes.RUNTIMES[runtime](folder)

  def call(frames: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    return run('score', *run('video', frames), *run('text', token_ids))[1]

  return call


def main(runtime: str, folder: str, clip: str) -> None:
  """Prints seconds of the first call and of the median later one, and the peak of memory."""
  with np.load(clip) as content:
    inputs = content['frames'], content['token_ids']
  started = time.perf_counter()
  call = open_ours(Path(folder)) if runtime == 'ours' else open_exported(runtime, Path(folder))
  call(*inputs)
  first = time.perf_counter() - started
  seconds = []
  for _ in range(CALLS):
    started = time.perf_counter()
    call(*inputs)
    seconds.append(time.perf_counter() - started)
  print(json.dumps({
    'first': first, 'seconds': float(np.median(seconds)), 'bytes': peak_memory()}))


def peak_memory() -> int:
  """Returns the peak of this process's memory in bytes.

  Linux counts the parent into getrusage where it was larger, so its own file is read first.
  """
  try:
    status = Path('/proc/self/status').read_text()
  except OSError:
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  return next(int(line.split()[1]) * 1024 for line in status.splitlines()
              if line.startswith('VmHWM:'))


if __name__ == '__main__':
  main(*sys.argv[1:])
