"""Memory, communication and speed of a run on devices that are not here, from compiling it.

XLA compiles for a TPU without one (the package libtpu holds its compiler), and for GPUs that a file
describes (the plugin of jax[cuda12]). The result is the program that a run would execute, with its
memory and communication. The time is the compiler's own estimate, which was never compared with
these programs on hardware.
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
from xclip_jax.errors import UserError, is_out_of_device_memory
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
    memory: bytes.
    peak: bfloat16 operations per second.
    clock: cycles per second, to convert the compiler's estimates (v5e, v5p, v6e: assumed, not
      published).
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
# Without these options XLA:GPU would time kernels on the device itself, which is not here.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False, 'xla_gpu_autotune_level': 0}
_GPU_MEMORY = re.compile(r'\bdevice_memory_size: *(\d+)')
_SMALLEST_TOPOLOGY = {'v4': '2x2x1', 'v5p': '2x2x1'}      # of the other chips 2x2
STEPS = ('train', 'eval')


@dataclasses.dataclass(frozen=True)
class Plan:
  """Numbers of one compiled step on one device mesh.

  Fields:
    step: one of STEPS.
    batch: videos per step, over all devices.
    platform: name of the devices, see `devices`.
    mesh: size of each mesh axis.
    memory: memory of one device; None if the compiler found the device too small.
    bytes_needed: bytes of one device that the program needs.
    capacity: bytes of one device; None if not known.
    model_flops: operations that the model needs per step, over all devices (see flops.py).
    device_flops: operations in the program of one device, counted by XLA; None without a program,
      or if the program has loops, whose bodies XLA counts once.
    traffic: communication of one device, by kind of collective.
    seconds: time of a step by the compiler's cost model, without communication; None if it gives
      none.
    peak: operations per second of all devices; None if not known.
    compile_seconds: time that compiling took here.
  """

  step: str
  batch: int
  platform: str
  mesh: dict[str, int]
  memory: hlo_lib.Memory | None
  bytes_needed: int
  capacity: int | None
  model_flops: int
  device_flops: float | None
  traffic: dict[str, hlo_lib.Traffic]
  seconds: float | None
  peak: float | None
  compile_seconds: float

  @property
  def fits(self) -> bool | None:
    """True if the program fits into a device; None if the capacity is not known."""
    return None if self.capacity is None else self.bytes_needed <= self.capacity

  @property
  def recompute_factor(self) -> float | None:
    """Operations of all devices per operation that the model needs; 1 if none is repeated."""
    devices = math.prod(self.mesh.values())
    return self.device_flops and self.device_flops * devices / self.model_flops

  @property
  def mfu(self) -> float | None:
    """Model FLOP utilization: the model's operations per second over the peak, as estimated."""
    return self.model_flops / self.seconds / self.peak if self.seconds and self.peak else None

  @property
  def estimated_max_batch(self) -> int | None:
    """Batch that fills 90 % of a device, if temporary memory grows in proportion to the batch."""
    if self.capacity is None or self.memory is None or not self.memory.temporary:
      return None
    free = 0.9 * self.capacity - (self.memory.total - self.memory.temporary)
    shards = math.prod(n for name, n in self.mesh.items() if name in mesh_lib.BATCH_AXES)
    return max(int(free / self.memory.temporary * self.batch) // shards * shards, 0)


def devices(platform: str) -> list[Any]:
  """Returns the devices of a platform, which the compiler describes.

  Args:
    platform: `v5e:4x8` for that TPU topology, `v5e` or `v5e:1x1` for one chip, `v5e:4x8*2` for two
      slices; `cuda:FILE` for the GPU that a GpuTargetConfigProto in text form describes,
      `cuda:FILE*8` for eight of them in one host; `cpu` for the CPU devices of this process.

  Raises:
    UserError: an unknown platform, or its compiler is not installed.
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
  shape, _, slices = shape.partition('*')
  is_one_chip = set(shape) <= set('1x')
  topology = f'{name}:{_SMALLEST_TOPOLOGY.get(name, "2x2") if is_one_chip else shape}'
  # By default the compiler sees two cores in a v4 chip; runs see one device ("megacore").
  options = {'chip_config_name': 'megacore'} if name == 'v4' else {}
  try:
    chips = list(topologies.get_topology_desc(
      platform='tpu', topology_name=topology, num_slices=int(slices or 1), **options).devices)
  except Exception as error:          # JAX and libtpu raise exceptions of many types
    reason = str(error).strip().splitlines()[0][:300]
    raise UserError(
      f'no TPU topology {platform!r}: {reason}. If libtpu is what is missing, install '
      "xclip-jax[tpu] or libtpu; a topology is written as in `v5e:4x8` (v4, v5p: three numbers, "
      '`v5p:2x2x1`)') from error
  return chips[:1] if is_one_chip else chips


_GPU_FILES = 'as in xla/backends/gpu/target_config/specs of github.com/openxla/xla'


def _gpus(platform: str) -> list[Any]:
  """Returns the devices of a `cuda:FILE` platform."""
  text, count = _read_gpu(platform)
  try:
    return list(topologies.get_topology_desc(
      platform='cuda', topology_name='', target_config=text, topology=f'1x1x{count}').devices)
  except Exception as error:          # JAX and its plugin raise exceptions of many types
    reason = str(error).strip().splitlines()[0][:300].rstrip('.')
    raise UserError(
      f'platform {platform}: {reason}. If the compiler is what is missing, install xclip-jax[gpu]; '
      f'if the file was not understood, take that of the XLA in this jaxlib, {_GPU_FILES}'
      ) from error


def _read_gpu(platform: str) -> tuple[str, int]:
  """Reads a platform such as `cuda:FILE*8`; returns the text of FILE, and 8."""
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
                    f'of a GpuTargetConfigProto, {_GPU_FILES}')
  return text, int(count)


def _capacity(platform: str) -> int | None:
  """Returns the bytes of one device, None if not known."""
  if platform.startswith('cuda:'):
    size = _GPU_MEMORY.search(_read_gpu(platform)[0])
    assert size is not None, '_read_gpu checks this'
    return int(size[1])
  chip = CHIPS.get(platform.partition(':')[0])
  return chip and chip.memory


def make(config: Any, platform: str, step: str = 'train', classes: int = 400) -> Plan:
  """Compiles one step of a run for a platform.

  Args:
    config: config of the run; its data is not read.
    platform: see `devices`.
    step: 'train'; or 'eval', which predicts one view of config.eval.batch_size videos.
    classes: number of classes K.

  Raises:
    UserError: a field of config, the platform, or a mesh that does not cover its devices.
  """
  if step not in STEPS:
    raise UserError(f'step must be one of {", ".join(STEPS)}, got {step!r}')
  mesh = mesh_lib.make_mesh(config.mesh, devices(platform))
  config = config.copy_and_resolve_references()
  unused_step = 'eval' if step == 'train' else 'train'
  config[unused_step].batch_size = mesh_lib.batch_shards(mesh)       # any size that divides
  if step == 'eval':
    config.train.accumulation = 1
  job_lib.check_config(config)
  config = job_lib.resolve_config(config)
  model = job_lib.make_model(config)
  job_lib.check_sizes(config, model, mesh)
  text_length = None if config.train.freeze_text else 16      # as tokenizer.bucket pads prompts
  lower = _lower_train if step == 'train' else _lower_eval
  with jax.set_mesh(mesh):
    lowered = lower(config, model, mesh, classes, text_length)
    started = time.perf_counter()
    program = _compile(lowered, _GPU_OPTIONS if platform.startswith('cuda:') else None)
  seconds = time.perf_counter() - started
  batch = config.train.batch_size if step == 'train' else config.eval.batch_size
  c = model.config
  model_flops = (flops.train_step(c, batch, classes, text_length) if step == 'train' else
                 batch * (flops.encode_video(c) + flops.classify(c, classes)))
  chip = CHIPS.get(platform.partition(':')[0])
  has_loops = config.train.accumulation > 1
  return Plan(
    step=step, batch=batch, platform=platform, mesh=dict(mesh.shape), memory=program.memory,
    bytes_needed=program.bytes_needed, capacity=_capacity(platform), model_flops=model_flops,
    device_flops=None if has_loops else program.flops, traffic=program.traffic,
    seconds=program.cycles / chip.clock if program.cycles and chip else None,
    peak=chip.peak * mesh.size if chip else None, compile_seconds=seconds,
  )


@dataclasses.dataclass(frozen=True)
class _Program:
  """Numbers of one compiled program; only `bytes_needed` if the compiler found it too large.

  Fields:
    bytes_needed: bytes of one device.
    memory: the same by kind.
    flops: operations as XLA counts them; XLA:GPU counts none.
    cycles: of the compiler's cost model; 0 if it has none.
    traffic: communication of one device, by kind of collective.
  """

  bytes_needed: int
  memory: hlo_lib.Memory | None = None
  flops: float | None = None
  cycles: int = 0
  traffic: dict[str, hlo_lib.Traffic] = dataclasses.field(default_factory=dict)


def _compile(lowered: jax.stages.Lowered, options: dict[str, Any] | None) -> _Program:
  """Compiles a step and reads the numbers of its program."""
  try:
    program = lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_device_memory(error):
      raise
    return _Program(_bytes_wanted(str(error)))
  memory, hlo = hlo_lib.memory(program), program.as_text()
  assert hlo is not None
  counted = (program.cost_analysis() or {}).get('flops')
  return _Program(memory.total, memory, counted and float(counted), hlo_lib.cycles(hlo),
                  hlo_lib.collectives(hlo))


def alternatives(config: Any, mesh: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
  """Yields (description, config) of ways to need less memory, the fastest first.

  Args:
    config: config of the run.
    mesh: size of each axis of the run's mesh.
  """
  def changed(changes):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(changes)
    return other

  order = [None, 'dots', 'nothing']
  for remat in order[order.index(config.model.remat) + 1:]:
    yield f'model.remat={remat}', changed({'model.remat': remat})
  describe = lambda changes: ', '.join(f'{k}={v}' for k, v in changes.items())
  changes = {'model.remat': 'nothing'}
  if mesh['data'] > 1:
    changes |= {'mesh.data': 1, 'mesh.fsdp': mesh['data'] * mesh['fsdp']}
    yield describe(changes), changed(changes)
  for factor in (2, 4, 8):
    accumulation = config.train.accumulation * factor
    if config.train.batch_size % accumulation:
      return
    changes['train.accumulation'] = accumulation
    yield describe(changes), changed(changes)


def _lower_train(
  config: Any, model: Any, mesh: Any, classes: int, text_length: int | None
) -> jax.stages.Lowered:
  """Lowers a training step; text_length: tokens per text, None if the text tower is frozen."""
  projectors = bool(config.train.distill)
  params = state_lib.abstract(model, optax.identity(), projectors=projectors).params
  tx, _ = optimizer.make(
    config.optim, params, 1000, 100, config.train.accumulation, config.train.freeze_text)
  average = optimizer.make_average(config.train, 1000)
  abstract = state_lib.abstract(model, tx, average is not None, projectors)
  shardings = mesh_lib.infer(abstract, config.sharding, mesh)
  batch = _batch(config.train.batch_size, model.config, mesh)
  rows, B = mesh_lib.batch_sharding(mesh), config.train.batch_size
  if config.train.task == 'multi-label':
    batch['labels'] = _array((B, classes), bool, rows)
  if config.train.task == 'captions':
    S = min(16, model.config.context_length)
    batch |= {'token_ids': _array((B, S), jnp.int32, rows), 'file': _array((B,), jnp.int32, rows)}
  state = _with_shardings(abstract, shardings)
  anchor = (start_weights.drop_projectors(state.params),) if anchoring.is_on(config.train) else ()
  text = None if config.train.task == 'captions' else (
    _texts(model.config, mesh, classes, text_length))
  names = ClassList(tuple(f'class {k}' for k in range(classes)), (None,) * classes)
  step = step_lib.jit_train_step(
    step_lib.StepParts(model, tx, config, names, average), shardings, mesh)
  key_dtype = jax.eval_shape(lambda: jax.random.key(0)).dtype
  key = _array((), key_dtype, mesh_lib.replicated(mesh))
  return step.lower(state, batch, text, key, *anchor)


def _lower_eval(
  config: Any, model: Any, mesh: Any, classes: int, text_length: int | None
) -> jax.stages.Lowered:
  """Lowers an evaluation step, which takes text features whatever `text_length` is."""
  del text_length
  params = state_lib.abstract(model, optax.identity()).params
  shardings = jax.tree.map(lambda _: mesh_lib.replicated(mesh), params)
  batch = _batch(config.eval.batch_size, model.config, mesh)
  batch['index'] = batch['label']
  preprocess = native.Preprocess(tuple(config.data.mean), tuple(config.data.std))
  evaluator = scorer.Scorer(model, preprocess, mesh, config.eval.batch_size)
  return evaluator.lower(
    _with_shardings(params, shardings), batch, _texts(model.config, mesh, classes, None))


def _batch(B: int, c: Any, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a batch of B videos [B, T, H, W, 3], their labels and mask [B]."""
  rows = mesh_lib.batch_sharding(mesh)
  side = c.image_size
  return {'video': _array((B, c.num_frames, side, side, 3), jnp.uint8, rows),
          'label': _array((B,), jnp.int32, rows), 'mask': _array((B,), bool, rows)}


def _texts(c: Any, mesh: Any, K: int, S: int | None) -> jax.ShapeDtypeStruct:
  """Returns the shape of K texts: token ids [K, S], or text features [K, E] if S is None."""
  shape, dtype = ((K, c.embed_dim), jnp.float32) if S is None else (
    (K, min(S, c.context_length)), jnp.int32)
  return _array(shape, dtype, mesh_lib.replicated(mesh))


def _with_shardings(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(lambda x, sharding: _array(x.shape, x.dtype, sharding), tree, shardings)


def _array(shape: Sequence[int], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _bytes_wanted(message: str) -> int:
  """Reads a program's memory from the compiler's refusal: `Used 24.59G of 15.75G hbm`."""
  match = re.search(r'Used ([\d.]+)([KMGT]) of |temporaries \(([\d.]+)([KMGT])\)', message)
  if not match:
    raise UserError(f'the compiler refused: {message.strip().splitlines()[0][:300]}')
  number, unit = [x for x in match.groups() if x]
  return int(float(number) * (1 << {'K': 10, 'M': 20, 'G': 30, 'T': 40}[unit]))
