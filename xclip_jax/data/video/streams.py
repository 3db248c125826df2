"""Opening of video files, and the choice of the stream that a file is about."""

import contextlib
import fractions
import io
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from xclip_jax.assets import bundled
from xclip_jax.data.reading import opening
from xclip_jax.data.reading.opening import VideoError
from xclip_jax.data.video import archives, color, geometry, images, times
from xclip_jax.errors import UserError

# Pictures beside a video. FFmpeg marks them by themselves in MP4, Matroska and sound files.
_BESIDE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent

_MAX_BYTES = 1 << 32      # of the frames of a clip: 43 of 8K


class Look(NamedTuple):
  """Says how decoded frames become upright RGB."""

  tags: color.Tags                              # the container's
  orientation: geometry.Orientation | None      # of a picture file; None: each frame has its own
  pixel_aspect: float                           # width over height of a pixel; 0: left as it is
  orientations: dict[int, geometry.Orientation]     # of frames so far, by their rotation in degrees

  def find_orientation(self, frame: av.VideoFrame) -> geometry.Orientation:
    """Returns the orientation of a frame, that of an earlier one with the same rotation."""
    if self.orientation is not None:
      return self.orientation
    if frame.rotation not in self.orientations:
      self.orientations[frame.rotation] = geometry.of_frame(frame)
    return self.orientations[frame.rotation]


class Source(NamedTuple):
  """An opened video."""

  name: str                        # in messages
  file: io.BytesIO | str           # contents or path
  stream: av.VideoStream
  span: times.Span | None          # the part to read; None: all
  num_webp: int                    # pictures of an animated WebP that FFmpeg cannot read, or 0
  look: Look
  rate: fractions.Fraction         # frames a second
  time_base: fractions.Fraction    # seconds a tick of the stream


@contextlib.contextmanager
def opened(file, called: str = '', square_pixels: bool = False) -> Iterator[Source]:
  """Opens a video."""
  if isinstance(file, bytes):
    file = io.BytesIO(file)
  in_memory = isinstance(file, io.BytesIO)
  name = called or ('video in memory' if in_memory else os.fspath(file))
  span = None
  try:
    if not in_memory:
      file, span = times.split_span(_resolve(os.fspath(file)))
      if archives.is_member(file):
        file = io.BytesIO(archives.read(file))
    with contextlib.ExitStack() as stack:
      container = stack.enter_context(opening.open_container(file, name))
      index = choose(container)
      if index is None:
        raise VideoError(f'{name}: has no video stream')
      if len(container.streams.video) > 1:             # packets may have been read to choose
        stack.close()
        if isinstance(file, io.BytesIO):
          file.seek(0)
        container = stack.enter_context(opening.open_container(file, name))
      yield _describe(name, file, cast(av.VideoStream, container.streams[index]), span,
                      square_pixels)
  except (FFmpegError, OSError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise VideoError(f'{name}: cannot be read as a video ({reason})') from error


def _describe(
  name: str, file: io.BytesIO | str, stream: av.VideoStream, span: times.Span | None,
  square_pixels: bool,
) -> Source:
  """Gathers what is known of a video before it is decoded; VideoError if it is too large."""
  codec, container = stream.codec_context, cast(InputContainer, stream.container)
  if codec is None:
    raise VideoError(f'{name}: its video is of a kind that FFmpeg does not know')
  webp, orientation = [], None
  if images.is_image(container):
    if not codec.width and container.format.name == 'webp_pipe':
      webp = images.webp_durations(file)
    if not codec.width and not webp:
      raise VideoError(f'{name}: its pictures are damaged, or have more than {opening.MAX_PIXELS} '
                       'pixels (8192 x 8192), the most that is read; scale them down')
    orientation = images.read_orientation(file)
  elif codec.width * codec.height > opening.MAX_PIXELS:
    raise VideoError(f'{name}: its pictures have {codec.width} x {codec.height} pixels; '
                     f'{opening.MAX_PIXELS} (8192 x 8192) is the most that is read; scale them '
                     'down')
  # One thread a decoder: callers run many decoders, and FFmpeg's frame threads can deadlock
  # with the interpreter lock. For the same reason this module must not touch av.logging.
  codec.thread_type = 'NONE'
  codec.thread_count = 1
  codec.options = opening.LIMIT
  aspect = float(stream.sample_aspect_ratio or 0) if square_pixels else 0.0
  # A rate that is not told is None or, since PyAV 19, zero in PyAV's own kind of fraction.
  rate = stream.average_rate or fractions.Fraction(25)
  if webp:
    rate = fractions.Fraction(len(webp) / (sum(webp) or len(webp) / 25)).limit_denominator(1000)
  base = stream.time_base or fractions.Fraction(1, 1000)
  return Source(
    name, file, stream, span, len(webp), Look(color.read_tags(codec), orientation, aspect, {}),
    fractions.Fraction(rate.numerator, rate.denominator),
    fractions.Fraction(base.numerator, base.denominator))


def _resolve(name: str) -> str:
  """Returns the path of a video; that of a sample clip in the package for 'sample:NAME'."""
  if os.path.lexists(name):
    return name
  try:
    return bundled.resolve_sample(name)
  except UserError as error:
    raise VideoError(str(error)) from error


def read_near(
  source: Source, packets: Iterable[av.Packet], starts_group: Callable[[av.Packet], bool]
) -> list[av.Packet] | None:
  """Reads the packets that the span of a source needs; None if they cannot be told.

  They begin with the key picture before the span, and end where no picture of it can follow. Their
  frames are those of a full decode; whether `times.are_trusted` is the caller's to ask.

  Args:
    source: a video with a span. The file is read from another position afterwards.
    packets: reads the packets of the source, when it is asked.
    starts_group: whether a packet can be decoded without those before it.
  """
  span, stream = source.span, source.stream
  if span is None or not span.begin or not times.may_be_trusted(stream):
    return None
  begin = round(span.begin / source.time_base)
  container = cast(InputContainer, stream.container)
  try:
    container.seek(begin + times.start_of(stream), stream=stream)
  except FFmpegError:                                 # the file has no index, or a damaged one
    return None
  near: list[av.Packet] = []
  for packet in times.settle(stream, packets):
    if packet.pts is None or not (
        near or (packet.pts <= begin and starts_group(packet))):
      return None
    # No picture is shown before it is decoded, nor before the start of its group. Matroska has no
    # times of decoding.
    is_bound = packet.dts is not None or starts_group(packet)
    bound = packet.pts if packet.dts is None else packet.dts
    if is_bound and bound * source.time_base > span.end:
      break
    near.append(packet)
  return near or None


def check_memory(source: Source, count: int) -> None:
  """Raises VideoError if so many frames of a source take more memory than any clip should."""
  codec = source.stream.codec_context
  if count * codec.width * codec.height * 3 > _MAX_BYTES:
    raise VideoError(
      f'{source.name}: {count} frames of {codec.width} x {codec.height} pixels take more than '
      f'{_MAX_BYTES >> 30} GiB, the most that is read at once; scale it down')


def read_duration(file: str | os.PathLike | bytes | io.BytesIO) -> float | None:
  """Returns the seconds that a file says to last; None if it says nothing or cannot be opened."""
  try:
    with opened(file) as source:
      duration = cast(InputContainer, source.stream.container).duration
      return None if duration is None else duration / 1e6
  except VideoError:
    return None


def check_span(source: Source, span: times.Span, last: float) -> None:
  """Raises VideoError if a span reaches beyond the last frame, given its time."""
  end = last + float(1 / source.rate)
  if not span.is_part_of(end) or span.begin >= end:
    raise VideoError(f'{source.name}: lasts {end:.2f} s and cannot be read {span}; if the file is '
                     'this part of a longer video already, leave the times out')


def choose(container: InputContainer) -> int | None:
  """Returns the index in the file of its main video stream; None if it has no video.

  Cover art and thumbnails never count, and a single picture counts only if no stream has more: a
  thumbnail, or the still picture of an animated AVIF. Among the rest, streams that the file marks
  as default come first, then larger pictures, then earlier streams.

  Args:
    container: an open file. Of several streams, packets may be read: open the file anew afterwards.
  """
  streams = [stream for stream in container.streams.video if not stream.disposition & _BESIDE]
  if len(streams) < 2:
    return streams[0].index if streams else None
  known = [stream for stream in streams if stream.codec_context is not None] or streams
  moving = _with_several_pictures(container, known)

  def rank(stream: av.VideoStream) -> tuple[bool, bool, int, int]:
    codec = stream.codec_context
    area = codec.width * codec.height if codec is not None else 0
    return (stream.index in moving, bool(stream.disposition & Disposition.default), area,
            -stream.index)

  return max(known, key=rank).index


def _with_several_pictures(container: InputContainer, streams: list[av.VideoStream]) -> set[int]:
  """Returns the indices of streams with two packets or more."""
  moving = {stream.index for stream in streams if stream.frames > 1}
  unknown = [stream for stream in streams if not stream.frames]    # MP4 alone tells the number
  packets = dict.fromkeys((stream.index for stream in unknown), 0)
  for packet in container.demux(unknown) if unknown else ():
    packets[packet.stream_index] += packet.size > 0
    if min(packets.values()) > 1:
      break
  return moving | {index for index, count in packets.items() if count > 1}
