"""Exact decoding of chosen frames of a video file.

Containers give wrong numbers of frames, and seeking by number returns neighbours in many real files
(AVI with B-frames, variable frame rate, edit lists). So a file is read once into a list of packets,
frames are counted there, and only the packets that the chosen frames depend on are decoded.
"""

import contextlib
import fractions
import functools
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from xclip_jax.assets import bundled
from xclip_jax.data.video import archives, bitstream
from xclip_jax.errors import UserError

# Timestamps identify frames in these files. In all others (AVI, MPEG) frames are counted.
_TIMED_CONTAINERS = {'mp4', 'webm'}
_TIMED_CODECS = {'h264', 'hevc', 'vp8', 'vp9', 'av1'}
_NEVER_SKIP = {'av1'}  # its decoder fixes with the first packet whether it skips pictures

JPEG_FRAMES = 'xclip-jax: JPEG frames'  # comment of files with JPEG pictures as packets

# Metadata such as titles may be in any encoding. PyAV 19 tolerates that without an option.
_LENIENT: dict[str, Any] = (
  {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {})
_MAX_STUCK = 16  # number of threads of one process that may hang in a read

_CHANGES_SIZE = 'the picture changes its size midway; re-encode it to one size'

_stuck: list[threading.Thread] = []
_stuck_lock = threading.Lock()


class VideoError(UserError):
  """Names a file that cannot be used as a video, and the reason."""


def read_video(
  file: str | os.PathLike | bytes | io.BytesIO,
  choose: Callable[[int], np.ndarray],
  seconds: float = 0.0,
  name: str = '',
) -> np.ndarray:
  """Decodes chosen frames of a video, exactly.

  Args:
    file: path, also into an archive (`shard.tar/name.mp4`, `shard.array_record/17`); 'sample:NAME',
      a clip in the package (`assets.bundled`); or the file's contents.
    choose: maps the number of frames in the video to the chosen indices, in any order and with
      repeats. If fewer frames can be decoded than the file has packets for (a stream that starts in
      the middle of a group of pictures), it is called again with their number.
    seconds: time limit; 0: none. With a limit, `choose` is called in another thread.
    name: name of the file in messages; its path by default.

  Returns:
    uint8 [T, H, W, 3], RGB, upright, in the order of the indices.

  Raises:
    VideoError: the file is no video, has no frames, is damaged where the chosen frames are, or is
      not read in time.
    RuntimeError: so many reads hang in this process that the storage must be gone.
  """
  if not seconds:
    return _read(file, choose, lambda: None, name)
  deadline = time.monotonic() + seconds
  reason = f'not read within {seconds:g} s; if it is only slow, raise data.clip_seconds'
  name = name or ('video in memory' if isinstance(file, bytes | io.BytesIO) else os.fspath(file))

  def check():
    if time.monotonic() > deadline:
      raise VideoError(f'{name}: {reason}')

  return _in_time(lambda: _read(file, choose, check, name), seconds, f'{name}: {reason}')


def _in_time(work: Callable[[], np.ndarray], seconds: float, message: str) -> np.ndarray:
  """Runs work in a thread of its own, and gives the thread up when time is up.

  Slow work stops by itself at its next check. A thread that hangs in a system call or inside a
  codec can be neither stopped nor killed (FFmpeg's own time-outs do not reach a blocking read). It
  is left to wait, as a daemon thread that does not keep the process from ending.
  """
  with _stuck_lock:
    _stuck[:] = [thread for thread in _stuck if thread.is_alive()]
    if len(_stuck) >= _MAX_STUCK:
      raise RuntimeError(f'{_MAX_STUCK} reads hang in this process; is the storage gone? {message}')
  result = []

  def run():
    try:
      result.append((work(), None))
    except BaseException as error:  # of any kind: raised again in the waiting thread
      result.append((None, error))

  thread = threading.Thread(target=run, daemon=True, name='read_video')
  thread.start()
  thread.join(seconds)
  if thread.is_alive() and not result:
    with _stuck_lock:
      _stuck.append(thread)
    raise VideoError(message)
  frames, error = result[0]
  if error is not None:
    raise error
  return frames


def _read(
  file, choose: Callable[[int], np.ndarray], check: Callable[[], None], name: str
) -> np.ndarray:
  with _opened(file, name) as (name, file, stream):
    pictures = _find_pictures(file, stream)
    if pictures:
      return np.stack([_decode_picture(name, pictures[int(i)]) for i in choose(len(pictures))])
    packets = _demux(name, stream, check)
    shown = _shown(stream, packets, check)
    if not shown:
      raise VideoError(f'{name}: none of its {len(packets)} video packets is a picture to show')
    chosen = [int(i) for i in choose(len(shown))]
    frames = _by_timestamp(stream, packets, shown, set(chosen), check)
    if frames is None:
      frames, count = _by_counting(stream, packets, set(chosen), check)
      if count and len(frames) < len(set(chosen)):
        chosen = [int(i) for i in choose(count)]
        frames, _ = _by_counting(stream, packets, set(chosen), check)
    if not set(chosen) <= frames.keys():
      raise VideoError(f'{name}: none of its {len(packets)} video packets can be decoded')
    if len({frame.shape for frame in frames.values()}) > 1:
      raise VideoError(f'{name}: {_CHANGES_SIZE}')
    return np.stack([frames[i] for i in chosen])


def count_frames(file: str | os.PathLike | bytes | io.BytesIO) -> int:
  """Returns the number of frames in a video, without decoding; VideoError as in `read_video`."""
  with _opened(file) as (name, _, stream):
    packets = _demux(name, stream, lambda: None)
    return len(_shown(stream, packets, lambda: None))


def read_frames(
  file: str | os.PathLike | bytes,
) -> tuple[fractions.Fraction, Iterator[tuple[float, np.ndarray]]]:
  """Decodes a whole video, frame after frame, in the order of the indices of `read_video`.

  Returns:
    frames a second, 25 if the file does not say; and an iterator over (seconds, uint8 [H, W, 3]).
    It raises VideoError at damage, even if the decoder could conceal it. Seconds follow from the
    rate if the file has no usable times.
  """
  def frames():
    with _opened(file) as (name, _, stream):
      packets = _demux(name, stream, lambda: None)
      assert stream.time_base is not None
      size, latest = None, None
      number = 0
      for packet in [*packets, None]:
        for frame in stream.codec_context.decode(packet):
          if frame.is_corrupt:
            raise VideoError(f'{name}: frame {number} is damaged')
          seconds = None if frame.pts is None else float(frame.pts * stream.time_base)
          if seconds is None or (latest is not None and seconds <= latest):
            seconds = float(number / rate) if latest is None else latest + float(1 / rate)
          rgb = _to_rgb(frame)
          if size not in (None, rgb.shape):
            raise VideoError(f'{name}: {_CHANGES_SIZE}')
          size, latest = rgb.shape, seconds
          number += 1
          yield seconds, rgb
      if not number:
        raise VideoError(f'{name}: none of its {len(packets)} video packets can be decoded')

  with _opened(file) as (_, _, stream):
    # A rate that is not told is None or, since PyAV 19, zero in PyAV's own kind of fraction.
    told = stream.average_rate or fractions.Fraction(25)
    rate = fractions.Fraction(told.numerator, told.denominator)
  return rate, frames()


def _resolve(name: str) -> str:
  """Returns the path of a video; that of a sample clip in the package for 'sample:NAME'."""
  try:
    return bundled.resolve_sample(name)
  except UserError as error:
    raise VideoError(str(error)) from error


@contextlib.contextmanager
def _opened(
  file, called: str = ''
) -> Iterator[tuple[str, io.BytesIO | str, av.VideoStream]]:
  """Opens a video; yields its name for messages, its path or contents, and its video stream."""
  if isinstance(file, bytes):
    file = io.BytesIO(file)
  in_memory = isinstance(file, io.BytesIO)
  name = called or ('video in memory' if in_memory else os.fspath(file))
  try:
    if not in_memory:
      file = _resolve(os.fspath(file))
      if archives.is_member(file):
        file = io.BytesIO(archives.read(file))
    with av.open(file, **_LENIENT) as container:
      cover_art = Disposition.attached_pic           # of a sound file, which is no video
      streams = [s for s in container.streams.video if not s.disposition & cover_art]
      if not streams:
        raise VideoError(f'{name}: has no video stream')
      stream = streams[0]
      if stream.codec_context is None:
        raise VideoError(f'{name}: its video is of a kind that FFmpeg does not know')
      # One thread a decoder: callers run many decoders, and FFmpeg's frame threads can deadlock
      # with the interpreter lock. For the same reason this module must not touch av.logging.
      stream.codec_context.thread_type = 'NONE'
      stream.codec_context.thread_count = 1
      yield name, file, stream
  except (FFmpegError, OSError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise VideoError(f'{name}: cannot be read as a video ({reason})') from error


def _demux(
  name: str, stream: av.VideoStream, check: Callable[[], None]
) -> list[av.Packet]:
  """Reads all packets, in decoding order."""
  packets = []
  # PyAV raises IndexError after all packets if a stream begins in the middle of a file (MPEG-TS).
  with contextlib.suppress(IndexError):
    for packet in cast(InputContainer, stream.container).demux(stream):
      check()
      if packet.size:
        packets.append(packet)
  if all(packet.is_discard for packet in packets):
    raise VideoError(f'{name}: has a video stream without frames')
  return packets


def _find_pictures(
  file: io.BytesIO | str, stream: av.VideoStream
) -> list[Callable[[], bytes]]:
  """Returns a function for each JPEG frame that encode.py stored, which reads its bytes.

  The list is empty for other files. Positions are those of the file's index: reading all packets
  takes as long as decoding two of them.
  """
  if stream.container.metadata.get('comment') != JPEG_FRAMES:
    return []

  def read(position: int, size: int) -> bytes:
    if isinstance(file, io.BytesIO):
      return bytes(file.getbuffer()[position:position + size])
    with open(file, 'rb') as opened:
      opened.seek(position)
      return opened.read(size)

  return [functools.partial(read, entry.pos, entry.size) for entry in stream.index_entries]


def _decode_picture(name: str, read: Callable[[], bytes]) -> np.ndarray:
  """Decodes a JPEG picture, faster than FFmpeg does."""
  content = read()
  image = None
  # Only a complete picture: OpenCV fills the missing part of a truncated one with grey.
  if content[:2] == b'\xff\xd8' and content[-2:] == b'\xff\xd9':
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
  if image is None:
    raise VideoError(f'{name}: a picture of it is damaged')
  return image


def _is_timed(stream: av.VideoStream, packets: list[av.Packet]) -> bool:
  """Returns whether timestamps identify the pictures of the packets."""
  decoder = stream.codec_context
  times = [packet.pts for packet in packets]
  return (
    not _TIMED_CONTAINERS.isdisjoint(stream.container.format.name.split(','))
    and decoder.codec.canonical_name in _TIMED_CODECS
    and None not in times
    and len(set(times)) == len(times)
    # Some phones write decoding times here: ascending, although the pictures are reordered.
    and not (decoder.has_b_frames and times == sorted(x for x in times if x is not None))
  )


def _shown(
  stream: av.VideoStream, packets: list[av.Packet], check: Callable[[], None]
) -> list[av.Packet]:
  """Returns the packets whose pictures a full decode shows."""
  decoder = stream.codec_context
  shown = bitstream.shown(decoder, packets)
  if not shown or not _is_timed(stream, packets):
    return shown
  # A file cut out of a longer one without encoding may start with pictures that need others from
  # before the cut. The first decoded picture tells how many of them are lost.
  start = packets[0]
  if bitstream.starts_group(decoder, start) and all(_pts(x) >= _pts(start) for x in shown):
    return shown
  first = None
  for packet in [*packets, None]:
    check()
    if frames := decoder.decode(packet):
      first = frames[0].pts
      break
  decoder.flush_buffers()
  return shown if first is None else [packet for packet in shown if _pts(packet) >= first]


def _pts(packet: av.Packet) -> int:
  """Returns the timestamp of a packet in a file whose packets all have one."""
  assert packet.pts is not None
  return packet.pts


def _by_timestamp(
  stream: av.VideoStream, packets: list[av.Packet], shown: list[av.Packet],
  chosen: set[int], check: Callable[[], None],
) -> dict[int, np.ndarray] | None:
  """Decodes only the packets that chosen frames need; None if timestamps cannot be trusted."""
  if not _is_timed(stream, packets):
    return None
  decoder = stream.codec_context
  skips = decoder.codec.canonical_name not in _NEVER_SKIP
  times = sorted(_pts(packet) for packet in shown)
  index_of = {times[i]: i for i in chosen}
  keys = [i for i, p in enumerate(packets) if p.is_keyframe]
  frames = {}
  position, latest = 0, None
  for target in sorted(index_of):
    if index_of[target] in frames:
      continue
    # Leading pictures of an open group come after its key packet but before it in time, so the
    # starting key packet is chosen by time.
    start = next((
      k for k in reversed(keys)
      if _pts(packets[k]) <= target and bitstream.starts_group(decoder, packets[k])
    ), 0)
    if start > position:
      decoder.flush_buffers()
      position, latest = start, None
    while index_of[target] not in frames:
      check()
      if position > len(packets):
        return None
      packet = packets[position] if position < len(packets) else None  # None: drain the decoder
      # No picture depends on a non-reference picture, so skipping those not chosen is exact.
      skip = skips and packet is not None and packet.pts not in index_of
      decoder.skip_frame = 'NONREF' if skip else 'DEFAULT'
      for frame in decoder.decode(packet):
        if frame.pts is None or (latest is not None and frame.pts <= latest) or frame.is_corrupt:
          return None
        latest = frame.pts
        if frame.pts in index_of:
          frames[index_of[frame.pts]] = _to_rgb(frame)
      if latest is not None and latest > target and index_of[target] not in frames:
        return None
      position += 1
  return frames


def _by_counting(
  stream: av.VideoStream, packets: list[av.Packet], chosen: set[int],
  check: Callable[[], None],
) -> tuple[dict[int, np.ndarray], int]:
  """Decodes from the start to the last chosen frame; returns frames and number of decoded ones."""
  decoder = stream.codec_context
  decoder.flush_buffers()
  decoder.skip_frame = 'DEFAULT'
  frames, count = {}, 0
  for packet in [*packets, None]:
    check()
    for frame in decoder.decode(packet):
      if count in chosen:
        frames[count] = _to_rgb(frame)
      count += 1
    if len(frames) == len(chosen):
      break
  return frames, count


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
  """Converts a frame with the file's own colour matrix and range, and turns it upright."""
  rgb = frame.to_ndarray(format='rgb24', threads=1)
  return np.rot90(rgb, k=round(frame.rotation / 90))
