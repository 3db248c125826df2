"""Counts of what a damaged video has lost, made while it is decoded, and their wording.

Everywhere what can be decoded is used. A packet that gives no frame is left out, a torn last packet
is not a frame, and a frame that the decoder has repaired (concealed) counts as one.
"""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError

from xclip_jax.data import bad_files
from xclip_jax.data.reading.opening import VideoError

# Chosen frames are read from all packets of a video, which are held. One file must not end a run.
_MOST_BYTES = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2

DAMAGED, RESIZED = 'damaged', 'resized'    # kinds of notes

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Note:
  """Says what is odd about a video that can be read.

  Fields:
    kind: DAMAGED, or RESIZED: the picture changes its size midway.
    text: one line without the name of the file.
  """

  kind: str
  text: str


Report = Callable[[Note], object]


@dataclasses.dataclass
class Damage:
  """Counts what is lost while a video is decoded.

  Fields:
    undecodable: packets that give no frame.
    concealed: frames whose lost parts the decoder has made up.
    torn: the last packet is cut off, and left out.
    end: why the rest of the file cannot be read; '' where its end was reached.
    sizes: (width, height) in pixels of the frames, each once.
  """

  undecodable: int = 0
  concealed: int = 0
  torn: bool = False
  end: str = ''
  sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)

  def add_size(self, width: int, height: int) -> None:
    """Notes the size of a frame, in pixels."""
    if (width, height) not in self.sizes:
      self.sizes.append((width, height))

  def notes(self, count: int) -> list[Note]:
    """Returns what is to be said, given the number of frames that were decoded."""
    parts = []
    if self.undecodable:
      parts.append(f'{self.undecodable} of {count + self.undecodable} frames cannot be decoded and '
                   'are left out')
    if self.concealed:
      are = 'is' if self.concealed == 1 else 'are'
      parts.append(f'{self.concealed} of {count + self.undecodable} frames {are} damaged')
    if self.torn:
      parts.append('it ends in the middle of a frame, which is left out')
    if self.end:
      parts.append(f'it cannot be read to its end ({self.end})')
    notes = [Note(DAMAGED, '; '.join(parts))] if parts else []
    if len(self.sizes) > 1:
      sizes = ', then '.join(f'{width} x {height}' for width, height in self.sizes[:3])
      notes.append(Note(RESIZED, f'the picture changes its size midway ({sizes} pixels); frames '
                                 'are scaled to the first size'))
    return notes


def read_packets(
  stream: av.VideoStream, check: Callable[[], None], found: Damage
) -> Iterator[av.Packet]:
  """Yields packets in decoding order, but for a last one that is torn, and notes what is lost."""
  number, held = 0, None
  demuxed = cast(InputContainer, stream.container).demux(stream)
  # PyAV raises IndexError after all packets if a stream begins in the middle of a file (MPEG-TS).
  with contextlib.suppress(IndexError):
    while True:
      try:
        packet = next(demuxed, None)
      except InvalidDataError as error:          # not an error of the disk
        found.end = error.strerror or str(error)
        break
      check()
      if packet is None:
        break
      if not packet.size:
        continue
      if held is not None:
        yield held
      # FFmpeg marks packets that are incomplete, at the end of a file and where some of it is lost.
      held = packet if packet.is_corrupt else None
      if held is None:
        yield packet
      number += 1
  if held is not None and number == 1:
    yield held
  elif held is not None:
    found.torn = True


def hold(packets: Iterable[av.Packet], name: str) -> list[av.Packet]:
  """Collects packets; VideoError if they would take half of the memory of this machine."""
  held, size = [], 0
  for packet in packets:
    size += packet.size
    if size > _MOST_BYTES:
      raise VideoError(f'{name}: its pictures take more than {_MOST_BYTES / 1e9:.1f} GB, half of '
                       'the memory; cut it into shorter files, or use `xclip windows`')
    held.append(packet)
  return held


def decode_packet(
  decoder: av.VideoCodecContext, packet: av.Packet | None, found: Damage
) -> list[av.VideoFrame]:
  """Returns the frames that a packet (None: the end) completes; none if it is damaged."""
  try:
    frames = decoder.decode(packet)
  except FFmpegError:
    found.undecodable += 1
    return []
  except ValueError:               # PyAV's, of a decoder that could not be opened before
    if decoder.is_open:
      raise
    found.undecodable += 1
    return []
  found.concealed += sum(frame.is_corrupt for frame in frames)
  return frames


def tell(name: str, notes: list[Note], report: Report | None) -> None:
  """Hands notes to `report`; without one, logs those about damage, once in a process."""
  for note in notes:
    if report is not None:
      report(note)
    elif note.kind == DAMAGED:
      _log_once(name, note.text)


@functools.lru_cache(4096)
def _log_once(name: str, text: str) -> None:
  line = bad_files.escape_undecodable(f'{name}: {text}')
  # A name may hold line breaks and codes that steer a terminal.
  _log.warning('%s', ''.join(x if x.isprintable() else ascii(x)[1:-1] for x in line))
