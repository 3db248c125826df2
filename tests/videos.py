"""Small real video files whose frames can be told apart after lossy coding and resizing."""

import fractions
import os

import av
import numpy as np

_BITS = 8


def write_video(
  path: str | os.PathLike,
  frames: np.ndarray,
  fps: int = 16,
  codec: str = 'libx264',
  options: dict[str, str] | None = None,
  rotation: int = 0,
) -> str:
  """Encode uint8 [N, H, W, 3]; the container follows from the name. Returns the path as str."""
  # With mbtree, x264's output for small pictures depends on what memory held before.
  options = ({'mbtree': '0'} if codec == 'libx264' else {}) | (options or {})
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=fps, options=options)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.thread_count = 1
    if rotation:
      stream.set_display_rotation(rotation)
    for number, frame in enumerate(frames):
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      picture.pts, picture.time_base = number, fractions.Fraction(1, fps)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return str(path)


def barcode_frames(n: int, height: int, width: int) -> np.ndarray:
  """Paint each frame's number (n <= 256) as eight vertical bars, most significant first."""
  bits = np.arange(n)[:, None] >> np.arange(_BITS)[::-1] & 1          # [N, bits]
  column = np.arange(width) * _BITS // width
  rows = np.where(bits[:, column], 220, 30).astype(np.uint8)          # [N, W]
  return np.broadcast_to(rows[:, None, :, None], (n, height, width, 3)).copy()


def read_barcode(frame: np.ndarray) -> int:
  """Read the number of a frame [H, W, 3] of any size."""
  profile = frame.mean((0, 2))                                        # [W]
  centres = ((np.arange(_BITS) + 0.5) * len(profile) / _BITS).astype(int)
  return int(sum((profile[c] > 125) << b for b, c in zip(range(_BITS)[::-1], centres, strict=True)))
