"""Videos inside tar archives, read in place: `shard.tar/inner/name.mp4` is a path."""

import errno
import functools
import os
import tarfile
import threading

_lock = threading.Lock()      # threads that want one archive wait for one index of it


def is_member(path: str) -> bool:
  """Tell whether a path leads into a tar archive that exists."""
  return '.tar/' in path.lower() and _split(path) is not None


def read(path: str) -> bytes:
  """Return the contents of a file in an archive; OSError if either is not there."""
  archive, name = _split(path)
  offset, size = _locate(archive, name)
  with open(archive, 'rb') as file:
    file.seek(offset)
    content = file.read(size)
  if len(content) < size:
    raise OSError(errno.EIO, 'the archive ends in the middle of this file')
  return content


def size(path: str) -> int:
  """Return the bytes of a file in an archive; OSError if either is not there."""
  return _locate(*_split(path))[1]


def _locate(archive: str, name: str) -> tuple[int, int]:
  found = os.stat(archive)
  with _lock:
    index = _index(archive, found.st_size, found.st_mtime_ns)
  if name not in index:
    raise OSError(errno.ENOENT, f'no such file among the {len(index)} in the archive')
  return index[name]


def _split(path: str) -> tuple[str, str] | None:
  """Split at the first `.tar` that is a file: a folder may have such a name, too."""
  start = 0
  while (end := path.lower().find('.tar/', start)) >= 0:
    start = end + len('.tar')
    if os.path.isfile(path[:start]):
      return path[:start], os.path.normpath(path[start + 1:])
  return None


@functools.cache
def _index(archive: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
  """Map the names in an archive to (offset, size), bytes; once for each process and content."""
  del size, changed           # part of the key: an archive that was replaced is indexed anew
  index = {}
  try:
    with tarfile.open(archive, 'r:') as tar:
      for member in tar:
        name = os.path.normpath(member.name)
        if member.isreg() and not member.issparse():
          index[name] = (member.offset_data, member.size)
        elif member.islnk() and os.path.normpath(member.linkname) in index:
          index[name] = index[os.path.normpath(member.linkname)]
  except tarfile.TarError as error:
    if not index:             # of one that was cut off, what is whole can be used
      reason = f'the archive is not an uncompressed tar file: {error}'
      raise OSError(errno.EINVAL, reason) from error
  return index
