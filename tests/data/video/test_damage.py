"""Damaged videos: what can be decoded is used alike everywhere, and what was lost is told."""

import fractions
import gc
import logging

import av
import numpy as np
import pytest

import videos
from xclip_jax.data.reading import damage
from xclip_jax.data.video import decode, encode

N = 40
OPTIONS = {'g': '10', 'bf': '0', 'sc_threshold': '0'}


def write(path, frames, codec='libx264'):
  """Writes a video whose index comes first, so that a cut leaves frames that can be read."""
  with av.open(str(path), 'w', options={'movflags': 'faststart'}) as container:
    stream = container.add_stream(codec, rate=10, options=OPTIONS if codec == 'libx264' else {})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
    stream.codec_context.thread_count = 1
    for number, frame in enumerate(frames):
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      picture.pts, picture.time_base = number, fractions.Fraction(1, 10)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return str(path)


def packets(path):
  """Returns (position, size) in bytes of each packet of the video."""
  with av.open(path) as container:
    return [(x.pos, x.size) for x in container.demux(video=0) if x.size]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  frames = videos.barcode_frames(N, 64, 96)
  frames[:, :16] = np.random.default_rng(0).integers(0, 256, (N, 16, 96, 3))
  return write(tmp_path_factory.mktemp('damage') / 'whole.mp4', frames)


@pytest.fixture
def damaged(whole, tmp_path):
  """Returns a function that writes the video anew, with the bytes of some packets changed."""
  def change(numbers, change_packet, name='damaged.mp4'):
    content = bytearray(open(whole, 'rb').read())
    for position, size in np.array(packets(whole))[list(numbers)]:
      content[position:position + size] = change_packet(content[position:position + size])
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)

  return change


def read_all(path):
  """Returns all frames and notes of a read of chosen frames, and of one from end to end."""
  asked, notes, other = [], [], []
  chosen = decode.read_video(
    path, lambda count: asked.append(count) or np.arange(count), report=notes.append)
  _, frames = decode.read_frames(path, other.append)
  streamed = np.stack([frame for _, frame in frames])
  np.testing.assert_array_equal(chosen, streamed)
  assert notes == other
  assert asked[-1] == len(chosen)
  return chosen, notes


def test_a_torn_last_packet_is_not_a_frame(whole, tmp_path):
  position, size = packets(whole)[25]
  path = tmp_path / 'cut.mp4'
  path.write_bytes(open(whole, 'rb').read()[:position + size // 2])
  frames, notes = read_all(path)
  assert len(frames) == decode.count_frames(path) == 25
  np.testing.assert_array_equal(frames, read_all(whole)[0][:25])
  (note,) = notes
  assert note.kind == 'damaged' and 'ends in the middle of a frame' in note.text
  # No draw fails, and none sees the torn frame: it is not counted.
  asked = []
  for last in (24, 20):
    decode.read_video(path, lambda count, last=last: asked.append(count) or np.array([0, last]))
  assert asked == [25, 25]
  assert encode.encode(str(path), encode.Encoding()).num_frames == 25


def test_frames_that_cannot_be_decoded_are_left_out_and_counted(damaged):
  path = damaged(range(24, N), lambda content: bytes(len(content)))
  frames, (note,) = read_all(path)
  assert len(frames) == 24 and [videos.read_barcode(x) for x in frames] == list(range(24))
  assert note.text == f'16 of {N} frames cannot be decoded and are left out'
  assert encode.encode(path, encode.Encoding()).num_frames == 24


def test_a_frame_that_the_decoder_repairs_counts_and_is_told(damaged):
  spoil = lambda content: (
    content[:len(content) // 2] + bytes(255 - x for x in content[len(content) // 2:]))
  frames, (note,) = read_all(damaged([23], spoil))
  assert len(frames) == N and note.text == f'1 of {N} frames is damaged'


def test_frames_outside_of_the_damage_are_those_of_the_whole_file(whole, damaged):
  path = damaged([23], lambda content: bytes(len(content)))
  want = decode.read_video(whole, lambda count: np.array([3, 12, 35]))
  np.testing.assert_array_equal(decode.read_video(path, lambda count: np.array([3, 12, 35])), want)


def test_names_in_the_log_cannot_steer_a_terminal(damaged, caplog):
  path = damaged([23], lambda content: bytes(len(content)), 'a\x1b[2J\nb\udce9.mp4')
  with caplog.at_level(logging.WARNING):
    decode.read_video(path, np.arange)
  (record,) = caplog.records
  assert r'a\x1b[2J\nb\xe9.mp4: 1 of' in record.getMessage()
  assert record.getMessage().isprintable()


def test_damage_is_logged_once_where_nobody_asks(damaged, caplog):
  path = damaged([23], lambda content: bytes(len(content)), 'logged.mp4')
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      decode.read_video(path, np.arange)
  assert caplog.text.count(f'logged.mp4: 1 of {N} frames cannot be decoded') == 1


def test_a_stored_picture_that_is_damaged_is_left_out(whole):
  content = bytearray(encode.encode(whole, encode.Encoding('jpeg', fps=10)).content)
  with av.open(whole) as container:
    assert container.streams.video[0].frames == N
  position = content.index(b'\xff\xd8', 9000)
  content[position:position + 2] = b'\0\0'
  notes = []
  frames = decode.read_video(bytes(content), np.arange, report=notes.append)
  assert len(frames) == N - 1
  assert notes[0].text == f'1 of {N} frames cannot be decoded and are left out'


@pytest.mark.parametrize('sizes, want', [
  (((64, 96), (128, 192)), (64, 96, 3)), (((64, 96), (96, 64)), (64, 96, 3))])
def test_a_picture_that_changes_its_size_is_scaled_to_the_first(tmp_path, sizes, want):
  content = b''
  for name, (height, width) in zip('ab', sizes, strict=True):
    with av.open(str(tmp_path / f'{name}.h264'), 'w', format='h264') as container:
      stream = container.add_stream('libx264', rate=10, options=OPTIONS)
      stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
      for frame in videos.barcode_frames(8, height, width):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
      container.mux(stream.encode())
    content += (tmp_path / f'{name}.h264').read_bytes()
  (tmp_path / 'both.h264').write_bytes(content)
  frames, (note,) = read_all(str(tmp_path / 'both.h264'))
  assert frames.shape == (16, *want)
  assert note.kind == 'resized' and '96 x 64, then' in note.text
  if sizes[1][1] > sizes[1][0]:                      # one shape: the whole picture is there
    assert [videos.read_barcode(x) for x in frames] == [*range(8), *range(8)]


def test_a_long_video_is_not_held_in_memory(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (60, 96, 96, 3), np.uint8)
  path = write(tmp_path / 'noise.avi', frames, 'mjpeg')
  _, stream = decode.read_frames(path)
  next(stream)
  gc.collect()
  assert sum(isinstance(x, av.Packet) for x in gc.get_objects()) < 5


def test_a_file_that_would_fill_the_memory_costs_itself_only(whole, monkeypatch):
  monkeypatch.setattr(damage, '_MOST_BYTES', 5000)
  for read in (decode.count_frames, lambda path: decode.read_video(path, np.arange)):
    with pytest.raises(decode.VideoError, match=r'whole\.mp4: its pictures take more than 0\.0 GB'):
      read(whole)
  assert sum(1 for _ in decode.read_frames(whole)[1]) == N     # as `xclip windows` reads it


def test_a_decoder_that_cannot_be_opened_is_the_files_fault(tmp_path):
  path = tmp_path / 'a.avi'
  videos.write_video(path, videos.barcode_frames(6, 48, 64), codec='mpeg4')
  content = bytearray(path.read_bytes())
  # Bits a pixel and the codec become zero: pixels without compression, of a kind that nothing says.
  bits = content.index(b'strf') + 8 + 14
  content[bits:bits + 6] = bytes(6)
  path.write_bytes(content)
  for read in (lambda: decode.read_video(path, lambda n: np.arange(2)),
               lambda: list(decode.read_frames(path)[1])):
    with pytest.raises(decode.VideoError, match=r'a\.avi: none of its .*can be decoded'):
      read()
