"""Encodings of videos from which a few frames can be read fast.

H.264 has a key frame every half second and keeps all frames; JPEG keeps frames at a chosen rate, in
a QuickTime file that players can show. decode.py reads both like any other video.
"""

import dataclasses
import fractions
import io
from collections.abc import Iterable, Iterator
from typing import cast

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from xclip_jax.data.reading import damage, pictures, time_limits
from xclip_jax.data.video import decode
from xclip_jax.errors import UserError

_FORMATS = ('h264', 'jpeg')
_COMPARED = 8  # number of frames that the quality is measured on


@dataclasses.dataclass(frozen=True)
class Encoding:
  """Says how videos are stored.

  Fields:
    format: 'h264' (all frames) or 'jpeg' (`fps` frames a second, each on its own).
    short_side: pixels; larger videos are scaled down, with antialiasing, smaller ones are kept.
    crf: quality for x264, 0 (lossless) to 51; 23 is its own default.
    gop: number of frames from key frame to key frame; no frame is a B-frame.
    quality: JPEG quality, 1 to 100.
    fps: number of JPEG frames stored for each second of video; all frames if it has fewer.
  """

  format: str = 'h264'
  short_side: int = 256
  crf: int = 23
  gop: int = 12
  quality: int = 90
  fps: float = 4.0

  def __post_init__(self):
    if self.format not in _FORMATS:
      raise UserError(f'format must be one of {", ".join(_FORMATS)}, found {self.format!r}')
    for name, low, high in (
      ('short_side', 16, 4096), ('crf', 0, 51), ('gop', 1, 1000), ('quality', 1, 100)):
      value = getattr(self, name)
      if type(value) is not int or not low <= value <= high:
        raise UserError(f'{name} must be a whole number in {low}..{high}, found {value!r}')
    if type(self.fps) not in (int, float) or not 0.001 <= self.fps <= 1000:
      raise UserError(f'fps must be a number from 0.001 to 1000, found {self.fps!r}')

  @property
  def settings(self) -> dict[str, str | int | float]:
    """Returns the fields that matter for this format."""
    names = dict(h264=('crf', 'gop'), jpeg=('quality', 'fps'))[self.format]
    return {name: getattr(self, name) for name in ('format', 'short_side', *names)}


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Holds a stored video and facts about it.

  Fields:
    content: bytes of the video file.
    num_frames: number of stored frames.
    height, width: size of the stored frames, in pixels.
    psnr: dB over RGB, infinite if lossless: from the mean square error between 8 stored frames,
      spread over the video, and the same frames before encoding (after scaling).
    seconds: duration of the whole video.
  """

  content: bytes
  num_frames: int
  height: int
  width: int
  psnr: float
  seconds: float


def encode(
  file: str | bytes, encoding: Encoding, report: damage.Report | None = None, seconds: float = 0.0,
) -> Encoded:
  """Encodes a whole video anew; the same input gives the same bytes on one type of machine.

  Of a damaged video the frames that can be decoded are stored.

  Args:
    file: path or contents, as `decode.read_video` takes them.
    encoding: format and quality.
    report: called with each note about damage, and about a picture that changes its size.
    seconds: time limit for opening the video, for counting its frames and for each frame; 0: none.

  Raises:
    VideoError: as in `decode.read_video`.
  """
  rate, frames = decode.read_frames(file, report, seconds)
  count = _count(file, seconds)
  times = []                  # seconds of the first and the latest frame

  def timed() -> Iterator[tuple[float, np.ndarray]]:
    for seconds, frame in frames:
      times[1:] = [seconds]
      yield seconds, frame

  if encoding.format == 'jpeg':
    count = max(1, round(count * min(1, encoding.fps / rate)))
    chosen = _thin(timed(), encoding.fps)
    stored_rate = min(rate, fractions.Fraction(encoding.fps).limit_denominator(1000))
  else:
    chosen, stored_rate = (frame for _, frame in timed()), rate
  # Some frames are kept, to compare them with the stored frames that a reader will get.
  compared = set(np.linspace(0, max(count - 1, 0), _COMPARED).astype(int).tolist())
  kept, written = {}, 0

  def scaled() -> Iterator[np.ndarray]:
    nonlocal written
    for frame in chosen:
      frame = _scale(frame, encoding)
      if written in compared:
        kept[written] = frame
      written += 1
      yield frame

  write = _write_jpeg if encoding.format == 'jpeg' else _write_h264
  try:
    content = write(scaled(), stored_rate, encoding)
  except FFmpegError as error:  # the encoder's: errors of the decoder are VideoErrors already
    name = 'video in memory' if isinstance(file, bytes) else file
    raise decode.VideoError(f'{name}: cannot be encoded ({error.strerror})') from error
  assert decode.count_frames(content) == written
  stored = decode.read_video(content, lambda _: np.array(sorted(kept)))
  original = np.stack([kept[i] for i in sorted(kept)])
  loss = np.mean((stored.astype(np.float32) - original) ** 2)
  psnr = float(10 * np.log10(255 ** 2 / loss)) if loss else float('inf')
  seconds = times[-1] - times[0] + float(1 / rate)
  _, height, width, _ = original.shape
  return Encoded(content, written, height, width, psnr, seconds)


def _count(file: str | bytes, seconds: float) -> int:
  if not seconds:
    return decode.count_frames(file)
  name = 'video in memory' if isinstance(file, bytes) else file
  late = decode.VideoError(f'{name}: its frames were not counted within {seconds:g} s')
  return time_limits.run(lambda: decode.count_frames(file), seconds, late)


def _thin(
  frames: Iterable[tuple[float, np.ndarray]], fps: float
) -> Iterator[np.ndarray]:
  """Yields the first frame at or after every 1 / fps seconds, each frame once."""
  begin, ticks = None, 0
  for seconds, frame in frames:
    begin = seconds if begin is None else begin
    # A tolerance of a thousandth of a tick: times are rounded to the clock of the file.
    passed = (seconds - begin) * fps + 1e-3
    if passed >= ticks:
      ticks = int(passed) + 1
      yield frame


def _scale(frame: np.ndarray, encoding: Encoding) -> np.ndarray:
  height, width = frame.shape[:2]
  even = 2 if encoding.format == 'h264' else 1     # colours of H.264 are stored for 2 x 2 pixels
  ratio = encoding.short_side / min(height, width)
  if ratio >= 1 and min(height, width) >= even:
    # Not scaled; H.264 cuts off an odd last row or column.
    return frame[:height // even * even, :width // even * even]
  size = [max(even, round(side * min(1, ratio) / even) * even) for side in (width, height)]
  return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _write_h264(
  frames: Iterable[np.ndarray], rate: fractions.Fraction, encoding: Encoding
) -> bytes:
  # fastdecode: no arithmetic coding and no loop filter, which take half of the time of a read.
  # No mbtree: with it, output for small pictures depends on the previous contents of memory.
  options = {'preset': 'veryfast', 'tune': 'fastdecode', 'crf': str(encoding.crf), 'mbtree': '0',
             'sc_threshold': '0'}
  file, colors = io.BytesIO(), VideoReformatter()
  with av.open(file, 'w', format='mp4') as container:
    stream = cast(av.VideoStream, container.add_stream('libx264', rate=rate, options=options))
    codec = stream.codec_context
    codec.gop_size, codec.max_b_frames = encoding.gop, 0
    codec.thread_count = 1                         # the output depends on the number of threads
    for number, image in enumerate(frames):
      if not number:
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = 'yuv420p'
      frame = colors.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24'), format='yuv420p',
        threads=1)
      frame.pts, frame.time_base = number, 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return file.getvalue()


def _write_jpeg(
  frames: Iterable[np.ndarray], rate: fractions.Fraction, encoding: Encoding
) -> bytes:
  file = io.BytesIO()
  with av.open(file, 'w', format='mov') as container:
    container.metadata['comment'] = pictures.JPEG_FRAMES
    for number, image in enumerate(frames):
      if not number:
        stream = container.add_mux_stream(
          'mjpeg', rate=rate, height=image.shape[0], width=image.shape[1])
      quality = [cv2.IMWRITE_JPEG_QUALITY, encoding.quality]
      _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
      packet = av.Packet(jpeg.tobytes())
      packet.stream, packet.time_base = stream, 1 / rate
      packet.pts = packet.dts = number
      packet.duration, packet.is_keyframe = 1, True
      container.mux(packet)
  return file.getvalue()
