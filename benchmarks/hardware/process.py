"""A program in a process of its own that answers JSON lines, with a time limit for each."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class TimeUp(Exception):
  """Says that no answer came within the limit."""


class Ended(Exception):
  """Says how a process ended, with the last line that it wrote to standard error."""


class Process:
  """Starts a program and exchanges lines with it; lines that are no JSON object are skipped."""

  def __init__(self, command: list[str], environment: dict[str, str]):
    self.errors = tempfile.TemporaryFile('w+')
    self.process = subprocess.Popen(
      command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True)
    self.lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=self._read, daemon=True).start()

  def _read(self) -> None:
    for line in self.process.stdout:
      if line.startswith('{'):
        self.lines.put(line)
    self.lines.put(None)

  def ask(self, line: str, seconds: float) -> dict[str, Any]:
    """Sends a line and waits for its answer; raises as `receive`."""
    try:
      self.process.stdin.write(f'{line}\n')
      self.process.stdin.flush()
    except BrokenPipeError:
      pass                                        # `receive` says how the process ended
    return self.receive(seconds)

  def receive(self, seconds: float) -> dict[str, Any]:
    """Waits for an answer.

    Raises:
      TimeUp: none within so many seconds.
      Ended: the process ended without one.
    """
    try:
      line = self.lines.get(timeout=max(seconds, 0))
    except queue.Empty:
      raise TimeUp(f'no answer in {seconds:.0f} s') from None
    if line is None:
      code = self.process.wait()
      how = (f'was ended by {signal.Signals(-code).name}' if code < 0 else
             f'ended with exit code {code}')
      raise Ended(f'the process {how}: {self.last_error()}')
    return json.loads(line)

  def last_error(self) -> str:
    self.errors.seek(0)
    lines = [line.strip() for line in self.errors if line.strip()]
    return lines[-1][:300] if lines else 'nothing on standard error'

  def close(self) -> None:
    """Ends the program and what it started, and waits: the device must be free for the next."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()                  # programs end with their standard input
    try:
      self.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()
    self.errors.close()
