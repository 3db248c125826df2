"""Times inference and training steps on the device that JAX finds, with their memory.

Only jax, flax and numpy are needed. Where optax is installed, the update is that of
`xclip_jax.training.optimizer`; elsewhere it is the same AdamW, written out below.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.hardware import rows as hardware_rows
from xclip_jax.models import vision
from xclip_jax.models.config import XCLIPConfig, make_config
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.models.xclip import XCLIP, init_params
from xclip_jax.parallel import tree_names
from xclip_jax.planning import flops
from xclip_jax.training.objectives import losses

# Published dense bfloat16 operations a second, by the first words of `device_kind`; the
# first match wins.
PEAKS = (
  ('NVIDIA H100 PCIe', 756e12), ('NVIDIA H100 NVL', 835e12), ('NVIDIA H100', 989e12),
  ('NVIDIA GH200', 989e12), ('NVIDIA H200', 989e12), ('NVIDIA A100', 312e12),
  ('NVIDIA L4', 121e12), ('TPU v4', 275e12), ('TPU v5 lite', 197e12), ('TPU v5e', 197e12),
  ('TPU v5', 459e12), ('TPU v5p', 459e12),
  ('TPU v6 lite', 918e12), ('TPU v6e', 918e12))
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SMOOTHING = 0.1
# The fields of `config.optim` that `training.optimizer.make` reads: one group, a constant rate.
OPTIM = SimpleNamespace(
  name='adamw', lr=8e-6, groups=((r'.*', 1.0),), floor=1.0, lag_steps=0, b1=0.9, b2=0.98,
  eps=1e-8, weight_decay=0.001, clip_norm=0.0,
  decay=((r'.*/(bias|scale)|.*pos_embed|.*class_embed|.*alpha|logit_bias', 0.0), (r'.*', 1.0)))
FROZEN = r'text/.*|logit_scale'


class Built(NamedTuple):
  """A compiled step.

  Fields:
    run: does one step and returns an array of it, not waited for.
    program: the compiled program.
    compile_seconds: of tracing and compiling; None where the program came from the cache folder.
    flops: operations that the model needs for one step.
    optimizer: 'optax' or 'plain'; None for inference.
  """

  run: Callable[[], jax.Array]
  program: Any
  compile_seconds: float | None
  flops: int
  optimizer: str | None


def measure(settings: dict[str, Any]) -> dict[str, Any]:
  """Returns speed and memory of one step: videos/s, ms, bytes, share of the published peak."""
  device = jax.devices()[0]
  memory_before = peak_memory(device)
  built = build(settings, batch_of(settings, device))
  seconds = time_steps(built.run)
  median, peak = statistics.median(seconds), peak_memory(device)
  batch, published = batch_of(settings, device), published_peak(device.device_kind)
  memory = built.program.memory_analysis()
  in_bfloat16 = settings['model']['dtype'] == 'bfloat16'
  return {
    'batch': batch, 'ms': 1e3 * median, 'ms_best': 1e3 * min(seconds),
    'ms_slowest': 1e3 * max(seconds), 'steps': len(seconds),
    'videos_per_second': batch / median, 'tflop': built.flops / 1e12,
    'mfu': built.flops / median / published if published and in_bfloat16 else None,
    'compile_seconds': built.compile_seconds, 'optimizer': built.optimizer,
    # Of the process: what a row before needed, if that was more, hides what this one did.
    'peak_bytes': peak if peak and peak > (memory_before or 0) else None,
    'compiled_bytes': memory and (
      memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes)}


def profile(settings: dict[str, Any], output: Path) -> dict[str, Any]:
  """Records some updates with jax.profiler; keeps the file for xprof if it is 10 MB or less."""
  device = jax.devices()[0]
  built = build(settings, batch_of(settings, device))
  jax.block_until_ready(built.run())
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for i in range(settings['updates']):
        with jax.profiler.StepTraceAnnotation('train', step_num=i):
          jax.block_until_ready(built.run())
    recorded = next(Path(folder).rglob('*.xplane.pb'), None)
    if recorded is None:
      raise RuntimeError('jax.profiler wrote no .xplane.pb file')
    size = recorded.stat().st_size
    kept = size <= 10_000_000
    if kept:
      shutil.copyfile(recorded, output)
  return {'batch': batch_of(settings, device), 'updates': settings['updates'], 'bytes': size,
          'file': output.name if kept else None}


def batch_of(settings: dict[str, Any], device: jax.Device) -> int:
  return hardware_rows.batch_size(settings, (device.memory_stats() or {}).get('bytes_limit'))


def peak_memory(device: jax.Device) -> int | None:
  """Returns the most bytes that this process ever held on the device, None if it cannot tell."""
  return (device.memory_stats() or {}).get('peak_bytes_in_use')


def published_peak(device_kind: str) -> float | None:
  """Returns the published bfloat16 operations a second of a device, None if not in PEAKS."""
  words = device_kind.replace('-', ' ') + ' '
  return next((peak for start, peak in PEAKS if words.startswith(f'{start} ')), None)


def time_steps(run: Callable[[], jax.Array], least: int = 5, most: int = 20) -> list[float]:
  """Returns the seconds of single steps, each waited for: about three seconds of them."""
  for _ in range(2):
    jax.block_until_ready(run())
  seconds: list[float] = []
  while len(seconds) < least or (len(seconds) < most and sum(seconds) < 3):
    begun = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append(time.perf_counter() - begun)
  return seconds


def build(settings: dict[str, Any], batch: int) -> Built:
  config = make_config(**settings['model'])
  return (build_inference if settings['step'] == 'infer' else build_training)(
    config, batch, settings['classes'])


def build_inference(config: XCLIPConfig, B: int, K: int) -> Built:
  """Builds the program of a Classifier: logits of B videos for K encoded texts."""
  model = XCLIP(config)
  params = jax.device_put(cast_for_inference(draw_params(model), config))
  video, text = draw_inputs(B, K, config)
  forward = lambda params, video, text: model.apply(
    {'params': params}, video, text, method='classify').logits
  program, seconds = compile_timed(jax.jit(forward), params, video, text)
  need = B * (flops.encode_video(config) + flops.classify(config, K))
  return Built(lambda: program(params, video, text), program, seconds, need, None)


def build_training(config: XCLIPConfig, B: int, K: int) -> Built:
  """Builds the update of a run with a frozen text tower and clips that are not blended."""
  model = XCLIP(config)
  params = jax.device_put(draw_params(model))
  init, update, optimizer = make_optimizer(params)
  video, text = draw_inputs(1, K, config)
  pixels = (128 + 50 * video).clip(0, 255).astype(jnp.uint8)
  batch = {
    'video': jnp.broadcast_to(pixels, (B, *pixels.shape[1:])), 'label': jnp.arange(B) % K,
    'mask': jnp.ones(B, bool)}
  state = {'state': (params, jax.jit(init)(params))}
  program, seconds = compile_timed(
    jax.jit(make_train_step(model, update), donate_argnums=0), state['state'], batch, text)
  del params                                      # the program overwrites them

  def run():
    state['state'], metrics = program(state['state'], batch, text)
    return metrics['loss']
  return Built(run, program, seconds, flops.train_step(config, B, K), optimizer)


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, float | None]:
  """Returns the compiled program and the seconds that took, None if it was compiled before."""
  hits: list[str] = []
  listen = lambda event, **_: hits.append(event) if event.endswith('/cache_hits') else None
  jax.monitoring.register_event_listener(listen)
  begun = time.perf_counter()
  program = function.lower(*arguments).compile()
  seconds = time.perf_counter() - begun
  jax.monitoring.unregister_event_listener(listen)
  return program, None if hits else seconds


def make_train_step(model: XCLIP, update: Callable) -> Callable:
  """Builds step(state, batch, text) -> (state, metrics), what `train.make_train_step` does.

  Args:
    model: to be trained.
    update: update(gradients, optimizer state, parameters) -> (parameters, optimizer state).
  """
  def loss(params, batch, text):
    video = vision.normalize(batch['video'], MEAN, STD)
    logits = model.apply({'params': params}, video, text, False, method='classify').logits
    targets = losses.soft_targets(batch['label'], len(text), SMOOTHING)
    return losses.cross_entropy(logits, targets, batch['mask'])

  def step(state, batch, text):
    params, moments = state
    value, grads = jax.value_and_grad(loss)(params, batch, text)
    squares = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))
    return update(grads, moments, params), {'loss': value, 'grad_norm': jnp.sqrt(squares)}

  return step


def make_optimizer(params: Any) -> tuple[Callable, Callable, str]:
  """Returns init(params), update(gradients, state, params), and 'optax' or 'plain'."""
  try:
    import optax

    from xclip_jax.training import optimizer as optimizer_lib
  except ImportError:
    return *plain_adamw(), 'plain'
  tx, _ = optimizer_lib.make(OPTIM, params, total_steps=1000, warmup_steps=0, freeze_text=True)

  def update(grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state
  return tx.init, update, 'optax'


def plain_adamw() -> tuple[Callable, Callable]:
  """AdamW (Loshchilov & Hutter 2019) with the numbers of OPTIM; frozen leaves have no moments."""
  o = OPTIM

  def trained(tree):
    return {k: x for k, x in tree_names.flatten(tree).items() if not tree_names.match(
      k, ((FROZEN, True), (r'.*', False)))}

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, trained(params))
    return {'count': jnp.zeros((), jnp.int32), 'mean': zeros(), 'square': zeros()}

  def update(grads, state, params):
    count, flat, grads = state['count'] + 1, tree_names.flatten(params), trained(grads)
    mean = jax.tree.map(lambda m, g: o.b1 * m + (1 - o.b1) * g, state['mean'], grads)
    square = jax.tree.map(lambda v, g: o.b2 * v + (1 - o.b2) * g * g, state['square'], grads)
    for name, m in mean.items():
      direction = (m / (1 - o.b1 ** count)) / (
        jnp.sqrt(square[name] / (1 - o.b2 ** count)) + o.eps)
      decay = o.weight_decay * tree_names.match(name, o.decay)
      flat[name] -= o.lr * (direction + decay * flat[name])
    return tree_names.unflatten(flat), {'count': count, 'mean': mean, 'square': square}
  return init, update


def draw_inputs(B: int, K: int, config: XCLIPConfig) -> tuple[jax.Array, jax.Array]:
  """Returns float32 video [B, T, H, W, 3] and text features [K, E], normal values.

  Every video is the same: drawn on the host and repeated on the device, which takes no memory there
  beyond the result, so that the peak is that of the step.
  """
  shape = (config.num_frames, config.image_size, config.image_size, 3)
  video = jnp.broadcast_to(np.resize(normal_values(), shape), (B, *shape))
  return video, jax.device_put(np.resize(normal_values(), (K, config.embed_dim)))


def draw_params(model: XCLIP) -> Any:
  """Returns random float32 parameters of a model as numpy arrays; see `fill`."""
  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  return fill(shapes, 0.02) | {'logit_scale': np.float32(np.log(1 / 0.07))}


def fill(shapes: Any, scale: float) -> Any:
  """Returns normal values of a standard deviation for each leaf, 1 more for scales of LayerNorm."""
  values = normal_values() * np.float32(scale)
  return tree_names.map_with_names(
    lambda name, x: np.resize(values, x.shape) + np.float32(name.endswith('/scale')), shapes)


def normal_values() -> np.ndarray:
  """Returns a million normal values, which arrays repeat.

  To draw each of 500 million would take longer than to time a step, and compiling a model's own
  initialisation longer still. A prime number of them: no two rows of a kernel are alike.
  """
  return np.random.default_rng(0).standard_normal(1_000_003, np.float32)
