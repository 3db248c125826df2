"""Metrics, speed, progress, profile and stop signal of a training loop."""

import contextlib
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.parallel import process_exit, processes, stop_signals
from xclip_jax.storage.checkpoints import Checkpoints


class NonFiniteLossError(UserError, RuntimeError):
  """The loss is NaN or infinite; the message names the step, its videos and the last checkpoint."""


class MetricsBuffer:
  """Buffers the metrics of each step on the device and fetches them when a row is logged.

  Fields:
    rows: metrics of the steps since the last log row, as far as they were fetched.
  """

  def __init__(self, rows: list[dict[str, float]], videos: Any, checkpoints: Checkpoints):
    """Begins with the rows of a checkpoint.

    Args:
      rows: metrics of earlier steps that no log row holds yet.
      videos: the training videos, whose paths an error names.
      checkpoints: of the run, the last of which an error names.
    """
    self.rows = list(rows)
    self._pending: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []
    self._videos, self._checkpoints = videos, checkpoints

  def add(self, step: int, metrics: dict[str, jax.Array], index: np.ndarray) -> None:
    """Keeps the metrics of a step, still on the device, and the rows of its videos, int [B]."""
    self._pending.append((step, metrics, index))

  def fetch(self) -> None:
    """Waits for the device; raises NonFiniteLossError for the first step with a bad metric."""
    for step, metrics, index in self._pending:
      row = {k: float(v) for k, v in jax.device_get(metrics).items()}
      if not all(map(math.isfinite, row.values())):
        paths = sorted({self._videos[int(i)]['path'] for i in index if i >= 0})
        last = self._checkpoints.latest_step()
        good = self._checkpoints.folder / str(last) if last else 'none yet'
        raise NonFiniteLossError(
          f'at step {step} the loss is {row["loss"]} (gradient norm {row["grad_norm"]}); stopped, '
          f'nothing of it was saved.\nLast good checkpoint: {good}\n'
          'Lower config.optim.lr, set config.optim.clip_norm, or look at the videos of that batch:'
          '\n  ' + '\n  '.join(paths[:64])
        )
      self.rows.append(row)
    self._pending.clear()

  def mean(self) -> dict[str, float]:
    """Returns the mean of each metric since the last call, and empties the buffer."""
    self.fetch()
    rows, self.rows = self.rows, []
    return {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}


class Progress:
  """Shows the progress of a run: a bar on a terminal, else one line for each log row.

  A context manager; only process 0 shows anything.
  """

  def __init__(self, total: int, done: int):
    """Begins at update `done` of `total`."""
    self._total, self._speaks = total, jax.process_index() == 0
    self._bar = tqdm.tqdm(
      total=total, initial=done, unit='step', desc='training', dynamic_ncols=True,
      disable=None if self._speaks else True)            # None: disabled without a terminal

  def update(self) -> None:
    """Counts an update."""
    self._bar.update()

  def log(self, step: int, loss: float, lr: float, speed: float) -> None:
    """Shows the numbers of a log row; speed is in videos a second."""
    text = f'loss {loss:.3f}, lr {lr:.1e}, {speed:.3g} videos/s'
    if self._bar.disable:
      self.say(f'step {step}/{self._total}: {text}')
    else:
      self._bar.set_postfix_str(text)

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if not self._speaks:
      return
    if self._bar.disable:
      print(text, flush=True)
    else:
      self._bar.write(text)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.close()


class Clock:
  """Measures the time spent training, without evaluations."""

  def __init__(self, step: int):
    """Starts at an update."""
    self._start, self._mark, self._step = time.monotonic(), time.monotonic(), step

  @property
  def seconds(self) -> float:
    """Seconds since the start, without pauses."""
    return time.monotonic() - self._start

  def rate(self, step: int) -> float:
    """Returns updates a second since the last call."""
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._mark, 1e-9)
    self._mark, self._step = now, step
    return rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out the time that the block takes."""
    begin = time.monotonic()
    yield
    self._start += time.monotonic() - begin
    self._mark += time.monotonic() - begin


class Profile:
  """Records some updates with jax.profiler, for xprof or TensorBoard; a context manager."""

  def __init__(self, profile: Any, workdir: files.AnyPath):
    """Prepares the recording of the updates of `config.profile` into workdir/profile."""
    self._first, self._last = profile.first, profile.first + profile.steps - 1
    self._folder, self._is_running = workdir / 'profile', False
    self._temporary: tempfile.TemporaryDirectory | None = None

  @contextlib.contextmanager
  def update(self, step: int) -> Iterator[None]:
    """Starts the recording if update `step` is the first to record; wraps the update."""
    if step == self._first <= self._last:
      if files.is_remote(self._folder):        # JAX writes local files
        self._temporary = tempfile.TemporaryDirectory(prefix='xclip-profile-')
      jax.profiler.start_trace(self._temporary.name if self._temporary else self._folder)
      self._is_running = True
    with jax.profiler.StepTraceAnnotation('train', step_num=step) if self._is_running else (
      contextlib.nullcontext()):
      yield

  def done(self, step: int, outcome: Any) -> None:
    """Ends the recording after the last update to record, when its outcome is computed."""
    if self._is_running and step == self._last:
      jax.block_until_ready(outcome)
      self._stop()

  def _stop(self) -> None:
    """Ends the recording, and copies it to a bucket if the workdir is in one."""
    jax.profiler.stop_trace()
    self._is_running = False
    if self._temporary:
      files.copy_in(Path(self._temporary.name), self._folder)
      self._temporary.cleanup()

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *_: Any) -> None:
    if self._is_running:
      self._stop()


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
  """Yields a function that tells whether SIGTERM asks the run to save and stop (pre-emption)."""
  if jax.process_count() > 1:
    with process_exit.publish_failure():
      yield processes.agreed_stop_signal()
    return
  if stop_signals.is_served():
    yield stop_signals.is_stop_requested
    return
  came = []
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
  except ValueError:       # outside the main thread, which alone may handle signals
    yield lambda: False
    return
  try:
    yield lambda: bool(came)
  finally:
    signal.signal(signal.SIGTERM, before)
