"""`xclip plan`: would this run fit onto those machines, and what would bound its speed."""

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from xclip_jax import errors
from xclip_jax.cli import options, output, output_files, startup


def add_commands(commands: Any) -> None:
  """Adds `plan` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'plan', plan, 'tell memory and speed of a run on machines that are not here', """
    xclip plan --variant L/14 --batch 256 --mesh data=8,fsdp=4 --platform v5e:4x8
    xclip plan --config configs/k400_b16_8f.py --platform v5e:2x4 --set model.dtype=bfloat16
    xclip plan --variant B/16 --batch 8 --step eval --platform v5e
    xclip plan --variant B/16 --batch 64 --platform cuda:h100_sxm.txtpb \\
        --set model.attention=cudnn""")
  add = command.add_argument
  add('--platform', required=True, metavar='NAME',
      help='a TPU topology such as v5e:4x8 (v4, v5e, v5p, v6e), v5e:4x8*2 for two slices; '
           'v5e alone is one chip; cuda:FILE, a GPU that the file describes (docs/plan.md), '
           'cuda:FILE*8 for eight; cpu:N')
  add('--config', metavar='FILE', help='a config file, as train.py takes it (default: the fields '
                                       'of xclip_jax/config/fields.py)')
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
  _prepare(arguments.platform)
  with startup.paused_collector():
    from xclip_jax.planning import plan as planning

  out = sys.stderr if arguments.json == '-' else sys.stdout
  with output_files.open_file(arguments.json, arguments.overwrite) as write:
    config = _config(arguments)
    platform = arguments.platform.partition(':')[0] if arguments.platform.startswith('cpu') else (
      arguments.platform)
    rehearsed = _rehearse(config, planning.devices(platform), arguments)
    print(describe_hosts(rehearsed), file=out, flush=True)
    make = lambda c: planning.make(c, platform, arguments.step, arguments.classes)
    asked = make(config)
    tried = [('as asked', asked)]
    print(describe(config, asked), file=out, flush=True)
    if asked.fits is False and not arguments.no_suggest and arguments.step == 'train':
      for name, other in planning.alternatives(config, asked.mesh):
        tried.append((name, make(other)))
        print(f'\nwith {name}:\n{numbers(tried[-1][1])}', file=out, flush=True)
        if tried[-1][1].fits:
          break
      else:
        print('\nnothing tried fits; use more chips or a smaller batch', file=out)
    write(json.dumps([
      {'change': name} | dataclasses.asdict(x) | dataclasses.asdict(rehearsed) | {
        'fits': x.fits, 'mfu': x.mfu, 'work': x.work, 'most_videos': x.most_videos}
      for name, x in tried], indent=1).encode() + b'\n')
  return output.FAILED_IN_PART if asked.fits is False else 0


def _rehearse(config: Any, devices: Any, arguments: argparse.Namespace) -> Any:
  """Rehearses the run, which may refuse it.

  Without a config file the user has named the batch of one step only: the other step's is made one
  that divides.
  """
  from xclip_jax.parallel import mesh as mesh_lib
  from xclip_jax.planning import rehearsal

  if not arguments.config:
    shards = mesh_lib.batch_shards(mesh_lib.make_mesh(config.mesh, list(devices)))
    named = {change.partition('=')[0] for change in arguments.changes}
    named |= {f'{arguments.step}.batch_size'} if arguments.batch is not None else set()
    for name, multiple in (('train', shards * config.train.accumulation), ('eval', shards)):
      if f'{name}.batch_size' not in named:
        config[name].batch_size = -(-config[name].batch_size // multiple) * multiple
  return rehearsal.rehearse(config, devices)


def describe_hosts(found: Any) -> str:
  """Says what each host reads of a training batch, and what is predicted at once."""
  count = lambda rows: f'{rows[0]}' if len(set(rows)) == 1 else f'{min(rows)} to {max(rows)}'
  hosts = f'{found.hosts} host(s) with {found.host_devices} device(s) each'
  return (
    f'hosts           {hosts}; each reads {count(found.train_rows)} of the '
    f'{sum(found.train_rows)} rows of a training batch\n'
    f'evaluation      {found.eval_clips} clips at once: {found.eval_videos} videos '
    f'({count(found.eval_rows)} a host) x {found.eval_views} of {found.views} view(s)')


def describe(config: Any, found: Any) -> str:
  """What was compiled, and its numbers."""
  m = config.model
  chips = 1
  for n in found.mesh.values():
    chips *= n
  mesh = ' '.join(f'{k}={n}' for k, n in found.mesh.items())
  return (
    f'{m.variant}, {m.num_frames} frames, {found.step} step of {found.batch} videos, {m.dtype}, '
    f'remat {m.remat}, accumulation {config.train.accumulation}\n'
    f'{found.platform}: {chips} device(s), mesh {mesh}. Compiled, not run '
    f'({found.compile_seconds:.0f} s).\n' + numbers(found))


def numbers(found: Any) -> str:
  """The numbers of a Plan, a line each."""
  gib = lambda n: f'{n / (1 << 30):.2f} GiB' if n >= 1 << 29 else f'{n / (1 << 20):.1f} MiB'
  lines = []
  if found.memory is None:
    lines.append(f'memory          {gib(found.needed)} needed of {gib(found.capacity)}: '
                 'DOES NOT FIT, the compiler gave up')
  else:
    x = found.memory
    fits = {True: 'fits', False: 'DOES NOT FIT', None: ''}[found.fits]
    of = f' of {gib(found.capacity)}: {fits}' if found.capacity else ''
    lines.append(
      f'memory          {gib(x.total)}{of} (state and batch {gib(x.arguments)}, temporary '
      f'{gib(x.temporary)}, code {gib(x.program)}, other outputs {gib(x.outputs)})')
    if found.most_videos:
      lines.append(f'room            about {found.most_videos} videos a step would fill 90 % of '
                   'it, by proportion; not compiled')
  work = f'; compiled: {found.work:.2f} times that' if found.work else ''
  lines.append(
    f'operations      {found.model_flops / 1e12:.2f} TFLOP a step, counted by hand{work}')
  if found.memory is not None:
    moved = ', '.join(f'{name} {x.count} x, {gib(x.bytes)}' for name, x in found.traffic.items())
    lines.append(f'communication   {moved or "none"}, a device')
  if found.seconds:
    rate = found.batch / found.seconds
    lines.append(
      f'estimated time  {1e3 * found.seconds:.1f} ms a step, {rate:.0f} videos a second, '
      f'{100 * found.mfu:.0f} % of the peak\n                '
      "(the compiler's cost model, without communication: it orders variants, it is no promise)")
  return '\n'.join(lines)


def _prepare(platform: str) -> None:
  """Keeps JAX to the CPU, and libtpu from looking for a TPU and complaining that there is none."""
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_MIN_LOG_LEVEL': '3',
                 'TPU_STDERR_LOG_LEVEL': '3', 'TPU_WORKER_HOSTNAMES': 'localhost',
                 'TPU_ACCELERATOR_TYPE': 'none',
                 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}      # a run may hold this machine's TPU
  name, _, count = platform.partition(':')
  if name == 'cpu' and count:
    if not count.isdecimal() or not int(count):
      raise errors.UserError(f'--platform {platform}: cpu:N wants a number of devices')
    os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} '
                               f'--xla_force_host_platform_device_count={count}')


def _config(arguments: argparse.Namespace) -> Any:
  from xclip_jax import config as fields

  c = (_load(arguments.config) if arguments.config else fields.get_config()).lock()
  changes = {}
  if not arguments.config:
    changes['model.dtype'] = changes['model.residual_dtype'] = 'bfloat16'
  if arguments.variant:
    changes['model.variant'] = arguments.variant
  if arguments.frames is not None:
    changes['model.num_frames'] = arguments.frames
  if arguments.batch is not None:
    changes['train.batch_size' if arguments.step == 'train' else 'eval.batch_size'] = (
      arguments.batch)
  if arguments.mesh:
    changes |= _mesh(arguments.mesh)
  for change in arguments.changes:
    field, equals, value = change.partition('=')
    if not equals:
      raise errors.UserError(f'--set {change}: FIELD=VALUE wanted, e.g. model.remat=dots')
    try:
      changes[field] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      changes[field] = value
  for field, value in changes.items():
    try:
      # What fields the variant is given is open; of all else, what there is is known.
      with c.unlocked() if field.startswith('model.fields.') else contextlib.nullcontext():
        c.update_from_flattened_dict({field: value})
    except (KeyError, AttributeError, TypeError) as error:
      reason = str(error.args[0]).splitlines()[0] if error.args else type(error).__name__
      raise errors.UserError(f'config.{field}={value!r}: {reason}') from error
  return c


def _mesh(text: str) -> dict[str, int]:
  axes = {f'mesh.{name}': 1 for name in ('dcn', 'data', 'fsdp', 'tensor')}
  for part in text.split(','):
    name, _, size = part.partition('=')
    try:
      axes[f'mesh.{name.strip()}'] = int(size)
    except ValueError as error:
      raise errors.UserError(f'--mesh {text}: wanted as in data=8,fsdp=4') from error
  return axes


def _load(path: str) -> Any:
  file = Path(path)
  if not file.is_file():
    raise errors.UserError(f'--config {path}: no such file')
  sys.path.insert(0, str(Path.cwd()))                 # where `configs` is, as for train.py
  spec = importlib.util.spec_from_file_location('xclip_plan_config', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()
