"""The `xclip convert` and `xclip weights inspect` commands."""

import argparse
import dataclasses
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_jax.cli import options, output
from xclip_jax.errors import UserError

if TYPE_CHECKING:
  from xclip_jax.weights import inspection, native

_LISTED_TENSORS = 100  # a file with more of them is listed with a line for blocks that are alike
TARGETS = ('native', 'hf', 'official', 'openai')


def add_commands(commands: Any) -> None:
  """Adds `convert` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'convert', convert, 'write weights in the format of another program', """
    xclip convert microsoft/xclip-base-patch32 weights/b32
    xclip convert runs/demo exported --to hf
    xclip convert runs/demo exported.pth --to official""")
  add_convert_arguments(command)


def add_inspect_command(group: Any) -> None:
  """Adds `inspect` to the subcommands of `xclip weights`."""
  command = options.add_command(
    group, 'inspect', inspect, 'say what a file or folder with weights holds', """
    xclip weights inspect runs/tuned
    xclip weights inspect microsoft/xclip-base-patch32 --json""")
  add_inspect_arguments(command)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `convert` to a parser."""
  parser.add_argument('source', metavar='SRC', help='workdir of a run, a folder or file with '
                      'weights, or a name such as microsoft/xclip-base-patch32')
  parser.add_argument('destination', metavar='DST',
                      help='folder (native, hf) or file (official, openai) to write')
  parser.add_argument(
    '--to', choices=TARGETS, default='native',
    help='native: our folder, which numpy alone can read (default); hf: a folder for '
    'transformers.XCLIPModel; official: a .pth as microsoft/VideoX loads it; openai: a .pt with '
    'the two towers of CLIP')
  parser.add_argument('--overwrite', action='store_true',
                      help='replace weights that are at DST')
  add_reading_arguments(parser)


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `inspect` to a parser."""
  parser.add_argument('source', metavar='SRC', help='workdir of a run, a folder or file with '
                      'weights, or a name such as microsoft/xclip-base-patch32')
  parser.add_argument('--json', action='store_true', help='print JSON, for programs')
  options.add_file_options(parser)


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that change how weights are read."""
  parser.add_argument(
    '--heads', choices=('file', 'reference'), default='file',
    help="head counts to use where config.json disagrees with the reference's width // 64 "
    '(default: file)')
  parser.add_argument(
    '--frames', type=options.at_least(1), metavar='COUNT',
    help='interpolate the positions to T frames; weights of CLIP: make a model of T frames')
  parser.add_argument(
    '--image-size', type=options.at_least(1), metavar='PIXELS',
    help='interpolate the positions to frames of S pixels')
  parser.add_argument(
    '--seed', type=int, default=0, metavar='NUMBER',
    help='seed of the modules that weights of CLIP lack (default: 0)')
  options.add_file_options(parser)


def convert(arguments: argparse.Namespace) -> int:
  """Reads weights from anywhere and writes them in another format, whole or not at all.

  Runs on the CPU; needs neither PyTorch nor transformers.
  """
  start = time.perf_counter()
  os.environ['JAX_PLATFORMS'] = os.environ.get('JAX_PLATFORMS') or 'cpu'
  from xclip_jax.weights.export import formats

  target = arguments.to
  _check_apart(arguments.source, arguments.destination)
  formats.check_destination(arguments.destination, target, arguments.overwrite)
  weights = read_weights(arguments)
  print_notes(weights.notes)
  path = formats.save(weights, target, arguments.destination, arguments.overwrite)
  print_notes(formats.remarks(weights, target))
  files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
  size = sum(p.stat().st_size for p in files)
  output.print_past_bar(
    f'wrote {path} ({target}): {formats.count_parameters(weights.params, target):,} parameters, '
    f'{size / 2**20:,.1f} MiB, {time.perf_counter() - start:.1f} s')
  return 0


def inspect(arguments: argparse.Namespace) -> int:
  """Says what a file, a folder, a run or a published name holds, without converting anything.

  Prints the format, the architecture, the preprocessing, the licence, and name, dtype and shape of
  the tensors (those of numbered blocks in one line, if there are more than 100; --json has all).
  Weights that cannot be converted are described too, with the reasons.
  """
  os.environ['JAX_PLATFORMS'] = os.environ.get('JAX_PLATFORMS') or 'cpu'
  from xclip_jax.weights import inspection

  description = inspection.describe(
    arguments.source, arguments.subtree, not arguments.skip_checksums)
  if arguments.json:
    print(json.dumps(dataclasses.asdict(description), indent=1))
  else:
    output.print_past_bar(show_description(description))
  return 0


def read_weights(arguments: argparse.Namespace) -> 'native.Weights':
  """Opens SRC as `--heads`, `--frames`, `--image-size` and `--seed` say."""
  from xclip_jax.weights import architecture, opening

  weights = opening.open_weights(
    arguments.source, heads=arguments.heads, num_frames=arguments.frames,
    image_size=arguments.image_size, seed=arguments.seed, subtree=arguments.subtree,
    checksums=not arguments.skip_checksums)
  if arguments.heads == 'reference':
    fields = vars(weights.config)
    rule = architecture.reference_heads(fields)
    differing = {k: fields[k] for k, n in rule.items() if n not in (0, fields[k])}
    if differing:
      raise UserError(f'--heads reference has no effect on {arguments.source}: it is a run, which '
                      f'was trained with {differing}')
  return weights


def print_notes(lines: Sequence[str]) -> None:
  """Prints lines, each marked as a note."""
  for line in lines:
    output.print_past_bar(f'note: {line}')


def show_description(d: 'inspection.Description') -> str:
  """Returns a description as lines of text."""
  lines = [f'{d.source}']
  row = lambda name, value: lines.append(f'  {name:<12}{value}')
  row('kind', f'{d.kind}, {d.dialect} names' + (f', {d.bytes / 2**20:,.1f} MiB' if d.bytes else ''))
  row('tensors', f'{d.tensors}: ' + ', '.join(f'{n} {dtype}' for dtype, n in d.dtypes.items()))
  row('parameters', f'{d.parameters["total"]:,}')
  lines += [f'    {part:<14}{n:>13,}' for part, n in d.parameters.items() if part != 'total']
  if d.config:
    lines += _architecture_lines(d, d.config)
  if d.preprocess and d.config:
    from xclip_jax.weights import native
    from xclip_jax.weights.export import formats

    row('preprocess', formats.describe_preprocess(
      native.Preprocess(**d.preprocess), d.config['image_size']))
  if d.template != '{}':
    row('template', repr(d.template))
  row('licence', d.licence)
  if d.known:
    row('published', d.known['published'])
  for name, summary in d.also_holds.items():
    row('also holds', f'{name}: {summary}')
  for tower, h in d.heads.items():
    if not h['agrees']:
      row('! heads', f'{tower} has {h["heads"]} heads by {h["told_by"]}; the reference would have '
                     f'{h["reference"]} (--heads reference)')
  for note in d.notes:
    row('note', note)
  for problem in d.problems:
    row('! problem', '; '.join(problem.split('\n  ')).replace(':; ', ': '))
  return '\n'.join([*lines, *_tensor_lines(d.entries)])


def _tensor_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
  """Returns a line for each tensor; of a large file one for all blocks that are alike."""
  rows: dict[tuple[str, str, str], list[str]] = {}
  for entry in entries:
    name = output.printable(entry['name'])
    pattern = name if len(entries) <= _LISTED_TENSORS else re.sub(r'\b\d+\b', '*', name)
    rows.setdefault((pattern, entry['dtype'], str(entry['shape'])), []).append(name)
  lines = ['  names'] if rows else []
  for (pattern, dtype, shape), names in rows.items():
    many = f', {len(names)} of them' if names[1:] else ''
    lines.append(f'    {pattern if many else names[0]}  {dtype} {shape}{many}')
  return lines


def _architecture_lines(d: 'inspection.Description', c: dict[str, Any]) -> list[str]:
  lines = [
    f'  {"size":<12}{d.variant or "no published size"}, T={c["num_frames"]} frames of '
    f'{c["image_size"]} pixels, patches of {c["patch_size"]}']
  for tower, h in d.heads.items():
    mlp = c.get(f'{tower}_mlp', 4 * h['width'])
    lines.append(
      f'    {tower:<8}{c[f"{tower}_layers"]:>3} layers, width {h["width"]:>4}, {h["heads"]:>2} '
      f'heads ({h["told_by"]}), MLP {mlp}, {c[f"{tower}_activation"]}')
  lines.append(f'  {"shared":<12}embed_dim {c["embed_dim"]}, vocabulary {c["vocab_size"]}, context '
               f'{c["context_length"]}')
  rest = ('prompt_alpha', 'drop_path', 'dtype', 'residual_dtype', 'attention', 'remat')
  name = 'as trained' if d.kind == 'run' else 'when run'
  return [*lines, f'  {name:<12}' + ', '.join(f'{k} {c[k]}' for k in rest)]


def _check_apart(source: str, destination: str) -> None:
  """Raises UserError if writing DST would remove SRC."""
  if not Path(source).expanduser().exists():
    return
  read, written = (Path(x).expanduser().resolve() for x in (source, destination))
  if written == read or written in read.parents:
    raise UserError(f'DST {destination} is or holds SRC {source}; give it another name')
