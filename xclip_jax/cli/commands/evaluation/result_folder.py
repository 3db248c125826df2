"""The folder of an evaluation's results."""

import argparse
import contextlib
import re
from pathlib import Path

from xclip_jax.cli import output_files

_FILES = r'predictions(_\w+)?\.npz|results\.json|report\.md|{}'


def open_results(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[Path | None]:
  """Opens the folder of --output; without one, None."""
  if not arguments.output:
    return contextlib.nullcontext()
  from xclip_jax.reports import evaluation_page

  pictures = '|'.join(rf'{name}(_\d+)?\.png' for name in evaluation_page.PICTURES)
  names = re.compile(_FILES.format(pictures))
  return output_files.open_folder(
    arguments.output, arguments.overwrite, lambda name: names.fullmatch(name) is not None)
