"""Moves weights between frameworks.

  python -m convert SRC DST [--to native|hf|official|openai]    convert
  python -m convert inspect SRC [--json]                        say what is in a file
  python -m convert verify SRC                                  compare with PyTorch, layer by layer

SRC is whatever `xclip_jax.load` takes: the workdir of a run, a folder of ours or of Hugging Face, a
file of PyTorch or safetensors, or a name as microsoft/xclip-base-patch32.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from convert import export, inspect_weights, verify
from xclip_jax.errors import UserError
from xclip_jax.parallel import tree_names
from xclip_jax.weights import architecture, native, opening, rules


def main(argv: Sequence[str]) -> int:
  """Runs one command; returns the exit code: 0, 1 for a comparison that failed, 2 for a mistake."""
  named = argv and argv[0] in _COMMANDS
  try:
    return _COMMANDS[argv[0]](argv[1:]) if named else convert(argv)
  except (ValueError, RuntimeError, OSError) as error:
    # Everything a user can cause is raised with a message that says all; other errors have a trace.
    if type(error).__module__.split('.')[0] not in ('builtins', 'xclip_jax'):
      raise
    print(f'error: {error}', file=sys.stderr)
    return 2


def convert(arguments: Sequence[str]) -> int:
  """`python -m convert SRC DST`."""
  parser = argparse.ArgumentParser(
    'python -m convert', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('source', metavar='SRC')
  parser.add_argument('destination', metavar='DST', help='folder (native, hf) or file to write')
  parser.add_argument(
    '--to', choices=export.TARGETS, default='native',
    help='native: our folder (default); hf: a folder for transformers.XCLIPModel; official: a .pth '
    'as microsoft/VideoX loads it; openai: a .pt with the two towers of CLIP',
  )
  parser.add_argument('--overwrite', action='store_true', help='replace weights that are at DST')
  _add_reading(parser)
  args = parser.parse_args(arguments)
  start = time.perf_counter()
  _check_apart(args.source, args.destination)
  export.check_destination(args.destination, args.to, args.overwrite)
  weights = _read(args)
  _say(weights.notes)
  path = export.save(weights, args.to, args.destination, args.overwrite)
  _say(export.remarks(weights, args.to))
  files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
  size = sum(p.stat().st_size for p in files)
  print(
    f'wrote {path} ({args.to}): {_written_parameters(weights, args.to):,} parameters, '
    f'{size / 2**20:,.1f} MiB, {time.perf_counter() - start:.1f} s'
  )
  return 0


def inspect(arguments: Sequence[str]) -> int:
  """`python -m convert inspect SRC`."""
  parser = argparse.ArgumentParser('python -m convert inspect', description=inspect.__doc__)
  parser.add_argument('source', metavar='SRC')
  parser.add_argument('--json', action='store_true', help='for programs')
  args = parser.parse_args(arguments)
  description = inspect_weights.describe(args.source)
  if args.json:
    print(json.dumps(dataclasses.asdict(description), indent=1))
  else:
    print(inspect_weights.show(description))
  return 0


def verify_weights(arguments: Sequence[str]) -> int:
  """`python -m convert verify SRC`."""
  parser = argparse.ArgumentParser(
    'python -m convert verify', description='Compares a forward pass with transformers.XCLIPModel.'
  )
  parser.add_argument('source', metavar='SRC')
  parser.add_argument(
    '--tolerance', type=float, help='largest difference of a logit; default 1e-4, for models below '
    '10 M parameters 1e-5',
  )
  parser.add_argument(
    '--grads', action=argparse.BooleanOptionalAction,
    help='compare the gradient of every parameter too; default: for models below 30 M parameters',
  )
  _add_reading(parser)
  args = parser.parse_args(arguments)
  verify.require_peer()
  weights = _read(args)
  _say(weights.notes)
  result = verify.compare(weights, args.seed, args.grads)
  print(verify.show(result))
  failures = result.failures(args.tolerance)
  for line in failures:
    print(f'DIFFERENT: {line}')
  if not failures:
    print(f'equal: logits within {result.tolerance(args.tolerance):g} of transformers')
  return 1 if failures else 0


def _add_reading(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--heads', choices=('file', 'reference'), default='file',
    help="where config.json has other head counts than the reference's width // 64: follow it "
    '(default), or the reference',
  )
  parser.add_argument(
    '--frames', type=_positive, metavar='T', help='interpolate to T frames; of CLIP: make T frames'
  )
  parser.add_argument(
    '--image-size', type=_positive, metavar='S', help='interpolate to frames of S pixels'
  )
  parser.add_argument(
    '--seed', type=int, default=0, help='of the modules that CLIP lacks, and of random inputs'
  )


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
  return value


def _read(args: argparse.Namespace) -> native.Weights:
  weights = opening.open_weights(
    args.source, heads=args.heads, num_frames=args.frames, image_size=args.image_size,
    seed=args.seed,
  )
  config = weights.config
  if args.heads == 'reference':
    rule = architecture.reference_heads(vars(config))
    other = {k: vars(config)[k] for k, n in rule.items() if n not in (0, vars(config)[k])}
    if other:
      raise UserError(
        f'--heads reference has no effect on {args.source}: it is a run, which was trained with '
        f'{other}'
      )
  return weights


def _check_apart(source: str, destination: str) -> None:
  """Raises ValueError if writing would remove what is read."""
  if not Path(source).expanduser().exists():
    return
  read, written = (Path(x).expanduser().resolve() for x in (source, destination))
  if written == read or written in read.parents:
    raise UserError(f'DST {destination} is or holds SRC {source}; give it another name')


def _written_parameters(weights: native.Weights, target: str) -> int:
  new = rules.NEW_PARAMETERS if target == 'openai' else '$'
  return sum(x.size for k, x in tree_names.flatten(weights.params).items() if not tree_names.matches(new, k))


def _say(lines: Sequence[str]) -> None:
  for line in lines:
    print(f'note: {line}')


def _terminate(*_: Any) -> None:
  sys.exit(143)       # unwinds, so that half-written files are removed


_COMMANDS = {'inspect': inspect, 'verify': verify_weights}

if __name__ == '__main__':
  jax.config.update('jax_platforms', os.environ.get('JAX_PLATFORMS') or 'cpu')
  signal.signal(signal.SIGTERM, _terminate)
  try:
    sys.exit(main(sys.argv[1:]))
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:      # `... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
