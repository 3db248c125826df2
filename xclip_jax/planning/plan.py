"""How a run would fit onto machines that are not here: compiled for them, not run.

XLA compiles for a TPU without one (the package libtpu holds its compiler), and for GPUs that a file
describes (the plugin of jax[cuda12]). What comes out is the program that a run would execute, with
its memory and communication; the time is the compiler's own estimate, which nobody has checked
against these programs on hardware.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies

from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.errors import UserError
from xclip_jax.evaluation import scorer
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.planning import flops
from xclip_jax.planning import hlo as hlo_lib
from xclip_jax.storage import state as state_lib
from xclip_jax.training import job as job_lib
from xclip_jax.training import optimizer, start_weights
from xclip_jax.training import step as step_lib
from xclip_jax.training.objectives import anchoring
from xclip_jax.weights import native

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published numbers of one chip.

  Fields:
    memory: bytes; peak: bfloat16 operations a second; clock: cycles a second, as the compiler's
    estimates are read here (v5e, v5p and v6e: assumed, not published).
  """

  memory: int
  peak: float
  clock: float


CHIPS = {
  'v4': Chip(32 * GIB, 275e12, 1.05e9),
  'v5e': Chip(16 * GIB, 197e12, 1.5e9),
  'v5p': Chip(95 * GIB, 459e12, 1.75e9),
  'v6e': Chip(32 * GIB, 918e12, 1.75e9),
}
# What XLA:GPU tries on the device itself, which is not here.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False, 'xla_gpu_autotune_level': 0}
_GPU_MEMORY = re.compile(r'\bdevice_memory_size: *(\d+)')
_SMALLEST = {'v4': '2x2x1', 'v5p': '2x2x1'}      # of a topology; of others 2x2
STEPS = ('train', 'eval')


@dataclasses.dataclass(frozen=True)
class Plan:
  """One program on one arrangement of devices.

  Fields:
    step: of STEPS; batch: videos in it, over all devices.
    platform: as it was asked for; mesh: size of each axis.
    memory: of one device, None where the compiler gave up; needed: bytes that it then said it
      needs.
    capacity: bytes of one device, None where nothing is known of it.
    model_flops: that the model needs, over all devices (see flops.py).
    device_flops: in the program of one device as XLA counts it, None where the compiler gave up or
      the program has loops, whose bodies XLA counts once.
    traffic: what one device exchanges, by kind of collective.
    seconds: of a step, by the compiler's cost model without communication; None if it gives none.
    peak: operations a second of all devices, None if not known.
    compile_seconds: here.
  """

  step: str
  batch: int
  platform: str
  mesh: dict[str, int]
  memory: hlo_lib.Memory | None
  needed: int
  capacity: int | None
  model_flops: int
  device_flops: float | None
  traffic: dict[str, hlo_lib.Traffic]
  seconds: float | None
  peak: float | None
  compile_seconds: float

  @property
  def fits(self) -> bool | None:
    return None if self.capacity is None else self.needed <= self.capacity

  @property
  def work(self) -> float | None:
    """What all devices compute over what the model needs: 1 if nothing is computed twice."""
    devices = math.prod(self.mesh.values())
    return self.device_flops and self.device_flops * devices / self.model_flops

  @property
  def mfu(self) -> float | None:
    """The share of the peak that the model's operations would be, by the estimate of the time."""
    return self.model_flops / self.seconds / self.peak if self.seconds and self.peak else None

  @property
  def most_videos(self) -> int | None:
    """Videos a step that would fill 90 % of a device, were its temporary memory in proportion."""
    if self.capacity is None or self.memory is None or not self.memory.temporary:
      return None
    left = 0.9 * self.capacity - (self.memory.total - self.memory.temporary)
    shards = math.prod(n for name, n in self.mesh.items() if name in mesh_lib.BATCH_AXES)
    return max(int(left / self.memory.temporary * self.batch) // shards * shards, 0)


def devices(platform: str) -> list[Any]:
  """Finds the devices of a platform: `v5e:4x8` of that topology, `cpu` those of this process.

  `v5e` or `v5e:1x1` is one chip, `v5e:4x8*2` two slices. `cuda:FILE` is the GPU that the text of a
  GpuTargetConfigProto describes, `cuda:FILE*8` eight of them in one host.

  Raises:
    ValueError: unknown, or the compiler for it is not installed.
  """
  if platform == 'cpu':
    return jax.devices('cpu')
  if platform.startswith('cuda:'):
    return _gpus(platform)
  name, _, shape = platform.partition(':')
  if name not in CHIPS:
    raise UserError(
      f'platform {platform!r} is unknown: cpu, or a TPU as NAME:TOPOLOGY with NAME one of '
      f'{", ".join(CHIPS)}, e.g. v5e:4x8; or cuda:FILE, a GPU that a file describes')
  smallest = _SMALLEST.get(name, '2x2')
  shape, _, slices = shape.partition('*')
  alone = set(shape) <= set('1x')
  wanted = f'{name}:{smallest if alone else shape}'
  # By default the compiler knows v4 by its cores; runs see a chip as one device ("megacore").
  options = {'chip_config_name': 'megacore'} if name == 'v4' else {}
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=wanted, num_slices=int(slices or 1), **options).devices
  except Exception as error:          # of whatever kind JAX and libtpu raise
    reason = str(error).strip().splitlines()[0][:300]
    raise UserError(
      f'no TPU topology {platform!r}: {reason}. If libtpu is what is missing, install '
      "xclip-jax[tpu] or libtpu; a topology is written as in `v5e:4x8` (v4, v5p: three numbers, "
      '`v5p:2x2x1`)') from error
  return list(found)[:1] if alone else list(found)


_WHERE = 'as in xla/backends/gpu/target_config/specs of github.com/openxla/xla'


def _gpus(platform: str) -> list[Any]:
  text, count = _described(platform)
  try:
    return list(topologies.get_topology_desc(
      platform='cuda', topology_name='', target_config=text, topology=f'1x1x{count}').devices)
  except Exception as error:          # of whatever kind JAX and its plugin raise
    reason = str(error).strip().splitlines()[0][:300].rstrip('.')
    raise UserError(
      f'platform {platform}: {reason}. If the compiler is what is missing, install xclip-jax[gpu]; '
      f'if the file was not understood, take that of the XLA in this jaxlib, {_WHERE}') from error


def _described(platform: str) -> tuple[str, int]:
  """Reads `cuda:FILE*8`: the text of the file, and 8."""
  file, star, count = platform.removeprefix('cuda:').rpartition('*')
  file, count = (file, count) if star else (count, '1')
  if not file or not count.isdecimal() or not int(count):
    raise UserError(f'platform {platform}: wanted as in cuda:h100_sxm.txtpb or '
                     'cuda:h100_sxm.txtpb*8, the number of GPUs in a host')
  try:
    text = Path(file).read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'platform {platform}: cannot read {file}: {error}') from error
  if not _GPU_MEMORY.search(text):
    raise UserError(f'platform {platform}: {file} has no device_memory_size; wanted is the text '
                     f'of a GpuTargetConfigProto, {_WHERE}')
  return text, int(count)


def _capacity(platform: str) -> int | None:
  """Bytes of one device; None if not known."""
  if platform.startswith('cuda:'):
    return int(_GPU_MEMORY.search(_described(platform)[0])[1])
  chip = CHIPS.get(platform.partition(':')[0])
  return chip and chip.memory


def make(config: Any, platform: str, step: str = 'train', classes: int = 400) -> Plan:
  """Compiles the step of `config` for `platform`.

  Args:
    config: see config.py; its data is not looked at.
    platform: see `devices`.
    step: 'train', or 'eval', a batch of config.eval.batch_size of one view.
    classes: K.

  Raises:
    ValueError: a field of config, the platform, or a mesh that does not cover it.
  """
  if step not in STEPS:
    raise UserError(f'step must be one of {", ".join(STEPS)}, got {step!r}')
  found = devices(platform)
  mesh = mesh_lib.make_mesh(config.mesh, found)
  config = config.copy_and_resolve_references()
  other = 'eval' if step == 'train' else 'train'
  config[other].batch_size = mesh_lib.batch_shards(mesh)                     # is not looked at
  if step == 'eval':
    config.train.accumulation = 1
  lower = _lower_train if step == 'train' else _lower_eval
  job_lib.check_config(config)
  config = job_lib.resolve_config(config)
  model = job_lib.make_model(config)
  job_lib.check_sizes(config, model, mesh)
  texts = None if config.train.freeze_text else 16      # tokens, as tokenizer.bucket has it
  chip = CHIPS.get(platform.partition(':')[0])
  options = _GPU_OPTIONS if platform.startswith('cuda:') else None
  with jax.set_mesh(mesh):
    lowered = lower(config, model, mesh, classes, texts)
    begun = time.perf_counter()
    try:
      program, needed = lowered.compile(options), None
    except jax.errors.JaxRuntimeError as error:
      program, needed = None, _bytes_wanted(str(error))
  seconds = time.perf_counter() - begun
  hlo = program.as_text() if program else ''
  cycles = hlo_lib.cycles(hlo) if program else 0
  loops = config.train.accumulation > 1
  counted = (program.cost_analysis() or {}).get('flops') if program and not loops else None
  batch = config.train.batch_size if step == 'train' else config.eval.batch_size
  c = model.config
  need = (flops.train_step(c, batch, classes, texts) if step == 'train' else
          batch * (flops.encode_video(c) + flops.classify(c, classes)))
  memory = hlo_lib.memory(program) if program else None
  return Plan(
    step=step, batch=batch, platform=platform, mesh=dict(mesh.shape), memory=memory,
    needed=memory.total if memory else needed, capacity=_capacity(platform),
    model_flops=need, device_flops=counted and float(counted),     # XLA:GPU counts none
    traffic=hlo_lib.collectives(hlo) if program else {},
    seconds=cycles / chip.clock if cycles and chip else None,
    peak=chip.peak * mesh.size if chip else None, compile_seconds=seconds,
  )


def alternatives(config: Any, mesh: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
  """Yields ways to need less memory, what costs the least speed first: (what it is, config).

  `mesh` has the sizes of the axes that config.mesh came to.
  """
  def changed(changes):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(changes)
    return other

  order = [None, 'dots', 'nothing']
  for remat in order[order.index(config.model.remat) + 1:]:
    yield f'model.remat={remat}', changed({'model.remat': remat})
  spread = {'model.remat': 'nothing'}
  if mesh['data'] > 1:
    spread |= {'mesh.data': 1, 'mesh.fsdp': mesh['data'] * mesh['fsdp']}
    config = changed(spread)
    yield ', '.join(f'{k}={v}' for k, v in spread.items()), config
  parts, most = config.train.accumulation, config.train.batch_size
  for _ in range(3):
    parts *= 2
    if most % parts:
      return
    yield (', '.join((*(f'{k}={v}' for k, v in spread.items()), f'train.accumulation={parts}')),
           changed(spread | {'train.accumulation': parts}))


def _lower_train(
  config: Any, model: Any, mesh: Any, classes: int, texts: int | None
) -> jax.stages.Lowered:
  projectors = bool(config.train.distill)
  params = state_lib.abstract(model, optax.identity(), projectors=projectors).params
  tx, _ = optimizer.make(config.optim, params, 1000, 100, config.train.accumulation,
                     config.train.freeze_text)
  average = optimizer.make_average(config.train, 1000)
  abstract = state_lib.abstract(model, tx, average is not None, projectors)
  places = mesh_lib.infer(abstract, config.sharding, mesh)
  batch = _batch(config.train.batch_size, model.config, mesh)
  rows, B = mesh_lib.batch_sharding(mesh), config.train.batch_size
  if config.train.task == 'multi-label':
    batch['labels'] = _array((B, classes), bool, rows)
  if config.train.task == 'captions':
    S = min(16, model.config.context_length)
    batch |= {'token_ids': _array((B, S), jnp.int32, rows), 'file': _array((B,), jnp.int32, rows)}
  state = _placed(abstract, places)
  anchor = (start_weights.drop_projectors(state.params),) if anchoring.is_on(config.train) else ()
  text = None if config.train.task == 'captions' else _texts(model.config, mesh, classes, texts)
  names = ClassList(tuple(f'class {k}' for k in range(classes)), (None,) * classes)
  step = step_lib.jit_train_step(
    step_lib.StepParts(model, tx, config, names, average), places, mesh)
  kind = jax.eval_shape(lambda: jax.random.key(0)).dtype
  key = _array((), kind, mesh_lib.replicated(mesh))
  return step.lower(state, batch, text, key, *anchor)


def _lower_eval(
  config: Any, model: Any, mesh: Any, classes: int, texts: int | None
) -> jax.stages.Lowered:
  params = state_lib.abstract(model, optax.identity()).params
  everywhere = jax.tree.map(lambda _: mesh_lib.replicated(mesh), params)
  batch = _batch(config.eval.batch_size, model.config, mesh)
  batch['index'] = batch['label']
  preprocess = native.Preprocess(tuple(config.data.mean), tuple(config.data.std))
  evaluator = scorer.Scorer(model, preprocess, mesh, config.eval.batch_size)
  return evaluator.lower(
    _placed(params, everywhere), batch, _texts(model.config, mesh, classes, None))


def _batch(B: int, c: Any, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
  rows = mesh_lib.batch_sharding(mesh)
  side = c.image_size
  return {'video': _array((B, c.num_frames, side, side, 3), jnp.uint8, rows),
          'label': _array((B,), jnp.int32, rows), 'mask': _array((B,), bool, rows)}


def _texts(c: Any, mesh: Any, K: int, S: int | None) -> jax.ShapeDtypeStruct:
  shape, dtype = ((K, c.embed_dim), jnp.float32) if S is None else (
    (K, min(S, c.context_length)), jnp.int32)
  return _array(shape, dtype, mesh_lib.replicated(mesh))


def _placed(tree: Any, places: Any) -> Any:
  return jax.tree.map(lambda x, place: _array(x.shape, x.dtype, place), tree, places)


def _array(shape: Sequence[int], dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _bytes_wanted(message: str) -> int:
  """Reads what a program needs from the compiler's refusal: `Used 24.59G of 15.75G hbm`."""
  found = re.search(r'Used ([\d.]+)([KMGT]) of |temporaries \(([\d.]+)([KMGT])\)', message)
  if not found:
    raise UserError(f'the compiler refused: {message.strip().splitlines()[0][:300]}')
  number, unit = [x for x in found.groups() if x]
  return int(float(number) * (1 << {'K': 10, 'M': 20, 'G': 30, 'T': 40}[unit]))
