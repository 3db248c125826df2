"""Speed of reading clips from files to the device, and share of wrong frames.

  python benchmarks/data/feeding.py                  # this package and installed libraries
  python benchmarks/data/feeding.py --rounds 20 --out data.jsonl --plot data.png

One core: files are made for this, with a number painted into every frame. In each round every
reader takes 8 frames of every file, one after another in turns, and crops them to 224 x 224; the
frames are those of a random training clip, the same for all. Figures are medians of process CPU
time, all threads together. decord, torchcodec and OpenCV take part if they can be imported. The
long-GOP file also takes part as `xclip data prepare` stores it, in ArrayRecord.

All cores: batches of augmented clips through the training pipeline, by wall clock, for several
numbers of worker processes and threads. Then the bytes that go to the device, as uint8 and as what
normalising on the host would make of them.
"""

import argparse
import fractions
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OPENCV_FFMPEG_CAPTURE_OPTIONS', 'threads;1')  # before cv2 is imported

import av
import cv2
import numpy as np
from array_record.python import array_record_module

from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.data.datasets import annotations
from xclip_jax.data.video import decode, encode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))      # for benchmarks.pictures

FRAMES, FPS, T, SIZE, BITS = 250, 25, 8, 224, 8
LONG_GOP = {'g': '250', 'bf': '3', 'crf': '23'}
FILES = {  # width, height, file, codec, options
  'long GOP, B-frames': (340, 256, 'a.mp4', 'libx264', LONG_GOP),
  'long GOP': (340, 256, 'b.mp4', 'libx264', {'g': '250', 'bf': '0', 'crf': '23'}),
  'GOP 12': (340, 256, 'c.mp4', 'libx264', {'g': '12', 'bf': '0', 'crf': '23'}),
  '640 x 480': (640, 480, 'd.mp4', 'libx264', LONG_GOP),
  '1280 x 720': (1280, 720, 'e.mp4', 'libx264', LONG_GOP),
  'VP9': (340, 256, 'f.webm', 'libvpx-vp9', {'g': '250', 'deadline': 'realtime', 'cpu-used': '8'}),
  'MPEG-4 avi': (340, 256, 'g.avi', 'mpeg4', {'g': '250', 'bf': '0', 'qscale': '4'}),
  'MPEG-4 avi, B-frames': (340, 256, 'h.avi', 'mpeg4', {'g': '12', 'bf': '2', 'qscale': '4'}),
}
RAW = 'long GOP, B-frames'
PREPARED = {
  'prepared, H.264': encode.Encoding('h264'),
  'prepared, JPEG': encode.Encoding('jpeg'),
}
POOLS = ((0, 1), (0, 2), (0, 4), (1, 2), (2, 1), (2, 2), (4, 1))     # (worker processes, threads)
Reader = Callable[[str, np.ndarray], np.ndarray]  # path, indices [T] -> uint8 [T, H, W, 3]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--out', help='file for the JSON lines, besides standard output')
  parser.add_argument('--plot', help='.png of clips a second')
  arguments = parser.parse_args()
  cv2.setNumThreads(1)
  lines, rows = [about()], []
  print(json.dumps(lines[0]))
  with tempfile.TemporaryDirectory(prefix='data') as folder:
    paths = {name: write_video(Path(folder), *about_it) for name, about_it in FILES.items()}
    numbers = {name: list(range(FRAMES)) for name in paths}
    for name, encoding in PREPARED.items():
      paths[name], numbers[name], row = prepare(Path(folder), paths[RAW], name, encoding)
      rows.append(row)
    rows += measure({'ours': read_ours} | peers(), paths, numbers, arguments.rounds)
    rows += [
      {'file': name, 'stages': stages(path, arguments.rounds)} for name, path in paths.items()]
    rows += scaling({name: paths[name] for name in (RAW, *PREPARED)})
    rows += device_bytes()
  lines += rows
  print('\n'.join(map(json.dumps, rows)))
  if arguments.out:
    Path(arguments.out).write_text('\n'.join(map(json.dumps, lines)) + '\n')
  print_tables(rows)
  if arguments.plot:
    from benchmarks import pictures  # here: a measured process should not import matplotlib

    pictures.write(arguments.plot, pictures.draw_data_speed, rows, lines[0]['cpus'])


def read_ours(path: str, indices: np.ndarray) -> np.ndarray:
  return decode.read_video(path, lambda _: indices)


def peers() -> dict[str, Reader]:
  """Returns the other readers that are installed; prints the names of the others."""
  found = {'opencv': read_opencv}
  try:
    import decord

    # As the reference reads: a reader a file, one thread, frames by number.
    found['decord'] = lambda path, indices: (
      decord.VideoReader(path, num_threads=1).get_batch(indices.tolist()).asnumpy()
    )
  except (ImportError, OSError) as error:
    print(f'decord is left out: {error}')
  try:
    from torchcodec.decoders import VideoDecoder

    found['torchcodec'] = lambda path, indices: VideoDecoder(
      path, num_ffmpeg_threads=1, dimension_order='NHWC'
    ).get_frames_at(indices.tolist()).data.numpy()
  except (ImportError, OSError, RuntimeError) as error:
    print(f'torchcodec is left out: {str(error).splitlines()[0]}')
  return found


def read_opencv(path: str, indices: np.ndarray) -> np.ndarray:
  """Grabs all frames and retrieves some: OpenCV's fastest way to get the right frames."""
  capture, wanted, frames = cv2.VideoCapture(path), set(indices.tolist()), {}
  for number in range(max(wanted) + 1):
    if not capture.grab():
      break
    if number in wanted:
      frames[number] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
  capture.release()
  return np.stack([frames[i] for i in indices.tolist()])


def prepare(
  folder: Path, path: str, name: str, encoding: encode.Encoding
) -> tuple[str, list[int], dict[str, object]]:
  """Stores a file as a record; returns its path, its frame numbers, and the cost."""
  begin = time.process_time()
  stored = encode.encode(path, encoding)
  seconds = time.process_time() - begin
  shard = folder / f'{encoding.format}.array_record'
  writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1,uncompressed')
  writer.write(stored.content)
  writer.close()
  tick = lambda number: number * encoding.fps // FPS  # a frame is stored where a tick begins
  numbers = [n for n in range(FRAMES) if encoding.format == 'h264' or tick(n) > tick(n - 1)]
  return f'{shard}/0', numbers, {
    'file': name, 'bytes': len(stored.content), 'bytes_before': os.path.getsize(path),
    'frames': stored.num_frames, 'psnr_db': round(stored.psnr, 1),
    'cpu_seconds_to_prepare': round(seconds, 2),
  }


def measure(
  readers: dict[str, Reader], paths: dict[str, str], numbers: dict[str, list[int]], rounds: int
) -> list[dict[str, object]]:
  """A row for each reader and file; the first round, which warms up, is not counted."""
  transform, rng = augment.EvalTransform(SIZE), np.random.default_rng(0)
  pairs = [(name, file) for file in paths for name in readers
           if name == 'ours' or file not in PREPARED]
  seconds = {pair: [] for pair in pairs}
  wrong, failed = dict.fromkeys(pairs, 0), {}
  for number in range(rounds + 1):
    for file, path in paths.items():
      indices = sampling.train_indices(len(numbers[file]), T, rng.integers)
      order = [name for name, other in pairs if other == file]
      for name in order[number % len(order):] + order[:number % len(order)]:
        begin = time.process_time()
        try:
          frames = readers[name](path, indices)
        except Exception as error:         # a peer's errors are of any kind; it is what we report
          failed[name, file] = f'{type(error).__name__}: {error}'[:200]
          continue
        transform(frames)
        if number:
          seconds[name, file].append(time.process_time() - begin)
          wrong[name, file] += sum(
            read_number(x) != numbers[file][i] for x, i in zip(frames, indices, strict=True))
  return [
    {'reader': name, 'file': file, 'error': failed[name, file]} if (name, file) in failed else {
      'reader': name, 'file': file,
      'cpu_ms': round(1e3 * statistics.median(taken), 2),
      'cpu_ms_least': round(1e3 * min(taken), 2),
      'cpu_ms_most': round(1e3 * max(taken), 2),
      'clips_per_second_per_core': round(1 / statistics.median(taken), 1),
      'wrong_frames': wrong[name, file], 'frames': T * rounds,
    }
    for (name, file), taken in seconds.items()
  ]


def scaling(paths: dict[str, str], batch_size: int = 8, seconds: float = 4.0) -> list[dict]:
  """Clips a second of the training pipeline, by wall clock, after the workers have started.

  Colours are left to the device, as they are by default where there is an accelerator.
  """
  transform = augment.TrainTransform(SIZE, 'multiscale', 0.5, 0.8, 0.2, colors='device')
  classes = annotations.ClassList(('any',), (None,))
  rows = []
  for (file, path), (workers, threads) in itertools.product(paths.items(), POOLS):
    videos = annotations.VideoList([annotations.Example(path, 0)] * 64, classes)
    with pipeline.train_batches(
      videos, transform, sampling.ClipSampler(T), pipeline.HostShare(batch_size),
      pipeline.TrainStream(seed=0), pipeline.Reading(workers, threads),
    ) as batches:
      # What was read ahead while workers started would count as if it had taken no time.
      for _ in range(2 + 2 * max(1, workers) * threads):
        next(batches)
      begin, count = time.monotonic(), 0
      while time.monotonic() < begin + seconds:
        next(batches)
        count += batch_size
      rate = count / (time.monotonic() - begin)
    rows.append({
      'file': file, 'workers': workers, 'threads': threads, 'clips_per_second': round(rate, 1)})
  return rows


def device_bytes(batch_size: int = 32, rounds: int = 10) -> list[dict[str, object]]:
  """Measures the bytes of a batch on its way to the device, and the time of a copy here."""
  import jax

  rng, rows = np.random.default_rng(0), []
  clips = rng.integers(0, 256, (batch_size, T, SIZE, SIZE, 3), np.uint8)
  batches = {'uint8': clips, 'float32, normalised on the host': clips.astype(np.float32)}
  taken = {name: [] for name in batches}
  for _ in range(rounds + 1):
    for name, batch in batches.items():
      begin = time.perf_counter()
      jax.block_until_ready(jax.numpy.array(batch))
      taken[name].append(time.perf_counter() - begin)
  for name, batch in batches.items():
    rows.append({
      'to_device': name, 'device': jax.devices()[0].device_kind,
      'megabytes_per_clip': round(batch.nbytes / batch_size / 1e6, 2),
      'ms_per_batch': round(1e3 * statistics.median(taken[name][1:]), 2), 'batch_size': batch_size,
    })
  return rows


def stages(path: str, rounds: int) -> dict[str, float]:
  """Returns the share of this package's time that each stage takes."""
  transform, rng = augment.EvalTransform(224), np.random.default_rng(1)
  spent = dict.fromkeys(('demux', 'decode', 'convert', 'resize'), 0.0)
  to_rgb = decode._to_rgb

  def timed_to_rgb(*frame):
    begin = time.process_time()
    rgb = to_rgb(*frame)
    spent['convert'] += time.process_time() - begin
    return rgb

  decode._to_rgb = timed_to_rgb
  try:
    for _ in range(rounds):
      marks = [time.process_time()]

      def choose(count, marks=marks):
        marks.append(time.process_time())  # the file is demuxed when the sampler is asked
        return sampling.train_indices(count, T, rng.integers)

      frames = decode.read_video(path, choose)
      marks.append(time.process_time())
      transform(frames)
      marks.append(time.process_time())
      for name, begin, end in zip(('demux', 'decode', 'resize'), marks, marks[1:], strict=False):
        spent[name] += end - begin
  finally:
    decode._to_rgb = to_rgb
  spent['decode'] -= spent['convert']
  return {name: round(x / sum(spent.values()), 3) for name, x in spent.items()}


def write_video(
  folder: Path, width: int, height: int, name: str, codec: str, options: dict[str, str]
) -> str:
  """A textured picture that pans, numbered by eight bars along its upper edge."""
  rng, zoom = np.random.default_rng(0), height / 256
  scene = cv2.resize(rng.integers(0, 256, (80, 200, 3), np.uint8), None, fx=7.5 * zoom, fy=7 * zoom)
  grain = rng.integers(-6, 7, (height, width, 3), np.int16)
  path = folder / name
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=FPS, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
    stream.codec_context.thread_count = 1
    if codec == 'mpeg4':
      stream.codec_context.codec_tag = 'XVID'
    for number in range(FRAMES):
      x, y = int(4 * zoom * number), int(zoom * (150 + 140 * np.sin(number / 25)))
      frame = scene[y:y + height, x:x + width] + np.roll(grain, 7 * number, axis=1)
      bars = number >> np.arange(BITS)[::-1] & 1
      frame[:height // 8] = np.where(bars, 220, 30)[np.arange(width) * BITS // width][:, None]
      picture = av.VideoFrame.from_ndarray(np.clip(frame, 0, 255).astype(np.uint8), format='rgb24')
      picture.pts, picture.time_base = number, fractions.Fraction(1, FPS)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return str(path)


def read_number(frame: np.ndarray) -> int:
  profile = frame[len(frame) // 64:len(frame) // 9].mean((0, 2))           # [W]
  bars = profile[((np.arange(BITS) + 0.5) * len(profile) / BITS).astype(int)] > 125
  return int((bars << np.arange(BITS)[::-1]).sum())


def about() -> dict[str, object]:
  def version(name):
    try:
      return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      return None

  info = Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.is_file() else []
  cpu = next((x.split(': ')[1] for x in lines if x.startswith('model name')), platform.machine())
  names = ('av', 'opencv-python-headless', 'decord', 'torchcodec')
  return {
    'date': time.strftime('%Y-%m-%d'), 'cpu': cpu, 'cpus': len(os.sched_getaffinity(0)),
    'load': round(os.getloadavg()[0], 2), 'python': platform.python_version(),
    **{name: version(name) for name in names},
  }


def print_tables(rows: list[dict]) -> None:
  titles = f'{"bytes / before":>16}{"frames":>8}{"PSNR, dB":>10}{"CPU s":>8}'
  print(f'\n{"stored as":24}{titles}')
  for row in (row for row in rows if 'bytes' in row):
    print(f'{row["file"]:24}{row["bytes"] / row["bytes_before"]:16.0%}{row["frames"]:8}'
          f'{row["psnr_db"]:10}{row["cpu_seconds_to_prepare"]:8}')
  print(f'\n{"clips a second and core":24}{"reader":>12}{"median":>9}{"wrong frames":>16}')
  for row in (row for row in rows if 'reader' in row):
    if 'error' in row:
      print(f'{row["file"]:24}{row["reader"]:>12}   {row["error"]}')
      continue
    wrong = f'{row["wrong_frames"]} of {row["frames"]}'
    print(f'{row["file"]:24}{row["reader"]:>12}{row["clips_per_second_per_core"]:9}{wrong:>16}')
  shares = [row for row in rows if 'stages' in row]
  print(f'\n{"share of our time":24}' + ''.join(f'{x:>10}' for x in shares[0]['stages']))
  for row in shares:
    print(f'{row["file"]:24}' + ''.join(f'{x:10.0%}' for x in row['stages'].values()))
  print(f'\n{"clips a second":24}' + ''.join(f'{f"{w} x {t}":>8}' for w, t in POOLS)
        + '   workers x threads')
  for file in (RAW, *PREPARED):
    print(f'{file:24}' + ''.join(
      f'{row["clips_per_second"]:8}' for row in rows if 'workers' in row and row['file'] == file))
  print(f'\n{"to the device":34}{"MB a clip":>10}{"ms a batch":>12}')
  for row in (row for row in rows if 'to_device' in row):
    print(f'{row["to_device"]:34}{row["megabytes_per_clip"]:10}{row["ms_per_batch"]:12}')


if __name__ == '__main__':
  main()
