"""Preprocessing of frames, read from the JSON that Hugging Face's image processors save."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xclip_jax.weights import native
from xclip_jax.weights.configs.section import Section, is_number, is_numbers, read_json

FILE, NESTING_FILE = 'preprocessor_config.json', 'processor_config.json'
_LARGEST = 16384       # pixels of a side that a frame may be resized to


class _Processor(NamedTuple):
  """Defaults of an image processor class of transformers."""

  mean: tuple[float, ...]
  std: tuple[float, ...]
  resample: int


_VIDEOMAE = _Processor((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 2)
_CLIP = _Processor(
  (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 3)
_PROCESSORS = {
  f'{name}{kind}': defaults
  for name, defaults in (('VideoMAE', _VIDEOMAE), ('CLIP', _CLIP))
  for kind in ('ImageProcessor', 'FeatureExtractor', 'ImageProcessorFast', 'ImageProcessorPil')
}
_UNNAMED = 'VideoMAEImageProcessor'    # the class that X-CLIP's processor was published with

# Fields that do not change what the model sees: frames are RGB already, and the layout of the
# arrays is this program's own.
_WITHOUT_EFFECT = (
  'do_convert_rgb', 'data_format', 'input_data_format', 'device', 'return_tensors',
  'disable_grouping', 'processor_class', 'image_seq_length', 'transformers_version')
_BESIDE_NESTED = ('processor_class', 'chat_template', 'tokenizer', 'transformers_version')


def read(folder: Path, image_size: int) -> tuple[native.Preprocess, list[str]]:
  """Reads the preprocessing beside weights of Hugging Face's X-CLIP.

  transformers 5 nests it in processor_config.json, which wins over preprocessor_config.json.

  Args:
    folder: holds the weights.
    image_size: of the model, pixels.

  Returns:
    The preprocessing, and a note for each thing that the files do not say.

  Raises:
    UserError: names the field that cannot be followed.
  """
  section = None
  if (folder / NESTING_FILE).is_file():
    outer = Section(NESTING_FILE, read_json(folder / NESTING_FILE))
    outer.ignore(_BESIDE_NESTED)
    outer.off('auto_map', 'the processor has code of its own, which is never run')
    if outer.value('image_processor') is not None:
      section = outer.section('image_processor')
      outer.ignore(('video_processor',))        # transformers gives X-CLIP the image processor
    elif not (folder / FILE).is_file():
      outer.off('video_processor', 'X-CLIP takes its frames from an image_processor')
    outer.ignore(('video_processor',))
    outer.close()
  if section is None and (folder / FILE).is_file():
    section = Section(FILE, read_json(folder / FILE))
  if section is None:
    return native.HUGGING_FACE, [
      f'neither {FILE} nor {NESTING_FILE} says how frames are prepared: it is done as for '
      'microsoft/xclip-base-patch32']
  return _read_section(section, image_size)


def _read_section(
  section: Section, image_size: int
) -> tuple[native.Preprocess, list[str]]:
  """Reads the fields of an image processor."""
  name = next((key for key in ('image_processor_type', 'feature_extractor_type')
               if section.value(key) is not None), 'image_processor_type')
  section.ignore(('feature_extractor_type',))
  cls = section.choice(name, (*_PROCESSORS, None), None, 'others prepare frames in other ways')
  cls = cls or _UNNAMED
  section.ignore(_WITHOUT_EFFECT)
  section.off('do_pad', 'frames are not padded')
  section.off('auto_map', 'the processor has code of its own, which is never run')
  section.off('use_square_size', 'give size a height and a width')
  section.ignore(('pad_size',))
  mean, std, notes = _read_statistics(section, cls)
  resize = _read_resize(section, image_size)
  number = section.integer('resample', _PROCESSORS[cls].resample, least=0)
  if number not in native.RESAMPLE.values():
    raise section.refuse('resample', 'only Pillow\'s filters 0 to 5 are known')
  filter_name = next(name for name, x in native.RESAMPLE.items() if x == number)
  section.close()
  return native.Preprocess(mean, std, filter=filter_name, **resize), notes


def _read_statistics(
  section: Section, cls: str
) -> tuple[tuple[Any, ...], tuple[Any, ...], list[str]]:
  """Returns mean and standard deviation of pixels from 0 to 255, and notes on what is missing."""
  rescales = section.boolean('do_rescale', True)
  normalizes = section.boolean('do_normalize', True)
  factor = section.number('rescale_factor', 1 / 255)
  if rescales and not 1e-6 <= factor <= 1e6:
    raise section.refuse('rescale_factor', 'a number from 1e-6 to 1e6 is wanted')
  scale = 1 / factor if rescales else 1.0
  if abs(scale - 255) < 1e-6:
    scale = 255
  notes, statistics = [], {}
  for key, default in (('image_mean', _PROCESSORS[cls].mean), ('image_std', _PROCESSORS[cls].std)):
    value = section.value(key)
    if normalizes and value is None:
      notes.append(f'{section.path(key)} is missing in {section.source}: '
                   f'{"/".join(f"{x:g}" for x in default)} is taken, as {cls} of transformers does')
    value = list(default) if value is None else [value] * 3 if is_number(value) else value
    if not is_numbers(value, 3):
      raise section.refuse(key, 'it must be three numbers')
    statistics[key] = value
  for key, least in (('image_mean', -1000), ('image_std', 1e-6)):
    if not all(least <= x <= 1000 for x in statistics[key]):
      raise section.refuse(key, f'numbers from {least} to 1000 are wanted')
  if not normalizes:
    statistics = {'image_mean': [0.0] * 3, 'image_std': [1.0] * 3}
  mean, std = (
    tuple(_round(x * scale, scale) for x in statistics[key]) for key in ('image_mean', 'image_std'))
  return mean, std, notes


def _round(value: float, scale: float) -> float:
  """Removes the error of the product: 0.224 * 255 is not 57.12."""
  return round(float(value), 6) if scale == 255 else float(f'{value:.12g}')


def _read_resize(section: Section, image_size: int) -> dict[str, Any]:
  """Returns the fields of Preprocess that say how a frame is resized, and checks the crop."""
  crops = section.boolean('do_center_crop', True)
  if 'crop_size' in section and crops:
    crop = _pixels(section, 'crop_size')
    if crop not in ({'height': image_size, 'width': image_size}, {'shortest_edge': image_size}):
      raise section.refuse('crop_size', f'the model takes {image_size} x {image_size} pixels')
  square_by_default = section.boolean('default_to_square', False)
  resizes = section.boolean('do_resize', True)
  if resizes and 'size' not in section:
    size = {'shortest_edge': 224 if 'crop_size' in section else image_size}
  else:
    size = _pixels(section, 'size') if resizes else {}
  section.ignore(('size', 'crop_size'))
  if resizes and square_by_default and isinstance(section.value('size'), int):
    size = {'height': size['shortest_edge'], 'width': size['shortest_edge']}
  if not crops and size != {'height': image_size, 'width': image_size}:
    raise section.refuse(
      'do_center_crop', f'without the crop frames would not be {image_size} x {image_size}, as the '
      'model takes them')
  ratio = {key: pixels / image_size for key, pixels in size.items()}
  match sorted(size):
    case []:
      return dict(resize='none', resize_ratio=1.0)
    case ['shortest_edge']:
      return dict(resize_ratio=ratio['shortest_edge'])
    case ['longest_edge', 'shortest_edge']:
      return dict(resize_ratio=ratio['shortest_edge'], second_ratio=ratio['longest_edge'])
    case ['height', 'width']:
      return dict(resize='stretch', resize_ratio=ratio['height'], second_ratio=ratio['width'])
    case ['max_height', 'max_width']:
      return dict(resize='fit', resize_ratio=ratio['max_height'], second_ratio=ratio['max_width'])
  raise section.refuse(
    'size', 'only shortest_edge, with or without longest_edge, height and width, or max_height and '
    'max_width are supported')


def _pixels(section: Section, key: str) -> dict[str, int]:
  """Returns a size in pixels as an object, whichever of its forms the file has."""
  value = section.value(key)
  if type(value) is int:
    value = {'shortest_edge': value}
  if isinstance(value, list) and len(value) == 2:
    value = dict(zip(('height', 'width'), value, strict=True))
  wanted = f'pixels are wanted, from 1 to {_LARGEST}: a number, or an object of such numbers'
  if not isinstance(value, Mapping) or not value or not all(
      type(x) is int and 1 <= x <= _LARGEST for x in value.values()):
    raise section.refuse(key, wanted)
  return dict(value)
