"""Local copies of weights in a bucket."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xclip_jax import files
from xclip_jax.errors import UserError

_OWN = ('config.json', 'preprocess.json', 'params.safetensors', 'labels.txt')   # of weights.native
_BESIDE = 'preprocessor_config.json'                                 # Hugging Face's


@contextlib.contextmanager
def local_copy(name: str, weight_files: Sequence[tuple[str, str]]) -> Iterator[Path]:
  """Yields a local copy of a file or folder with weights in a bucket, which is removed at the end.

  Arrays read from the copy stay valid: they are mapped, and Linux keeps a mapped file. The copy is
  in the folder for temporary files, which TMPDIR chooses.

  Args:
    name: gs://bucket/..., a file or a folder.
    weight_files: (file with weights, its config file) in the order of preference.

  Raises:
    UserError: the bucket has no such file or folder, or cannot be read.
  """
  remote_path = files.as_path(name, 'weights')
  if not files.exists(remote_path):
    raise UserError(f'{name!r} is not there: its bucket holds neither a file nor a folder of it')
  with tempfile.TemporaryDirectory(prefix='xclip-weights-') as temporary:
    with files.explain_errors(remote_path):
      folder = Path(temporary) / remote_path.name
      if remote_path.is_dir():
        folder.mkdir()
        _copy_folder(remote_path, folder, weight_files)
        copy = folder
      else:
        copy = Path(temporary) / remote_path.name
        names = [remote_path.name, dict(weight_files).get(remote_path.name), _BESIDE]
        _copy_files(remote_path.parent, Path(temporary), [x for x in names if x])
    yield copy


def _copy_folder(source: Any, folder: Path, weight_files: Sequence[tuple[str, str]]) -> None:
  held = {x.name for x in source.iterdir()}
  pair = next((pair for pair in weight_files if pair[0] in held), None)
  if 'params.safetensors' in held:
    _copy_files(source, folder, _OWN)
  elif pair:
    _copy_files(source, folder, [*pair, _BESIDE])
  else:
    for x in held:                  # empty files: the error message lists their names
      (folder / x).touch()


def _copy_files(source: Any, folder: Path, names: Sequence[str]) -> None:
  """Copies the files of these names that exist, and the shards that an index lists."""
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      (folder / name).write_bytes((source / name).read_bytes())
      if name.endswith('.index.json'):
        _copy_files(source, folder, _shards(folder / name))


def _shards(index: Path) -> list[str]:
  try:
    listed = set(json.loads(index.read_bytes())['weight_map'].values())
    return sorted(name for name in listed if isinstance(name, str) and '/' not in name)
  except (ValueError, KeyError, TypeError, AttributeError):   # the reader reports the damage
    return []
