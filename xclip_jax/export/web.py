"""The page of an export: it runs the ONNX graphs in a browser.

Its sources are in web/ of a checkout; `make web` builds them into `PAGE`, which a wheel then holds.
"""

import shutil
from pathlib import Path

from xclip_jax import files
from xclip_jax.assets import bundled
from xclip_jax.errors import UserError

PAGE = Path(bundled.__file__).parent / 'page'
_START = 'index.html'
_SAMPLES = 'samples'           # folder of the clips, with a list of them


def check_built() -> None:
  """Raises UserError if this installation has no page."""
  if not (PAGE / _START).is_file():
    raise UserError(
      'this installation was built without the web page; run `make web` in a checkout of '
      'xclip-jax, which needs Node 20.19 or newer, and export from there; or export --to onnx')


def write_page(folder: Path) -> None:
  """Copies the built page and the sample clips into the folder of an export.

  Raises:
    UserError: this installation has no page.
  """
  check_built()
  shutil.copytree(PAGE, folder, dirs_exist_ok=True)
  samples = folder / _SAMPLES
  samples.mkdir(exist_ok=True)
  about = bundled.describe_toy()['samples']
  described = []
  for name in bundled.list_samples():
    clip = Path(bundled.resolve_sample(name))
    shutil.copyfile(clip, samples / clip.name)
    described.append(
      {'name': clip.stem, 'file': f'{_SAMPLES}/{clip.name}', 'label': about[name]['label']})
  files.write_json(samples / 'samples.json', described)
