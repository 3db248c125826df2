"""Video file to exactly the frames that were asked for.

Containers lie about how many frames they hold, and seeking by number returns neighbours in many
real files (AVI with B-frames, variable frame rate, edit lists). So a file is read once into a list
of packets, frames are counted there, and only what the wanted frames need is decoded.
"""

import contextlib
import fractions
import functools
import io
import os
import threading
import time
from collections.abc import Callable, Iterator

import av
import cv2
import numpy as np

from xclip_jax.assets import bundled
from xclip_jax.data.video import archives, bitstream
from xclip_jax.errors import UserError

# Where timestamps identify frames. Everywhere else (AVI, MPEG) frames are counted one by one.
_TIMED_CONTAINERS = {'mp4', 'webm'}
_TIMED_CODECS = {'h264', 'hevc', 'vp8', 'vp9', 'av1'}
_NEVER_SKIP = {'av1'}  # whose decoder settles with its first packet, for good, what to skip

JPEG_FRAMES = 'xclip-jax: JPEG frames'  # comment of files whose packets are whole JPEG pictures

# Titles and the like may be in any encoding. PyAV 19 reads them as it can, and has no such option.
_LENIENT = {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {}
_MAX_STUCK = 16  # threads of one process that may hang in a read

_CHANGES_SIZE = 'the picture changes its size midway; re-encode it to one size'

_stuck: list[threading.Thread] = []
_stuck_lock = threading.Lock()


class VideoError(UserError):
  """Name a file that cannot be used as a video, and say why."""


def read_video(
  file: str | os.PathLike | bytes | io.BytesIO,
  choose: Callable[[int], np.ndarray],
  seconds: float = 0.0,
  name: str = '',
) -> np.ndarray:
  """Decode chosen frames of a video, exactly.

  Args:
    file: path, also into an archive (`shard.tar/name.mp4`, `shard.array_record/17`); 'sample:NAME',
      a clip in the package (`assets.bundled`); or the file's contents.
    choose: maps the number of frames in the video to the indices wanted, in any order and with
      repeats. If fewer frames decode than the file has packets for (a stream that starts in the
      middle of a group of pictures), it is asked once more with the number that do.
    seconds: time limit; 0: none. With a limit, `choose` is called in another thread.
    name: what messages call the file; its path by default.

  Returns:
    uint8 [T, H, W, 3], RGB, upright, in the order of the indices.

  Raises:
    VideoError: not a video, no frames, damaged where it matters, or not done in time.
    RuntimeError: so many reads hang in this process that more would be of no use.
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
  """Do work in a thread of its own, and leave it behind when time is up.

  Slow work stops by itself at its next check. What hangs in a system call or inside a codec cannot
  be stopped at all (FFmpeg's own time-outs do not reach a blocking read), and a thread cannot be
  killed: it is left to wait, as a daemon that does not keep the process from ending.
  """
  with _stuck_lock:
    _stuck[:] = [thread for thread in _stuck if thread.is_alive()]
    if len(_stuck) >= _MAX_STUCK:
      raise RuntimeError(f'{_MAX_STUCK} reads hang in this process; is the storage gone? {message}')
  result = []

  def run():
    try:
      result.append((work(), None))
    except BaseException as error:  # of any kind: it is raised where it is waited for
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
    wanted = [int(i) for i in choose(len(shown))]
    frames = _by_timestamp(stream, packets, shown, set(wanted), check)
    if frames is None:
      frames, count = _by_counting(stream, packets, set(wanted), check)
      if count and len(frames) < len(set(wanted)):
        wanted = [int(i) for i in choose(count)]
        frames, _ = _by_counting(stream, packets, set(wanted), check)
    if not set(wanted) <= frames.keys():
      raise VideoError(f'{name}: none of its {len(packets)} video packets can be decoded')
    if len({frame.shape for frame in frames.values()}) > 1:
      raise VideoError(f'{name}: {_CHANGES_SIZE}')
    return np.stack([frames[i] for i in wanted])


def count_frames(file: str | os.PathLike | bytes | io.BytesIO) -> int:
  """Count the frames a video shows, without decoding it; VideoError as in `read_video`."""
  with _opened(file) as (name, _, stream):
    packets = _demux(name, stream, lambda: None)
    return len(_shown(stream, packets, lambda: None))


def read_frames(
  file: str | os.PathLike | bytes,
) -> tuple[fractions.Fraction, Iterator[tuple[float, np.ndarray]]]:
  """Decode a whole video, frame after frame, in the order of the indices of `read_video`.

  Returns:
    frames a second, 25 if the file does not say; and an iterator over (seconds, uint8 [H, W, 3]),
    which raises VideoError where the file is damaged, also where the decoder could hide it.
    Without usable times they follow the rate.
  """
  def frames():
    with _opened(file) as (name, _, stream):
      packets = _demux(name, stream, lambda: None)
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
    rate = stream.average_rate or fractions.Fraction(25)
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
) -> Iterator[tuple[str, io.BytesIO | str, av.video.stream.VideoStream]]:
  """Yield a name for messages, where the contents are, and the video stream."""
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
      pictures = av.stream.Disposition.attached_pic  # cover art of a sound file is not a video
      streams = [s for s in container.streams.video if not s.disposition & pictures]
      if not streams:
        raise VideoError(f'{name}: has no video stream')
      stream = streams[0]
      if stream.codec_context is None:
        raise VideoError(f'{name}: its video is of a kind that FFmpeg does not know')
      # One thread a decoder: callers run many decoders, and FFmpeg's frame threads can deadlock
      # with the interpreter lock. For the same reason nothing here may touch av.logging.
      stream.codec_context.thread_type = 'NONE'
      stream.codec_context.thread_count = 1
      yield name, file, stream
  except (av.FFmpegError, OSError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise VideoError(f'{name}: cannot be read as a video ({reason})') from error


def _demux(
  name: str, stream: av.video.stream.VideoStream, check: Callable[[], None]
) -> list[av.Packet]:
  """Read all packets, in decoding order."""
  packets = []
  # PyAV stumbles, after all packets, if a stream began in the middle of the file (MPEG-TS).
  with contextlib.suppress(IndexError):
    for packet in stream.container.demux(stream):
      check()
      if packet.size:
        packets.append(packet)
  if all(packet.is_discard for packet in packets):
    raise VideoError(f'{name}: has a video stream without frames')
  return packets


def _find_pictures(
  file: io.BytesIO | str, stream: av.video.stream.VideoStream
) -> list[Callable[[], bytes]]:
  """Where encode.py stored JPEG frames: functions that read one each, by the index of the file.

  Empty for other files. Reading all packets takes as long as decoding two of them.
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
  """Decode a JPEG file, faster than FFmpeg does."""
  content = read()
  image = None
  if content[:2] == b'\xff\xd8' and content[-2:] == b'\xff\xd9':         # of one cut short, half
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)  # would be grey
  if image is None:
    raise VideoError(f'{name}: a picture of it is damaged')
  return image


def _is_timed(stream: av.video.stream.VideoStream, packets: list[av.Packet]) -> bool:
  """Tell whether timestamps identify the pictures of the packets."""
  decoder = stream.codec_context
  times = [packet.pts for packet in packets]
  return (
    not _TIMED_CONTAINERS.isdisjoint(stream.container.format.name.split(','))
    and decoder.codec.canonical_name in _TIMED_CODECS
    and None not in times
    and len(set(times)) == len(times)
    # Some phones copy decoding times: in order, although the pictures are not.
    and not (decoder.has_b_frames and times == sorted(times))
  )


def _shown(
  stream: av.video.stream.VideoStream, packets: list[av.Packet], check: Callable[[], None]
) -> list[av.Packet]:
  """Select the packets whose pictures a full decode shows."""
  decoder = stream.codec_context
  shown = bitstream.shown(decoder, packets)
  if not shown or not _is_timed(stream, packets):
    return shown
  # What was cut out of a longer file without encoding may start with pictures that need some from
  # before the cut. How many of them are lost is told by the first that comes out.
  start = packets[0]
  if bitstream.starts_group(decoder, start) and all(packet.pts >= start.pts for packet in shown):
    return shown
  first = None
  for packet in [*packets, None]:
    check()
    if frames := decoder.decode(packet):
      first = frames[0].pts
      break
  decoder.flush_buffers()
  return shown if first is None else [packet for packet in shown if packet.pts >= first]


def _by_timestamp(
  stream: av.video.stream.VideoStream, packets: list[av.Packet], shown: list[av.Packet],
  wanted: set[int], check: Callable[[], None],
) -> dict[int, np.ndarray] | None:
  """Decode as little as the wanted frames need; None where timestamps cannot be trusted."""
  if not _is_timed(stream, packets):
    return None
  decoder = stream.codec_context
  skips = decoder.codec.canonical_name not in _NEVER_SKIP
  times = sorted(packet.pts for packet in shown)
  index_of = {times[i]: i for i in wanted}
  keys = [i for i, p in enumerate(packets) if p.is_keyframe]
  frames = {}
  position, latest = 0, None
  for target in sorted(index_of):
    if index_of[target] in frames:
      continue
    # Leading pictures of an open group come after its key packet but before it in time, so the
    # key to start from is found by time.
    start = next((
      k for k in reversed(keys)
      if packets[k].pts <= target and bitstream.starts_group(decoder, packets[k])
    ), 0)
    if start > position:
      decoder.flush_buffers()
      position, latest = start, None
    while index_of[target] not in frames:
      check()
      if position > len(packets):
        return None
      packet = packets[position] if position < len(packets) else None  # None: drain the decoder
      # No picture depends on a non-reference picture, so leaving out unwanted ones is exact.
      unwanted = skips and packet is not None and packet.pts not in index_of
      decoder.skip_frame = 'NONREF' if unwanted else 'DEFAULT'
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
  stream: av.video.stream.VideoStream, packets: list[av.Packet], wanted: set[int],
  check: Callable[[], None],
) -> tuple[dict[int, np.ndarray], int]:
  """Decode from the start to the last wanted frame; also how many frames came out."""
  decoder = stream.codec_context
  decoder.flush_buffers()
  decoder.skip_frame = 'DEFAULT'
  frames, count = {}, 0
  for packet in [*packets, None]:
    check()
    for frame in decoder.decode(packet):
      if count in wanted:
        frames[count] = _to_rgb(frame)
      count += 1
    if len(frames) == len(wanted):
      break
  return frames, count


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
  """Convert with the file's own colour matrix and range, and turn upright."""
  rgb = frame.to_ndarray(format='rgb24', threads=1)
  return np.rot90(rgb, k=round(frame.rotation / 90))
