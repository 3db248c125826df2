"""Weights in a bucket: a local copy of the files that make them up."""

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
    weight_files: names of files with weights, the first that is there, and of the config of each.

  Raises:
    ValueError: there is no such file or folder, or the bucket cannot be read.
  """
  place = files.as_path(name, 'weights')
  if not files.exists(place):
    raise UserError(f'{name!r} is not there: its bucket holds neither a file nor a folder of it')
  with tempfile.TemporaryDirectory(prefix='xclip-weights-') as temporary:
    with files.explain_errors(place):
      folder = Path(temporary) / place.name
      if place.is_dir():
        folder.mkdir()
        _copy_folder(place, folder, weight_files)
        copy = folder
      else:
        copy = Path(temporary) / place.name
        names = [place.name, dict(weight_files).get(place.name), _BESIDE]
        _copy_some(place.parent, Path(temporary), [x for x in names if x])
    yield copy


def _copy_folder(place: Any, folder: Path, weight_files: Sequence[tuple[str, str]]) -> None:
  held = {x.name for x in place.iterdir()}
  pair = next((pair for pair in weight_files if pair[0] in held), None)
  if 'params.safetensors' in held:
    _copy_some(place, folder, _OWN)
  elif pair:
    _copy_some(place, folder, [*pair, _BESIDE])
  else:
    for x in held:                  # without content: the error lists the names
      (folder / x).touch()


def _copy_some(place: Any, folder: Path, names: Sequence[str]) -> None:
  """Copies the files of these names that are there, and the shards that an index lists."""
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      (folder / name).write_bytes((place / name).read_bytes())
      if name.endswith('.index.json'):
        _copy_some(place, folder, _shards(folder / name))


def _shards(index: Path) -> list[str]:
  try:
    listed = set(json.loads(index.read_bytes())['weight_map'].values())
    return sorted(name for name in listed if isinstance(name, str) and '/' not in name)
  except (ValueError, KeyError, TypeError, AttributeError):     # the reader says what is wrong
    return []
