"""What can be told of a coded picture without decoding it."""

import av


def is_shown(codec: av.VideoCodecContext, packet: av.Packet) -> bool:
  """Tell whether a picture comes out when the packet is decoded."""
  if packet.is_discard:                      # before the start of an edit list
    return False
  if codec.codec.canonical_name == 'vp8':    # some pictures exist for others to predict from
    return bool(memoryview(packet)[0] & 0x10)
  return True


def starts_group(codec: av.VideoCodecContext, packet: av.Packet) -> bool:
  """Tell whether a packet marked as key needs no other.

  H.264 also marks pictures from which a decoder becomes right little by little (intra-refresh).
  """
  name, header = codec.codec.canonical_name, codec.extradata or b''
  if name not in ('h264', 'hevc') or not packet.is_keyframe:
    return packet.is_keyframe
  where = 4 if name == 'h264' else 21        # there: the bytes of a unit's length, less one
  if len(header) <= where or not header[0]:  # not the header of MP4 and Matroska
    return False
  intra = False
  for unit in _units(bytes(packet), (header[where] & 3) + 1):
    if name == 'hevc':
      if (kind := unit[0] >> 1 & 63) < 32:   # the first unit that holds a part of a picture
        return 16 <= kind <= 23
    elif (kind := unit[0] & 31) == 5:
      return True
    elif kind in (1, 2):                     # an open group may start with an intra picture
      _, rest = _number(''.join(f'{byte:08b}' for byte in unit[1:12]))
      intra = _number(rest)[0] in (2, 7)
      if not intra:
        return False
  return intra


def _units(data: bytes, size: int) -> list[bytes]:
  """Split at the lengths, of `size` bytes, that precede each unit."""
  units, position = [], 0
  while position + size < len(data):
    start = position + size
    position = start + int.from_bytes(data[position:start], 'big')
    if position > start:
      units.append(data[start:position])
  return units


def _number(bits: str) -> tuple[int, str]:
  """Read an Exp-Golomb number; return it and the bits that follow."""
  zeros = len(bits) - len(bits.lstrip('0'))
  end = 2 * zeros + 1
  return int(bits[zeros:end] or '0', 2) - 1, bits[end:]
