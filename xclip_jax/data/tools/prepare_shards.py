"""Shards of a prepared list: each written by a process of its own, whole or not at all.

A shard is an ArrayRecord file, and a JSON file beside it that says what it holds and what its
SHA-256 is. The JSON file comes last, and both appear under their names only when they are whole and
on disk: what a kill leaves behind is never taken for a shard.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from array_record.python import array_record_module

from xclip_jax import files
from xclip_jax.data import workers
from xclip_jax.data.video import archives, decode, encode
from xclip_jax.errors import UserError

VERSION = 1                   # of what is stored; another one is prepared again
_TRIES = 2                    # times that a video may end the process that reads it


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of a prepared list.

  Attributes:
    file: where it belongs, `<name>.array_record`.
    paths: of its videos, as the list gives them.
    root: folder that they start from.
    encoding: how they are stored.
  """

  file: str
  paths: tuple[str, ...]
  root: str
  encoding: encode.Encoding

  @property
  def about_file(self) -> str:
    """Path of the JSON file that says what it holds."""
    return self.file.removesuffix('.array_record') + '.json'

  @functools.cached_property
  def digest(self) -> str:
    """What it should hold, wherever the videos lie: sha256, hexadecimal."""
    wanted = [VERSION, self.encoding.settings, self.paths]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()


def read_about(shard: Shard) -> dict[str, Any]:
  """Return what a shard holds; ValueError if that is not written or was written for another one."""
  try:
    with open(shard.about_file, 'rb') as file:
      about = json.load(file)
  except (OSError, ValueError) as error:
    raise UserError(f'{os.path.basename(shard.about_file)} cannot be read ({error})') from error
  if not isinstance(about, dict) or about.get('digest') != shard.digest:
    raise UserError(f'{os.path.basename(shard.about_file)} is about something else')
  return about


def find_fault(shard: Shard, decoding: bool = False) -> str:
  """Say what is wrong with a shard, '' if nothing is: its description, its SHA-256.

  Args:
    shard: what should be there.
    decoding: decode a frame of every record, too.
  """
  try:
    about = read_about(shard)
    if os.path.getsize(shard.file) != about['bytes']:
      return f'{os.path.getsize(shard.file)} bytes, written were {about["bytes"]}'
    if files.sha256(shard.file) != about['sha256']:
      return 'its SHA-256 is not the one it was written with'
    for number, video in enumerate(about['videos'] if decoding else ()):
      counts = []
      middle = lambda n, counts=counts: counts.append(n) or np.array([n // 2])
      _, height, width, _ = decode.read_video(f'{shard.file}/{number}', middle).shape
      if (counts[0], height, width) != (video['frames'], video['height'], video['width']):
        return f'record {number} is not the video that was written'
  except OSError as error:
    return f'{error.strerror or error}'
  except (ValueError, KeyError) as error:
    return str(error).removeprefix(f'{shard.file}/')
  return ''


def write(shard: Shard, blamed: dict[int, str], begin: Callable[[int], None]) -> None:
  """Encode the videos of a shard, write it, and read it back.

  Args:
    shard: what to write.
    blamed: numbers of videos that must not be read -> why.
    begin: told the number of each video before it is read, and how many there are at the end.

  Raises:
    OSError: the disk is full, or does not give back what was written to it.
  """
  began = time.process_time()
  temporary = _temporary(shard.file)
  videos, failed, digests = [], [], []
  try:
    writer = array_record_module.ArrayRecordWriter(temporary, 'group_size:1,uncompressed')
    for number, path in enumerate(shard.paths):
      begin(number)
      found = blamed.get(number) or _encode(os.path.join(shard.root, path), shard.encoding)
      if isinstance(found, str):
        failed.append({'path': path, 'reason': found})
        continue
      content, about = found
      writer.write(content)
      digests.append(hashlib.sha256(content).digest())
      videos.append({'path': path, 'bytes': len(content), **about})
    begin(len(shard.paths))
    writer.close()
  except RuntimeError as error:  # the writer's, for whatever the disk says
    raise OSError(f'cannot write {shard.file}: {error}') from error
  for number, digest in enumerate(digests):
    if hashlib.sha256(archives.read(f'{temporary}/{number}')).digest() != digest:
      raise OSError(f'{shard.file}: record {number} does not read as it was written')
  content = {
    'version': VERSION, 'digest': shard.digest, 'sha256': files.sha256(temporary),
    'bytes': os.path.getsize(temporary), 'cpu_seconds': round(time.process_time() - began, 3),
    'encoding': shard.encoding.settings, 'videos': videos, 'failed': failed,
  }
  files.replace_file(temporary, shard.file)
  files.write_bytes(Path(shard.about_file), json.dumps(content, indent=1).encode())


def _encode(path: str, encoding: encode.Encoding) -> tuple[bytes, dict[str, Any]] | str:
  """Return the content of a stored video and facts about it, or why there is none."""
  try:
    size = archives.size(path) if archives.is_member(path) else os.path.getsize(path)
    found = encode.encode(path, encoding)
  except OSError as error:
    return error.strerror or str(error)
  except decode.VideoError as error:
    return str(error).removeprefix(f'{path}: ')
  except Exception as error:  # a video is not worth the run, whatever a codec says about it
    return f'{type(error).__name__}: {error}'
  return found.content, {
    'source_bytes': size, 'frames': found.num_frames, 'height': found.height,
    'width': found.width, 'psnr': round(found.psnr, 3) if math.isfinite(found.psnr) else None,
    'seconds': round(found.seconds, 3),
  }


def remove_temporaries(path: str) -> None:
  """Remove what processes that are gone had begun to write for a file."""
  folder, name = os.path.split(path)
  for left in glob.glob(os.path.join(glob.escape(folder), f'.*.tmp.{glob.escape(name)}')):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(left)


def _temporary(path: str) -> str:
  # The suffix stays, because it tells what a file is that is read back before it has its name.
  folder, name = os.path.split(path)
  return os.path.join(folder, f'.{os.getpid()}.tmp.{name}')


class _Writing:
  """A process that writes a shard, and how far it says it is."""

  def __init__(self, shard: Shard, blamed: dict[int, str]):
    self.shard, self.blamed = shard, blamed
    self.latest = -1
    self.connection, theirs = workers.SPAWN.Pipe(duplex=False)
    self.process = workers.SPAWN.Process(target=_work, args=(theirs, shard, blamed), daemon=True)
    self.process.start()
    theirs.close()            # so that the end of the process is the end of what can be received

  def stop(self) -> None:
    """End it, now, and remove what it had begun."""
    self.process.kill()
    self.process.join()
    self.connection.close()
    for path in (self.shard.file, self.shard.about_file):
      remove_temporaries(path)


def _work(connection: Any, shard: Shard, blamed: dict[int, str]) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C goes to all; the main process decides
  workers.leave_with_parent()
  cv2.setNumThreads(1)

  def tell(message: Any) -> None:
    try:
      connection.send(message)
    except BrokenPipeError:   # the main process is gone, and nobody wants what this one does
      os._exit(1)

  try:
    write(shard, blamed, tell)
    tell(None)
  except OSError as error:
    tell(error)
  except Exception:
    tell(RuntimeError(f'preparing {shard.file} failed:\n{traceback.format_exc()}'))


def write_all(wanted: Sequence[Shard], processes: int) -> Iterator[Shard | None]:
  """Write shards, so many at a time, each in a process of its own.

  A video whose process is killed or crashes is tried once more, and then left out.

  Yields:
    None for every video that was dealt with, and each shard when it is complete.

  Raises:
    OSError, RuntimeError: one cannot be written. Whatever ends this generator ends the processes.
  """
  waiting = collections.deque((shard, {}) for shard in wanted)
  ends = collections.Counter()          # (file, number of a video) -> processes that ended there
  dealt_with = collections.Counter()    # file -> videos
  running = {}
  try:
    while waiting or running:
      while waiting and len(running) < processes:
        writing = _Writing(*waiting.popleft())
        running[writing.connection] = writing
      for connection in multiprocessing.connection.wait(list(running)):
        writing = running[connection]
        shard = writing.shard
        try:
          message = connection.recv()
        except (EOFError, OSError):
          writing.process.join()
          message = _explain(writing.process.exitcode)
        if isinstance(message, int):
          writing.latest = message
          for _ in range(message - dealt_with[shard.file]):
            yield None
          dealt_with[shard.file] = max(message, dealt_with[shard.file])
          continue
        del running[connection]
        writing.stop()
        if message is None:
          yield shard
        elif isinstance(message, Exception):
          raise message
        else:
          place = (shard.file, writing.latest)
          ends[place] += 1
          if ends[place] == _TRIES:
            if not 0 <= writing.latest < len(shard.paths):
              raise UserError(f'the process that writes {shard.file} ends: {message}')
            writing.blamed[writing.latest] = f'reading it ends the process: {message}'
          waiting.appendleft((shard, writing.blamed))
  finally:
    for writing in running.values():
      writing.stop()


def _explain(exit_code: int) -> str:
  if exit_code == -signal.SIGKILL:
    return 'killed; was there too little memory?'
  return signal.Signals(-exit_code).name if exit_code < 0 else f'exit status {exit_code}'
