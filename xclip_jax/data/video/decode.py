"""Exact decoding of chosen frames of a video file.

Containers give wrong numbers of frames, and seeking by number returns neighbours in many real files
(AVI with B-frames, variable frame rate, edit lists). So a file is read once into a list of packets,
frames are counted there, and only the packets that the chosen frames depend on are decoded.
"""

import contextlib
import fractions
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from xclip_jax.assets import bundled
from xclip_jax.data.reading import damage, opening, pictures, time_limits
from xclip_jax.data.reading.damage import Damage
from xclip_jax.data.reading.opening import VideoError as VideoError
from xclip_jax.data.video import archives, bitstream
from xclip_jax.errors import UserError

# Timestamps identify frames in these files. In all others (AVI, MPEG) frames are counted.
_TIMED_CONTAINERS = {'mp4', 'webm'}
_TIMED_CODECS = {'h264', 'hevc', 'vp8', 'vp9', 'av1'}
_NEVER_SKIP = {'av1'}  # its decoder fixes with the first packet whether it skips pictures


def read_video(
  file: str | os.PathLike | bytes | io.BytesIO,
  choose: Callable[[int], np.ndarray],
  seconds: float = 0.0,
  name: str = '',
  report: damage.Report | None = None,
) -> np.ndarray:
  """Decodes chosen frames of a video, exactly.

  Of a damaged file the frames that can be decoded are used.

  Args:
    file: path, also into an archive (`shard.tar/name.mp4`, `shard.array_record/17`); 'sample:NAME',
      a clip in the package (`assets.bundled`); or the file's contents.
    choose: maps the number of frames in the video to the chosen indices, in any order and with
      repeats. If fewer frames can be decoded than the file has packets for (a stream that starts in
      the middle of a group of pictures, a damaged file), it is called again with their number.
    seconds: time limit; 0: none. With a limit, `choose` is called in another thread.
    name: name of the file in messages; its path by default.
    report: called with each note about damage that the read has met, and about a picture that
      changes its size; None: damage is logged.

  Returns:
    uint8 [T, H, W, 3], RGB, upright, in the order of the indices. Frames of other sizes are scaled
    to the size of the earliest, and cropped if their shape differs.

  Raises:
    VideoError: the file is no video, has no frame that can be decoded, or is not read in time.
    StorageError: so many reads hang in this process that the storage must be gone.
  """
  if not seconds:
    return _read(file, choose, lambda: None, name, report)
  deadline = time.monotonic() + seconds
  reason = f'not read within {seconds:g} s; if it is only slow, raise data.clip_seconds'
  name = name or ('video in memory' if isinstance(file, bytes | io.BytesIO) else os.fspath(file))

  def check():
    if time.monotonic() > deadline:
      raise VideoError(f'{name}: {reason}')

  work = lambda: _read(file, choose, check, name, report)
  return time_limits.run(work, seconds, VideoError(f'{name}: {reason}'))


def _read(
  file, choose: Callable[[int], np.ndarray], check: Callable[[], None], name: str,
  report: damage.Report | None,
) -> np.ndarray:
  found = Damage()
  with _opened(file, name) as (name, file, stream):
    stored = pictures.find(file, stream)
    if stored:
      return pictures.read(name, stored, choose, report)
    packets = _demux(name, stream, check, found)
    shown = _shown(stream, packets, check)
    if not shown:
      raise VideoError(f'{name}: none of its {len(packets)} video packets is a picture to show')
    count = len(shown)
    chosen = [int(i) for i in choose(count)]
    frames = _by_timestamp(stream, packets, shown, set(chosen), check)
    if frames is None:
      frames, count = _by_counting(stream, packets, set(chosen), check, found)
      lost = found.undecodable and count < len(shown)
      if count and (lost or not set(chosen) <= frames.keys()):
        chosen = [int(i) for i in choose(count)]
        frames, _ = _by_counting(stream, packets, set(chosen), check)
    if not set(chosen) <= frames.keys():
      raise VideoError(f'{name}: {count or "none"} of its {len(packets)} video packets can be '
                       'decoded' + ', and later frames are asked for' * bool(count))
    frames = pictures.match_sizes(frames, found)
    damage.tell(name, found.notes(count), report)
    return np.stack([frames[i] for i in chosen])


def count_frames(file: str | os.PathLike | bytes | io.BytesIO) -> int:
  """Returns the number of frames in a video, without decoding; VideoError as in `read_video`.

  Damage inside of packets is not noticed; `read_video` may decode fewer frames.
  """
  with _opened(file) as (name, _, stream):
    packets = _demux(name, stream, lambda: None, Damage())
    return len(_shown(stream, packets, lambda: None))


def read_frames(
  file: str | os.PathLike | bytes, report: damage.Report | None = None, seconds: float = 0.0,
) -> tuple[fractions.Fraction, Iterator[tuple[float, np.ndarray]]]:
  """Decodes a whole video, frame after frame, in the order of the indices of `read_video`.

  Only a few frames are in memory at once, whatever the size of the file.

  Args:
    file: path or contents, as `read_video` takes them.
    report: as in `read_video`; called at the end.
    seconds: time limit for the next frame; 0: none. With a limit, decoding has its own thread.

  Returns:
    frames a second, 25 if the file does not say; and an iterator over (seconds, uint8 [H, W, 3]).
    All frames have the size of the first. Seconds follow from the rate if the file has no usable
    times. The iterator raises VideoError if no frame can be decoded, or one not in time.
  """
  def frames():
    found = Damage()
    with _opened(file) as (name, _, stream):
      assert stream.time_base is not None
      first, latest = None, None
      number = 0
      for packet in itertools.chain(damage.read_packets(stream, lambda: None, found), [None]):
        for frame in damage.decode_packet(stream.codec_context, packet, found):
          moment = None if frame.pts is None else float(frame.pts * stream.time_base)
          if moment is None or (latest is not None and moment <= latest):
            moment = float(number / rate) if latest is None else latest + float(1 / rate)
          rgb = _to_rgb(frame)
          found.add_size(rgb.shape[1], rgb.shape[0])
          first = rgb.shape if first is None else first
          latest = moment
          number += 1
          yield moment, pictures.fit(rgb, *first[:2])
      if not number:
        raise VideoError(f'{name}: none of its video packets can be decoded')
      damage.tell(name, found.notes(number), report)

  def open_rate():
    with _opened(file) as (_, _, stream):
      # A rate that is not told is None or, since PyAV 19, zero in PyAV's own kind of fraction.
      return stream.average_rate or fractions.Fraction(25)

  if not seconds:
    told = open_rate()
  else:
    name = 'video in memory' if isinstance(file, bytes) else os.fspath(file)
    late = VideoError(f'{name}: no frame was read within {seconds:g} s')
    told = time_limits.run(open_rate, seconds, late)
  rate = fractions.Fraction(told.numerator, told.denominator)
  return rate, time_limits.iterate(frames(), seconds, late) if seconds else frames()


def _resolve(name: str) -> str:
  """Returns the path of a video; that of a sample clip in the package for 'sample:NAME'."""
  if os.path.lexists(name):
    return name
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
    with opening.open_container(file, name) as container:
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
  name: str, stream: av.VideoStream, check: Callable[[], None], found: Damage
) -> list[av.Packet]:
  """Reads all packets, in decoding order."""
  packets = list(damage.read_packets(stream, check, found))
  if all(packet.is_discard for packet in packets):
    raise VideoError(f'{name}: has a video stream without frames')
  return packets


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
    if frames := damage.decode_packet(decoder, packet, Damage()):
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
      found = Damage()
      for frame in damage.decode_packet(decoder, packet, found):
        if frame.pts is None or (latest is not None and frame.pts <= latest) or frame.is_corrupt:
          return None
        latest = frame.pts
        if frame.pts in index_of:
          frames[index_of[frame.pts]] = _to_rgb(frame)
      if found.undecodable:
        return None
      if latest is not None and latest > target and index_of[target] not in frames:
        return None
      position += 1
  return frames


def _by_counting(
  stream: av.VideoStream, packets: list[av.Packet], chosen: set[int],
  check: Callable[[], None], found: Damage | None = None,
) -> tuple[dict[int, np.ndarray], int]:
  """Decodes from the start to the last chosen frame; returns frames and number of decoded ones.

  With `found`, a damaged stream is decoded to its end, so that all damage is counted.
  """
  decoder = stream.codec_context
  decoder.flush_buffers()
  decoder.skip_frame = 'DEFAULT'
  frames, count = {}, 0
  met = Damage() if found is None else found
  for packet in [*packets, None]:
    check()
    for frame in damage.decode_packet(decoder, packet, met):
      if count in chosen:
        frames[count] = _to_rgb(frame)
      count += 1
    is_damaged = found is not None and (found.undecodable or found.concealed)
    if len(frames) == len(chosen) and not is_damaged:
      break
  return frames, count


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
  """Converts a frame with the file's own colour matrix and range, and turns it upright."""
  rgb = frame.to_ndarray(format='rgb24', threads=1)
  return np.rot90(rgb, k=round(frame.rotation / 90))
