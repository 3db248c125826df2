"""Our own format: a folder with weights and their description, which numpy alone can read.

  config.json         architecture, tokenizer, prompt template, where the weights come from
  params.safetensors  float32 or float16, under readable names: vision/blocks_0/attn/query/kernel
  preprocess.json     how frames become input
  LICENSE             whose weights these are, and under which licence
  labels.txt          optional: the labels that the model was trained for, one a line
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.errors import ExistsError, UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply
from xclip_jax.weights.configs.section import is_number, is_numbers, read_json, show
from xclip_jax.weights.files import archive

FORMAT, VERSION = 'xclip-jax', 1
TOKENIZER = 'clip-bpe-49408'          # CLIP's, the only tokenizer


# Filters of Hugging Face's processors, and Pillow's numbers for them. 'pillow' is bilinear.
RESAMPLE = {
  'pillow': 2, 'pillow-nearest': 0, 'pillow-lanczos': 1, 'pillow-bicubic': 3, 'pillow-box': 4,
  'pillow-hamming': 5,
}
_FILTERS = ('opencv', *RESAMPLE)
_LARGEST_STATISTIC, _LARGEST_RATIO = 1e9, 1 << 14
_RESIZES = ('short_side', 'stretch', 'fit', 'none')


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Describes preprocessing: resize a frame, crop the centre square, normalise.

  Fields:
    mean, std: of red, green and blue, 0..255.
    resize_ratio: the short side before the crop, over image_size; for 'stretch' and 'fit' the
      height.
    filter: 'opencv' (the reference), or one of RESAMPLE (Hugging Face's processors).
    resize: 'short_side' keeps the shape of the frame; 'stretch' to a height and a width; 'fit'
      keeps the shape within a height and a width; 'none' crops alone.
    second_ratio: for 'short_side' the most that the long side may become, 0 without a limit; for
      'stretch' and 'fit' the width. Over image_size.
    square_pixels: before that, scale the width of frames whose pixels are not square.
  """

  mean: tuple[float, ...] = (123.675, 116.28, 103.53)
  std: tuple[float, ...] = (58.395, 57.12, 57.375)
  resize_ratio: float = 256 / 224
  filter: str = 'opencv'
  resize: str = 'short_side'
  second_ratio: float = 0.0
  square_pixels: bool = False

  def __post_init__(self):
    for name in ('mean', 'std'):
      value = getattr(self, name)
      if not isinstance(value, tuple | list) or not is_numbers(list(value), 3):
        raise UserError(f'{name} must be three numbers, found {value!r}')
      object.__setattr__(self, name, tuple(value))          # hashable
    if min(self.std) <= 0 or max(map(abs, self.mean + self.std)) > _LARGEST_STATISTIC:
      raise UserError(
        f'mean and std must be at most {_LARGEST_STATISTIC:g}, and std above 0, found '
        f'{self.mean!r} and {self.std!r}')
    for name, least in (('resize_ratio', 1e-6), ('second_ratio', 0)):
      value = getattr(self, name)
      if not is_number(value) or not least <= value <= _LARGEST_RATIO:
        raise UserError(
          f'{name} must be a number from {least} to {_LARGEST_RATIO}, found {value!r}')
    for name, choices in (('filter', _FILTERS), ('resize', _RESIZES)):
      if getattr(self, name) not in choices:
        raise UserError(f'{name} must be one of {", ".join(choices)}, found '
                        f'{getattr(self, name)!r}')
    if not isinstance(self.square_pixels, bool):
      raise UserError(f'square_pixels must be true or false, found {self.square_pixels!r}')
    if self.resize in ('stretch', 'fit') and not self.second_ratio:
      raise UserError(f'second_ratio, the width of {self.resize!r}, must be above 0')


# The statistics of X-CLIP's training, which are not those of CLIP.
REFERENCE = Preprocess()
HUGGING_FACE = Preprocess(resize_ratio=1.0, filter='pillow')


# Fields that every folder has held since the first version of the format, and that neither shapes
# nor defaults tell.
_REQUIRED = {
  XCLIPConfig: {'vision_heads', 'text_heads', 'mit_heads', 'prompt_heads', 'vision_activation',
                'text_activation', 'mit_activation', 'prompt_activation'},
  Preprocess: {'mean', 'std', 'resize_ratio', 'filter'},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """Holds parameters and everything needed to use them."""

  config: XCLIPConfig
  params: Any = dataclasses.field(repr=False)     # nested dicts of float32 arrays
  preprocess: Preprocess = REFERENCE
  template: str | tuple[str, ...] = '{}'  # written around every label; of several: the mean
  source: str = ''                     # file, folder or name that they were read from
  dialect: str = 'native'              # native, or a key of rules.DIALECTS
  licence: str = 'unknown'
  notes: tuple[str, ...] = ()          # messages for the person who loads them, a line each
  labels: tuple[str, ...] = ()         # labels to choose from if none are given


def save(
  folder: str | os.PathLike, weights: Weights, overwrite: bool = False, half: bool = False
) -> Path:
  """Writes a folder with weights, whole or not at all.

  Args:
    folder: its name.
    weights: what to write.
    overwrite: replace a folder with weights of that name.
    half: round parameters to float16, for a file of half the size.

  Raises:
    UserError: a label cannot be one line of labels.txt, or a parameter is too large for float16.
    FileExistsError: there is something of that name, and `overwrite` is False.
  """
  files.check_scheme(folder, 'folder', bucket=False)
  _check_labels(weights.labels, 'labels')
  params = tree_names.flatten(weights.params)
  if half:
    params = _to_half(params)
  folder, source = Path(folder).resolve(), weights.source
  if Path(source).exists():            # a place on this machine means nothing on another
    source = Path(source).name
  replaceable = functools.partial(check_free, overwrite=overwrite)
  with files.atomic_folder(folder, replaceable) as temporary:
    config = {
      'format': FORMAT, 'version': VERSION, 'model': dataclasses.asdict(weights.config),
      'tokenizer': TOKENIZER, 'template': weights.template, 'source': source,
      'dialect': weights.dialect, 'licence': weights.licence,
    }
    files.write_json(temporary / 'config.json', config)
    # Fields younger than the format are written where they matter, so that earlier programs read
    # all other folders.
    preprocess = {
      name: value for name, value in dataclasses.asdict(weights.preprocess).items()
      if name in _REQUIRED[Preprocess] or value != getattr(REFERENCE, name)}
    files.write_json(temporary / 'preprocess.json', preprocess)
    files.write_text(
      temporary / 'LICENSE',
      f'Weights converted by xclip-jax from: {source or "unknown"}\n'
      f'Licence of these weights: {weights.licence}\n'
    )
    archive.write_safetensors(
      temporary / 'params.safetensors', params, {'format': FORMAT}, checksums=True)
    if weights.labels:
      files.write_text(temporary / 'labels.txt', '\n'.join(weights.labels) + '\n')
  return folder


def check_free(target: Path, overwrite: bool) -> None:
  """Raises FileExistsError if `target` exists and may not be replaced.

  Even then only a folder with weights is replaced: no file, and no run of train.py, which has a
  config.json too.
  """
  if not target.exists():
    return
  if not overwrite:
    raise ExistsError(f'{target} exists; choose another name, or ask for it to be overwritten')
  held = {x.name for x in target.iterdir()} if target.is_dir() else {'a file'}
  if held and ('config.json' not in held or held & {'checkpoints', 'metrics.jsonl'}):
    raise ExistsError(
      f'{target} is not a folder with weights, so it is not overwritten; remove it yourself'
    )


def fingerprint(params: Any) -> str:
  """Identifies parameters: sha256 over their names and float32 values."""
  digest = hashlib.sha256()
  for name, value in sorted(tree_names.flatten(params).items()):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(value, np.float32).tobytes())
  return digest.hexdigest()


def is_native(folder: Path) -> bool:
  """Tells whether a folder is in this format."""
  try:
    content = json.loads((folder / 'config.json').read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(content, dict) and content.get('format') == FORMAT


def read(folder: str | os.PathLike, checksums: bool = True) -> Weights:
  """Reads a folder with weights.

  Parameters are float32: views of the file if it holds float32; float16 is widened.

  Args:
    folder: its path.
    checksums: compare the parameters with the checksums that were written with them.

  Raises:
    UserError: a file is missing or damaged, or contradicts another.
  """
  folder = Path(folder)
  content = read_json(folder / 'config.json')
  if content.get('version') != VERSION:
    raise UserError(
      f'{folder / "config.json"}: version is {show(content.get("version"))}, this program reads '
      f'{VERSION}; convert the weights again, or update the program'
    )
  if content.get('tokenizer') != TOKENIZER:
    raise UserError(
      f'{folder / "config.json"}: tokenizer is {show(content.get("tokenizer"))}, there is only '
      f'{TOKENIZER!r}; convert the weights again'
    )
  config = _record(XCLIPConfig, content.get('model'), folder / 'config.json', 'model')
  preprocess = read_json(folder / 'preprocess.json')
  for key in {'mean', 'std'} & preprocess.keys():
    if not is_numbers(preprocess[key], 3):
      raise UserError(f'{folder / "preprocess.json"}: {key} must be three numbers, found '
                      f'{preprocess[key]!r}')
    preprocess[key] = tuple(preprocess[key])
  preprocess = _record(Preprocess, preprocess, folder / 'preprocess.json', 'its top level')
  try:
    template = parse_template(content.get('template', '{}'))
  except UserError as error:
    raise UserError(f'{folder / "config.json"}: {error}') from error
  for key in ('source', 'dialect', 'licence'):
    if not isinstance(content.get(key, ''), str):
      raise UserError(f'{folder / "config.json"}: {key} must be a text, found {show(content[key])}')
  contents = archive.read(folder / 'params.safetensors')
  flat, _ = archive.state_dict(contents)
  if checksums:
    contents.check(flat.values())
  _check_params(flat, config, folder / 'params.safetensors')
  return Weights(
    config, tree_names.unflatten({k: np.asarray(x, np.float32) for k, x in flat.items()}),
    preprocess, template, content.get('source', ''), content.get('dialect', 'native'),
    content.get('licence', 'unknown'), labels=_read_labels(folder / 'labels.txt'),
  )


def parse_template(value: Any) -> str | tuple[str, ...]:
  """Returns the prompt template, or several, of a JSON value; each holds {} for the label."""
  templates = value if isinstance(value, list) else [value]
  if not templates or not all(isinstance(x, str) and '{}' in x for x in templates):
    raise UserError('template must be a text with {} for the label, or a list of such texts, found '
                    f'{show(value)}')
  return tuple(templates) if isinstance(value, list) else value


def _record(cls: type, content: Any, path: Path, field: str) -> Any:
  """Makes a dataclass of a JSON object that people may have edited; UserError names the field."""
  if not isinstance(content, dict):
    raise UserError(f'{path}, {field}: an object is wanted, found {type(content).__name__}')
  unknown = content.keys() - {x.name for x in dataclasses.fields(cls)}
  if unknown:
    raise UserError(f'{path}, {field}: there is no field {show(sorted(unknown)[0])}; remove it')
  try:
    record = cls(**content)
  except (TypeError, UserError) as error:          # TypeError: a text where a number is compared
    raise UserError(f'{path}, {field}: {error}') from error
  missing = _REQUIRED[cls] - content.keys()
  if missing:
    raise UserError(f'{path}, {field}: the field {sorted(missing)[0]!r} is missing; convert the '
                    'weights again')
  return record


def _check_params(flat: Mapping[str, np.ndarray], config: XCLIPConfig, path: Path) -> None:
  want = {k: x.shape for k, x in tree_names.flatten(apply.abstract_params(config)).items()}
  held = {k: x.shape for k, x in flat.items()}
  differ = [
    f'{k}: {list(held[k]) if k in held else "missing"}, wanted '
    f'{list(want[k]) if k in want else "nothing of that name"}'
    for k in sorted(want.keys() | held.keys()) if want.get(k) != held.get(k)
  ]
  differ += [
    f'{k}: {x.dtype}, wanted float32 or float16' for k, x in flat.items()
    if x.dtype not in (np.float32, np.float16)
  ]
  if differ:
    more = f'; and {len(differ) - 20} more' if differ[20:] else ''
    raise UserError(f'{path} does not fit its config.json: {"; ".join(differ[:20])}{more}')


def _read_labels(path: Path) -> tuple[str, ...]:
  """Reads the labels of labels.txt; none if there is no such file."""
  try:
    text = path.read_bytes().decode('utf-8-sig')
  except FileNotFoundError:
    return ()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read as UTF-8 text: {error}') from error
  labels = tuple(line.strip() for line in text.split('\n') if line.strip())
  _check_labels(labels, str(path))
  return labels


def _check_labels(labels: tuple[str, ...], source: str) -> None:
  """Raises UserError unless each label is one line of text that no other label equals."""
  for i, label in enumerate(labels):
    if not label.strip() or label != label.strip() or '\n' in label:
      raise UserError(f'{source}: label {i} must be one line of text without spaces around it, '
                      f'got {label!r}')
    if label in labels[:i]:
      raise UserError(f'{source} holds {label!r} more than once; leave the repeats out')


def _to_half(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Rounds parameters to float16; UserError names one that float16 cannot hold."""
  half = {}
  for name, value in params.items():
    with np.errstate(over='ignore'):
      half[name] = np.asarray(value).astype(np.float16)
    if not np.isfinite(half[name]).all():
      raise UserError(f'{name} holds values beyond ±65504 and cannot be written in float16; write '
                      'float32')
  return half
