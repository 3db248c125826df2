"""`xclip plan`: memory and speed of a run before there is a machine."""

import argparse
import ast
import dataclasses
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from xclip_jax.cli import options, output, output_files, startup
from xclip_jax.errors import UserError

if TYPE_CHECKING:
  from xclip_jax.planning.plan import Plan
  from xclip_jax.planning.rehearsal import Rehearsal


def add_commands(commands: Any) -> None:
  """Adds `plan` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'plan', plan, 'estimate memory and speed of a run before there is a machine', """
    xclip plan --variant L/14 --batch 256 --mesh data=8,fsdp=4 --platform v5e:4x8
    xclip plan --config k400_b16_8f --platform v5e:2x4 --set model.dtype=bfloat16
    xclip plan --variant B/16 --batch 8 --step eval --platform v5e
    xclip plan --variant B/16 --batch 64 --platform cuda:h100_sxm.txtpb \\
        --set model.attention=cudnn""")
  add = command.add_argument
  add('--platform', required=True, metavar='NAME',
      help='a TPU topology such as v5e:4x8 (v4, v5e, v5p, v6e), v5e:4x8*2 for two slices; '
           'v5e alone is one chip; cuda:FILE, a GPU that the file describes (docs/plan.md), '
           'cuda:FILE*8 for eight; cpu:N')
  add('--config', metavar='NAME',
      help='name of a published config, or a file of your own, as `xclip train` takes it (default: '
      'the fields of xclip_jax/config/fields.py)')
  add('--set', action='append', default=[], metavar='FIELD=VALUE', dest='changes',
      help='change a field of the config, e.g. model.remat=dots; repeat the option for more')
  add('--variant', metavar='NAME', help='model.variant: B/32, B/16, L/14 or L/14@336')
  add('--frames', type=int, metavar='COUNT', help='frames per clip, model.num_frames')
  add('--batch', type=int, metavar='COUNT', help='videos a step, over all chips')
  add('--mesh', metavar='AXES',
      help='axes dcn, data, fsdp, tensor, e.g. data=8,fsdp=4 (default: data, all chips)')
  add('--classes', type=options.at_least(1), default=400, metavar='COUNT',
      help='number of classes (default: %(default)s)')
  add('--step', choices=('train', 'eval'), default='train',
      help='step to compile (default: %(default)s)')
  add('--no-suggest', action='store_true',
      help='if it does not fit, do not look for a change that would: each try compiles again')
  add('--json', metavar='FILE', help='JSON file for the numbers, too; - is standard output')
  options.add_overwrite(command, 'a file')


def plan(arguments: argparse.Namespace) -> int:
  """Compiles a training or evaluation step for a platform and says what the program needs.

  Nothing is run, and no TPU or GPU is needed: only the compiler, which libtpu or the plugin of
  jax[cuda12] holds. Compiling takes a minute or several. bfloat16 is the default here, as on these
  machines. Exit code: 0 if it fits, 1 if not, 2 if refused.
  """
  _keep_jax_on_cpus(arguments.platform)
  with startup.paused_collector():
    from xclip_jax.planning import plan as planning

  out = sys.stderr if arguments.json == '-' else sys.stdout
  with output_files.open_file(arguments.json, arguments.overwrite) as write:
    config = _read_config(arguments)
    platform = 'cpu' if arguments.platform.startswith('cpu') else arguments.platform
    rehearsal = _rehearse(config, planning.devices(platform), arguments)
    print(describe_hosts(rehearsal), file=out, flush=True)
    compile_step = lambda c: planning.make(c, platform, arguments.step, arguments.classes)
    asked = compile_step(config)
    tried = [('as asked', asked)]
    print(describe(config, asked), file=out, flush=True)
    if asked.fits is False and not arguments.no_suggest and arguments.step == 'train':
      for change, other in planning.alternatives(config, asked.mesh):
        tried.append((change, compile_step(other)))
        print(f'\nwith {change}:\n{numbers(tried[-1][1])}', file=out, flush=True)
        if tried[-1][1].fits:
          break
      else:
        print('\nnothing tried fits; use more chips or a smaller batch', file=out)
    write(output_files.to_json([_to_record(x, rehearsal, change) for change, x in tried]))
  return output.FAILED_IN_PART if asked.fits is False else 0


def _to_record(compiled: 'Plan', rehearsal: 'Rehearsal', change: str) -> dict[str, Any]:
  """Returns what --json holds of one program."""
  return {'change': change} | dataclasses.asdict(compiled) | dataclasses.asdict(rehearsal) | {
    'fits': compiled.fits, 'mfu': compiled.mfu, 'recompute_factor': compiled.recompute_factor,
    'estimated_max_batch': compiled.estimated_max_batch}


def _keep_jax_on_cpus(platform: str) -> None:
  """Keeps JAX on the CPU, and libtpu from looking for a TPU and complaining that it has none."""
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_MIN_LOG_LEVEL': '3',
                 'TPU_STDERR_LOG_LEVEL': '3', 'TPU_WORKER_HOSTNAMES': 'localhost',
                 'TPU_ACCELERATOR_TYPE': 'none',
                 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}      # a run may hold this machine's TPU
  name, _, count = platform.partition(':')
  if name == 'cpu' and count:
    if not count.isdecimal() or not int(count):
      raise UserError(f'--platform {platform}: cpu:N wants a number of devices')
    os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} '
                               f'--xla_force_host_platform_device_count={count}')


def _read_config(arguments: argparse.Namespace) -> Any:
  """Returns the config of the file or the default one, changed by the options."""
  from xclip_jax.config import fields, overrides, published

  given = arguments.config
  config = published.load(given) if given else fields.get_config().lock()
  overrides.set_fields(config, _changes(arguments))
  return config


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns the fields of the config that the options change, with their values."""
  changes: dict[str, Any] = {}
  if not arguments.config:
    changes['model.dtype'] = changes['model.residual_dtype'] = 'bfloat16'
  if arguments.variant:
    changes['model.variant'] = arguments.variant
  if arguments.frames is not None:
    changes['model.num_frames'] = arguments.frames
  if arguments.batch is not None:
    changes[f'{arguments.step}.batch_size'] = arguments.batch
  if arguments.mesh:
    changes |= _mesh_axes(arguments.mesh)
  for change in arguments.changes:
    field, equals, value = change.partition('=')
    if not equals:
      raise UserError(f'--set {change}: FIELD=VALUE wanted, e.g. model.remat=dots')
    try:
      changes[field] = ast.literal_eval(value)
    except (ValueError, SyntaxError):              # a text without quotation marks
      changes[field] = value
  return changes


def _mesh_axes(text: str) -> dict[str, int]:
  """Parses the sizes of mesh axes; an axis that is not named has size 1."""
  axes = {f'mesh.{name}': 1 for name in ('dcn', 'data', 'fsdp', 'tensor')}
  for part in text.split(','):
    name, _, size = part.partition('=')
    try:
      axes[f'mesh.{name.strip()}'] = int(size)
    except ValueError as error:
      raise UserError(f'--mesh {text}: wanted as in data=8,fsdp=4') from error
  return axes


def _rehearse(config: Any, devices: Any, arguments: argparse.Namespace) -> 'Rehearsal':
  """Rehearses the run, which may refuse the config.

  Without a config file the user has named the batch size of one step only: the other step's is
  raised to one that the devices divide.
  """
  from xclip_jax.parallel import mesh as mesh_lib
  from xclip_jax.planning import rehearsal

  if not arguments.config:
    shards = mesh_lib.batch_shards(mesh_lib.make_mesh(config.mesh, list(devices)))
    named = {change.partition('=')[0] for change in arguments.changes}
    named |= {f'{arguments.step}.batch_size'} if arguments.batch is not None else set()
    for step, multiple in (('train', shards * config.train.accumulation), ('eval', shards)):
      if f'{step}.batch_size' not in named:
        config[step].batch_size = -(-config[step].batch_size // multiple) * multiple
  return rehearsal.rehearse(config, devices)


def describe_hosts(rehearsal: 'Rehearsal') -> str:
  """Returns lines on what each host reads of a training batch, and what is predicted at once."""
  count = lambda rows: f'{rows[0]}' if len(set(rows)) == 1 else f'{min(rows)} to {max(rows)}'
  r = rehearsal
  hosts = f'{r.hosts} host(s) with {r.host_devices} device(s) each'
  return (
    f'hosts           {hosts}; each reads {count(r.train_rows)} of the '
    f'{sum(r.train_rows)} rows of a training batch\n'
    f'evaluation      {r.eval_clips} clips at once: {r.eval_videos} videos '
    f'({count(r.eval_rows)} a host) x {r.eval_views} of {r.views} view(s)')


def describe(config: Any, compiled: 'Plan') -> str:
  """Returns lines on the program that was compiled, and its numbers."""
  model = config.model
  mesh = ' '.join(f'{axis}={size}' for axis, size in compiled.mesh.items())
  return (
    f'{model.variant}, {model.num_frames} frames, {compiled.step} step of {compiled.batch} videos, '
    f'{model.dtype}, remat {model.remat}, accumulation {config.train.accumulation}\n'
    f'{compiled.platform}: {math.prod(compiled.mesh.values())} device(s), mesh {mesh}. Compiled, '
    f'not run ({compiled.compile_seconds:.0f} s).\n' + numbers(compiled))


def numbers(compiled: 'Plan') -> str:
  """Returns the numbers of a program, one a line."""
  p = compiled
  lines = [_memory_line(p)]
  if p.memory is not None and p.estimated_max_batch:
    lines.append(f'room            about {p.estimated_max_batch} videos a step would fill 90 % of '
                 'it, by proportion; not compiled')
  recomputed = f'; compiled: {p.recompute_factor:.2f} times that' if p.recompute_factor else ''
  lines.append(
    f'operations      {p.model_flops / 1e12:.2f} TFLOP a step, counted by hand{recomputed}')
  if p.memory is not None:
    moved = ', '.join(
      f'{name} {x.count} x, {_in_bytes(x.bytes)}' for name, x in p.traffic.items())
    lines.append(f'communication   {moved or "none"}, a device')
  if p.seconds:
    share = f', {100 * p.mfu:.0f} % of the peak' if p.mfu else ''
    lines.append(
      f'estimated time  {1e3 * p.seconds:.1f} ms a step, {p.batch / p.seconds:.0f} videos a second'
      f"{share}\n                (the compiler's cost model, without communication: it orders "
      'variants, it is no promise)')
  return '\n'.join(lines)


def _memory_line(compiled: 'Plan') -> str:
  if compiled.memory is None:
    capacity = _in_bytes(compiled.capacity) if compiled.capacity else 'an unknown capacity'
    return (f'memory          {_in_bytes(compiled.bytes_needed)} needed of {capacity}: DOES NOT '
            'FIT, the compiler gave up')
  x = compiled.memory
  verdict = ''
  if compiled.capacity:
    fits = 'fits' if compiled.fits else 'DOES NOT FIT'
    verdict = f' of {_in_bytes(compiled.capacity)}: {fits}'
  return (
    f'memory          {_in_bytes(x.total)}{verdict} (state and batch {_in_bytes(x.arguments)}, '
    f'temporary {_in_bytes(x.temporary)}, code {_in_bytes(x.program)}, other outputs '
    f'{_in_bytes(x.outputs)})')


def _in_bytes(count: int) -> str:
  """Returns a number of bytes in GiB or, below half of one, in MiB."""
  return f'{count / (1 << 30):.2f} GiB' if count >= 1 << 29 else f'{count / (1 << 20):.1f} MiB'
