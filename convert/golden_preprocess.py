"""The golden file tests/goldens/hf_preprocess.npz: crops by Hugging Face's processor.

  python -m convert.golden_preprocess          needs the extra `parity`, without torchvision
"""

from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files

IMAGE_SIZE = 32
SHAPES = ((40, 56), (57, 41), (32, 32), (20, 31))       # H, W; the last one is enlarged
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


def main() -> None:
  """Writes the golden file."""
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


if __name__ == '__main__':
  main()
