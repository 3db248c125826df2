"""Shards of a prepared list: each written by a process of its own, whole or not at all.

A shard is an ArrayRecord file, and a JSON file of facts beside it: the videos in it, and its
SHA-256. The JSON file is written last, and both appear under their names only when they are whole
and on disk: the remains of a killed process are never taken for a shard.
"""

import collections
import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import math
import multiprocessing.connection
import os
import signal
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from xclip_jax import files
from xclip_jax.data import workers
from xclip_jax.data.reading import damage
from xclip_jax.data.video import archives, decode, encode, times
from xclip_jax.errors import UserError

VERSION = 1                   # of the stored files; raised when they must be prepared again
_TRIES = 2                    # times that a video may end the process that reads it
_STALLED_SECONDS = 300.0      # in which the next frame of a video must come


@dataclasses.dataclass(frozen=True)
class Shard:
  """Describes one file of a prepared list.

  Fields:
    file: path of the shard, `<name>.array_record`.
    paths: paths of its videos, as the list gives them.
    root: folder that these paths start from.
    encoding: how the videos are stored.
  """

  file: str
  paths: tuple[str, ...]
  root: str
  encoding: encode.Encoding

  @property
  def facts_file(self) -> str:
    """Returns the path of the JSON file with the facts about this shard."""
    return self.file.removesuffix('.array_record') + '.json'

  @functools.cached_property
  def digest(self) -> str:
    """Returns the SHA-256 of the intended contents, wherever the videos lie, hexadecimal."""
    intended = [VERSION, self.encoding.settings, self.paths]
    return hashlib.sha256(json.dumps(intended).encode()).hexdigest()


def read_facts(shard: Shard) -> dict[str, Any]:
  """Reads the facts about a shard; UserError if they are missing or belong to another shard."""
  try:
    with open(shard.facts_file, 'rb') as file:
      facts = json.load(file)
  except (OSError, ValueError) as error:
    raise UserError(f'{os.path.basename(shard.facts_file)} cannot be read ({error})') from error
  if not isinstance(facts, dict) or facts.get('digest') != shard.digest:
    raise UserError(f'{os.path.basename(shard.facts_file)} is about other videos or settings')
  videos = facts.get('videos')
  if not {'bytes', 'sha256', 'failed'} <= facts.keys() or not isinstance(videos, list) or not all(
    isinstance(video, dict) and {'frames', 'height', 'width'} <= video.keys() for video in videos):
    raise UserError(f'{os.path.basename(shard.facts_file)} is damaged: a fact is missing')
  return facts


def find_fault(shard: Shard, decoding: bool = False) -> str:
  """Returns the fault of a shard, '' if it has none; checks its facts, size and SHA-256.

  Args:
    shard: the shard as it should be.
    decoding: decode a frame of every record, too.
  """
  try:
    facts = read_facts(shard)
    if os.path.getsize(shard.file) != facts['bytes']:
      return f'{os.path.getsize(shard.file)} bytes, written were {facts["bytes"]}'
    if files.sha256(shard.file) != facts['sha256']:
      return 'its SHA-256 is not the one it was written with'
    for number, video in enumerate(facts['videos'] if decoding else ()):
      counts = []
      middle = lambda n, counts=counts: counts.append(n) or np.array([n // 2])
      _, height, width, _ = decode.read_video(f'{shard.file}/{number}', middle).shape
      if (counts[0], height, width) != (video['frames'], video['height'], video['width']):
        return f'record {number} is not the video that was written'
  except OSError as error:
    return f'{error.strerror or error}'
  except UserError as error:
    return str(error).removeprefix(f'{shard.file}/')
  return ''


def write(shard: Shard, blamed: dict[int, str], begin: Callable[[int], None]) -> None:
  """Encodes the videos of a shard, writes it, and reads it back.

  Args:
    shard: shard to write.
    blamed: number of each video that must not be read -> reason.
    begin: called with the number of each video before it is read, and with their count at the end.

  Raises:
    OSError, UserError: the disk is full, or reads back other bytes than were written.
  """
  began = time.process_time()
  temporary = _temporary(shard.file)
  videos, failed, digests = [], [], []
  try:
    writer = array_record_module.ArrayRecordWriter(temporary, 'group_size:1,uncompressed')
    for number, path in enumerate(shard.paths):
      begin(number)
      result = blamed.get(number) or _encode(os.path.join(shard.root, path), shard.encoding)
      if isinstance(result, str):
        failed.append({'path': path, 'reason': result})
        continue
      content, facts = result
      writer.write(content)
      digests.append(hashlib.sha256(content).digest())
      videos.append({'path': path, 'bytes': len(content), **facts})
    begin(len(shard.paths))
    writer.close()
  except RuntimeError as error:  # ArrayRecord's, for every error of the disk
    raise UserError(f'cannot write {shard.file}: {error}') from error
  for number, digest in enumerate(digests):
    if hashlib.sha256(archives.read(f'{temporary}/{number}')).digest() != digest:
      raise UserError(f'{shard.file}: record {number} does not read as it was written')
  content = {
    'version': VERSION, 'digest': shard.digest, 'sha256': files.sha256(temporary),
    'bytes': os.path.getsize(temporary), 'cpu_seconds': round(time.process_time() - began, 3),
    'encoding': shard.encoding.settings, 'videos': videos, 'failed': failed,
  }
  files.replace_file(Path(temporary), Path(shard.file))
  files.write_bytes(Path(shard.facts_file), json.dumps(content, indent=1).encode())


def _encode(path: str, encoding: encode.Encoding) -> tuple[bytes, dict[str, Any]] | str:
  """Returns the content of a stored video and facts about it, or the reason why it failed."""
  notes: list[damage.Note] = []
  try:
    file, _ = times.split_span(path)
    size = archives.size(file) if archives.is_member(file) else os.path.getsize(file)
    encoded = encode.encode(path, encoding, notes.append, _STALLED_SECONDS)
  except OSError as error:
    return error.strerror or str(error)
  except decode.VideoError as error:
    return str(error).removeprefix(f'{path}: ')
  except Exception as error:  # of any codec: one video must not end the preparation of all
    return f'{type(error).__name__}: {error}'
  return encoded.content, {
    'source_bytes': size, 'frames': encoded.num_frames, 'height': encoded.height,
    'width': encoded.width, 'psnr': round(encoded.psnr, 3) if math.isfinite(encoded.psnr) else None,
    'seconds': round(encoded.seconds, 3), 'notes': [note.text for note in notes],
  }


def remove_temporaries(path: str) -> None:
  """Removes the temporary files that processes which have ended left for a file."""
  folder, name = os.path.split(path)
  for begin in ('.*.tmp.', '.*.partial.'):
    for temporary in glob.glob(os.path.join(glob.escape(folder), begin + glob.escape(name))):
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)


def _temporary(path: str) -> str:
  # The suffix stays: `archives` tells by it that the file, read back before renaming, has records.
  folder, name = os.path.split(path)
  return os.path.join(folder, f'.{os.getpid()}.tmp.{name}')


class _Writing:
  """Runs a process that writes a shard, and keeps the number of the video it has begun."""

  def __init__(self, shard: Shard, blamed: dict[int, str]):
    self.shard, self.blamed = shard, blamed
    self.latest = -1
    self.connection, sender = workers.SPAWN.Pipe(duplex=False)
    self.process = workers.SPAWN.Process(target=_work, args=(sender, shard, blamed), daemon=True)
    self.process.start()
    sender.close()            # with the only sender in the process, its end closes the connection

  def receive(self) -> int | str | Exception | None:
    """Returns the next message: number of a video, None at the end, an error, or the exit code."""
    try:
      return self.connection.recv()
    except (EOFError, OSError):
      self.process.join()
      return _explain(self.process.exitcode)

  def blame_video(self, reason: str) -> None:
    """Leaves out the video that this process has begun; UserError if it has begun none."""
    if not 0 <= self.latest < len(self.shard.paths):
      raise UserError(f'the process that writes {self.shard.file} ends: {reason}')
    self.blamed[self.latest] = f'reading it ends the process: {reason}'

  def stop(self) -> None:
    """Kills the process and removes the files that it had begun."""
    self.process.kill()
    self.process.join()
    self.connection.close()
    for path in (self.shard.file, self.shard.facts_file):
      remove_temporaries(path)


def _work(connection: Any, shard: Shard, blamed: dict[int, str]) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C goes to all; the main process decides
  workers.leave_with_parent()
  cv2.setNumThreads(1)

  def tell(message: Any) -> None:
    try:
      connection.send(message)
    except BrokenPipeError:   # the main process has ended
      os._exit(1)

  try:
    write(shard, blamed, tell)
    tell(None)
  except (OSError, UserError) as error:
    tell(error)
  except Exception:
    tell(RuntimeError(f'preparing {shard.file} failed:\n{traceback.format_exc()}'))


def write_all(shards: Sequence[Shard], processes: int) -> Generator[Shard | None]:
  """Writes shards, `processes` at a time, each in a process of its own.

  A video whose process is killed or crashes is tried once more, and then left out.

  Yields:
    None for every video that was stored or has failed, and each shard when it is complete.

  Raises:
    OSError, UserError: a shard cannot be written. The end of this generator, for whatever
      reason, ends the processes.
  """
  waiting: collections.deque[tuple[Shard, dict[int, str]]] = collections.deque(
    (shard, {}) for shard in shards)
  crashes = collections.Counter()       # (file, number of a video) -> processes that ended there
  finished = collections.Counter()      # file -> number of its videos that were counted
  running: dict[Any, _Writing] = {}
  try:
    while waiting or running:
      while waiting and len(running) < processes:
        writing = _Writing(*waiting.popleft())
        running[writing.connection] = writing
      for connection in multiprocessing.connection.wait(list(running)):
        writing = running[connection]
        shard, message = writing.shard, writing.receive()
        if isinstance(message, int):
          writing.latest = message
          for _ in range(message - finished[shard.file]):
            yield None
          finished[shard.file] = max(message, finished[shard.file])
          continue
        del running[connection]
        writing.stop()
        if message is None:
          yield shard
        elif isinstance(message, Exception):
          raise message
        else:
          crashes[shard.file, writing.latest] += 1
          if crashes[shard.file, writing.latest] == _TRIES:
            writing.blame_video(message)
          waiting.appendleft((shard, writing.blamed))
  finally:
    for writing in running.values():
      writing.stop()


def _explain(exit_code: int | None) -> str:
  assert exit_code is not None             # the process was joined
  if exit_code == -signal.SIGKILL:
    return 'killed; was there too little memory?'
  return signal.Signals(-exit_code).name if exit_code < 0 else f'exit status {exit_code}'
