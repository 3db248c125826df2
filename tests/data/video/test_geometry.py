"""Pictures are upright, of their true shape, and of a size that memory holds."""

import fractions
import gc
import io
import itertools
import resource
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

import videos
from xclip_jax.data.video import decode, geometry

ONE, UNIT = 1 << 16, 1 << 30
# The eight ways to place a rectangle upright: x' = a x + c y, y' = b x + d y.
MATRICES = [m for s, t in itertools.product((1, -1), repeat=2)
            for m in ((s, 0, 0, t), (0, s, t, 0))]


def picture(height=48, width=80):
  """Four corners of different colours, none of them symmetrical."""
  image = np.zeros((height, width, 3), np.uint8)
  top, left = height // 2, width // 2
  image[:top, :left], image[:top, left:] = (200, 30, 30), (30, 200, 30)
  image[top:, :left], image[top:, left:] = (30, 30, 200), (200, 200, 30)
  return image


def placed(image, matrix):
  """The picture that a display matrix shows, pixel by pixel."""
  a, b, c, d = matrix
  height, width = image.shape[:2]
  y, x = np.mgrid[:height, :width]
  columns, rows = a * x + c * y, b * x + d * y
  shape = (height, width) if a else (width, height)
  shown = np.zeros((*shape, 3), np.uint8)
  shown[rows - rows.min(), columns - columns.min()] = image
  return shown


def first(file, **options):
  return decode.read_video(file, lambda count: np.array([0]), **options)[0]


def write(path, image, matrix=None, aspect=None, frames=2):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=16, options={'crf': '10', 'mbtree': '0'})
    stream.height, stream.width, stream.pix_fmt = *image.shape[:2], 'yuv420p'
    stream.codec_context.thread_count = 1
    if aspect:
      stream.codec_context.sample_aspect_ratio = fractions.Fraction(aspect)
    if matrix:
      a, b, c, d = (ONE * value for value in matrix)
      stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, UNIT])
    for _ in range(frames):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
    container.mux(stream.encode())
  return str(path)


@pytest.mark.parametrize('name', ['a.mp4', 'a.mov', 'a.mkv'])
@pytest.mark.parametrize('matrix', MATRICES, ids=str)
def test_turned_and_mirrored_recordings_are_upright(tmp_path, name, matrix):
  path = write(tmp_path / name, picture(), matrix)
  got, want = first(path), placed(picture(), matrix)
  assert got.shape == want.shape
  assert np.abs(got.astype(int) - want).mean() < 12      # H.264 blurs the edges of colours
  np.testing.assert_array_equal(got, next(iter(decode.read_frames(path)[1]))[1])


def test_frames_are_freed_without_the_garbage_collector(tmp_path):
  path = write(tmp_path / 'a.mp4', picture(), MATRICES[2], frames=60)
  count = lambda: sum(isinstance(x, av.VideoFrame) for x in gc.get_objects())
  gc.collect()
  gc.disable()
  try:
    before = count()
    assert len(list(decode.read_frames(path)[1])) == 60
    assert count() - before < 5
  finally:
    gc.enable()


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tiff', 'avif'])
@pytest.mark.parametrize('number', range(1, 9))
def test_pictures_are_upright_as_exif_says(tmp_path, suffix, number):
  if not Image.registered_extensions().get(f'.{suffix}'):
    pytest.skip(f'this Pillow has no {suffix}')
  exif, path = Image.Exif(), tmp_path / f'a.{suffix}'
  exif[0x112] = number
  Image.fromarray(picture()).save(path, exif=exif, quality=95)
  with Image.open(path) as image:
    want = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
  for file in (path, path.read_bytes()):
    got = first(file)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < 12


def test_a_mirror_is_known_beside_other_facts_about_a_frame(tmp_path):
  # PyAV 18 lists nothing about a frame with EXIF, which it does not know.
  for number in (1, 2, 3, 6, 8):
    exif = Image.Exif()
    exif[0x112] = number
    content = io.BytesIO()
    Image.fromarray(picture()).save(content, 'JPEG', exif=exif)
    content.seek(0)
    with av.open(content) as container:
      found = geometry.of_frame(next(container.decode(video=0)))
    assert found == geometry.from_exif(number) or (number == 2 and av.__version__ < '19')


def circle(height, width, aspect):
  y, x = np.mgrid[:height, :width]
  inside = (((x - width / 2) * aspect) ** 2 + (y - height / 2) ** 2) < (height / 3) ** 2
  return np.where(inside[..., None], np.uint8(220), np.uint8(20)) * np.ones(3, np.uint8)


@pytest.mark.parametrize('aspect, width', [('64/45', 128), ('8/9', 80), ('1', 90)])
def test_a_circle_is_round_if_pixels_are_made_square(tmp_path, aspect, width):
  image = circle(72, 90, float(fractions.Fraction(aspect)))
  path = write(tmp_path / 'a.mp4', image, aspect=aspect)
  assert first(path).shape == (72, 90, 3)
  frame = first(path, square_pixels=True)
  assert frame.shape == (72, width, 3)
  wide, high = (np.ptp(np.nonzero(frame[..., 0].max(axis) > 120)[0]) + 1 for axis in (0, 1))
  assert abs(wide / high - 1) < 0.07
  (_, played), *_ = decode.read_frames(path, square_pixels=True)[1]
  np.testing.assert_array_equal(played, frame)


def test_a_pixel_that_no_camera_has_is_left_as_it_is():
  image = picture()
  for aspect in (0.0, 1.0, 1000.0, 1e-6):
    assert geometry.square_pixels(image, aspect) is image


def large_gif(side=16000):
  """Says that it is so large, in a few bytes."""
  return (b'GIF89a' + struct.pack('<HH', side, side) + b'\xf0\0\0' + bytes(3) + b'\xff' * 3
          + (b',' + struct.pack('<HHHH', 0, 0, 1, 1) + b'\0\x02\x02D\x01\0') * 8 + b';')


def large_png():
  side = 10000
  chunk = lambda kind, data: (
    struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)))
  pixels = zlib.compressobj(1)
  data = b''.join(pixels.compress(bytes(side // 8 + 1)) for _ in range(side)) + pixels.flush()
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))
          + chunk(b'IDAT', data) + chunk(b'IEND', b''))


@pytest.mark.parametrize('content', [large_gif(), large_png()], ids=['gif', 'png'])
def test_a_picture_that_fills_the_memory_is_refused_by_its_size(content):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for read in (lambda file: first(file), decode.count_frames,
               lambda file: list(decode.read_frames(file)[1])):
    with pytest.raises(decode.VideoError, match='more than 67108864 pixels'):
      read(content)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10       # KiB


def test_frames_that_fill_the_memory_together_are_refused_before_they_are_decoded(monkeypatch):
  content = large_gif(8000)
  monkeypatch.setattr(decode, '_by_timestamp', None)
  with pytest.raises(decode.VideoError, match='32 frames of 8000 x 8000 pixels take more than 4 G'):
    decode.read_video(content, lambda count: np.arange(32) % count)


@pytest.mark.parametrize('suffix', ['webp', 'avif', 'gif', 'png'])
def test_animations_show_all_their_pictures(tmp_path, suffix):
  if not Image.registered_extensions().get(f'.{suffix}'):
    pytest.skip(f'this Pillow has no {suffix}')
  path = tmp_path / f'a.{suffix}'
  images = [Image.fromarray(image) for image in videos.barcode_frames(10, 64, 96)]
  images[0].save(path, save_all=True, append_images=images[1:], duration=100)
  for file in (path, path.read_bytes()):
    assert decode.count_frames(file) == 10
    frames = decode.read_video(file, lambda count: np.array([count - 1, 2, 2]))
    assert [videos.read_barcode(frame) for frame in frames] == [9, 2, 2]
    rate, played = decode.read_frames(file)
    seconds, frames = zip(*played, strict=True)
    assert rate == 10
    np.testing.assert_allclose(seconds, np.arange(10) / 10, atol=1e-6)
    assert [videos.read_barcode(frame) for frame in frames] == list(range(10))


def test_a_cut_animation_is_an_error_of_the_file(tmp_path):
  images = [Image.fromarray(image) for image in videos.barcode_frames(10, 64, 96)]
  content = io.BytesIO()
  images[0].save(content, 'WEBP', save_all=True, append_images=images[1:], duration=100)
  with pytest.raises(decode.VideoError):
    decode.read_video(content.getvalue()[:len(content.getvalue()) // 8], np.arange)
