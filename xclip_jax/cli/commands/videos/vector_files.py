"""Files of feature vectors: .npz, .npy and .parquet."""

import dataclasses
import importlib.util
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xclip_jax.cli.output_files import Write
from xclip_jax.errors import UserError

if TYPE_CHECKING:
  import numpy as np

HELP = ('file to write; its ending is one of .npz (vectors with their names), .npy (vectors alone) '
        'and .parquet (a table; needs pyarrow)')


@dataclasses.dataclass(frozen=True)
class Vectors:
  """Feature vectors of texts and of videos, with what they belong to.

  Fields:
    text_features: float32 [K, E]; None without texts.
    labels: the K texts.
    video_features: float32 [B, E]; None without videos.
    paths: the B videos.
    failed: paths of the videos that could not be used.
    config: JSON about the model.
  """

  text_features: 'np.ndarray | None'
  labels: list[str]
  video_features: 'np.ndarray | None'
  paths: list[str]
  failed: list[str]
  config: str


def choose_writer(
  path: str, has_videos: bool, has_labels: bool
) -> Callable[[Vectors, Write], None]:
  """Returns the writer for the ending of a path, or refuses it before anything is computed."""
  if path == '-':
    raise UserError('-o must be a file; features are not written to standard output')
  ending = os.path.splitext(path)[1].lower()
  if ending not in _WRITERS:
    raise UserError(f'-o {path}: the ending must be one of {", ".join(_WRITERS)}, '
                    f'got {ending or "none"}')
  if ending == '.npy' and has_videos and has_labels:
    raise UserError(f'-o {path}: an .npy holds the vectors of videos or of labels; write an .npz, '
                    'or run the command once for each')
  if ending == '.parquet' and importlib.util.find_spec('pyarrow') is None:
    raise UserError(f'-o {path} needs pyarrow: pip install "xclip-jax[parquet]"; or write '
                    'an .npz')
  return _WRITERS[ending]


def _write_npz(vectors: Vectors, write: Write) -> None:
  import numpy as np

  arrays: dict[str, Any] = {'config': np.array(vectors.config)}
  if vectors.text_features is not None:
    arrays |= {'text_features': vectors.text_features, 'labels': np.array(vectors.labels, str)}
  if vectors.video_features is not None:
    arrays |= {'video_features': vectors.video_features, 'paths': np.array(vectors.paths, str),
               'failed': np.array(vectors.failed, str)}
  content = io.BytesIO()
  np.savez(content, **arrays)
  write(content.getvalue())


def _write_npy(vectors: Vectors, write: Write) -> None:
  import numpy as np

  given = vectors.video_features if vectors.text_features is None else vectors.text_features
  assert given is not None, 'neither videos nor labels'
  content = io.BytesIO()
  np.save(content, given)
  write(content.getvalue())


def _write_parquet(vectors: Vectors, write: Write) -> None:
  import pyarrow
  from pyarrow import parquet

  tables = []
  for kind, names, features in (('text', vectors.labels, vectors.text_features),
                                ('video', vectors.paths, vectors.video_features)):
    if features is not None:
      flat = pyarrow.array(features.reshape(-1), pyarrow.float32())
      tables.append(pyarrow.table({
        'kind': pyarrow.array([kind] * len(names), pyarrow.string()),
        # A byte of a path that is no text cannot be in a table: it is written as \udc..
        'name': pyarrow.array(
          [x.encode(errors='backslashreplace').decode() for x in names], pyarrow.string()),
        'vector': pyarrow.FixedSizeListArray.from_arrays(flat, features.shape[1]),
      }))
  table = pyarrow.concat_tables(tables).replace_schema_metadata({'config': vectors.config})
  content = io.BytesIO()
  parquet.write_table(table, content)
  write(content.getvalue())


_WRITERS = {'.npz': _write_npz, '.npy': _write_npy, '.parquet': _write_parquet}
