"""Videos stored anew: every frame kept or those at a rate, as a reader and as a player see them."""

import fractions
import io
import tracemalloc

import av
import cv2
import numpy as np
import pytest

import videos
from xclip_jax.data.video import decode, encode

N = 50


def noisy(n, height, width, seed=0):
  """Frames with a barcode, and texture that a codec cannot keep for free."""
  frames = videos.barcode_frames(n, height, width).astype(int)
  texture = np.random.default_rng(seed).integers(-12, 13, (1, height, width, 1))
  return np.clip(frames + texture, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
  path = tmp_path_factory.mktemp('videos') / 'wide.mp4'
  return videos.write_video(path, noisy(N, 96, 160), options={'g': '250', 'bf': '3', 'crf': '12'})


def every(content):
  return decode.read_video(content, np.arange)


def numbers(content):
  return [videos.read_barcode(frame) for frame in every(content)]


def packets(content):
  with av.open(io.BytesIO(content)) as container:
    return [packet for packet in container.demux(container.streams.video[0]) if packet.size]


def test_h264_keeps_every_frame_at_the_short_side(wide):
  found = encode.encode(wide, encode.Encoding(short_side=64))
  assert (found.num_frames, found.height, found.width) == (N, 64, 106)
  assert every(found.content).shape == (N, 64, 106, 3)
  assert numbers(found.content) == list(range(N))
  assert found.seconds == pytest.approx(N / 16)
  assert decode.read_frames(found.content)[0] == 16


@pytest.mark.parametrize('gop', [1, 5, 12])
def test_h264_has_no_b_frames_and_a_key_frame_at_every_gop(wide, gop):
  content = encode.encode(wide, encode.Encoding(gop=gop)).content
  found = packets(content)
  assert [n for n, packet in enumerate(found) if packet.is_keyframe] == list(range(0, N, gop))
  assert [packet.pts for packet in found] == [packet.dts for packet in found]
  with av.open(io.BytesIO(content)) as container:
    kinds = {av.video.frame.PictureType(x.pict_type).name for x in container.decode(video=0)}
    assert not container.streams.video[0].codec_context.has_b_frames
  assert kinds == ({'I'} if gop == 1 else {'I', 'P'})


@pytest.mark.parametrize('format', ['h264', 'jpeg'])
def test_quality_is_what_a_reader_measures(wide, format):
  settings = dict(format=format, short_side=64, fps=16)
  found = encode.encode(wide, encode.Encoding(**settings))
  places = np.linspace(0, N - 1, 8).astype(int)
  want = [cv2.resize(frame, (found.width, found.height), interpolation=cv2.INTER_AREA)
          for frame in every(wide)[places]]
  error = np.mean((every(found.content)[places].astype(float) - np.stack(want)) ** 2)
  assert found.psnr == pytest.approx(10 * np.log10(255 ** 2 / error), abs=1e-3)
  assert found.psnr > 30
  worse = encode.Encoding(**settings | dict(crf=35, quality=30))
  assert encode.encode(wide, worse).psnr < found.psnr - 3


@pytest.mark.parametrize('fps, want', [
  (4, range(0, N, 4)), (8, range(0, N, 2)), (16, range(N)), (30, range(N)),
  (3, [0, 6, 11, 16, 22, 27, 32, 38, 43, 48]), (0.001, [0]),
])
def test_jpeg_keeps_the_first_frame_of_every_tick(wide, fps, want):
  found = encode.encode(wide, encode.Encoding('jpeg', fps=fps))
  assert numbers(found.content) == list(want) and found.num_frames == len(want)
  assert (found.height, found.width) == (96, 160) and found.seconds == pytest.approx(N / 16)
  rate = fractions.Fraction(fps).limit_denominator(1000)
  assert decode.read_frames(found.content)[0] == min(16, rate)


def varying(path, times):
  """A video whose frames are shown at these times, ms."""
  frames = noisy(len(times), 64, 64)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=25, options={'bf': '2'})
    stream.height, stream.width, stream.pix_fmt = 64, 64, 'yuv420p'
    stream.codec_context.time_base = fractions.Fraction(1, 1000)
    for time, image in zip(times, frames, strict=True):
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      frame.pts, frame.time_base = time, fractions.Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def test_a_variable_frame_rate_is_thinned_by_time_and_otherwise_kept(tmp_path):
  path = varying(tmp_path / 'a.mp4', [0, 40, 80, 900, 1000, 1010, 1020, 1030, 2600, 2700, 3000])
  found = encode.encode(str(path), encode.Encoding('jpeg', fps=2))
  assert numbers(found.content) == [0, 3, 4, 8, 10]    # the first at or after 0, .5, 1, 1.5, 3 s
  assert numbers(encode.encode(str(path), encode.Encoding()).content) == list(range(11))
  late = varying(tmp_path / 'b.mp4', [5000, 5040, 5500, 5510])      # begins at its first frame
  assert numbers(encode.encode(str(late), encode.Encoding('jpeg', fps=2)).content) == [0, 2]


@pytest.mark.parametrize('height, width, short_side, h264, jpeg', [
  (64, 96, 256, (64, 96), (64, 96)),         # never enlarged
  (64, 96, 64, (64, 96), (64, 96)),
  (96, 64, 32, (48, 32), (48, 32)),
  (51, 75, 256, (50, 74), (51, 75)),
  (51, 75, 25, (24, 36), (25, 37)),
  (33, 66, 32, (32, 64), (32, 64)),
])
def test_sizes(tmp_path, height, width, short_side, h264, jpeg):
  path = tmp_path / 'a.avi'
  with av.open(str(path), 'w') as container:                        # lossless, any size
    stream = container.add_stream('ffv1', rate=16)
    stream.height, stream.width, stream.pix_fmt = height, width, 'bgr0'
    for image in noisy(3, height, width):
      frame = av.VideoFrame.from_ndarray(image, format='rgb24').reformat(format='bgr0')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  for format, size in (('h264', h264), ('jpeg', jpeg)):
    found = encode.encode(str(path), encode.Encoding(format, short_side=short_side, fps=16))
    assert (found.height, found.width) == size == every(found.content).shape[1:3]
    if short_side == 256:                      # and not blurred by a change of one pixel
      want = every(str(path))[:, :size[0], :size[1]]
      assert np.abs(every(found.content).astype(int) - want).mean() < 5


@pytest.mark.parametrize('format', ['h264', 'jpeg'])
def test_a_rotated_recording_is_stored_upright(tmp_path, format):
  path = videos.write_video(tmp_path / 'a.mp4', noisy(4, 64, 96), rotation=90)
  found = encode.encode(path, encode.Encoding(format, fps=16, short_side=32))
  assert (found.height, found.width) == (48, 32)
  with av.open(io.BytesIO(found.content)) as container:
    assert {frame.rotation for frame in container.decode(video=0)} == {0}
  want = np.stack([cv2.resize(x, (32, 48), interpolation=cv2.INTER_AREA) for x in every(path)])
  assert np.abs(every(found.content).astype(int) - want).mean() < 6


@pytest.mark.parametrize('format, codec', [('h264', 'h264'), ('jpeg', 'mjpeg')])
def test_players_see_an_ordinary_file(wide, format, codec):
  found = encode.encode(wide, encode.Encoding(format, fps=4))
  with av.open(io.BytesIO(found.content)) as container:
    assert container.streams.video[0].codec_context.name == codec
    pictures = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    assert float(container.duration / av.time_base) == pytest.approx(N / 16, abs=0.2)
  assert [videos.read_barcode(x) for x in pictures] == numbers(found.content)
  assert np.abs(np.stack(pictures).astype(int) - every(found.content)).mean() < 2


@pytest.mark.parametrize('format', ['h264', 'jpeg'])
def test_the_same_video_gives_the_same_bytes(wide, tmp_path, format):
  settings = encode.Encoding(format, short_side=64)
  first = encode.encode(wide, settings).content
  encode.encode(videos.write_video(tmp_path / 'other.mp4', noisy(9, 48, 48, seed=3)), settings)
  assert encode.encode(open(wide, 'rb').read(), settings).content == first


def test_a_picture_is_a_video_of_one_frame(tmp_path):
  path = videos.write_video(tmp_path / 'a.mp4', noisy(1, 32, 48))
  for format in ('h264', 'jpeg'):
    found = encode.encode(path, encode.Encoding(format))
    assert found.num_frames == len(every(found.content)) == 1
    assert found.seconds == pytest.approx(1 / 16)


def test_what_is_damaged_is_stored_as_far_as_it_decodes_and_named(wide, tmp_path):
  whole = open(wide, 'rb').read()
  with av.open(wide) as container:
    places = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
  flipped = bytearray(whole)
  position, size = max(places[1:], key=lambda place: place[1])
  flipped[position + size // 2] ^= 255                              # FFmpeg only marks the frame
  (tmp_path / 'a.mp4').write_bytes(flipped)
  for format in ('h264', 'jpeg'):
    notes = []
    found = encode.encode(str(tmp_path / 'a.mp4'), encode.Encoding(format, fps=1000), notes.append)
    assert found.num_frames == len(places)
    assert [note.text for note in notes] == [f'1 of {len(places)} frames is damaged']
  for content in (whole[:len(whole) // 2], b'', b'<html>' * 99):
    (tmp_path / 'a.mp4').write_bytes(content)
    for format in ('h264', 'jpeg'):
      with pytest.raises(decode.VideoError, match=r'a\.mp4: '):
        encode.encode(str(tmp_path / 'a.mp4'), encode.Encoding(format, fps=1000))
  with pytest.raises(decode.VideoError, match=r'gone\.mp4: cannot be read'):
    encode.encode(str(tmp_path / 'gone.mp4'), encode.Encoding())


def test_a_stream_cut_in_mid_group_is_stored_from_where_it_decodes(tmp_path):
  options = {'g': '20', 'bf': '0', 'sc_threshold': '0'}
  path = videos.write_video(tmp_path / 'a.ts', noisy(N, 64, 96), options=options)
  with av.open(path) as container:
    start = [p.pos for p in container.demux(container.streams.video[0]) if p.size][10]
  cut = open(path, 'rb').read()[start:]
  found = encode.encode(cut, encode.Encoding())
  assert numbers(found.content) == numbers(cut) == list(range(20, N))


@pytest.mark.parametrize('field, value', [
  ('format', 'mp4'), ('short_side', 8), ('short_side', 256.0), ('crf', 52), ('crf', -1),
  ('crf', True), ('gop', 0), ('quality', 0), ('quality', 101), ('fps', 0), ('fps', float('nan')),
  ('fps', 1e-4), ('fps', 1001), ('fps', '4'),
])
def test_a_wrong_setting_is_named(field, value):
  with pytest.raises(ValueError, match=rf'^{field} must be .* found '):
    encode.Encoding(**{field: value})


@pytest.mark.parametrize('format', ['h264', 'jpeg'])
def test_a_long_video_is_never_held_as_pictures(tmp_path, format):
  frames = np.tile(noisy(10, 96, 96), (30, 1, 1, 1))
  path = videos.write_video(tmp_path / 'a.mp4', frames)
  tracemalloc.start()
  try:
    encode.encode(path, encode.Encoding(format, fps=16))
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < frames.nbytes / 3
