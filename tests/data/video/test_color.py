"""HDR and wide colours become what an ordinary screen shows."""

import fractions

import av
import numpy as np
import pytest

from xclip_jax.data.video import decode

# sRGB colours of eight patches, four in a row.
PATCHES = np.array([
  [255, 255, 255], [0, 0, 0], [200, 60, 40], [40, 180, 60], [40, 60, 200], [128, 128, 128],
  [230, 200, 60], [150, 60, 160]])
SIDE = 32
BT709, BT2020, PQ, HLG, BT2020_10 = 1, 9, 16, 18, 14

# CIE xy of red, green, blue; the white point of both is D65. (ITU-R BT.709 and BT.2020)
XY = {BT709: [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)],
      BT2020: [(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)]}
KR, KB = 0.2627, 0.0593


def to_xyz(primaries):
  x, y = np.array(XY[primaries]).T
  columns = np.array([x / y, np.ones(3), (1 - x - y) / y])
  white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
  return columns * np.linalg.solve(columns, white)


def linear(srgb):
  level = srgb / 255
  return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def pq(nits):
  power = (nits / 1e4) ** (2610 / 16384)
  return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(nits):
  display = nits / 1000
  luminance = (display @ [KR, 1 - KR - KB, KB])[..., None]
  scene = display * np.where(luminance > 0, luminance, 1) ** (1 / 1.2 - 1)
  return np.where(scene <= 1 / 12, np.sqrt(3 * scene),
                  0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)


def coded(light, transfer):
  """RGB 0..1 of light of BT.709 primaries, 1 being diffuse white, in BT.2020."""
  wide = np.clip(light @ np.linalg.solve(to_xyz(BT2020), to_xyz(BT709)).T, 0, None)
  if transfer == BT2020_10:
    return np.where(wide < 0.018, 4.5 * wide, 1.099 * wide ** 0.45 - 0.099)
  return pq(203 * wide) if transfer == PQ else hlg(203 * wide)


def write(path, rgb, primaries, transfer, matrix=BT2020, states=True):
  """Write four 10-bit frames of patches, RGB 0..1 [8, 3]; `states`: the bitstream says colours."""
  luma = rgb @ [KR, 1 - KR - KB, KB]
  yuv = np.stack([
    64 + 876 * luma, 512 + 896 * (rgb[:, 2] - luma) / (2 - 2 * KB),
    512 + 896 * (rgb[:, 0] - luma) / (2 - 2 * KR)], 1).round().astype(np.uint16)
  full = yuv.reshape(2, 4, 3).repeat(SIDE, 0).repeat(SIDE, 1)
  options = {'crf': '1', 'preset': 'ultrafast'}
  if not states:
    silent = 'log-level=none:pools=none:frame-threads=1'
    options['x265-params'] = f'{silent}:colorprim=undef:transfer=undef:colormatrix=undef'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264' if states else 'libx265', rate=10, options=options)
    stream.height, stream.width, stream.pix_fmt = *full.shape[:2], 'yuv420p10le'
    codec = stream.codec_context
    codec.color_primaries, codec.color_trc, codec.colorspace = primaries, transfer, matrix
    codec.color_range, codec.thread_count = 1, 1
    for number in range(4):
      frame = av.VideoFrame(full.shape[1], full.shape[0], 'yuv420p10le')
      for plane, image in zip(
        frame.planes, (full[..., 0], full[::2, ::2, 1], full[::2, ::2, 2]), strict=True):
        rows = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)
        rows[:, :plane.width] = image
      frame.pts, frame.time_base = number, fractions.Fraction(1, 10)
      frame.color_primaries, frame.color_trc = primaries, transfer
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return str(path)


def shown(path):
  """Colours of the patches, [8, 3]."""
  frame = decode.read_video(path, lambda count: np.array([count // 2]))[0].astype(float)
  cells = frame.reshape(2, SIDE, 4, SIDE, 3)[:, 8:-8, :, 8:-8]
  return cells.mean((1, 3)).reshape(8, 3)


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv', 'a.mov'])
@pytest.mark.parametrize('transfer', [PQ, HLG])
def test_hdr_is_shown_as_on_an_ordinary_screen(tmp_path, name, transfer):
  path = write(tmp_path / name, coded(linear(PATCHES), transfer), BT2020, transfer)
  np.testing.assert_allclose(shown(path), PATCHES, atol=4)


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv'])
@pytest.mark.skipif('libx265' not in av.codecs_available, reason='this FFmpeg has no libx265')
def test_colours_that_only_the_container_states_count(tmp_path, name):
  path = write(tmp_path / name, coded(linear(PATCHES), PQ), BT2020, PQ, states=False)
  with av.open(path) as container:
    assert container.streams.video[0].codec_context.color_trc == PQ
    assert next(container.decode(video=0)).color_trc == 2            # unspecified
  np.testing.assert_allclose(shown(path), PATCHES, atol=4)


def test_hdr_without_primaries_is_bt2020(tmp_path):
  path = write(tmp_path / 'a.mp4', coded(linear(PATCHES), PQ), 2, PQ, matrix=2)
  np.testing.assert_allclose(shown(path), PATCHES, atol=4)


def test_what_is_brighter_than_white_keeps_its_hue(tmp_path):
  light = np.zeros((8, 3)) + np.array([4, 2, 1])[None]               # 812 nits of red
  light[1:] = [[4, 4, 4]] * 7
  got = shown(write(tmp_path / 'a.mp4', coded(light, PQ), BT2020, PQ))
  np.testing.assert_allclose(got[0], [255, 188, 137], atol=4)        # sRGB of 1, 0.5, 0.25
  np.testing.assert_allclose(got[1:], 255, atol=3)


def test_sdr_in_bt2020_keeps_greys_and_colours(tmp_path):
  level = PATCHES / 255
  light = np.where(level < 0.081, level / 4.5, ((level + 0.099) / 1.099) ** (1 / 0.45))
  path = write(tmp_path / 'a.mp4', coded(light, BT2020_10), BT2020, BT2020_10)
  np.testing.assert_allclose(shown(path), PATCHES, atol=4)


@pytest.mark.parametrize('primaries', [BT709, 2, 5, 12])
def test_other_sdr_keeps_every_bit(tmp_path, primaries):
  rgb = PATCHES / 255
  path = write(tmp_path / 'a.mp4', rgb, primaries, 1 if primaries == BT709 else 2)
  with av.open(path) as container:
    want = next(container.decode(video=0)).to_ndarray(format='rgb24', threads=1)
  np.testing.assert_array_equal(decode.read_video(path, lambda count: np.array([0]))[0], want)
