"""The folder of a run: its config.json and its list of unreadable files."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from xclip_jax import config as fields
from xclip_jax import files
from xclip_jax.data import Split, bad_files, check_places
from xclip_jax.errors import UserError
from xclip_jax.files import AnyPath
from xclip_jax.parallel import processes
from xclip_jax.storage import continuation
from xclip_jax.text import prompts


class Beginning(NamedTuple):
  """Numbers that a run began with and that restarts may have changed since.

  Fields:
    updates: length of the run, from which the start of the parameters' average follows.
    accumulation: micro-batches per update, the unit of optim.lag_steps.
  """

  updates: int
  accumulation: int


def open_folder(config: Any, workdir: str | os.PathLike) -> AnyPath:
  """Checks every path of a config and returns the path of the run's folder; creates nothing.

  Raises:
    UserError: a path that cannot be used, such as s3://, or a bucket that cannot be written to.
  """
  path = files.as_path(workdir, 'workdir')
  if isinstance(path, Path):
    path = path.resolve()
    files.check_text(path, 'workdir')
  check_places(config.data)
  files.as_path(config.train.init_from, 'config.train.init_from')
  processes.run_on_all_processes(lambda: files.check_bucket(path, jax.process_index()))
  return path


def claim(
  config: Any, workdir: AnyPath, splits: dict[str, Split], fresh: bool, anchor: str | None = None,
  step: int = 0,
) -> Beginning:
  """Writes config.json after checking that an existing one is of the same run.

  Permitted changes (a longer run, other micro-batches) are kept in its `history`: the step of the
  change, and the former values.

  Args:
    config: config of the run, from the command line.
    workdir: folder of the run.
    splits: annotation lists of the run, by split name.
    fresh: True if no checkpoint exists; an existing config.json is then overwritten.
    anchor: SHA-256 of the initial weights, if the loss keeps the run near them.
    step: number of updates done.

  Returns:
    The numbers that the run began with.

  Raises:
    UserError: a field that affects the weights differs; the message lists the differences.
  """
  resolved = json.loads(config.to_json_best_effort())
  resolved['data_fingerprint'] = {k: split.videos.fingerprint for k, split in splits.items()}
  resolved['data_fingerprint'] |= prompts.fingerprint(config.data)
  if anchor:
    resolved['anchor_sha256'] = anchor
  num_videos = len(splits['train'].videos) if 'train' in splits else 0
  if num_videos:
    resolved |= continuation.lengths(config, num_videos)
  history = []
  path = workdir / 'config.json'
  if not fresh and files.exists(path):
    old = _read_config(path)
    if num_videos and 'updates' not in old:
      old |= continuation.former_lengths(old, num_videos)
    try:
      kept = continuation.check(old, resolved, json.loads(
        fields.get_config().to_json_best_effort()))
    except UserError as error:
      raise UserError(f'{workdir} {error}') from None
    history = old.get('history', []) + ([{'step': step, 'from': kept}] if kept else [])
  resolved['history'] = history
  files.make_folder(workdir)
  if jax.process_index() == 0:
    files.write_text(path, json.dumps(resolved, indent=1) + '\n')
  return Beginning(continuation.first_value(resolved, 'updates') if num_videos else 0,
                   continuation.first_value(resolved, 'train.accumulation'))


def _read_config(path: AnyPath) -> dict[str, Any]:
  """Reads the config.json of the run in a workdir; UserError if it is damaged."""
  with files.explain_errors(path):
    content = path.read_bytes()
  try:
    config = json.loads(content)
  except ValueError as error:
    raise UserError(
      f'{path} is damaged ({error}); restore it, or give another --workdir') from error
  if not isinstance(config, dict):
    raise UserError(f'{path} is no config of a run, but {type(config).__name__}; restore it, or '
                    'give another --workdir')
  return config


def write_bad_files(workdir: AnyPath, bad: bad_files.BadFiles) -> None:
  """Writes unreadable_files.txt and prints its name, if any video could not be read."""
  if bad.count and jax.process_index() == 0:
    files.write_text(workdir / 'unreadable_files.txt', '\n'.join(bad.items.values()) + '\n')
    print(f'{bad.count} unreadable videos were replaced: {workdir / "unreadable_files.txt"}')
