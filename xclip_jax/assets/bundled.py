"""Paths of the files in the package: the toy model and the sample clips.

`toy` is a trained model of moving shapes (docs/demo.md), a folder in the package's own format; it
is a name wherever weights are taken. `sample:NAME` is a clip of a moving shape that the model was
not trained on; it is a name wherever the path of a video is taken.
"""

import functools
import json
from pathlib import Path
from typing import Any

from xclip_jax.errors import UserError

TOY = 'toy'                                    # the name that stands for TOY_FOLDER
TOY_FOLDER = Path(__file__).parent / 'toy'
SAMPLES_FOLDER = Path(__file__).parent / 'samples'
_SAMPLE_PREFIX = 'sample:'


def list_samples() -> list[str]:
  """Lists the names of the sample clips, as 'sample:ring'."""
  return [_SAMPLE_PREFIX + file.stem for file in sorted(SAMPLES_FOLDER.glob('*.mp4'))]


def resolve_sample(name: str) -> str:
  """Returns the path of the clip that a name like 'sample:ring' stands for; other names as given.

  Raises:
    UserError: the name begins with 'sample:', and the package has no clip of that name.
  """
  if not name.startswith(_SAMPLE_PREFIX):
    return name
  if name not in list_samples():
    raise UserError(f'{name}: the package has no such clip; it has {", ".join(list_samples())}')
  return str(SAMPLES_FOLDER / f'{name.removeprefix(_SAMPLE_PREFIX)}.mp4')


@functools.cache
def describe_toy() -> dict[str, Any]:
  """Reads what is known of the toy model: its commands, accuracies and sample clips."""
  return json.loads((TOY_FOLDER / 'about.json').read_bytes())
