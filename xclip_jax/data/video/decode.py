"""Exact decoding of chosen frames of a video file.

Containers give wrong numbers of frames, and seeking by number returns neighbours in many real files
(AVI with B-frames, variable frame rate, edit lists). So a file is read once into a list of packets,
frames are counted there, and only the packets that the chosen frames depend on are decoded.
"""

import fractions
import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np

from xclip_jax.data.reading import damage, pictures, time_limits
from xclip_jax.data.reading.damage import Damage
from xclip_jax.data.reading.opening import VideoError as VideoError
from xclip_jax.data.video import bitstream, color, geometry, images, streams, times
from xclip_jax.data.video.streams import Source

_NEVER_SKIP = {'av1'}  # its decoder fixes with the first packet whether it skips pictures


def read_video(
  file: str | os.PathLike | bytes | io.BytesIO,
  choose: Callable[[int], np.ndarray],
  seconds: float = 0.0,
  name: str = '',
  report: damage.Report | None = None,
  square_pixels: bool = False,
) -> np.ndarray:
  """Decodes chosen frames of a video, exactly.

  Of a damaged file the frames that can be decoded are used.

  Args:
    file: path, also into an archive (`shard.tar/name.mp4`, `shard.array_record/17`); 'sample:NAME',
      a clip in the package (`assets.bundled`); or the file's contents. A path may end in a span,
      `name.mp4#t=10,20`: seconds from the start of the file; its frames are those of the video.
    choose: maps the number of frames in the video to the chosen indices, in any order and with
      repeats. If fewer frames can be decoded than the file has packets for (a stream that starts in
      the middle of a group of pictures, a damaged file), it is called again with their number.
    seconds: time limit; 0: none. With a limit, `choose` is called in another thread.
    name: name of the file in messages; its path by default.
    report: called with each note about damage that the read has met, and about a picture that
      changes its size; None: damage is logged.
    square_pixels: scale the width of frames whose pixels are not square, as players do.

  Returns:
    uint8 [T, H, W, 3], RGB, upright, in the order of the indices. Frames of other sizes are scaled
    to the size of the earliest, and cropped if their shape differs.

  Raises:
    VideoError: the file is no video, has no frame that can be decoded, or is not read in time.
    StorageError: so many reads hang in this process that the storage must be gone.
  """
  if not seconds:
    return _read(file, choose, lambda: None, name, report, square_pixels)
  deadline = time.monotonic() + seconds
  reason = f'not read within {seconds:g} s; if it is only slow, raise data.clip_seconds'
  name = name or ('video in memory' if isinstance(file, bytes | io.BytesIO) else os.fspath(file))

  def check():
    if time.monotonic() > deadline:
      raise VideoError(f'{name}: {reason}')

  work = lambda: _read(file, choose, check, name, report, square_pixels)
  return time_limits.run(work, seconds, VideoError(f'{name}: {reason}'))


def _read(
  file, choose: Callable[[int], np.ndarray], check: Callable[[], None], name: str,
  report: damage.Report | None, square_pixels: bool,
) -> np.ndarray:
  found = Damage()
  with streams.opened(file, name, square_pixels) as source:
    stored = pictures.find(source.file, source.stream)
    if source.num_webp or stored:
      count = source.num_webp or len(stored)
      first, last = _within(source, lambda: _picture_times(source), count)
      if source.num_webp:
        return _read_webp(source, [first + int(i) for i in choose(last - first)])
      return pictures.read(source.name, stored[first:last], choose, report)
    near = streams.read_near(
      source, damage.read_packets(source.stream, check, found),
      lambda packet: bitstream.starts_group(source.stream.codec_context, packet))
    if source.span is None or (near and times.are_trusted(source.stream, near)):
      return _read_chosen(source, near or _demux(source, check, found), choose, check, found,
                          report)
  found = Damage()
  with streams.opened(file, name, square_pixels) as source:     # from its beginning again
    return _read_chosen(source, _demux(source, check, found), choose, check, found, report)


def _read_chosen(
  source: Source, packets: list[av.Packet], choose: Callable[[int], np.ndarray],
  check: Callable[[], None], found: Damage, report: damage.Report | None,
) -> np.ndarray:
  """Decodes the frames that `choose` picks among those that the packets show."""
  shown = _shown(source.stream, packets, check)
  if not shown:
    raise VideoError(
      f'{source.name}: none of its {len(packets)} video packets is a picture to show')
  count = len(shown)
  first, last = _within(source, lambda: _times(source, packets, shown, check), count)
  chosen = [first + int(i) for i in choose(last - first)]
  streams.check_memory(source, len(chosen))
  frames = _by_timestamp(source, packets, shown, set(chosen), check)
  if frames is None:
    frames, count = _by_counting(source, packets, set(chosen), check, found)
    lost = found.undecodable and count < len(shown)
    if count and (lost or not set(chosen) <= frames.keys()):
      first, last = _within(source, lambda: _decoded_times(source, packets, check), count)
      chosen = [first + int(i) for i in choose(last - first)]
      frames, _ = _by_counting(source, packets, set(chosen), check)
  if not set(chosen) <= frames.keys():
    raise VideoError(f'{source.name}: {count or "none"} of its {len(packets)} video packets can '
                     'be decoded' + ', and later frames are asked for' * bool(count))
  frames = pictures.match_sizes(frames, found)
  damage.tell(source.name, found.notes(count), report)
  return pictures.stack(chosen, frames)


def _within(
  source: Source, find_times: Callable[[], list[float]], count: int
) -> tuple[int, int]:
  """Returns the first frame in the span of a source, and the first after it.

  Args:
    source: the video.
    find_times: returns the time of each frame; only called if the source has a span.
    count: number of frames.
  """
  if source.span is None:
    return 0, count
  seconds = find_times()
  streams.check_span(source, source.span, max(seconds, default=0))
  inside = [i for i, second in enumerate(seconds) if source.span.holds(second)]
  if not inside:
    raise VideoError(f'{source.name}: shows no new frame {source.span}')
  return inside[0], inside[-1] + 1


def _times(
  source: Source, packets: list[av.Packet], shown: list[av.Packet], check: Callable[[], None]
) -> list[float]:
  """Returns the seconds of each frame."""
  if times.are_trusted(source.stream, packets):
    return [float(tick * source.time_base) for tick in sorted(times.ticks(x) for x in shown)]
  return _decoded_times(source, packets, check)


def _decoded_times(
  source: Source, packets: list[av.Packet], check: Callable[[], None]
) -> list[float]:
  """Returns the seconds of each frame that can be decoded."""
  decoder = source.stream.codec_context
  decoder.flush_buffers()
  decoder.skip_frame = 'DEFAULT'
  return [second for second, _ in _play(source, packets, check, Damage())]


def _picture_times(source: Source) -> list[float]:
  """Returns the seconds of each picture of an animated WebP, or of each JPEG frame."""
  if source.num_webp:
    return [second for second, _ in images.play_webp(source.file)]
  return [float(entry.timestamp * source.time_base) for entry in source.stream.index_entries]


def _read_webp(source: Source, chosen: list[int]) -> np.ndarray:
  wanted = set(chosen)
  return pictures.stack(chosen, {
    i: _to_rgb(frame, source.look)
    for i, (_, frame) in enumerate(images.play_webp(source.file)) if i in wanted})


def count_frames(file: str | os.PathLike | bytes | io.BytesIO) -> int:
  """Returns the number of frames in a video, without decoding; VideoError as in `read_video`.

  Damage inside of packets is not noticed; `read_video` may decode fewer frames.
  """
  check = lambda: None
  with streams.opened(file) as source:
    if source.num_webp:
      first, last = _within(source, lambda: _picture_times(source), source.num_webp)
    else:
      packets = _demux(source, check, Damage())
      shown = _shown(source.stream, packets, check)
      first, last = _within(source, lambda: _times(source, packets, shown, check), len(shown))
    return last - first


def read_frames(
  file: str | os.PathLike | bytes, report: damage.Report | None = None, seconds: float = 0.0,
  square_pixels: bool = False,
) -> tuple[fractions.Fraction, Iterator[tuple[float, np.ndarray]]]:
  """Decodes a whole video, frame after frame, in the order of the indices of `read_video`.

  Only a few frames are in memory at once, whatever the size of the file.

  Args:
    file: path or contents, as `read_video` takes them.
    report: as in `read_video`; called at the end.
    seconds: time limit for the next frame; 0: none. With a limit, decoding has its own thread.
    square_pixels: as in `read_video`.

  Returns:
    frames a second, 25 if the file does not say; and an iterator over (seconds, uint8 [H, W, 3]).
    All frames have the size of the first. Seconds count from the start of the file and always grow;
    they follow from the rate if the file has no usable times. The iterator raises VideoError if no
    frame can be decoded, or one not in time.
  """
  def frames():
    with streams.opened(file, square_pixels=square_pixels) as source:
      yield from _frames(source, report)

  def open_rate():
    with streams.opened(file) as source:
      return source.rate

  if not seconds:
    return open_rate(), frames()
  name = 'video in memory' if isinstance(file, bytes) else os.fspath(file)
  late = VideoError(f'{name}: no frame was read within {seconds:g} s')
  return (time_limits.run(open_rate, seconds, late),
          time_limits.iterate(frames(), seconds, late))


def _frames(
  source: Source, report: damage.Report | None
) -> Iterator[tuple[float, np.ndarray]]:
  """Yields (seconds, uint8 [H, W, 3]) of each frame of a source or, if it has one, of its span."""
  found, check, span = Damage(), lambda: None, source.span
  if source.num_webp:
    played: Iterable = images.play_webp(source.file)
  else:
    packets = damage.read_packets(source.stream, check, found)
    played = _play(source, times.settle(source.stream, packets), check, found)
  first, number, moment = None, 0, 0.0
  for moment, frame in played:
    if span is not None and not span.holds(moment):
      if moment < span.begin:
        continue
      break
    rgb = _to_rgb(frame, source.look)
    found.add_size(rgb.shape[1], rgb.shape[0])
    first = rgb.shape if first is None else first
    number += 1
    yield moment, pictures.fit(rgb, *first[:2])
  if span is not None:
    streams.check_span(source, span, moment)
    if not number:
      raise VideoError(f'{source.name}: shows no new frame {span}')
  damage.tell(source.name, found.notes(number), report)


def _play(
  source: Source, packets: Iterable[av.Packet], check: Callable[[], None], found: Damage
) -> Iterator[tuple[float, av.VideoFrame]]:
  """Decodes all packets; yields each frame and its time in seconds, which always grows."""
  latest, number = None, 0
  for packet in itertools.chain(packets, [None]):
    check()
    for frame in damage.decode_packet(source.stream.codec_context, packet, found):
      moment = None if frame.pts is None else float(frame.pts * source.time_base)
      if moment is None or (latest is not None and moment <= latest):
        step = float(1 / source.rate)
        moment = number * step if latest is None else latest + step
      latest = moment
      number += 1
      yield moment, frame
  if not number:
    raise VideoError(f'{source.name}: none of its video packets can be decoded')


def _demux(source: Source, check: Callable[[], None], found: Damage) -> list[av.Packet]:
  """Reads all packets, in decoding order, with times from the start of the file."""
  read = damage.read_packets(source.stream, check, found)
  packets = damage.hold(times.settle(source.stream, read), source.name)
  if all(packet.is_discard for packet in packets):
    raise VideoError(f'{source.name}: has a video stream without frames')
  return packets


def _shown(
  stream: av.VideoStream, packets: list[av.Packet], check: Callable[[], None]
) -> list[av.Packet]:
  """Returns the packets whose pictures a full decode shows."""
  decoder = stream.codec_context
  shown = bitstream.shown(decoder, packets)
  if not shown or not times.are_trusted(stream, packets):
    return shown
  # A file cut out of a longer one without encoding may start with pictures that need others from
  # before the cut. The first decoded picture tells how many of them are lost.
  start = packets[0]
  begin = times.ticks(start)
  if bitstream.starts_group(decoder, start) and all(times.ticks(x) >= begin for x in shown):
    return shown
  first = None
  for packet in [*packets, None]:
    check()
    if frames := damage.decode_packet(decoder, packet, Damage()):
      first = frames[0].pts
      break
  decoder.flush_buffers()
  return shown if first is None else [packet for packet in shown if times.ticks(packet) >= first]


def _by_timestamp(
  source: Source, packets: list[av.Packet], shown: list[av.Packet],
  chosen: set[int], check: Callable[[], None],
) -> dict[int, np.ndarray] | None:
  """Decodes only the packets that chosen frames need; None if timestamps cannot be trusted."""
  if not times.are_trusted(source.stream, packets):
    return None
  decoder = source.stream.codec_context
  skips = decoder.codec.canonical_name not in _NEVER_SKIP
  shown_at = sorted(times.ticks(packet) for packet in shown)
  index_of = {shown_at[i]: i for i in chosen}
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
      if times.ticks(packets[k]) <= target and bitstream.starts_group(decoder, packets[k])
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
          frames[index_of[frame.pts]] = _to_rgb(frame, source.look)
      if found.undecodable:
        return None
      if latest is not None and latest > target and index_of[target] not in frames:
        return None
      position += 1
  return frames


def _by_counting(
  source: Source, packets: list[av.Packet], chosen: set[int],
  check: Callable[[], None], found: Damage | None = None,
) -> tuple[dict[int, np.ndarray], int]:
  """Decodes from the start to the last chosen frame; returns frames and number of decoded ones.

  With `found`, a damaged stream is decoded to its end, so that all damage is counted.
  """
  decoder = source.stream.codec_context
  decoder.flush_buffers()
  decoder.skip_frame = 'DEFAULT'
  frames, count = {}, 0
  met = Damage() if found is None else found
  for packet in [*packets, None]:
    check()
    for frame in damage.decode_packet(decoder, packet, met):
      if count in chosen:
        frames[count] = _to_rgb(frame, source.look)
      count += 1
    is_damaged = found is not None and (found.undecodable or found.concealed)
    if len(frames) == len(chosen) and not is_damaged:
      break
  return frames, count


def _to_rgb(frame: av.VideoFrame | np.ndarray, look: streams.Look) -> np.ndarray:
  """Converts a frame to RGB for an ordinary screen, and turns it upright."""
  if isinstance(frame, np.ndarray):
    rgb, orientation = frame, look.orientation or geometry.Orientation()
  else:
    rgb, orientation = color.to_rgb(frame, look.tags), look.find_orientation(frame)
  if look.pixel_aspect:
    rgb = geometry.square_pixels(rgb, look.pixel_aspect)
  return geometry.turn_upright(rgb, orientation)
