"""The folder of a run: whose it is, and what is left in it beside checkpoints and metrics."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from xclip_jax import config as fields
from xclip_jax import metrics, paths, prompts
from xclip_jax.data import Split, pipeline

# Fields that may change between restarts of one run: they move no weight.
FREE_FIELDS = (
  r'data\.(root|zero_shot_root|workers|threads|clip_seconds|max_bad_share)|mesh\..*|sharding|checkpoint\..*'
  r'|log_steps|eval\..*|profile\..*|report'
)


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
  if path.exists() and not fresh:
    old, new = _flat(json.loads(path.read_text())), _flat(resolved)
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
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    metrics.write_text(path, json.dumps(resolved, indent=1) + '\n')


def write_bad_files(workdir: Path, bad: pipeline.BadFiles) -> None:
  """Leaves the list of files that could not be read, and says so."""
  if bad.count and jax.process_index() == 0:
    metrics.write_text(workdir / 'unreadable_files.txt', '\n'.join(bad.items.values()) + '\n')
    print(f'{bad.count} unreadable videos were replaced: {workdir / "unreadable_files.txt"}')


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping) or (prefix and not tree):
    return {prefix: tree}
  parts = (_flat(v, f'{prefix}.{k}' if prefix else k) for k, v in tree.items())
  return functools.reduce(lambda a, b: a | b, parts, {})
