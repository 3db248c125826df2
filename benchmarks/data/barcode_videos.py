"""Small videos with numbered frames, of every kind in which a reader may lose count.

The number is painted as bars, which survive lossy coding, scaling and any colour conversion, so
that a frame of any library tells which one it is. Files are encoded with PyAV; what no encoder
writes (packed B-frames, hidden pictures, wrong timestamps) is made by rearranging packets.
"""

import dataclasses
import fractions
import os
from collections.abc import Callable

import av
import numpy as np

FPS = 16
_BITS = 8
_VOP = b'\0\0\1\xb6'         # MPEG-4: start code of a picture,
_USER_DATA = b'\0\0\1\xb2'   # and of a remark


def paint(n: int, height: int, width: int) -> np.ndarray:
  """Paints each frame's number (n <= 256) as eight vertical bars, most significant first.

  A texture moves behind them, so that frames are predicted from each other and a wrong reference
  is seen in the pixels.
  """
  bits = np.arange(n)[:, None] >> np.arange(_BITS)[::-1] & 1                # [N, bits]
  bars = np.where(bits[:, np.arange(width) * _BITS // width], 205, 50)      # [N, W]
  texture = np.random.default_rng(0).integers(-45, 46, (height // 4 + 1, width // 4 + n, 3))
  texture = texture.repeat(4, 0).repeat(4, 1)                               # > [H, W + 3 N, 3]
  moving = np.stack([texture[:height, 3 * i:3 * i + width] for i in range(n)])
  return (bars[:, None, :, None] + moving).astype(np.uint8)


def read(frame: np.ndarray) -> int:
  """Reads the number of a frame [H, W, 3] of any size."""
  profile = frame.mean((0, 2))                                        # [W]
  centres = ((np.arange(_BITS) + 0.5) * len(profile) / _BITS).astype(int)
  return int(sum((profile[c] > 125) << b for b, c in zip(range(_BITS)[::-1], centres, strict=True)))


@dataclasses.dataclass(frozen=True)
class Kind:
  """Coding, timing and container of a video.

  Fields:
    name: of the file; its end decides the container.
    codec, options: of FFmpeg.
    tag: fourcc, where the codec's first is not meant.
    height, width: of the picture as it is stored.
    pixels: FFmpeg's pixel format.
    fps: frames a second.
    time: when frame i is shown, in 1 / fps.
    rotation: degrees that a player has to turn the picture counter-clockwise.
    muxer: options of the container.
    rearrange: packets of the encoder in, packets of the file out.
    unseen: numbers of the frames that are encoded, but that no player shows.
  """

  name: str
  codec: str
  options: dict[str, str] = dataclasses.field(default_factory=dict)
  tag: str = ''
  height: int = 64
  width: int = 96
  pixels: str = 'yuv420p'
  fps: int = FPS
  time: Callable[[int], int] = lambda i: i
  rotation: int = 0
  muxer: dict[str, str] = dataclasses.field(default_factory=dict)
  rearrange: Callable[[list[av.Packet]], list[av.Packet]] = lambda packets: packets
  unseen: tuple[int, ...] = ()


def write(kind: Kind, folder: str | os.PathLike, n: int) -> tuple[str, list[int]]:
  """Encodes n frames; returns the path and the numbers of the shown frames, in order."""
  stored = kind.height, kind.width
  frames = paint(n, *(stored[::-1] if kind.rotation % 180 else stored))
  frames = np.ascontiguousarray(np.rot90(frames, -kind.rotation // 90, axes=(1, 2)))
  path = os.path.join(folder, kind.name)
  with av.open(path, 'w', options=kind.muxer) as container:
    stream = container.add_stream(kind.codec, rate=kind.fps, options=kind.options)
    stream.height, stream.width, stream.pix_fmt = *stored, kind.pixels
    stream.codec_context.thread_count = 1
    if kind.tag:
      stream.codec_context.codec_tag = kind.tag
    if kind.rotation:
      stream.set_display_rotation(kind.rotation)
    packets = []
    for number, frame in enumerate(frames):
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      picture.pts, picture.time_base = kind.time(number), fractions.Fraction(1, kind.fps)
      packets += stream.encode(picture)
    packets += stream.encode()
    for packet in kind.rearrange(packets):
      packet.stream = stream
      container.mux(packet)
  return path, [i for i in range(n) if i not in kind.unseen]


def _packet(data: bytes, like: av.Packet) -> av.Packet:
  packet = av.Packet(data)
  packet.pts, packet.dts, packet.time_base = like.pts, like.dts, like.time_base
  packet.is_keyframe = like.is_keyframe
  return packet


def _from_second_group(packets: list[av.Packet]) -> list[av.Packet]:
  """Drops all packets before the second key packet, as cutting without encoding does."""
  _, second, *_ = (i for i, packet in enumerate(packets) if packet.is_keyframe)
  return packets[second:]


def _before_time_zero(packets: list[av.Packet]) -> list[av.Packet]:
  """Lets the second group and the file start with five pictures that are not shown."""
  packets = _from_second_group(packets)
  start = sorted(packet.pts for packet in packets)[5]
  for packet in packets:
    packet.pts, packet.dts = packet.pts - start, packet.dts - start
  return packets


def _show_when_decoded(packets: list[av.Packet]) -> list[av.Packet]:
  """Gives reordered pictures the times of decoding, as some phones do."""
  first = packets[0].dts
  for packet in packets:
    packet.dts -= first
    packet.pts = packet.dts
  return packets


def _pack(packets: list[av.Packet]) -> list[av.Packet]:
  """Puts the first of each run of B-pictures into the packet before it, as XviD does in AVI.

  The others follow, and then a picture that is 'not coded', a few bytes long.
  """
  data = [_say_packed(bytes(packet)) for packet in packets]
  is_b = [x[x.index(_VOP) + 4] >> 6 == 2 for x in data] + [False]     # 0: I, 1: P, 2: B
  packed = []
  for i, packet in enumerate(packets):
    if is_b[i] and not is_b[i - 1]:
      packed[-1] = _packet(bytes(packed[-1]) + data[i], packed[-1])
    else:
      packed.append(_packet(data[i], packet))
    if is_b[i] and not is_b[i + 1]:
      packed.append(_packet(_not_coded(i), packet))
  return _one_a_tick(packed)


def _one_a_tick(packets: list[av.Packet]) -> list[av.Packet]:
  for i, packet in enumerate(packets):
    packet.dts = packet.pts = i
    packet.is_keyframe &= packet.size > len(_not_coded(0))
  return packets


def _repeat(packets: list[av.Packet]) -> list[av.Packet]:
  """Adds pictures that are 'not coded', as XviD writes where nothing changes; players skip them."""
  longer = []
  for i, packet in enumerate(packets):
    longer += [packet, _packet(_not_coded(i), packet)] if i % 10 in (4, 5) else [packet]
  return _one_a_tick(longer)


def _say_packed(data: bytes) -> bytes:
  """Puts the remark of an encoder that packs into the header, which comes with each key packet."""
  header, vop, picture = data.partition(_VOP)
  if header:
    header = header.partition(_USER_DATA)[0] + _USER_DATA + b'DivX503b1393p'
  return header + vop + picture


def _not_coded(time: int) -> bytes:
  """Returns the bits of a P-picture: in this second, at this tick of 16; not coded; filling."""
  return _VOP + bytes([0b01010000 | time % FPS, 0b10011111])


def _hide_vp8(packets: list[av.Packet]) -> list[av.Packet]:
  """Clears the bit that tells to show a picture, as encoders do in pictures to predict from."""
  hide = lambda data: bytes([data[0] & ~0x10]) + data[1:]
  return [_packet(hide(bytes(x)), x) if i in _HIDDEN else x for i, x in enumerate(packets)]


def _hide_vp9(packets: list[av.Packet]) -> list[av.Packet]:
  """Hides the key pictures of VP9 by one bit; muxers join a hidden picture with the next one."""
  hide = lambda data: bytes([data[0] & ~0x02]) + data[1:]
  return [_packet(hide(bytes(x)), x) if x.is_keyframe else x for x in packets]


_HIDDEN = (9, 24)                                     # of VP8, neither a key picture
_X264 = {'bf': '3', 'g': '12', 'sc_threshold': '0', 'mbtree': '0'}   # with mbtree: never the same
_X265 = {'x265-params': 'keyint=12:bframes=3:scenecut=0:pools=none:frame-threads=1:log-level=none'}
_OPEN_X264 = _X264 | {'x264-params': 'open-gop=1'}
_OPEN_X265 = {'x265-params': _X265['x265-params'] + ':open-gop=1'}
_MPEG4 = {'bf': '2', 'g': '12', 'qscale': '3', 'sc_threshold': '1000000000'}
_MPEG2 = {'bf': '2', 'g': '12', 'b': '4M'}
_VPX = {'g': '20', 'deadline': 'realtime', 'cpu-used': '8'}
_AV1 = {'g': '20', 'preset': '10', 'svtav1-params': 'lp=1'}

KINDS = {
  'H.264, long GOP, B-frames': Kind('a.mp4', 'libx264', _X264 | {'g': '250'}),
  'H.264, short GOP, B-pyramid': Kind('a.mp4', 'libx264', _X264 | {'b-pyramid': 'normal'}),
  'H.264, no B-frames': Kind('a.mp4', 'libx264', _X264 | {'bf': '0'}),
  'H.264, open GOP': Kind('a.mp4', 'libx264', _OPEN_X264),
  'H.264, open GOP, cut without encoding': Kind(
    'a.mkv', 'libx264', _OPEN_X264, rearrange=_from_second_group, unseen=tuple(range(12))),
  'H.264, intra-refresh': Kind(
    'a.mp4', 'libx264', _X264 | {'bf': '0', 'x264-params': 'intra-refresh=1'}),
  'H.264, interlaced': Kind('a.mp4', 'libx264', _X264 | {'x264-params': 'tff=1'}),
  'H.264, 4:4:4, odd size': Kind(
    'a.mp4', 'libx264', _X264, height=63, width=97, pixels='yuv444p'),
  'H.264, variable frame rate': Kind(
    'a.mp4', 'libx264', _X264, time=lambda i: 2 * i + 25 * (i > 10) + (i % 3 == 0)),
  'H.264, edit list': Kind(
    'a.mp4', 'libx264', _X264, rearrange=_before_time_zero, unseen=tuple(range(17))),
  'H.264, shown when decoded': Kind('a.mp4', 'libx264', _X264, rearrange=_show_when_decoded),
  'H.264, rotated': Kind('a.mp4', 'libx264', _X264, rotation=90),
  'H.264, fragmented': Kind(
    'a.mp4', 'libx264', _X264, muxer={'movflags': 'frag_keyframe+empty_moov'}),
  'H.264 in Matroska': Kind('a.mkv', 'libx264', _X264),
  'H.264 in AVI': Kind('a.avi', 'libx264', _X264),
  'H.264 in Flash': Kind('a.flv', 'libx264', _X264),
  'H.264 without a container': Kind('a.h264', 'libx264', _X264),
  'H.264 in MPEG-TS': Kind('a.ts', 'libx264', _X264),
  'HEVC': Kind('a.mp4', 'libx265', _X265),
  'HEVC, 10 bits': Kind('a.mp4', 'libx265', _X265, pixels='yuv420p10le'),
  'HEVC, open GOP': Kind('a.mp4', 'libx265', _OPEN_X265),
  'HEVC, open GOP, cut without encoding': Kind(
    'a.mkv', 'libx265', _OPEN_X265, rearrange=_from_second_group, unseen=tuple(range(12))),
  'VP8': Kind('a.webm', 'libvpx', _VPX),
  'VP8, hidden pictures': Kind('a.webm', 'libvpx', _VPX, rearrange=_hide_vp8, unseen=_HIDDEN),
  'VP9': Kind('a.webm', 'libvpx-vp9', _VPX),
  'VP9, odd size': Kind('a.webm', 'libvpx-vp9', _VPX, height=63, width=97),
  'VP9, superframes': Kind(
    'a.webm', 'libvpx-vp9', _VPX, rearrange=_hide_vp9, unseen=(0, 20, 40, 60, 80, 100)),
  'AV1 in MP4': Kind('a.mp4', 'libsvtav1', _AV1),
  'AV1 in Matroska': Kind('a.mkv', 'libsvtav1', _AV1),
  'MPEG-4 AVI, no B-frames': Kind('a.avi', 'mpeg4', _MPEG4 | {'bf': '0'}),
  'MPEG-4 AVI, DX50, B-frames': Kind('a.avi', 'mpeg4', _MPEG4, tag='DX50'),
  'MPEG-4 AVI, XVID, packed B-frames': Kind(
    'a.avi', 'mpeg4', _MPEG4 | {'bf': '1'}, tag='XVID', rearrange=_pack),
  'MPEG-4 AVI, XVID, packed pairs of B-frames': Kind(
    'a.avi', 'mpeg4', _MPEG4, tag='XVID', rearrange=_pack),
  'MPEG-4 AVI, XVID, repeated pictures': Kind(
    'a.avi', 'mpeg4', _MPEG4 | {'bf': '0'}, tag='XVID', rearrange=_repeat),
  'MPEG-4 AVI, XVID, packed and repeated': Kind(
    'a.avi', 'mpeg4', _MPEG4, tag='XVID', rearrange=lambda x: _repeat(_pack(x))),
  'MPEG-4 AVI, odd size': Kind('a.avi', 'mpeg4', _MPEG4, height=63, width=97),
  'MPEG-4 in MP4': Kind('a.mp4', 'mpeg4', _MPEG4),
  'MPEG-1 in MPEG-PS': Kind('a.mpg', 'mpeg1video', _MPEG2, fps=25),
  'MPEG-2 in MPEG-PS': Kind('a.vob', 'mpeg2video', _MPEG2, fps=25),
  'MPEG-2 in MPEG-TS': Kind('a.ts', 'mpeg2video', _MPEG2, fps=25),
  'MS-MPEG4 AVI': Kind('a.avi', 'msmpeg4', {'g': '12', 'qscale': '3'}),
  'Windows Media': Kind('a.wmv', 'wmv2', {'g': '12', 'qscale': '3'}),
  'Flash': Kind('a.flv', 'flv', {'g': '12', 'qscale': '3'}),
  'H.263': Kind('a.3gp', 'h263', {'g': '12', 'qscale': '3'}, height=144, width=176),
  'Motion JPEG AVI': Kind('a.avi', 'mjpeg', pixels='yuvj420p'),
  'ProRes': Kind('a.mov', 'prores', pixels='yuv422p10le'),
}
