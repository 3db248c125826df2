"""`xclip embed`: videos and texts as vectors."""

import argparse
import dataclasses
import json
from typing import Any

import xclip_jax
from xclip_jax.cli import options, output, output_files
from xclip_jax.cli.commands.videos import inputs, vector_files
from xclip_jax.errors import UserError


def add_commands(commands: Any) -> None:
  """Adds `embed` to the subcommands of `xclip`."""
  command = options.add_command(
    commands, 'embed', embed, 'turn videos or texts into vectors', """
    xclip embed videos/ --weights microsoft/xclip-base-patch32 -o videos.npz
    xclip embed --labels "a dog running, a cat asleep" --weights runs/demo -o texts.npy""")
  command.add_argument('videos', nargs='*', metavar='VIDEO', help=options.VIDEOS)
  options.add_model_options(command)
  options.add_label_options(command)
  options.add_truncate(command, 'labels')
  options.add_output(command, vector_files.HELP)
  options.add_quiet(command)


def embed(arguments: argparse.Namespace) -> int:
  """Writes the feature vectors of videos, of texts, or of both.

  The ending of the file decides what it holds. An .npz holds video_features and paths,
  text_features and labels, failed and config. An .npy holds nothing but the vectors, in the order
  of the arguments: of videos or of labels, and a video that cannot be read is an error. A .parquet
  has a row for each vector, with the columns kind, name and vector, and needs pyarrow.
  """
  labels = inputs.read_labels(arguments)
  if not arguments.videos and not labels:
    raise UserError('no videos and no labels; give a file, a folder, a glob, or --labels')
  files = inputs.find_videos(arguments.videos) if arguments.videos else []
  write_vectors = vector_files.choose_writer(arguments.output, bool(files), bool(labels))
  with output_files.open_file(arguments.output, arguments.overwrite) as write:
    classifier, _ = inputs.open_classifier(arguments)
    vectors, failed = _compute(arguments, classifier, files, labels)
    if failed and arguments.output.lower().endswith('.npy'):
      raise UserError(f'{arguments.output} was not written: an .npy cannot say which videos are '
                      'missing. Leave them out, or write an .npz')
    write_vectors(vectors, write)
  if not arguments.quiet:
    shapes = ', '.join(f'{name} {list(features.shape)}' for name, features in (
      ('text_features', vectors.text_features), ('video_features', vectors.video_features))
      if features is not None)
    print(f'{arguments.output}: {shapes}')
  return inputs.conclude(failed, len(files))


def _compute(
  arguments: argparse.Namespace, classifier: Any, files: list[str], labels: list[str]
) -> tuple[vector_files.Vectors, list[tuple[str, str]]]:
  """Returns the vectors, and path and reason of each video that could not be used."""
  import numpy as np

  text_features = video_features = None
  if labels:
    text_features = classifier.embed_text(labels, arguments.truncate)
    if not np.isfinite(text_features).all():
      raise UserError(f'{arguments.weights}: {inputs.NOT_FINITE}')
  paths, rows, failed = [], [], []
  results = zip(files, classifier.embed_each(files), strict=True)
  for file, row in output.show_progress(
      results, total=len(files), unit='video', quiet=arguments.quiet):
    if not isinstance(row, UserError) and not np.isfinite(row).all():
      row = UserError(f'{file}: {inputs.NOT_FINITE}')
    if isinstance(row, UserError):
      failed.append(inputs.say_failure(file, row))
    else:
      paths.append(file)
      rows.append(row)
  if files:
    video_features = np.array(rows, np.float32).reshape(-1, classifier.config.embed_dim)
  config = json.dumps({
    'weights': arguments.weights, 'template': classifier.template,
    'model': dataclasses.asdict(classifier.config),
    'preprocess': dataclasses.asdict(classifier.weights.preprocess),
    'version': xclip_jax.__version__,
  })
  names = [file for file, _ in failed]
  return vector_files.Vectors(text_features, labels, video_features, paths, names, config), failed
