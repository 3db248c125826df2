"""A run small enough for tests: real videos, the real pipeline, the real loop."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

import quick
from configs import demo
from xclip_jax.data.datasets import synthetic
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.storage import state as state_lib
from xclip_jax.weights import apply

REPO = pathlib.Path(__file__).parents[1]
RECIPE = synthetic.Recipe(train=72, val=41, zero_shot=13, size=32, frames=8)
OVERRIDES = {
  'data.name': 'files',
  'train.steps': 12, 'train.batch_size': 8, 'eval.batch_size': 16, 'eval.every_steps': 6,
  'optim.warmup_steps': 1, 'checkpoint.every_steps': 3, 'log_steps': 2, 'model.num_frames': 3,
  'data.threads': 2,
}
FIELDS = dict(
  image_size=32, patch_size=16, embed_dim=16, vision_width=16, vision_layers=1, vision_heads=2,
  vision_mlp=32, text_width=16, text_layers=1, text_heads=2, text_mlp=32, context_length=16,
  mit_heads=2, mit_mlp=32, prompt_layers=1, prompt_heads=2,
)
# A model of fewer kinds of layers, which compiles in half the time; with frozen text.
FEWER = FIELDS | dict(messages=False, prompt=False)
FAST = {'model__fields': FEWER, 'train__freeze_text': True}
# Threads of XLA:CPU for simulated devices; else it has as many as cores, devices that wait for each
# other in groups find none to go on with, and after 40 s it aborts.
SIMULATED = {'NPROC': '16', 'PJRT_NPROC': '16'}


def write_data(folder: pathlib.Path) -> pathlib.Path:
  return synthetic.write(folder, RECIPE, processes=1)


@functools.cache
def abstract_params(fields: XCLIPConfig):
  """Traces a model once for all tests that draw its parameters."""
  return apply.abstract_params(fields)


def draw_params(fields: XCLIPConfig, seed: int = 0):
  """Draws parameters with numpy: compiling the initialisers of a model takes seconds."""
  draw = np.random.default_rng(seed).standard_normal
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * draw(x.shape), jnp.float32), abstract_params(fields))


def draw_with_numpy(monkeypatch) -> None:
  """Makes runs begin with `draw_params`, for tests that do not depend on what a run draws."""
  monkeypatch.setattr(state_lib, 'draw_params', lambda model, *_: draw_params(model.config))


def config(root: pathlib.Path, **changes):
  """The demo's config, made tiny; changes are dotted names with __ for the dot."""
  c = demo.get_config()
  c.data.root = str(root)
  c.model.fields = FIELDS
  c.unlock()
  c.update_from_flattened_dict(OVERRIDES | {k.replace('__', '.'): v for k, v in changes.items()})
  return c.lock()


def flags(root: pathlib.Path, **changes) -> list[str]:
  """Returns the config of `config` as command-line flags."""
  values = {f'model.fields.{k}': v for k, v in FIELDS.items()} | OVERRIDES
  values |= {'data.root': root} | {k.replace('__', '.'): v for k, v in changes.items()}
  return [f'--config.{k}={v}' for k, v in values.items()]


def command(workdir: pathlib.Path, root: pathlib.Path, *more: str, **changes) -> list[str]:
  return [
    sys.executable, str(REPO / 'train.py'), f'--config={REPO / "configs/demo.py"}',
    f'--workdir={workdir}', *flags(root, **changes), *more,
  ]


def environment(devices: int = 1) -> dict[str, str]:
  flags = f'--xla_force_host_platform_device_count={devices} {quick.FLAGS}'
  found = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(REPO)}
  return found | SIMULATED if devices > 1 else found


def start(*args, **changes) -> subprocess.Popen:
  return subprocess.Popen(
    command(*args, **changes), env=environment(), text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )


def finish(*args, devices: int = 1, **changes) -> subprocess.CompletedProcess:
  return subprocess.run(
    command(*args, **changes), env=environment(devices), text=True, timeout=600,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )
