"""The golden files tests/goldens/hf_preprocess*.npz: crops by Hugging Face's processors.

  python -m convert.golden_preprocess          needs the extra `parity`, without torchvision
"""

from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files

IMAGE_SIZE = 32
SHAPES = ((40, 56), (57, 41), (32, 32), (20, 31))       # H, W; the last one is enlarged
# What people's files say: a processor class, and its options.
CROP = {'height': 16, 'width': 16}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
  'plain': ('VideoMAE', {'size': {'shortest_edge': 20}}),
  'number': ('VideoMAE', {'size': 20}),
  'square': ('VideoMAE', {'size': CROP}),
  'stretched': ('VideoMAE', {'size': {'height': 18, 'width': 27}}),
  'pair': ('VideoMAE', {'size': [18, 27]}),
  'square_by_default': ('VideoMAE', {'size': 18, 'default_to_square': True}),
  'small': ('VideoMAE', {'size': {'shortest_edge': 13}}),
  'longest_edge': ('VideoMAE', {'size': {'shortest_edge': 20, 'longest_edge': 24}}),
  'fitting': ('VideoMAE', {'size': {'max_height': 17, 'max_width': 19}}),
  'no_resize': ('VideoMAE', {'do_resize': False}),
  'no_crop': ('VideoMAE', {'do_center_crop': False, 'size': CROP}),
  'no_normalize': ('VideoMAE', {'do_normalize': False, 'size': CROP}),
  'no_rescale': ('VideoMAE', {'do_rescale': False, 'size': CROP}),
  'raw': ('VideoMAE', {'do_rescale': False, 'do_normalize': False, 'size': CROP}),
  'rescale': ('VideoMAE', {'rescale_factor': 1 / 127.5, 'size': CROP}),
  'statistics': ('VideoMAE', {
    'image_mean': [0.4, 0.5, 0.6], 'image_std': [0.5, 0.25, 0.3], 'size': CROP}),
  **{f'resample_{i}': ('VideoMAE', {'resample': i, 'size': {'shortest_edge': 20}})
     for i in range(6)},
  'clip': ('CLIP', {'size': {'shortest_edge': 20}}),
}
FRAMES = (29, 40)                                       # H, W
FORMS_FILE = Path(__file__).parents[1] / 'tests/goldens/hf_preprocess_forms.npz'
FILE = Path(__file__).parents[1] / 'tests/goldens/hf_preprocess.npz'


def make_frames(height: int, width: int, count: int = 2) -> np.ndarray:
  """Draws uint8 frames [count, H, W, 3]: noise on a gradient, so that a shift by a pixel shows."""
  rng = np.random.default_rng([height, width])
  slope = np.add.outer(np.linspace(0, 90, height), np.linspace(0, 60, width))[..., None]
  return (slope + rng.integers(0, 106, (count, height, width, 3))).astype(np.uint8)


def process(frames: np.ndarray, size: int, **changes: Any) -> np.ndarray:
  """Crops frames with VideoMAEImageProcessor (PIL).

  Args:
    frames: uint8 [T, H, W, 3].
    size: side of the crops in pixels.
    **changes: options of the processor.

  Returns:
    [T, size, size, 3], float32, or uint8 without rescaling and normalisation.
  """
  from transformers.models.videomae import image_processing_pil_videomae

  processor = image_processing_pil_videomae.VideoMAEImageProcessorPil(
    size={'shortest_edge': size}, crop_size={'height': size, 'width': size},
    image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], **changes,
  )
  pixels = np.asarray(processor(list(frames))['pixel_values'][0])       # [T, 3, S, S]
  return pixels.transpose(0, 2, 3, 1)


def process_form(name: str) -> tuple[str, np.ndarray]:
  """Prepares two frames of FRAMES as one of FORMS says.

  Returns:
    the JSON that the processor saves; and float32 [2, 16, 16, 3].
  """
  import transformers

  kind, changes = FORMS[name]
  processor = getattr(transformers, f'{kind}ImageProcessorPil')(**{'crop_size': CROP, **changes})
  pixels = np.asarray(processor(list(make_frames(*FRAMES)))['pixel_values'])
  return processor.to_json_string(), pixels.reshape(2, 3, 16, 16).transpose(0, 2, 3, 1)


def main() -> None:
  """Writes the golden files."""
  import transformers

  golden: dict[str, Any] = {'transformers': np.array(transformers.__version__)}
  for height, width in SHAPES:
    frames = make_frames(height, width)
    crops = process(frames, IMAGE_SIZE, do_rescale=False, do_normalize=False)
    assert crops.dtype == np.uint8, crops.dtype
    golden[f'crops_{height}x{width}'] = crops
    golden[f'pixels_{height}x{width}'] = process(frames, IMAGE_SIZE).astype(np.float32)
  files.write_npz(FILE, **golden)
  print(f'wrote {FILE}, {FILE.stat().st_size} bytes')
  forms: dict[str, Any] = {'transformers': np.array(transformers.__version__)}
  for name in FORMS:
    text, pixels = process_form(name)
    forms[f'{name}.json'] = np.array(text)
    forms[f'{name}.pixels'] = pixels.astype(np.float32)
  files.write_npz(FORMS_FILE, **forms)
  print(f'wrote {FORMS_FILE}, {FORMS_FILE.stat().st_size} bytes')


if __name__ == '__main__':
  main()
