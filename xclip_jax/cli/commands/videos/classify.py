"""`xclip classify`: the labels that fit videos best."""

import argparse
import contextlib
import json
import math
import time
from typing import Any

from xclip_jax.cli import options, output, output_files
from xclip_jax.cli.commands.videos import inputs
from xclip_jax.errors import UserError


def add_commands(commands: Any) -> None:
  """Adds `classify` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'classify', classify, 'say which labels fit videos', """
    xclip classify --weights toy sample:ring
    xclip classify clip.mp4 --weights runs/demo --labels "a dog running, a cat asleep"
    xclip classify videos/ 'more/*.avi' --weights microsoft/xclip-base-patch32 \\
        --labels-file labels.txt --template 'a video of {}' --csv answers.csv""")
  command.add_argument('videos', nargs='+', metavar='VIDEO', help=options.VIDEOS)
  options.add_model_options(command)
  options.add_label_options(command)
  options.add_truncate(command, 'labels')
  command.add_argument('--top', type=options.at_least(1), default=5, metavar='COUNT',
                       help='number of labels to show for a video (default: %(default)s)')
  options.add_csv_output(command)
  command.add_argument('--json', metavar='FILE',
                       help='JSON file to write, too; - is standard output')
  options.add_overwrite(command)
  command.add_argument('--timings', action='store_true',
                       help='print on standard error how many seconds each phase took')
  options.add_quiet(command)


def classify(arguments: argparse.Namespace) -> int:
  """Prints the labels that fit every video best, with their probabilities."""
  started = time.perf_counter()
  labels = inputs.read_labels(arguments)
  files = inputs.find_videos(arguments.videos)
  if output_files.is_same(arguments.csv, arguments.json):
    raise UserError(f'--csv and --json both write to {arguments.csv}')
  with contextlib.ExitStack() as stack:
    write_csv, write_json = (
      stack.enter_context(output_files.open_file(path, arguments.overwrite))
      for path in (arguments.csv, arguments.json)
    )
    table = output.Table(files) if '-' not in (arguments.csv, arguments.json) else None
    classifier, times = inputs.open_classifier(arguments, exports=True)
    labels = labels or inputs.stored_labels(classifier)
    results = zip(files, classifier.classify_each(files, labels, arguments.truncate), strict=True)
    results = output.show_progress(
      results, total=len(files), unit='video', quiet=arguments.quiet)
    answers, failed, begun = [], [], time.perf_counter()
    for file, answer in results:
      top = [] if isinstance(answer, UserError) else answer.top(arguments.top)
      if top and math.isnan(top[0][1]):
        answer, top = UserError(f'{file}: {inputs.NOT_FINITE}'), []
      if not top:
        failed.append(inputs.say_failure(file, answer))
        continue
      answers.append((file, top))
      times.setdefault('first answer', time.perf_counter() - begun)
      if table:
        table.show(file, top)
    write_csv(output_files.to_csv(answers))
    write_json(output_files.to_json({
      'weights': arguments.weights, 'template': classifier.template, 'labels': labels,
      'videos': [
        {'path': file, 'top': [{'label': x, 'probability': round(p, 6)} for x, p in top]}
        for file, top in answers
      ],
      'failed': [{'path': file, 'reason': reason} for file, reason in failed],
    }))
  if arguments.timings:
    times['total'] = time.perf_counter() - started
    output.say('timings ' + json.dumps({name: round(x, 3) for name, x in times.items()}))
  return inputs.conclude(failed, len(files))
