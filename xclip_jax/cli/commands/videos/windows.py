"""`xclip windows`: the labels that fit a long video from moment to moment."""

import argparse
from typing import Any

from xclip_jax.cli import options, output, output_files
from xclip_jax.cli.commands.videos import inputs


def add_commands(commands: Any) -> None:
  """Adds `windows` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'windows', windows, 'say what a long video shows from moment to moment', """
    xclip windows day.mp4 --weights runs/demo --labels "a dog running, a cat asleep"
    xclip windows day.mp4 --weights runs/demo --labels-file labels.txt --every 16 --csv day.csv""")
  command.add_argument('video', metavar='VIDEO', help='file of the video')
  options.add_model_options(command)
  options.add_label_options(command)
  command.add_argument('--every', type=int, default=8, metavar='FRAMES',
                       help='take one of this many frames (default: %(default)s)')
  command.add_argument('--stride', type=int, default=1, metavar='FRAMES',
                       help='frames, of those taken, between the starts of two windows '
                       '(default: %(default)s)')
  command.add_argument('--exact', action='store_true',
                       help='encode every window by itself: slower, without approximation')
  command.add_argument('--top', type=options.at_least(1), default=1, metavar='COUNT',
                       help='number of labels to show for a window (default: %(default)s)')
  options.add_csv_output(command)
  options.add_overwrite(command)
  options.add_quiet(command)


def windows(arguments: argparse.Namespace) -> int:
  """Prints what a long video shows from moment to moment, in windows that overlap.

  Each frame is encoded once, in runs that do not overlap, which makes answers approximate; --exact
  encodes every window by itself. Of a damaged video the frames that can be decoded are used. Exit
  code: 0; 1 if reading stopped before the end, after some windows; 2 if refused.
  """
  labels = inputs.read_labels(arguments)
  with output_files.open_file(arguments.csv, arguments.overwrite) as write_csv:
    classifier, _ = inputs.open_classifier(arguments)
    labels = labels or inputs.stored_labels(classifier)
    from xclip_jax.data.video.decode import VideoError
    from xclip_jax.inference import long_video

    rows, result = [], 0
    try:
      for window in long_video.classify(
          classifier, arguments.video, labels, arguments.every, arguments.stride, arguments.exact):
        top = window.answer.top(arguments.top)
        rows.append((f'{window.begin:.2f}-{window.end:.2f}', top))
        if arguments.csv != '-':
          answer = ', '.join(f'{output.printable(x)} {p:.1%}' for x, p in top)
          print(f'{window.begin:8.2f} - {window.end:.2f} s  {answer}', flush=True)
    except VideoError as error:
      if not rows:
        raise
      output.say(output.printable(f'stopped after {len(rows)} windows: {error}'))
      result = output.FAILED_IN_PART
    write_csv(output_files.to_csv(rows))
  return result
