import io
import pickle

import av
import numpy as np
import pytest

import videos
from benchmarks.data import barcode_videos
from xclip_jax.data.video import decode

N = 60


def exactly(*indices):
  return lambda count: np.array(indices)


def numbers(frames):
  return [videos.read_barcode(frame) for frame in frames]


@pytest.fixture(scope='module', params=barcode_videos.KINDS)
def clip(request, tmp_path_factory):
  """A path, the numbers of the frames it shows, and the frames that PyAV finds one by one."""
  kind = barcode_videos.KINDS[request.param]
  if kind.codec not in av.codecs_available:
    pytest.skip(f'this FFmpeg has no {kind.codec}')
  path, shown = barcode_videos.write(kind, tmp_path_factory.mktemp('videos'), N)
  with av.open(path) as container:
    container.streams.video[0].thread_type = 'NONE'
    every = [upright(frame) for frame in container.decode(video=0)]
  return path, shown, every


def upright(frame):
  return np.rot90(frame.to_ndarray(format='rgb24'), k=round(frame.rotation / 90))


@pytest.fixture(scope='module')
def mp4(tmp_path_factory):
  path = tmp_path_factory.mktemp('videos') / 'clip.mp4'
  return videos.write_video(path, videos.barcode_frames(N, 64, 96), options={'g': '12', 'bf': '3'})


def test_every_frame_is_the_one_asked_for(clip):
  path, shown, every = clip
  n = len(shown)
  assert decode.count_frames(path) == len(every) == n
  for wanted in (range(n), [0], [n - 1], [37], range(3, n, 7), range(11, n, 12)):
    frames = decode.read_video(path, exactly(*wanted))
    assert frames.dtype == np.uint8 and frames.shape == (len(wanted), *every[0].shape)
    assert [barcode_videos.read(frame) for frame in frames] == [shown[i] for i in wanted]


def test_a_skipping_read_gives_the_pixels_of_a_full_read(clip):
  path, _, every = clip
  some = np.random.default_rng(0).permutation(len(every))
  for wanted in (some[:1], some[1:2], some[2:6], some[6:18]):
    got = decode.read_video(path, exactly(*wanted))
    np.testing.assert_array_equal(got, np.stack([every[i] for i in wanted]))


def test_each_frame_alone_has_the_pixels_of_a_full_read(clip):
  path, _, every = clip
  for i, frame in enumerate(every):
    np.testing.assert_array_equal(decode.read_video(path, exactly(i))[0], frame)


# Where timestamps do not tell pictures apart, they have to be counted from the start.
COUNTED = {'H.264, shown when decoded'} | {
  name for name, kind in barcode_videos.KINDS.items()
  if not kind.name.endswith(('.mp4', '.mkv', '.webm')) or kind.codec == 'mpeg4'
}


@pytest.mark.parametrize('clip', sorted(barcode_videos.KINDS.keys() - COUNTED), indirect=True)
def test_timestamps_are_enough_where_they_can_be_trusted(clip, monkeypatch):
  monkeypatch.setattr(decode, '_by_counting', None)
  path, shown, _ = clip
  for wanted in ([len(shown) - 2], [13, 27, 28, 29, 40]):
    frames = decode.read_video(path, exactly(*wanted))
    assert [barcode_videos.read(frame) for frame in frames] == [shown[i] for i in wanted]


@pytest.mark.parametrize('clip', ['MPEG-4 AVI, XVID, packed B-frames'], indirect=True)
def test_packed_pictures_are_packed(clip):
  with av.open(clip[0]) as container:
    packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
  pictures = [data.count(b'\0\0\1\xb6') for data in packets]
  assert len(pictures) == N and pictures.count(2) > N // 3       # two in one, then a placeholder
  assert [len(data) == 6 for data in packets[1:]] == [count == 2 for count in pictures[:-1]]


def test_the_sampler_sees_the_true_count_and_may_repeat_and_reorder(mp4):
  seen = []
  frames = decode.read_video(mp4, lambda count: seen.append(count) or np.array([9, 2, 2, 40, 0]))
  assert seen == [N]
  assert numbers(frames) == [9, 2, 2, 40, 0]


def test_contents_read_like_their_file(mp4):
  data = open(mp4, 'rb').read()
  want = decode.read_video(mp4, exactly(7, 50))
  np.testing.assert_array_equal(decode.read_video(data, exactly(7, 50)), want)
  np.testing.assert_array_equal(decode.read_video(io.BytesIO(data), exactly(7, 50)), want)


@pytest.mark.parametrize('b_frames', ['0', '3'])
def test_short_reads_decode_less_than_the_whole_file(tmp_path, monkeypatch, b_frames):
  path = videos.write_video(tmp_path / 'a.mp4', videos.barcode_frames(N, 64, 96),
                            options={'g': '10', 'bf': b_frames})
  monkeypatch.setattr(decode, '_by_counting', None)  # the fast path must do without the slow one
  for wanted in ([55], [13, 38, 39, 40, 41, 52]):  # of every picture type
    assert numbers(decode.read_video(path, exactly(*wanted))) == wanted


def test_a_stream_cut_in_mid_group_counts_what_decodes(tmp_path):
  path = videos.write_video(tmp_path / 'a.ts', videos.barcode_frames(N, 64, 96),
                            options={'g': '20', 'bf': '0'})
  with open(path, 'rb') as file:
    data = file.read()
  packet = 188
  late = tmp_path / 'late.ts'
  late.write_bytes(data[:3 * packet] + data[len(data) // 2 // packet * packet:])
  asked = []
  frames = decode.read_video(late, lambda count: asked.append(count) or np.arange(count))
  assert len(asked) == 2 and len(frames) == asked[1] < asked[0]
  assert numbers(frames)[-20:] == list(range(N - 20, N))


def test_odd_sizes_keep_every_pixel(tmp_path):
  path = videos.write_video(tmp_path / 'a.avi', videos.barcode_frames(20, 63, 97), codec='mpeg4',
                            options={'qscale': '2'})
  frames = decode.read_video(path, exactly(3, 17))
  assert frames.shape == (2, 63, 97, 3)
  assert numbers(frames) == [3, 17]


@pytest.mark.parametrize('rotation', [90, 180, -90])
def test_rotated_recordings_are_upright(tmp_path, rotation):
  upright = videos.barcode_frames(4, 64, 96)
  stored = np.rot90(upright, -rotation // 90, axes=(1, 2))
  path = videos.write_video(tmp_path / 'a.mp4', np.ascontiguousarray(stored), rotation=rotation)
  frames = decode.read_video(path, exactly(3, 1))
  assert frames.shape == (2, 64, 96, 3)
  assert numbers(frames) == [3, 1]


def test_colour_follows_the_matrix_in_the_file(tmp_path):
  colour = np.array([200, 40, 90])
  frames = np.broadcast_to(colour, (4, 64, 64, 3)).astype(np.uint8)
  path = videos.write_video(tmp_path / 'a.mp4', frames, options={'crf': '5'})
  got = decode.read_video(path, exactly(2))[0].mean((0, 1))
  np.testing.assert_allclose(got, colour, atol=4)


def sound(path, codec='aac'):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=16000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def no_frames(path):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=16)
    stream.height, stream.width, stream.pix_fmt = 64, 64, 'yuv420p'
    container.start_encoding()


def truncated(path):
  whole = videos.write_video(path, videos.barcode_frames(N, 64, 96))  # its index is at the end
  data = open(whole, 'rb').read()
  open(whole, 'wb').write(data[:len(data) // 2])


BROKEN = {
  'missing': lambda path: None,
  'empty': lambda path: path.touch(),
  'directory': lambda path: path.mkdir(),
  'text': lambda path: path.write_text('<html>404 not found</html>'),
  'sound only': sound,
  'no frames': no_frames,
  'truncated': truncated,
}


@pytest.mark.parametrize('kind', BROKEN)
def test_a_broken_file_is_named_with_a_plain_reason(tmp_path, kind):
  path = tmp_path / 'broken clip.mp4'
  BROKEN[kind](path)
  for read in (decode.count_frames, lambda file: decode.read_video(file, exactly(0))):
    with pytest.raises(decode.VideoError) as raised:
      read(path)
    message = str(raised.value)
    assert message.startswith(f'{path}: ') and len(message) > len(str(path)) + 10
    assert 'Errno' not in message and str(path) not in message[len(str(path)):]
    assert str(pickle.loads(pickle.dumps(raised.value))) == message


def test_damage_in_the_middle_is_an_error_not_a_wrong_frame(tmp_path, mp4):
  data = bytearray(open(mp4, 'rb').read())
  with av.open(mp4) as container:
    victim = [p for p in container.demux(video=0) if p.size][30]
    data[victim.pos:victim.pos + victim.size] = bytes(victim.size)
  path = tmp_path / 'damaged.mp4'
  path.write_bytes(data)
  with pytest.raises(decode.VideoError, match=r'damaged\.mp4'):
    decode.read_video(path, exactly(*range(N)))


def test_the_intact_part_of_a_streamable_file_is_used(tmp_path):
  whole = videos.write_video(tmp_path / 'a.mkv', videos.barcode_frames(N, 64, 96),
                             options={'g': '12', 'bf': '0'})
  data = open(whole, 'rb').read()
  half = tmp_path / 'half.mkv'
  half.write_bytes(data[:len(data) // 2])
  count = decode.count_frames(half)
  assert 5 < count < N - 5
  wanted = list(range(0, count - 1, 3))
  assert numbers(decode.read_video(half, exactly(*wanted))) == wanted


def test_cover_art_is_not_a_video(tmp_path):
  path = tmp_path / 'song.mp4'
  with av.open(str(path), 'w') as container:
    audio = container.add_stream('aac', rate=16000)
    cover = container.add_stream('mjpeg', rate=1)
    cover.height, cover.width, cover.pix_fmt = 64, 64, 'yuvj420p'
    cover.disposition = av.stream.Disposition.attached_pic
    picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format='rgb24')
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
    frame.sample_rate = 16000
    for stream, item in ((cover, picture), (audio, frame)):
      container.mux(stream.encode(item))
      container.mux(stream.encode())
  with pytest.raises(decode.VideoError, match='no video stream'):
    decode.read_video(path, exactly(0))


def test_ffmpeg_logging_is_left_alone(mp4):
  decode.read_video(mp4, exactly(0))
  assert av.logging.get_level() is None  # a Python log callback can deadlock decoder threads
