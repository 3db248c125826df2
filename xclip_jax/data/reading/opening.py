"""Opening of video files: only files, only by their path, only kinds that name no other files.

FFmpeg takes any text for an address: `10:30.mp4` for a protocol, a list of files for a video. Here
a path is a path. A pipe or a device could block for ever, and a playlist (HLS, concat, SDP) or a
script could make FFmpeg read files and addresses that nobody has named: they are refused.
"""

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError

from xclip_jax.errors import UserError

# FFmpeg's demuxers of files that hold their pictures or sound themselves. Those of sound are here
# so that a song is told to have no video. Not here: hls, dash, concat, sdp, rtp, image2, imf, mlv,
# webm_dash_manifest, vobsub (they open other files), devices, subtitles, and text drawn as a video.
_DEMUXERS = (
  'mov matroska webm avi flv live_flv kux asf asf_o mpeg mpegts mpegvideo m4v ogg nut mxf mxg gxf '
  'lxf dv wtv rm ivr swf gif apng webp webp_anim jpegxl_anim dhav nsv nuv pva ty vivo vividas usm '
  'h261 h263 h264 hevc vvc evc avs avs2 avs3 av1 obu ivf vc1 vc1test dirac dnxhd cavsvideo apv '
  'mjpeg mjpeg_2000 mpjpeg smjpeg ingenient yuv4mpegpipe ipu lmlm4 lvf luodat mtv pmp ser cine r3d '
  '4xm anm argo_brp bethsoftvid bfi bink bmv c93 cdg cdxl dsicin dxa ea film_cpk filmstrip flic '
  'frm gdv hnm iff ifv idcin ipmovie jv mm moflex mv mvi paf pdv psxstr rl2 roq rpl sdr2 sga siff '
  'simbiosis_imx smk smush thp tiertexseq tmv txd vmd wc3movie wsvqa xmv yop iv8 '
  'bmp_pipe cri_pipe dds_pipe dpx_pipe exr_pipe gem_pipe gif_pipe hdr_pipe j2k_pipe jpeg_pipe '
  'jpegls_pipe jpegxl_pipe jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgmyuv_pipe '
  'pgx_pipe phm_pipe photocd_pipe pictor_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe '
  'sgi_pipe sunrast_pipe tiff_pipe vbn_pipe webp_pipe xbm_pipe xpm_pipe xwd_pipe '
  'aac ac3 aiff amr ape au caf dts eac3 flac mp3 tta w64 wav wv')

MAX_PIXELS = 2 ** 26       # of a picture: 8192 x 8192, more than any camera's video
# FFmpeg allocates nothing for larger pictures, neither to decode them nor to find out what a file
# holds. Also an option of decoders.
LIMIT = {'max_pixels': str(MAX_PIXELS)}

_OPTIONS = LIMIT | {
  'format_whitelist': ','.join(_DEMUXERS.split()), 'protocol_whitelist': 'file'}

# Metadata such as titles may be in any encoding. PyAV 19 tolerates that without an option.
_LENIENT: dict[str, Any] = (
  {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {})

# How files begin that name other files; they are text, perhaps after a byte order mark.
_PLAYLISTS = (
  (rb'#EXTM3U', 'an HLS or M3U playlist'), (rb'ffconcat version', 'a list of files (ffconcat)'),
  (rb'v=0\r?\n', 'an SDP session description'), (rb'\[playlist\]', 'a PLS playlist'),
  (rb'(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(MPD|asx|smil|playlist|SmoothStreamingMedia)\b',
   'a playlist or manifest'),
)
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*:/')

_KINDS = (
  (stat.S_ISDIR, 'is a folder, not a file'),
  (stat.S_ISFIFO, 'is a pipe, which may block for ever; save the video as a file first'),
  (stat.S_ISSOCK, 'is a socket; save the video as a file first'),
  (stat.S_ISCHR, 'is a device, and cameras are not read; record a file first'),
  (stat.S_ISBLK, 'is a device, not a file'),
)


class VideoError(UserError):
  """Names a file that cannot be used as a video, and the reason."""


@contextlib.contextmanager
def open_container(file: str | io.BytesIO, name: str) -> Iterator[InputContainer]:
  """Opens a video file.

  Args:
    file: path, which is never taken for an address, or contents.
    name: name of the file in messages.

  Raises:
    VideoError: the path is no file, or the file cannot be opened as a video.
    OSError: the path cannot be read.
  """
  with contextlib.ExitStack() as stack:
    if isinstance(file, str):
      _check_is_file(file, name)
    try:
      container = stack.enter_context(_open(file, stack))
    except FFmpegError as error:
      playlist = _name_playlist(file)
      reason = _reason(error) if not playlist else (
        f'it is {playlist}, which names other files or addresses; give the video files themselves')
      raise VideoError(f'{name}: cannot be read as a video ({reason})') from error
    yield container


def _open(file: str | io.BytesIO, stack: contextlib.ExitStack) -> InputContainer:
  if not isinstance(file, str):
    return av.open(file, options=_OPTIONS, **_LENIENT)
  try:
    return av.open(f'file:{file}', options=_OPTIONS, **_LENIENT)
  except FFmpegError as error:
    if error.errno != errno.EINVAL:
      raise
  # Names such as a.jpg and a%d.mp4 make FFmpeg look for numbered pictures, which is refused. Opened
  # by number, the file has no name.
  opened = stack.enter_context(open(os.open(file, os.O_RDONLY), 'rb', buffering=0))
  return av.open(opened, options=_OPTIONS, **_LENIENT)


def _check_is_file(path: str, name: str) -> None:
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError as error:
    if path == '-':
      hint = 'standard input is not read; save the video as a file and name the file'
    elif _ADDRESS.match(path):
      hint = 'addresses are not read; download the video and name the file'
    elif path.isdecimal():
      hint = f'no file is called {path}, and cameras are not read; record a file first'
    else:
      raise
    raise VideoError(f'{name}: {hint}') from error
  except ValueError as error:                # a NUL byte
    raise VideoError(f'{name!r}: is no path ({error})') from error
  for is_kind, fault in _KINDS:
    if is_kind(mode):
      raise VideoError(f'{name}: {fault}')


def _name_playlist(file: str | io.BytesIO) -> str:
  """Returns the kind of a file that names other files; '' for any other file."""
  if isinstance(file, str):
    with open(file, 'rb') as opened:
      start = opened.read(1024)
  else:
    start = bytes(file.getbuffer()[:1024])
  start = start.removeprefix(b'\xef\xbb\xbf').lstrip()
  for pattern, kind in _PLAYLISTS:
    if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
      return kind
  return ''


def _reason(error: FFmpegError) -> str:
  if error.errno == errno.EINVAL:            # what FFmpeg says of a kind that is not in the list
    return 'it is damaged, or of a kind that is not read'
  return error.strerror or str(error)
