"""Paths of videos are paths: no protocols, no playlists, no pipes and no devices."""

import io
import os
import socket
import tarfile

import cv2
import numpy as np
import pytest

import videos
from xclip_jax.cli import main
from xclip_jax.data.video import decode
from xclip_jax.data.video.decode import VideoError

N = 6
FIRST = lambda count: np.array([0])


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp('clip') / 'clip.mp4'
  return videos.write_video(path, videos.barcode_frames(N, 32, 48))


@pytest.mark.parametrize('name', [
  '10:30.mp4', 'S01E02:title.mp4', 'http:/127.0.0.1:9/x.mp4', 'concat:a|b.mp4', 'file:x.mp4',
  'subfile,,start,0,end,9,,:x.mp4', 'pipe:0', 'data:,x', 'crypto:x.mp4', 'sample:ring',
  'img%03d.mp4', 'a[1]*{2}?.mp4', 'line\nbreak.mp4', 'tab\tcr\r.mp4', 'caf\udce9.mp4', '-x.mp4',
  '#1.mp4', 'a.m3u8', 'q?x=1.mp4',
])
def test_a_path_is_a_path_whatever_its_letters(clip, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
  with open(name, 'wb') as file:
    file.write(open(clip, 'rb').read())
  for path in (name, os.path.abspath(name)):
    assert len(decode.read_video(path, np.arange)) == decode.count_frames(path) == N


def test_a_picture_whose_name_is_a_pattern_is_one_picture(tmp_path):
  for name in ('p%d.png', 'p1.png', 'p2.png', 'p*.png'):
    picture = np.full((16, 16, 3), 255 if name == 'p%d.png' else 0, np.uint8)
    (tmp_path / name).write_bytes(cv2.imencode('.png', picture)[1].tobytes())
  frames = decode.read_video(tmp_path / 'p%d.png', np.arange)
  assert len(frames) == 1 and (frames == 255).all()
  assert len(decode.read_video(tmp_path / 'p*.png', np.arange)) == 1


@pytest.mark.parametrize('ending', ['jpg', 'jpeg', 'png', 'bmp', 'tif', 'webp', 'ppm'])
def test_a_picture_is_read_under_its_own_name(tmp_path, ending):
  noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
  content = cv2.imencode(f'.{ending}', noise)[1].tobytes()
  (tmp_path / f'a.{ending}').write_bytes(content)
  by_path = decode.read_video(tmp_path / f'a.{ending}', np.arange)
  assert by_path.shape == (1, 48, 64, 3)
  np.testing.assert_array_equal(by_path, decode.read_video(content, np.arange))


PLAYLISTS = {
  'HLS': '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n',
  'ffconcat': 'ffconcat version 1.0\nfile clip.mp4\n',
  'SDP': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n'
         'm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n',
  'manifest': '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n',
}


@pytest.mark.parametrize('kind', PLAYLISTS)
@pytest.mark.parametrize('name', ['list.mp4', 'list.m3u8', 'list.txt'])
def test_a_file_that_names_other_files_is_not_opened(clip, tmp_path, kind, name):
  (tmp_path / 'clip.mp4').write_bytes(open(clip, 'rb').read())
  text = PLAYLISTS[kind].encode()
  (tmp_path / name).write_bytes(text)
  with tarfile.open(tmp_path / 'shard.tar', 'w') as shard:
    shard.add(tmp_path / name, name)
  for file in (tmp_path / name, f'{tmp_path}/shard.tar/{name}', text, b'\xef\xbb\xbf' + text):
    with pytest.raises(VideoError, match=f'{kind}.* names other files or addresses'):
      decode.read_video(file, FIRST)


def test_what_is_no_file_is_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe.mp4')
  os.symlink('/dev/zero', tmp_path / 'device.mp4')
  plug = socket.socket(socket.AF_UNIX)
  plug.bind(str(tmp_path / 'plug.mp4'))
  (tmp_path / 'folder.mp4').mkdir()
  for name, reason in (('pipe', 'is a pipe'), ('device', 'is a device'), ('plug', 'is a socket'),
                       ('folder', 'is a folder')):
    for read in (decode.count_frames, decode.read_frames, lambda x: decode.read_video(x, FIRST)):
      with pytest.raises(VideoError, match=rf'{name}\.mp4: {reason}'):
        read(str(tmp_path / f'{name}.mp4'))
  plug.close()


@pytest.mark.parametrize('name, message', [
  ('-', 'standard input is not read'), ('0', 'cameras are not read'),
  ('http://host/x.mp4', 'addresses are not read; download'),
])
def test_what_is_no_path_gets_a_reason_that_says_what_to_do(name, message):
  with pytest.raises(VideoError, match=message):
    decode.read_video(name, FIRST)


@pytest.mark.parametrize('name, message', [
  ('http://host/x.mp4', 'http:// is not supported; download'),
  ('rtsp://camera/1', 'rtsp:// is not supported; download'), ('gs://b/x.mp4', 'found a bucket'),
])
def test_the_command_refuses_addresses_before_it_begins(name, message, capsys):
  assert main.main(['classify', name, '--weights', 'toy', '--labels', 'a,b']) == 2
  assert message in capsys.readouterr().err


def test_a_name_with_a_null_byte_is_refused():
  with pytest.raises(VideoError, match='is no path'):
    decode.read_video('a\0b.mp4', FIRST)


def test_contents_are_no_address(clip):
  assert len(decode.read_video(io.BytesIO(open(clip, 'rb').read()), np.arange)) == N
