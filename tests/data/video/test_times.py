"""Times count from the start of a file, and a path may name a span of it."""

import itertools

import av
import numpy as np
import pytest

import videos
from benchmarks.data import barcode_videos
from xclip_jax.data.reading import damage
from xclip_jax.data.video import decode, times

N = 60


def write(path, fps=16, **options):
  return videos.write_video(path, videos.barcode_frames(N, 48, 64), fps,
                            options={'g': '12', 'bf': '2', **options})


def shift(path, seconds, output, wrap=False):
  """Copy a file with later times; `wrap`: through the 33-bit clock of MPEG-TS."""
  with av.open(path) as source, av.open(str(output), 'w', options={
      'avoid_negative_ts': 'disabled', 'mpegts_copyts': '1', 'muxdelay': '0'}) as copy:
    stream = source.streams.video[0]
    target = copy.add_stream_from_template(stream)
    for packet in source.demux(stream):
      if packet.size:
        ticks = round(seconds / packet.time_base)
        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        packet.stream = target
        copy.mux(packet)
  return str(output)


def played(file):
  rate, frames = decode.read_frames(file)
  seconds, frames = zip(*frames, strict=True)
  return rate, np.array(seconds), [videos.read_barcode(frame) for frame in frames]


@pytest.mark.parametrize('name', ['a.ts', 'a.mpg', 'a.mkv', 'a.mp4', 'a.avi'])
def test_the_first_frame_is_at_zero(tmp_path, name):
  codec = {'mpg': 'mpeg2video', 'avi': 'mpeg4'}.get(name.split('.')[1], 'libx264')
  path = videos.write_video(tmp_path / name, videos.barcode_frames(N, 48, 64), 25, codec=codec,
                            options={'qscale': '2'} if codec != 'libx264' else {'bf': '2'})
  _, seconds, shown = played(path)
  assert shown == list(range(N))
  np.testing.assert_allclose(seconds, np.arange(N) / 25, atol=2e-3)


@pytest.mark.parametrize('name', ['b.ts', 'b.mkv'])
def test_a_late_clock_does_not_count(tmp_path, name):
  path = shift(write(tmp_path / 'a.mp4'), 5000, tmp_path / name)
  with av.open(path) as container:
    assert container.start_time > 4000 * 1000000
  _, seconds, shown = played(path)
  assert shown == list(range(N))
  np.testing.assert_allclose(seconds, np.arange(N) / 16, atol=2e-3)


@pytest.mark.parametrize('before', [2, 100])
def test_times_go_on_where_the_clock_of_mpeg_ts_starts_again(tmp_path, before):
  fps = 16 if before == 2 else 0.5
  path = shift(write(tmp_path / 'a.mp4', fps=16) if before == 2 else slow(tmp_path / 'a.mp4'),
               2 ** 33 / 90000 - before, tmp_path / 'b.ts')
  _, seconds, shown = played(path)
  assert shown == list(range(len(shown))) and len(shown) == N
  np.testing.assert_allclose(seconds, np.arange(N) / fps, atol=2e-3)


def slow(path):
  """A frame every two seconds."""
  whole = write(path.with_name('fast.mp4'))
  with av.open(whole) as source, av.open(str(path), 'w') as copy:
    stream = source.streams.video[0]
    target = copy.add_stream_from_template(stream)
    for packet in source.demux(stream):
      if packet.size:
        packet.pts, packet.dts, packet.duration = packet.pts * 32, packet.dts * 32, 0
        packet.stream = target
        copy.mux(packet)
  return str(path)


@pytest.mark.parametrize('starts', [(0, 0), (0, 5000), (5000, 0), (0, 2), (90000, 3, 70000)],
                         ids=str)
def test_joined_recordings_play_one_after_the_other(tmp_path, starts):
  whole = write(tmp_path / 'a.mp4')
  parts = [open(shift(whole, start, tmp_path / f'{i}.ts'), 'rb').read()
           for i, start in enumerate(starts)]
  (tmp_path / 'joined.ts').write_bytes(b''.join(parts))
  _, seconds, shown = played(tmp_path / 'joined.ts')
  assert shown == list(range(N)) * len(starts)
  np.testing.assert_allclose(seconds, np.arange(N * len(starts)) / 16, atol=0.07)
  assert np.diff(seconds).min() > 0


def exactly(*indices):
  return lambda count: np.array(indices)


@pytest.mark.parametrize('name', [
  'H.264, long GOP, B-frames', 'H.264, open GOP', 'H.264, edit list', 'H.264, shown when decoded',
  'H.264 in Matroska', 'H.264 in MPEG-TS', 'MPEG-4 AVI, no B-frames', 'VP9', 'MPEG-2 in MPEG-PS'])
def test_a_span_has_the_frames_of_a_full_decode(tmp_path, name):
  kind = barcode_videos.KINDS[name]
  if kind.codec not in av.codecs_available:
    pytest.skip(f'this FFmpeg has no {kind.codec}')
  path, _ = barcode_videos.write(kind, tmp_path, N)
  seconds, frames = zip(*decode.read_frames(path)[1], strict=True)
  for begin, end in ((0, 1), (1.05, 2.2), (0.5, 3), (2.2, 2.27)):
    inside = [i for i, second in enumerate(seconds) if begin <= second + 1e-6 and second < end]
    span = f'{path}#t={begin},{end}'
    assert decode.count_frames(span) == len(inside)
    got = decode.read_video(span, np.arange)
    assert len(got) == len(inside)
    np.testing.assert_array_equal(got, np.stack([frames[i] for i in inside]))
    for one in {0, len(inside) // 2, len(inside) - 1}:
      np.testing.assert_array_equal(
        decode.read_video(span, exactly(one))[0], frames[inside[one]])
    rows = list(decode.read_frames(span)[1])
    np.testing.assert_allclose([s for s, _ in rows], [seconds[i] for i in inside])
    np.testing.assert_array_equal(np.stack([frame for _, frame in rows]), got)


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv'])
def test_a_span_of_a_long_video_is_read_without_the_rest(tmp_path, monkeypatch, name):
  path, read = write(tmp_path / name), []
  read_packets = damage.read_packets
  monkeypatch.setattr(damage, 'read_packets', lambda *arguments: (
    read.append(packet.pts) or packet for packet in read_packets(*arguments)))
  frames = decode.read_video(f'{path}#t=2,2.5', np.arange)
  assert [videos.read_barcode(frame) for frame in frames] == list(range(32, 40))
  assert 8 <= len(read) < 24                                  # of 60; a group has 12


def test_a_span_in_a_joined_recording_counts_from_its_start(tmp_path):
  whole = write(tmp_path / 'a.mp4')
  data = open(shift(whole, 5000, tmp_path / 'a.ts'), 'rb').read()
  (tmp_path / 'joined.ts').write_bytes(data + data)
  frames = decode.read_video(f'{tmp_path}/joined.ts#t=4,5', lambda count: np.arange(count))
  assert [videos.read_barcode(frame) for frame in frames] == list(range(4, 20))


@pytest.mark.parametrize('span', ['10,20', '2,12', '10'])
def test_a_span_beyond_the_end_of_a_video_is_an_error_that_names_the_end(tmp_path, span):
  path = write(tmp_path / 'a.mp4')
  for read in (lambda file: decode.read_video(file, exactly(0)), decode.count_frames,
               lambda file: list(decode.read_frames(file)[1])):
    with pytest.raises(decode.VideoError, match=r'lasts 3\.75 s and cannot be read from .* leave'):
      read(f'{path}#t={span}')


def test_a_span_between_two_frames_shows_none(tmp_path):
  path = write(tmp_path / 'a.mp4')
  for read in (lambda file: decode.read_video(file, exactly(0)), decode.count_frames):
    with pytest.raises(decode.VideoError, match=r'shows no new frame from 1\.01 s to'):
      read(f'{path}#t=1.01,1.02')


def test_spans_are_written_as_they_are_read(tmp_path):
  for begin, end in itertools.product((0.0, 1.5, 1e-3, 36000.0), (40000.0, 40000.25, float('inf'))):
    span = times.Span(begin, end)
    assert times.split_span(times.join_span('a b#c.mp4', span)) == ('a b#c.mp4', span)
  assert times.split_span('a.mp4#t=,3') == ('a.mp4', times.Span(0, 3))
  for name in ('a.mp4', 'a.mp4#t=', 'a.mp4#t=x', 'a#t=3.mp4'):
    assert times.split_span(name) == (name, None)
  odd = tmp_path / 'a.mp4#t=1,2'
  odd.touch()
  assert times.split_span(str(odd)) == (str(odd), None)
