"""Times of pictures: seconds from the start of a file, and the span of it that a path names."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import av
from av.container import InputContainer

from xclip_jax.errors import UserError

# Timestamps identify frames in these files. In all others (AVI, MPEG) frames are counted.
_TIMED_CONTAINERS = {'mp4', 'webm'}
_TIMED_CODECS = {'h264', 'hevc', 'vp8', 'vp9', 'av1'}

# FFmpeg's flag AVFMT_TS_DISCONT: files whose clock may be set anew anywhere, as MPEG-TS.
_CLOCK_MAY_JUMP = 0x0200
_LONGEST_PAUSE = 10.0      # seconds; a longer step ahead in such a file is another clock
_SHORTEST_STEP_BACK = 0.1
_DEFAULT_RATE = 25

# A media fragment as in a link (W3C): from, to, or both, in seconds.
_SPAN = re.compile(r'#t=(?:npt:)?(\d+(?:\.\d*)?)?(?:,(\d+(?:\.\d*)?))?$')
_TOLERANCE = 1e-3          # seconds; times in Matroska are rounded to this
_CUTTING = 1.0             # seconds by which a file may differ from what a list says about it


class Span(NamedTuple):
  """A part of a file: the pictures that are first shown at `begin` or later, and before `end`."""

  begin: float
  end: float             # seconds from the start of the file, like `begin`; may be infinite

  def holds(self, seconds: float) -> bool:
    """Returns whether a picture that is first shown at this time belongs to the span."""
    return self.begin - _TOLERANCE < seconds < self.end - _TOLERANCE

  def is_part_of(self, seconds: float) -> bool:
    """Returns whether a video of this length reaches the end of the span, give or take a second."""
    return self.end == float('inf') or self.end <= seconds + _CUTTING

  def is_shorter_than(self, seconds: float) -> bool:
    """Returns whether a video of this length is longer than the span, by more than a second."""
    return seconds > self.end - self.begin + _CUTTING

  def __str__(self) -> str:
    return f'from {self.begin:g} s to ' + ('its end' if self.end == float('inf')
                                           else f'{self.end:g} s')


def split_span(path: str) -> tuple[str, Span | None]:
  """Splits 'name.mp4#t=10,20' into the file and the span; the span is None if the path has none.

  A file whose whole name ends like that is that file.
  """
  match = _SPAN.search(path)
  if match is None or not any(match.groups()) or os.path.lexists(path):
    return path, None
  begin, end = match.groups()
  return path[:match.start()], Span(float(begin or 0), float(end) if end else float('inf'))


def join_span(path: str, span: Span) -> str:
  """Returns the path of a span of a file, as `split_span` reads it."""
  number = lambda seconds: repr(float(seconds)).removesuffix('.0')
  end = '' if span.end == float('inf') else f',{number(span.end)}'
  return f'{path}#t={number(span.begin)}{end}'


def parse_span(begin: str, end: str, where: str) -> Span:
  """Parses a start (0 if empty) and an end (that of the file if empty), in seconds.

  Raises:
    UserError: they are not finite numbers in this order; the message begins with `where`.
  """
  try:
    span = Span(float(begin or 0), float(end) if end else float('inf'))
  except ValueError as error:
    raise UserError(f'{where}: time_start and time_end must be seconds ({error})') from error
  if not 0 <= span.begin < span.end or (end and math.isinf(span.end)):
    raise UserError(f'{where}: time_start and time_end must be seconds, the start before the end; '
                    f'found {begin!r} and {end!r}')
  return span


def start_of(stream: av.VideoStream) -> int:
  """Returns the timestamp, in ticks of a stream, at which its file starts."""
  container, base = cast(InputContainer, stream.container), stream.time_base
  assert base is not None
  return round((container.start_time or 0) * 1e-6 / float(base))      # it is in microseconds


def settle(stream: av.VideoStream, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
  """Yields packets of a stream, in the order of the file, with times from the start of the file."""
  clock = _Clock(stream)
  if clock.is_right:
    yield from packets
  for packet in packets:
    clock.settle(packet)
    yield packet


class _Clock:
  """Moves the timestamps of a stream's packets to the start of the file and keeps them going.

  The first picture or sound of a file is at 0 s, as players count. Where parts with clocks of their
  own were joined (MPEG-TS, MPEG-PS), the later part follows the earlier without a gap.
  """

  def __init__(self, stream: av.VideoStream):
    assert stream.time_base is not None
    self._ticks = 1 / float(stream.time_base)          # a second
    self._offset = -start_of(stream)
    self._may_jump = bool(stream.container.format.flags & _CLOCK_MAY_JUMP)
    rate = stream.average_rate or _DEFAULT_RATE
    self._step = round(self._ticks / float(rate))      # ticks a picture
    self._latest: int | None = None

  @property
  def is_right(self) -> bool:
    """Returns whether all timestamps are those of the file's start already."""
    return not self._offset and not self._may_jump

  def settle(self, packet: av.Packet) -> None:
    """Changes the timestamps of the next packet in the file."""
    if self._may_jump:
      self._close_gap(packet)
    if not self._offset:
      return
    if packet.pts is not None:
      packet.pts += self._offset
    if packet.dts is not None:
      packet.dts += self._offset

  def _close_gap(self, packet: av.Packet) -> None:
    stored = packet.dts if packet.dts is not None else packet.pts
    if stored is None:
      return
    if self._latest is not None:
      step = stored + self._offset - self._latest
      if not -_SHORTEST_STEP_BACK * self._ticks < step < _LONGEST_PAUSE * self._ticks:
        self._offset += self._step - step
    self._latest = stored + self._offset


def may_be_trusted(stream: av.VideoStream) -> bool:
  """Returns whether timestamps identify the pictures of such files, unless they contradict."""
  return (not _TIMED_CONTAINERS.isdisjoint(stream.container.format.name.split(','))
          and stream.codec_context.codec.canonical_name in _TIMED_CODECS)


def are_trusted(stream: av.VideoStream, packets: list[av.Packet]) -> bool:
  """Returns whether timestamps identify the pictures of the packets."""
  decoder = stream.codec_context
  times = [packet.pts for packet in packets]
  return (
    may_be_trusted(stream)
    and None not in times
    and len(set(times)) == len(times)
    # Some phones write decoding times here: ascending, although the pictures are reordered.
    and not (decoder.has_b_frames and times == sorted(x for x in times if x is not None))
  )


def ticks(packet: av.Packet) -> int:
  """Returns the timestamp of a packet in a file whose packets all have one."""
  assert packet.pts is not None
  return packet.pts
