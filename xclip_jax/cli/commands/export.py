"""The `xclip export` command."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from xclip_jax.cli import options, output, startup
from xclip_jax.cli.commands.videos import inputs


def add_commands(commands: Any) -> None:
  """Adds `export` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'export', export, 'write a model for other runtimes, with proof', """
    xclip export toy -o model
    xclip export runs/tuned -o model --to onnx --labels-file labels.txt --on videos/
    xclip export microsoft/xclip-base-patch32 -o page --to web --dtype bfloat16""")
  command.add_argument('weights', metavar='WEIGHTS', help=options.WEIGHTS)
  options.add_output(command, 'folder to write', folder=True)
  command.add_argument(
    '--to', default='stablehlo,onnx', metavar='LIST',
    help='formats to write, separated by commas: stablehlo (jax alone runs it, on CPUs, GPUs and '
    'TPUs), onnx (onnxruntime and many others), web (a page with the ONNX graphs that runs in a '
    'browser) (default: %(default)s)')
  options.add_label_options(command)
  command.add_argument('--frames', type=options.at_least(1), metavar='COUNT',
                       help='frames per clip, which are fixed in an export (default: as the '
                       'weights were trained)')
  command.add_argument('--dtype', choices=('float32', 'bfloat16'),
                       help='number format of kernels and matrix products; in ONNX bfloat16 is '
                       'float16, which more runtimes know (default: as the weights say, mostly '
                       'float32)')
  command.add_argument('--on', nargs='+', default=[], metavar='VIDEO',
                       help='videos that the proof compares, too: files, folders and globs')
  options.add_file_options(command)
  options.add_quiet(command)


def export(arguments: argparse.Namespace) -> int:
  """Writes a folder with graphs that start at raw frames, a manifest, the tokenizer and a proof.

  The graphs resize, crop and normalise as the weights were trained. parity.md compares them with
  this package on frames of many sizes; an export that is not equal is not written. B videos, K
  texts and the size of the frames stay free.
  """
  started = time.perf_counter()
  labels = inputs.read_labels(arguments)
  videos = inputs.find_videos(arguments.on) if arguments.on else []
  arguments.heads = arguments.merge_tokens = arguments.square_pixels = None
  startup.prepare_compilation(arguments.quiet)
  from xclip_jax.export import folder as folder_lib
  from xclip_jax.inference import classifier as classifier_lib

  chosen = folder_lib.ExportOptions(
    targets=tuple(name.strip() for name in arguments.to.split(',') if name.strip()),
    labels=tuple(labels), videos=tuple(videos), overwrite=arguments.overwrite,
    say=(lambda text: None) if arguments.quiet else output.say)
  folder_lib.check_request(arguments.output, chosen)
  classifier = classifier_lib.load(
    arguments.weights, template=arguments.template, **options.open_options(arguments))
  path = folder_lib.export(classifier, arguments.output, chosen)
  size = sum(file.stat().st_size for file in Path(path).rglob('*') if file.is_file())
  output.print_past_bar(
    f'wrote {os.path.normpath(arguments.output)}: {arguments.to}, {size / 2**20:,.1f} MiB, '
    f'{time.perf_counter() - started:.0f} s; see parity.md in it')
  return 0
