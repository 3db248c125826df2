"""The folder of a run: whose it is, and what is left in it beside checkpoints and metrics."""

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from xclip_jax import config as fields
from xclip_jax import distributed, files, paths, prompts
from xclip_jax.data import Split, check_places, pipeline

# Fields that may change between restarts of one run: they move no weight.
FREE_FIELDS = (
  r'data\.(root|zero_shot_root|workers|threads|clip_seconds|max_bad_share)|mesh\..*|sharding|checkpoint\..*'
  r'|log_steps|eval\..*|profile\..*|report'
)


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
  distributed.together(lambda: files.check_bucket(path, jax.process_index()))
  return path


def claim(
  config: Any, workdir: Path, splits: dict[str, Split], fresh: bool, anchor: str | None = None
) -> None:
  """Writes config.json, or checks that the one there is of the same run.

  `anchor` identifies the weights that a run stays near, if it does.

  Raises:
    ValueError: a field that matters differs; the message is the diff.
  """
  resolved = json.loads(config.to_json_best_effort())
  resolved['data_fingerprint'] = {k: split.videos.fingerprint for k, split in splits.items()}
  resolved['data_fingerprint'] |= prompts.fingerprint(config.data)
  if anchor:
    resolved['anchor_sha256'] = anchor
  path = workdir / 'config.json'
  if not fresh and files.exists(path):
    old, new = _flat(json.loads(path.read_bytes())), _flat(resolved)
    # A field that is younger than the run: its default is what was done before.
    defaults = _flat(json.loads(fields.get_config().to_json_best_effort()))
    old = {k: v for k, v in defaults.items() if k in new} | old
    differ = [
      f'{k}: {old.get(k, "not there")} -> {new.get(k, "not there")}'
      for k in sorted(old.keys() | new.keys())
      if old.get(k) != new.get(k) and not paths.matches(FREE_FIELDS, k)
    ]
    if differ:
      raise ValueError(
        f'{workdir} holds a run with another config (there -> now):\n  ' + '\n  '.join(differ)
        + '\nUse the same values to continue it, or another workdir to start anew.'
      )
  files.make_folder(workdir)
  if jax.process_index() == 0:
    files.write_text(path, json.dumps(resolved, indent=1) + '\n')


def write_bad_files(workdir: Path, bad: pipeline.BadFiles) -> None:
  """Leaves the list of files that could not be read, and says so."""
  if bad.count and jax.process_index() == 0:
    files.write_text(workdir / 'unreadable_files.txt', '\n'.join(bad.items.values()) + '\n')
    print(f'{bad.count} unreadable videos were replaced: {workdir / "unreadable_files.txt"}')


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping) or (prefix and not tree):
    return {prefix: tree}
  parts = (_flat(v, f'{prefix}.{k}' if prefix else k) for k, v in tree.items())
  return functools.reduce(lambda a, b: a | b, parts, {})
