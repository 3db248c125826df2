"""The folder of a run: whose it is, and what is left in it beside checkpoints and metrics."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from xclip_jax import config as fields
from xclip_jax import files
from xclip_jax.data import Split, bad_files, check_places
from xclip_jax.errors import UserError
from xclip_jax.parallel import processes
from xclip_jax.storage import continuation
from xclip_jax.text import prompts


class Beginning(NamedTuple):
  """What a run began with, where that may have changed since."""

  updates: int          # its length, which says when an average of parameters starts
  accumulation: int     # its micro-batches an update, the unit of optim.lag_steps


def open_folder(config: Any, workdir: str | os.PathLike) -> Path | epath.Path:
  """Returns the path of a run's folder, after looking at every path that the run is given.

  Raises:
    ValueError: a path names what cannot be used, as s3://; or the bucket of the workdir cannot be
      written to. Nothing else was done by then.
  """
  path = files.as_path(workdir, 'workdir')
  if not files.is_remote(path):
    path = path.resolve()
  check_places(config.data)
  files.as_path(config.train.init_from, 'config.train.init_from')
  processes.run_on_all_processes(lambda: files.check_bucket(path, jax.process_index()))
  return path


def claim(
  config: Any, workdir: Path, splits: dict[str, Split], fresh: bool, anchor: str | None = None,
  step: int = 0,
) -> Beginning:
  """Writes config.json, or checks that the one there is of the same run.

  What may change and does (a longer run, other micro-batches) is kept in its `history`: the step
  from which on it is so, and the values before.

  Args:
    config: of the run, as the command has it.
    workdir: its folder.
    splits: its lists of videos.
    fresh: there is no checkpoint, so nothing to be the same as.
    anchor: identifies the weights that the run stays near, if it does.
    step: updates that are done.

  Returns:
    what the run began with.

  Raises:
    ValueError: a field that matters differs; the message is the difference.
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
    old = json.loads(path.read_bytes())
    if num_videos and 'updates' not in old:
      old |= continuation.former_lengths(old, num_videos)
    try:
      kept = continuation.check(old, resolved, json.loads(
        fields.get_config().to_json_best_effort()))
    except ValueError as error:
      raise UserError(f'{workdir} {error}') from None
    history = old.get('history', []) + ([{'step': step, 'from': kept}] if kept else [])
  resolved['history'] = history
  files.make_folder(workdir)
  if jax.process_index() == 0:
    files.write_text(path, json.dumps(resolved, indent=1) + '\n')
  return Beginning(continuation.first_value(resolved, 'updates') if num_videos else 0,
                   continuation.first_value(resolved, 'train.accumulation'))


def write_bad_files(workdir: Path, bad: bad_files.BadFiles) -> None:
  """Leaves the list of files that could not be read, and says so."""
  if bad.count and jax.process_index() == 0:
    files.write_text(workdir / 'unreadable_files.txt', '\n'.join(bad.items.values()) + '\n')
    print(f'{bad.count} unreadable videos were replaced: {workdir / "unreadable_files.txt"}')
