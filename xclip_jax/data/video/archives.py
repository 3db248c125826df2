"""Videos inside archives, read in place. Two kinds of paths lead into an archive:

  shard.tar/inner/name.mp4        a file in an uncompressed tar archive
  shard.array_record/17           a record, numbered from 0, whose bytes are those of a video file
"""

import errno
import functools
import io
import os
import re
import tarfile
import threading
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

_INTO_ARCHIVE = re.compile(r'\.(tar|array_record)/', re.IGNORECASE)

# A reader keeps its file open and costs 0.2 ms to make; a process may have few files open at once.
_OPEN_RECORD_FILES = 128
_AT_RANDOM = 'readahead_buffer_size:0,max_parallelism:0'

_LONGEST_HEADER = 1 << 20    # bytes; names and attributes of a file are much shorter
_CUT = 'the archive ends in the middle of this file'

# What tarfile raises at headers with absurd numbers, besides its own errors.
_TAR_ERRORS = (tarfile.TarError, ArithmeticError, ValueError, MemoryError, RecursionError)

_lock = threading.Lock()      # one thread makes the index of an archive, the others wait for it


def is_member(path: str) -> bool:
  """Returns whether a path leads into an archive that exists."""
  return _INTO_ARCHIVE.search(path) is not None and _split(path) is not None


def read(path: str) -> bytes:
  """Returns the bytes of an archive member; OSError if there is no such archive or member."""
  archive, name, holds_records = _split_member(path)
  if holds_records:
    return _read_record(archive, name)
  offset, size = _locate(archive, name)
  if offset + size > os.path.getsize(archive):     # also absurd numbers, which no read would take
    raise OSError(errno.EIO, _CUT)
  with open(archive, 'rb') as file:
    file.seek(offset)
    content = file.read(size)
  if len(content) < size:
    raise OSError(errno.EIO, _CUT)
  return content


def size(path: str) -> int:
  """Returns the number of bytes that `read` would return; raises OSError like `read`."""
  archive, name, holds_records = _split_member(path)
  # The ArrayRecord library tells neither the position nor the size of a record.
  return len(_read_record(archive, name)) if holds_records else _locate(archive, name)[1]


def _split(path: str) -> tuple[str, str, bool] | None:
  """Splits a path into (archive, member, holds records); None if it leads into no archive.

  The first `.tar` or `.array_record` that is a file counts: a folder may have such a name.
  """
  for match in _INTO_ARCHIVE.finditer(path):
    archive, name = path[:match.end() - 1], path[match.end():]
    if os.path.isfile(archive):
      return archive, os.path.normpath(name), match[1].lower() == 'array_record'
  return None


def _split_member(path: str) -> tuple[str, str, bool]:
  member = _split(path)
  if member is None:
    raise OSError(errno.ENOENT, 'no such archive')
  return member


def _version(archive: str) -> tuple[int, ...]:
  # With device and inode: a file and its replacement may have one size and one time stamp.
  status = os.stat(archive)
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_record(archive: str, name: str) -> bytes:
  if not re.fullmatch('0|[1-9][0-9]{0,17}', name):
    raise OSError(errno.ENOENT, f'records are numbered 0, 1, ..., found {name!r}')
  version = _version(archive)
  with _lock:
    reader = _record_reader(archive, version)
  count = reader.num_records()
  if int(name) >= count:
    raise OSError(errno.ENOENT, f'no such record among the {count} in the file')
  try:
    return reader.read([int(name)])[0]
  except RuntimeError as error:
    raise OSError(errno.EIO, f'the record is damaged: {error}') from error


@functools.lru_cache(_OPEN_RECORD_FILES)
def _record_reader(archive: str, version: tuple) -> Any:
  """Opens a file of records; any number of threads may read from it by record number."""
  del version                 # part of the key: a file that was replaced is opened anew
  if not archive.isascii():
    try:
      archive.encode()
    except UnicodeEncodeError as error:          # the library takes text alone
      raise OSError(errno.EINVAL, 'the path of an ArrayRecord file must be UTF-8 text') from error
  reader = array_record_module.ArrayRecordReader(
    archive, options=_AT_RANDOM, file_reader_buffer_size=32768)
  if not reader.ok():         # ArrayRecord raises nothing; the file would seem to hold no records
    try:
      reader.close()
      reason = 'unknown reason'
    except RuntimeError as error:
      reason = str(error)
    raise OSError(errno.EINVAL, f'the file is not a whole ArrayRecord: {reason}')
  return reader


def _locate(archive: str, name: str) -> tuple[int, int]:
  version = _version(archive)
  with _lock:
    index, fault = _index(archive, version)
  if name not in index:
    where = f'before its damage ({fault})' if fault else 'in the archive'
    raise OSError(errno.ENOENT, f'no such file among the {len(index)} {where}')
  return index[name]


class _HeaderFile(io.FileIO):
  """Reads the headers of an archive, and refuses those that claim to be longer than any is."""

  def read(self, size: int = -1, /) -> bytes:
    """Reads bytes; ReadError if a header would take more than `_LONGEST_HEADER`."""
    if not 0 <= size <= _LONGEST_HEADER:
      raise tarfile.ReadError(f'a header claims {size} bytes')
    return super().read(size)


@functools.cache
def _index(archive: str, version: tuple) -> tuple[dict[str, tuple[int, int]], str]:
  """Indexes a tar; read once in each process.

  Returns:
    name -> (offset, size) in bytes of every file; and what is wrong with the archive, or ''.
  """
  del version                 # part of the key: an archive that was replaced is indexed anew
  index, fault = {}, ''
  position = -1
  try:
    with _HeaderFile(archive) as file, tarfile.open(fileobj=file, mode='r:') as tar:
      for member in tar:
        if member.size < 0 or tar.offset <= position:    # would be read again, for ever
          raise tarfile.ReadError(f'the size of {member.name!r} is damaged')
        position = tar.offset
        name = os.path.normpath(member.name)
        if member.isreg() and not member.issparse():
          index[name] = (member.offset_data, member.size)
        elif member.islnk() and os.path.normpath(member.linkname) in index:
          index[name] = index[os.path.normpath(member.linkname)]
  except _TAR_ERRORS as error:
    if not index:             # of a damaged archive the files before the damage can be used
      reason = f'the archive is damaged or not an uncompressed tar file: {error}'
      raise OSError(errno.EINVAL, reason) from error
    fault = str(error)
  return index, fault
