"""How many clips a second does one core decode, and are they the right frames?

  python benchmarks/data.py                                     # ours, and what is installed
  python benchmarks/data.py --rounds 20 --out data.jsonl --plot data.png

Files of 340 x 256 pixels are made for this, with a number painted into every frame. In each round
every reader takes 8 frames of every file, one after another in turns, and crops them to 224 x 224;
the frames are those of a random training clip, the same for all. Figures are medians of process CPU
time, all threads together. decord, torchcodec and OpenCV take part if they can be imported.
"""

import argparse
import fractions
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OPENCV_FFMPEG_CAPTURE_OPTIONS', 'threads;1')  # before cv2 is imported

import av
import cv2
import numpy as np

from xclip_jax.data import augment, decode, sampling

HEIGHT, WIDTH, FRAMES, FPS, T, BITS = 256, 340, 250, 25, 8, 8
FILES = {
  'long GOP, B-frames': ('a.mp4', 'libx264', {'g': '250', 'bf': '3', 'crf': '23'}),
  'long GOP': ('b.mp4', 'libx264', {'g': '250', 'bf': '0', 'crf': '23'}),
  'GOP 12': ('c.mp4', 'libx264', {'g': '12', 'bf': '0', 'crf': '23'}),
  'MPEG-4 avi': ('d.avi', 'mpeg4', {'g': '250', 'bf': '0', 'qscale': '4'}),
  'MPEG-4 avi, B-frames': ('e.avi', 'mpeg4', {'g': '12', 'bf': '2', 'qscale': '4'}),
}
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
  readers = {'ours': read_ours} | peers()
  with tempfile.TemporaryDirectory(prefix='data') as folder:
    paths = {name: write_video(Path(folder) / file, codec, options)
             for name, (file, codec, options) in FILES.items()}
    rows = measure(readers, paths, arguments.rounds)
    rows += [{'file': name, 'stages': stages(path, arguments.rounds)}
             for name, path in paths.items()]
  lines = [json.dumps(about())] + [json.dumps(row) for row in rows]
  print('\n'.join(lines))
  if arguments.out:
    Path(arguments.out).write_text('\n'.join(lines) + '\n')
  print_tables(rows)
  if arguments.plot:
    plot(rows, arguments.plot)


def read_ours(path: str, indices: np.ndarray) -> np.ndarray:
  return decode.read_video(path, lambda _: indices)


def peers() -> dict[str, Reader]:
  """The other readers that can be imported; says which cannot."""
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
  """Grab all, retrieve the wanted: the fastest of OpenCV's ways to get the right frames."""
  capture, wanted, frames = cv2.VideoCapture(path), set(indices.tolist()), {}
  for number in range(max(wanted) + 1):
    if not capture.grab():
      break
    if number in wanted:
      frames[number] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
  capture.release()
  return np.stack([frames[i] for i in indices.tolist()])


def measure(
  readers: dict[str, Reader], paths: dict[str, str], rounds: int
) -> list[dict[str, object]]:
  """A row for each reader and file; the first round, which warms up, is not counted."""
  transform, rng = augment.EvalTransform(224), np.random.default_rng(0)
  seconds = {(reader, file): [] for reader in readers for file in paths}
  wrong, failed = dict.fromkeys(seconds, 0), {}
  for number in range(rounds + 1):
    for file, path in paths.items():
      indices = sampling.train_indices(FRAMES, T, rng.integers)
      order = list(readers)
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
            read_number(x) != i for x, i in zip(frames, indices.tolist(), strict=True))
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


def stages(path: str, rounds: int) -> dict[str, float]:
  """Share of our time that goes into each stage."""
  transform, rng = augment.EvalTransform(224), np.random.default_rng(1)
  spent = dict.fromkeys(('demux', 'decode', 'convert', 'resize'), 0.0)
  to_rgb = decode._to_rgb

  def timed_to_rgb(frame):
    begin = time.process_time()
    rgb = to_rgb(frame)
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


def write_video(path: Path, codec: str, options: dict[str, str]) -> str:
  """A textured picture that pans, numbered by eight bars along its upper edge."""
  rng = np.random.default_rng(0)
  scene = cv2.resize(rng.integers(0, 256, (80, 200, 3), np.uint8), (1400, 560))
  grain = rng.integers(-6, 7, (HEIGHT, WIDTH, 3), np.int16)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=FPS, options=options)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
    stream.codec_context.thread_count = 1
    if codec == 'mpeg4':
      stream.codec_context.codec_tag = 'XVID'
    for number in range(FRAMES):
      x, y = 4 * number, 150 + int(140 * np.sin(number / 25))
      frame = scene[y:y + HEIGHT, x:x + WIDTH] + np.roll(grain, 7 * number, axis=1)
      bars = number >> np.arange(BITS)[::-1] & 1
      frame[:32] = np.where(bars, 220, 30)[np.arange(WIDTH) * BITS // WIDTH][None, :, None]
      picture = av.VideoFrame.from_ndarray(np.clip(frame, 0, 255).astype(np.uint8), format='rgb24')
      picture.pts, picture.time_base = number, fractions.Fraction(1, FPS)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return str(path)


def read_number(frame: np.ndarray) -> int:
  profile = frame[4:28].mean((0, 2))                                     # [W]
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
  print(f'\n{"clips a second and core":28}{"reader":>12}{"median":>9}{"wrong frames":>16}')
  for row in (row for row in rows if 'reader' in row):
    if 'error' in row:
      print(f'{row["file"]:28}{row["reader"]:>12}   {row["error"]}')
      continue
    wrong = f'{row["wrong_frames"]} of {row["frames"]}'
    print(f'{row["file"]:28}{row["reader"]:>12}{row["clips_per_second_per_core"]:9}{wrong:>16}')
  print(f'\n{"share of our time":28}' + ''.join(f'{x:>10}' for x in rows[-1]['stages']))
  for row in (row for row in rows if 'stages' in row):
    print(f'{row["file"]:28}' + ''.join(f'{x:10.0%}' for x in row['stages'].values()))


def plot(rows: list[dict], path: str) -> None:
  from matplotlib import pyplot as plt

  rows = [row for row in rows if 'cpu_ms' in row]
  readers = list(dict.fromkeys(row['reader'] for row in rows))
  figure, axes = plt.subplots(figsize=(9, 4), layout='constrained')
  for i, reader in enumerate(readers):
    for row in (row for row in rows if row['reader'] == reader):
      place = list(FILES).index(row['file']) + (i - (len(readers) - 1) / 2) * 0.8 / len(readers)
      right = not row['wrong_frames']
      axes.bar(place, row['clips_per_second_per_core'], 0.8 / len(readers), color=f'C{i}',
               alpha=1 if right else 0.3, hatch=None if right else '//')
    axes.bar(0, 0, color=f'C{i}', label=reader)
  axes.bar(0, 0, color='gray', alpha=0.3, hatch='//', label='some frames are wrong')
  axes.set_xticks(range(len(FILES)), list(FILES))
  axes.set_ylabel('clips / s / core')
  axes.legend()
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  main()
