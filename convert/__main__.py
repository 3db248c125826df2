"""Converts weights between frameworks, and compares them with PyTorch.

  python -m convert SRC DST [--to native|hf|official|openai]    the same as `xclip convert`
  python -m convert inspect SRC [--json]                        the same as `xclip weights inspect`
  python -m convert verify SRC                                  compare with PyTorch, layer by layer

SRC is whatever `xclip_jax.load` takes: the workdir of a run, a folder in our format or Hugging
Face's, a file of PyTorch or safetensors, or a name such as microsoft/xclip-base-patch32.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from xclip_jax import errors
from xclip_jax.cli.commands import convert


def main(argv: Sequence[str]) -> int:
  """Runs one command.

  Returns:
    The exit code: 0, 1 for a comparison that failed, 2 for a mistake of the user.
  """
  name = argv[0] if argv and argv[0] in ('inspect', 'verify') else ''
  parser = argparse.ArgumentParser(
    f'python -m convert {name}'.rstrip(), formatter_class=argparse.RawDescriptionHelpFormatter,
    description={'inspect': convert.inspect.__doc__, 'verify': verify.__doc__}.get(name, __doc__))
  add_arguments, run = {
    'inspect': (convert.add_inspect_arguments, convert.inspect),
    'verify': (_add_verify_arguments, verify),
  }.get(name, (convert.add_convert_arguments, convert.convert))
  add_arguments(parser)
  arguments = parser.parse_args(argv[1:] if name else argv)
  try:
    return run(arguments)
  except Exception as error:
    if not errors.is_shown_in_one_line(error):
      raise
    print(f'error: {errors.explain(error)}', file=sys.stderr)
    return 2


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('source', metavar='SRC', help='weights, as for the other commands')
  parser.add_argument(
    '--tolerance', type=float, metavar='X', help='largest allowed difference of a logit (default: '
    '1e-4; 1e-5 for models below 10 M parameters)')
  parser.add_argument(
    '--grads', action=argparse.BooleanOptionalAction, default=None,
    help='compare the gradient of every parameter too (default: for models below 30 M parameters)')
  convert.add_reading_arguments(parser)


def verify(arguments: argparse.Namespace) -> int:
  """Compares every layer, the logits and the gradients with transformers.XCLIPModel."""
  from convert import verify as verification

  verification.require_peer()
  weights = convert.read_weights(arguments)
  convert.print_notes(weights.notes)
  result = verification.compare(weights, arguments.seed, arguments.grads)
  print(verification.show(result))
  failures = result.failures(arguments.tolerance)
  for line in failures:
    print(f'DIFFERENT: {line}')
  if not failures:
    print(f'equal: logits within {result.tolerance(arguments.tolerance):g} of transformers')
  return 1 if failures else 0


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = os.environ.get('JAX_PLATFORMS') or 'cpu'
  try:
    sys.exit(main(sys.argv[1:]))
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:      # `... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
