"""Local copies of weights in a bucket."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.weights.configs import beside

_OWN = ('config.json', 'preprocess.json', 'params.safetensors', 'labels.txt')   # of weights.native


@contextlib.contextmanager
def local_copy(name: str) -> Iterator[Path]:
  """Yields a local copy of a file or folder with weights in a bucket, which is removed at the end.

  Arrays read from the copy stay valid: they are mapped, and Linux keeps a mapped file. The copy is
  in the folder for temporary files, which TMPDIR chooses.

  Args:
    name: gs://bucket/..., a file or a folder.

  Raises:
    UserError: the bucket has no such file or folder, or cannot be read.
  """
  remote_path = files.as_path(name, 'weights')
  if not files.exists(remote_path):
    raise UserError(f'{name!r} is not there: its bucket holds neither a file nor a folder of it')
  with tempfile.TemporaryDirectory(prefix='xclip-weights-') as temporary:
    copy = Path(temporary) / remote_path.name
    with files.explain_errors(remote_path):
      is_folder = remote_path.is_dir()
    if is_folder:
      copy.mkdir()
      _copy_folder(remote_path, copy)
    else:
      names = [remote_path.name, *beside.DESCRIPTIONS]
      _copy_files(remote_path.parent, Path(temporary), names)
    yield copy


def _copy_folder(source: Any, folder: Path) -> None:
  with files.explain_errors(source):
    held = {x.name for x in source.iterdir()}
  if 'params.safetensors' in held:
    _copy_files(source, folder, _OWN)
    return
  try:
    weights = beside.choose_weights(held)
  except UserError as error:
    raise UserError(f'{source} {error}') from error
  if weights:
    _copy_files(source, folder, [weights, *beside.DESCRIPTIONS])
  else:
    for x in held:                  # empty files: the error message lists their names
      (folder / x).touch()


def _copy_files(source: Any, folder: Path, names: Sequence[str]) -> None:
  """Copies the files of these names that exist, and the shards that an index lists."""
  for name in names:
    try:
      with files.explain_errors(source):
        content = (source / name).read_bytes()
    except FileNotFoundError:
      continue
    files.write_bytes(folder / name, content)
    if name.endswith('.json') and '.index.' in name:
      _copy_files(source, folder, _shards(content))


def _shards(index: bytes) -> list[str]:
  """Returns the names in an index of shards; none of a damaged one, which its reader reports."""
  try:
    content = json.loads(index)
  except (ValueError, RecursionError):
    return []
  shard_of = content.get('weight_map') if isinstance(content, dict) else None
  names = shard_of.values() if isinstance(shard_of, dict) else ()
  return sorted({name for name in names if isinstance(name, str) and '/' not in name})
