"""Facts about coded pictures that are read from the bitstream without decoding."""

import re

import av

_VOP = b'\0\0\1\xb6'   # MPEG-4: a picture starts
_MAX_NOT_CODED = 19     # bytes of an MPEG-4 picture that is not coded; FFmpeg's number


def shown(codec: av.VideoCodecContext, packets: list[av.Packet]) -> list[av.Packet]:
  """Returns the packets that yield a picture when decoded, at once or later."""
  packets = [x for x in packets if not x.is_discard]     # before the start of an edit list
  if codec.codec.canonical_name == 'vp8':                # some serve prediction only
    return [x for x in packets if memoryview(x)[0] & 0x10]
  if codec.codec.canonical_name == 'mpeg4' and any(x.size <= _MAX_NOT_CODED for x in packets):
    return _coded(codec, packets)
  return packets


def _coded(codec: av.VideoCodecContext, packets: list[av.Packet]) -> list[av.Packet]:
  """Leaves out MPEG-4 packets whose picture is not coded, since it repeats the previous one.

  In packed streams a second picture in a packet, always a B-picture, is decoded in place of the
  next packet. The next packet's picture is held in turn, unless it is one that is not coded.
  """
  header = (codec.extradata or b'') + bytes(packets[0])
  packed = re.search(rb'DivX\d+(Build|b)\d+p', header)
  ticks = _ticks_per_second(header)
  coded, held = [], False
  for packet in packets:
    data = bytes(packet) if packed or packet.size <= _MAX_NOT_CODED else b''
    if held or _is_coded(data, ticks):
      coded.append(packet)
    types = [data[match.end()] for match in re.finditer(_VOP, data[:-1])]
    left = types if held else types[1:]
    held = bool(packed and len(data) > 7 and left and not left[0] & 0x40)
  return coded


def _is_coded(data: bytes, ticks: int) -> bool:
  """Reads the vop_coded bit of an MPEG-4 picture; True if there is none."""
  bits = _bits(data.partition(_VOP)[2])
  seconds = bits[2:].find('0') + 3                       # after the type: a 1 bit for each second
  coded = seconds + 1 + max((ticks - 1).bit_length(), 1) + 1
  return not ticks or bits[coded:coded + 1] != '0'


def _ticks_per_second(header: bytes) -> int:
  """Reads MPEG-4's vop_time_increment_resolution; 0 if the header lacks it."""
  layer = re.search(rb'\x00\x00\x01[\x20-\x2f](.{0,32})', header, re.DOTALL)
  if not layer:
    return 0
  bits, position = _bits(layer[1]).ljust(256, '0'), 9
  position += 8 if bits[position] == '1' else 1                                 # version
  position += 20 if bits[position:position + 4] == '1111' else 4                # shape of pixels
  position += 1
  if bits[position - 1] == '1':                                                 # control
    position += 4
    position += 79 if bits[position - 1] == '1' else 0                          # buffering
  position += 3
  return int(bits[position:position + 16], 2)


def _bits(data: bytes) -> str:
  return ''.join(f'{byte:08b}' for byte in data)


def starts_group(codec: av.VideoCodecContext, packet: av.Packet) -> bool:
  """Returns whether a packet is marked as key and can be decoded without earlier packets.

  H.264 also marks pictures of intra-refresh, after which a decoder becomes exact only gradually.
  """
  name, header = codec.codec.canonical_name, codec.extradata or b''
  if name not in ('h264', 'hevc') or not packet.is_keyframe:
    return packet.is_keyframe
  size_at = 4 if name == 'h264' else 21      # this byte: number of bytes of a unit's length, less 1
  if len(header) <= size_at or not header[0]:  # not the header of MP4 and Matroska
    return False
  intra = False
  for unit in _units(bytes(packet), (header[size_at] & 3) + 1):
    if name == 'hevc':
      if (kind := unit[0] >> 1 & 63) < 32:   # the first unit with a part of a picture
        return 16 <= kind <= 23
    elif (kind := unit[0] & 31) == 5:
      return True
    elif kind in (1, 2):                     # an open group may start with an intra picture
      _, rest = _number(_bits(unit[1:12]))
      intra = _number(rest)[0] in (2, 7)
      if not intra:
        return False
  return intra


def _units(data: bytes, size: int) -> list[bytes]:
  """Splits a packet into its units, each preceded by its length in `size` bytes."""
  units, position = [], 0
  while position + size < len(data):
    start = position + size
    position = start + int.from_bytes(data[position:start], 'big')
    if position > start:
      units.append(data[start:position])
  return units


def _number(bits: str) -> tuple[int, str]:
  """Reads an Exp-Golomb number; returns it and the bits that follow."""
  zeros = len(bits) - len(bits.lstrip('0'))
  end = 2 * zeros + 1
  return int(bits[zeros:end] or '0', 2) - 1, bits[end:]
