"""The proof of an export: its graphs beside this package, on clips of many sizes.

What is compared is what users call: frames at their own size go in, pixels, features and logits
come out. Differences of features and logits are shares of the largest value.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xclip_jax import files
from xclip_jax.data.clips import sampling
from xclip_jax.data.clips.augment import EvalTransform
from xclip_jax.data.video import decode
from xclip_jax.errors import UserError
from xclip_jax.export import runtimes
from xclip_jax.export.graphs import functions
from xclip_jax.models.inference_options.quantisation import cast_for_inference
from xclip_jax.models.xclip import XCLIP, XCLIPOutput, encode_pixels
from xclip_jax.text import tokenizer, vocabulary
from xclip_jax.weights import native

FILE = 'parity.md'
# Largest difference of logits, over the largest logit. Half precision rounds to 8 (bfloat16) or 11
# bits (float16 in ONNX), and where it rounds depends on the runtime.
BOUNDS = {'float32': 1e-4, 'bfloat16': 5e-2}
_SECONDS = 600.0
_SIZES = ((1080, 1920), (90, 2000), (227, 341))        # height and width of frames, and S itself
_MORE = ((3, 1), (8, 400))                             # B and K, at one size
_TIMED = (270, 480)


class Case(NamedTuple):
  """Videos and texts that all runtimes get."""

  name: str
  frames: np.ndarray       # uint8 [B, T, H, W, 3]
  token_ids: np.ndarray    # int32 [K, S]


class Row(NamedTuple):
  """Differences of one runtime for one case."""

  case: str
  runtime: str
  pixels: int              # largest difference, 0..255
  pixels_share: float      # of the values that differ
  features: float          # largest difference over the largest value, of videos and texts
  logits: float
  same_top1: int
  videos: int


class Timing(NamedTuple):
  """Cost of one runtime."""

  runtime: str
  first: float             # seconds until the first answer, loading and compiling included
  seconds: float           # of a later call, the median
  bytes: int               # peak memory of the process


def prove(
  folder: Path, weights: native.Weights, targets: Sequence[str], videos: Sequence[str] = ()
) -> list[Row]:
  """Compares an export with this package, and writes parity.md into it.

  Args:
    folder: of the export.
    weights: that it was made from.
    targets: runtimes: 'stablehlo', 'onnx'.
    videos: files of the user, compared too.

  Raises:
    UserError: logits differ by more than the bound, or a video cannot be read.
  """
  bound = BOUNDS[weights.config.dtype]
  cases = [*_made_cases(weights), *_cases_of_videos(weights, videos)]
  rows = []
  opened = {target: runtimes.RUNTIMES[target](folder) for target in targets}
  ours = Ours(weights)
  for case in cases:
    want = ours(case)
    rows += [_compare(case, target, run, want) for target, run in opened.items()]
  timings = _measure(folder, weights, targets, _case(weights, 1, 5, _TIMED))
  files.write_text(folder / FILE, report(rows, timings, bound, weights))
  worst = max(rows, key=lambda row: row.logits)
  if not worst.logits <= bound:                        # nor NaN
    raise UserError(
      f'the export is not equal to the model: logits of {worst.runtime} differ by '
      f'{worst.logits:.1e} of the largest ({worst.case}), and {bound:g} is allowed with '
      f'{weights.config.dtype}; nothing was written. This is a bug of xclip-jax or of the runtime: '
      'please report the command and the versions')
  return rows


class Ours:
  """This package's own answers to a case: pixels, outputs of the model."""

  def __init__(self, weights: native.Weights):
    config = functions.portable_config(weights.config)
    self._model, self._statistics = XCLIP(config), weights.preprocess
    self._params = jax.device_put(cast_for_inference(weights.params, config))
    self._transform = EvalTransform.of(weights.preprocess, config.image_size)
    self._apply = jax.jit(self._outputs)

  def __call__(self, case: Case) -> tuple[np.ndarray, XCLIPOutput, np.ndarray | None]:
    """Returns pixels [B, T, S, S, 3], outputs, and patch features [B, M, E]."""
    pixels = np.stack([self._transform(video) for video in case.frames])
    return pixels, *self._apply(self._params, pixels, case.token_ids)

  def _outputs(self, params: Any, pixels: Any, ids: Any) -> tuple[Any, Any]:
    features = encode_pixels(self._model, params, pixels, self._statistics)
    text = self._model.apply({'params': params}, ids, method='encode_text')
    output = self._model.apply({'params': params}, features, text, method='classify')
    return output, features.patch_features


def _compare(
  case: Case, target: str, run: Any, want: tuple[np.ndarray, XCLIPOutput, np.ndarray | None]
) -> Row:
  pixels, output, patches = want
  found = run('pixels', case.frames)[0].astype(int) - pixels
  video = run('video', case.frames)
  text, = run('text', case.token_ids)
  _, logits = run('score', *video, text)
  pairs: list[tuple[Any, Any]] = [(video[0], output.video_features), (text, output.text_features)]
  if patches is not None:
    pairs.append((video[1], patches))
  logits_of_ours = np.asarray(output.logits)
  return Row(
    case.name, target, int(np.abs(found).max()), float((found != 0).mean()),
    max(_difference(*pair) for pair in pairs), _difference(logits, logits_of_ours),
    int((logits.argmax(1) == logits_of_ours.argmax(1)).sum()), len(logits))


def _difference(found: Any, want: Any) -> float:
  found, want = np.asarray(found, np.float64), np.asarray(want, np.float64)
  if not np.isfinite(found).all():
    return float('nan')
  return float(np.abs(found - want).max() / max(np.abs(want).max(), 1e-30))


# --- cases --------------------------------------------------------------------------------------


def _made_cases(weights: native.Weights) -> Iterator[Case]:
  size = weights.config.image_size
  for height, width in (*_SIZES, (size, size)):
    yield _case(weights, 1, 5, (height, width))
  for count, texts in _MORE:
    yield _case(weights, count, texts, (120, 160))


def _case(weights: native.Weights, count: int, texts: int, size: tuple[int, int]) -> Case:
  height, width = size
  return Case(f'{height} x {width}, B = {count}, K = {texts}',
              np.stack([made_clip(weights.config.num_frames, height, width, seed=i)
                        for i in range(count)]),
              token_ids(weights, texts))


def made_clip(count: int, height: int, width: int, seed: int) -> np.ndarray:
  """Draws a clip of smooth colours that move, and noise: uint8 [count, height, width, 3]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width][..., None] / max(height, width)
  waves = rng.uniform(-9, 9, (3, 3, 3))
  frames = []
  for t in range(count):
    angles = x * waves[0, :, 0] + y * waves[1, :, 1] + t / 4 * waves[2, :, 2]
    noise = rng.integers(-20, 21, (height, width, 3))
    frames.append(np.clip(127 + 90 * np.sin(angles) + noise, 0, 255).astype(np.uint8))
  return np.stack(frames)


def token_ids(weights: native.Weights, count: int) -> np.ndarray:
  """Returns ids of texts, int32 [count, S]: the labels of the weights, then numbered ones."""
  config = weights.config
  if not vocabulary.is_clips(config.vocab_size):
    ids = np.random.default_rng(0).integers(
      1, config.vocab_size, (count, config.context_length), np.int32)
    return ids
  labels = [*weights.labels, *(f'a thing with number {i}' for i in range(count))][:count]
  template = weights.template if isinstance(weights.template, str) else weights.template[0]
  texts = [template.replace('{}', label) for label in labels]
  return tokenizer.Tokenizer(config.context_length)(texts, truncate=True)   # all S, as the graphs


def _cases_of_videos(weights: native.Weights, videos: Sequence[str]) -> Iterator[Case]:
  config = weights.config
  for video in videos:
    frames = decode.read_video(
      video, lambda count: sampling.test_indices(count, config.num_frames), _SECONDS,
      square_pixels=weights.preprocess.square_pixels)
    height, width = frames.shape[1:3]
    yield Case(f'{os.path.basename(video)}, {height} x {width}', frames[None],
               token_ids(weights, max(len(weights.labels), 5)))


# --- cost ---------------------------------------------------------------------------------------


def _measure(
  folder: Path, weights: native.Weights, targets: Sequence[str], case: Case
) -> list[Timing]:
  """Measures this package and each runtime in turn, each in a process of its own, twice."""
  found: dict[str, list[dict[str, Any]]] = {}
  with tempfile.TemporaryDirectory() as temporary:
    ours, clip = Path(temporary, 'ours'), Path(temporary, 'clip.npz')
    native.save(ours, weights)
    np.savez(clip, frames=case.frames, token_ids=case.token_ids)
    for _ in range(2):
      for runtime in ('ours', *targets):
        done = subprocess.run(
          [sys.executable, '-m', 'xclip_jax.export.proof.measure', runtime,
           str(ours if runtime == 'ours' else folder), str(clip)],
          capture_output=True, text=True)
        if done.returncode:
          raise RuntimeError(f'measuring {runtime} failed:\n{done.stderr}')
        found.setdefault(runtime, []).append(json.loads(done.stdout.splitlines()[-1]))
  return [Timing(runtime, *(min(run[key] for run in runs) for key in ('first', 'seconds', 'bytes')))
          for runtime, runs in found.items()]


# --- the page -----------------------------------------------------------------------------------


def report(
  rows: Sequence[Row], timings: Sequence[Timing], bound: float, weights: native.Weights
) -> str:
  """Returns parity.md."""
  config = weights.config
  lines = [
    '# Proof of this export', '',
    f'Measured when the export was made, on {jax.default_backend()}, beside xclip-jax itself: the '
    f'same frames in, T = {config.num_frames}, {config.dtype}. Differences of features and logits '
    'are shares of the largest value. '
    f'The export fails if logits differ by more than {bound:g}.', '',
    '| frames and sizes | runtime | pixels: largest difference | pixels that differ | features | '
    'logits | equal top-1 |', '|---|---|---|---|---|---|---|']
  lines += [
    f'| {row.case} | {row.runtime} | {row.pixels} | {row.pixels_share:.4%} | {row.features:.1e} | '
    f'{row.logits:.1e} | {row.same_top1} of {row.videos} |' for row in rows]
  lines += [
    '', f'One clip of {_TIMED[0]} x {_TIMED[1]} frames and 5 texts, from frames to logits; each '
    f'runtime in a process of its own, in turn, twice, the better one; {os.cpu_count()} CPUs. '
    'Other programs on the machine disturb these numbers.', '',
    '| runtime | first answer | later ones | beside xclip-jax | peak memory |',
    '|---|---|---|---|---|']
  ours = timings[0]
  lines += [
    f'| {x.runtime.replace("ours", "xclip-jax")} | {x.first:.1f} s | {x.seconds * 1e3:.0f} ms | '
    f'{ours.seconds / x.seconds:.2f} x the speed | {x.bytes / 2**20:,.0f} MiB |' for x in timings]
  return '\n'.join(lines) + '\n'
