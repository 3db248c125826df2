"""What the loop of a run knows about itself: its metrics, its speed, and whether to stop."""

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

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.parallel import process_exit, processes, stop_signals
from xclip_jax.storage.checkpoints import Checkpoints


class NonFiniteLossError(UserError, RuntimeError):
  """The loss is NaN or infinite; says at which step, on which files, and what is safe."""


class MetricsBuffer:
  """Metrics since the last log row: on the device until somebody has to look at them."""

  def __init__(self, rows: list[dict[str, float]], videos: Any, ckpt: Checkpoints):
    self.rows = list(rows)
    self._pending: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []
    self._videos, self._ckpt = videos, ckpt

  def add(self, step: int, metrics: dict[str, jax.Array], index: np.ndarray) -> None:
    self._pending.append((step, metrics, index))

  def fetch(self) -> None:
    """Waits for the device; raises NonFiniteLossError at the first bad step."""
    for step, metrics, index in self._pending:
      row = {k: float(v) for k, v in jax.device_get(metrics).items()}
      if not all(map(math.isfinite, row.values())):
        files = sorted({self._videos[int(i)]['path'] for i in index if i >= 0})
        last = self._ckpt.latest_step()
        good = self._ckpt.folder / str(last) if last else 'none yet'
        raise NonFiniteLossError(
          f'at step {step} the loss is {row["loss"]} (gradient norm {row["grad_norm"]}); stopped, '
          f'nothing of it was saved.\nLast good checkpoint: {good}\n'
          'Lower config.optim.lr, set config.optim.clip_norm, or look at the videos of that batch:'
          '\n  ' + '\n  '.join(files[:64])
        )
      self.rows.append(row)
    self._pending.clear()

  def mean(self) -> dict[str, float]:
    """Averages the window and empties it."""
    self.fetch()
    rows, self.rows = self.rows, []
    return {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}


class Clock:
  """Seconds spent training, evaluations left out."""

  def __init__(self, step: int):
    self._start, self._mark, self._step = time.monotonic(), time.monotonic(), step

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._start

  def rate(self, step: int) -> float:
    """Steps a second since the last call."""
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._mark, 1e-9)
    self._mark, self._step = now, step
    return rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    begin = time.monotonic()
    yield
    self._start += time.monotonic() - begin
    self._mark += time.monotonic() - begin


class Profile:
  """Records some updates with jax.profiler, for xprof or TensorBoard; a context manager."""

  def __init__(self, profile: Any, workdir: Path):
    """Args: profile is `config.profile`; the recording goes to workdir/profile."""
    self._first, self._last = profile.first, profile.first + profile.steps - 1
    self._folder, self._runs, self._temporary = workdir / 'profile', False, None

  @contextlib.contextmanager
  def update(self, step: int) -> Iterator[None]:
    """Around update `step`."""
    if step == self._first <= self._last:
      if files.is_remote(self._folder):        # JAX writes local files
        self._temporary = tempfile.TemporaryDirectory(prefix='xclip-profile-')
      jax.profiler.start_trace(self._temporary.name if self._temporary else self._folder)
      self._runs = True
    with jax.profiler.StepTraceAnnotation('train', step_num=step) if self._runs else (
      contextlib.nullcontext()):
      yield

  def done(self, step: int, outcome: Any) -> None:
    """After update `step`, whose outcome is waited for if it is the last to be recorded."""
    if self._runs and step == self._last:
      jax.block_until_ready(outcome)
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._runs = False
    if self._temporary:
      files.copy_in(Path(self._temporary.name), self._folder)
      self._temporary.cleanup()

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *_: Any) -> None:
    if self._runs:
      self._stop()


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
  """Yields a function that tells whether SIGTERM has come (pre-emption): save, then leave."""
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
  except ValueError:       # not in the main thread: somebody else's business
    yield lambda: False
    return
  try:
    yield lambda: bool(came)
  finally:
    signal.signal(signal.SIGTERM, before)
