"""`xclip eval compare` and `average`: what the results of several evaluations say together."""

import argparse
from typing import Any

from xclip_jax.cli import options, output
from xclip_jax.cli.commands.evaluation import result_folder


def add_commands(commands: Any) -> None:
  """Adds `compare` and `average` to the subcommands of `xclip eval`."""
  command = options.add_command(
    commands, 'compare', compare, 'tell which of two models is better, and whether it is chance',
    'xclip eval compare results/a results/b -o results/difference')
  for name in ('a', 'b'):
    command.add_argument(name, metavar=name.upper(),
                         help='predictions file, or folder with predictions.npz')
  command.add_argument('-o', '--output', metavar='FOLDER', help='folder for report and picture')
  options.add_overwrite(command, 'a folder')
  command.add_argument('--resamples', type=options.at_least(1), default=10_000, metavar='COUNT',
                       help='number of bootstrap resamples (default: %(default)s)')
  command.add_argument('--seed', type=int, default=0, metavar='NUMBER',
                       help='seed of the resamples (default: %(default)s)')

  command = options.add_command(
    commands, 'average', average, 'average results over draws, seeds or splits',
    'xclip eval average results/seed0 results/seed1 results/seed2 -o results/mean')
  command.add_argument('results', metavar='RESULT', nargs='+',
                       help='folders that `xclip eval` wrote')
  command.add_argument('-o', '--output', metavar='FOLDER', help='folder for results and report')
  options.add_overwrite(command, 'a folder')


def compare(arguments: argparse.Namespace) -> int:
  """Compares two models over the same videos: paired bootstrap, classes gained and lost."""
  from xclip_jax.evaluation import compare as compare_lib

  with result_folder.open_results(arguments) as folder:
    comparison = compare_lib.compare(
      arguments.a, arguments.b, arguments.resamples, arguments.seed)
    if folder:
      from xclip_jax import files
      from xclip_jax.reports import evaluation_page

      files.write_json(folder / 'results.json', comparison.content())
      evaluation_page.write_comparison(folder, comparison)
  output.print_past_bar(comparison.sentence())
  return 0


def average(arguments: argparse.Namespace) -> int:
  """Averages the numbers of several results of one protocol, with their standard deviation."""
  from xclip_jax.evaluation import average as average_lib

  with result_folder.open_results(arguments) as folder:
    result = average_lib.average(arguments.results)
    if folder:
      from xclip_jax import files
      from xclip_jax.reports import evaluation_page

      files.write_json(folder / 'results.json', result)
      evaluation_page.write_average(folder, result)
  output.print_past_bar('\n'.join(average_lib.summary_lines(result)))
  return 0
