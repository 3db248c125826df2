"""Paths and atomic writes, in local folders and in buckets of Google Cloud Storage.

A local path is a pathlib.Path, `gs://bucket/...` an etils.epath.Path; both are used in the same
way. In a bucket a folder is only a prefix of names, so no folder has to be created, objects can
neither be appended to nor renamed, and every call is a request over the network.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from xclip_jax.errors import UserError

AnyPath = Path | epath.Path
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)', re.DOTALL)   # C:/ is no scheme
_WEB = ('http', 'https', 'ftp', 'ftps', 'rtsp', 'rtmp', 'rtp', 'udp', 'tcp', 'srt', 'mms')
_UNSAFE = re.compile(r'[#?*\[\]\x00-\x1f]')      # special in URLs, or wildcards of gcsfs
_LONGEST_NAME = 255                              # bytes of a file name, on most file systems


def check_scheme(name: str | os.PathLike, field: str, bucket: bool = True) -> None:
  """Raises UserError unless a name is a local path or, if allowed, in Google Cloud Storage.

  Args:
    name: a path; any other name without `scheme:/` passes, too.
    field: name of the path in messages, such as 'config.train.init_from'.
    bucket: True allows gs://. Videos, for example, are read from mounted folders only.
  """
  text = os.fspath(name)
  match = _SCHEME.match(text)
  if not match:
    return
  scheme, slashes, rest = match.groups()
  if scheme.lower() != 'gs' and os.path.lexists(f'{scheme}:'):      # a folder of that name
    return
  start = f'{field}={text!r}'
  if scheme.lower() == 'gs' and not bucket:
    root, _, folder = rest.partition('/')
    mount = os.path.join('/mnt', root or 'BUCKET')
    raise UserError(
      f'{start}: a local or mounted folder is wanted, found a bucket. Mount it on every host, '
      f'`gcsfuse --implicit-dirs {root or "BUCKET"} {mount}`, and set {field} to '
      f'{os.path.join(mount, folder)}')
  if scheme.lower() == 'gs' and (scheme, slashes) != ('gs', '//'):
    raise UserError(
      f'{start}: a bucket is named gs://BUCKET/PATH, with two slashes; write gs://{rest}')
  if scheme == 'gs':
    parts = rest.split('/')
    if not parts[0]:
      raise UserError(f'{start} names no bucket; write gs://BUCKET/PATH')
    if '.' in parts or '..' in parts or _UNSAFE.search(rest):
      raise UserError(f'{start}: a path in a bucket may hold none of # ? * [ ], control '
                      'characters or parts . and ..; choose another name')
    return
  if scheme.lower() == 'file':
    raise UserError(f'{start}: write a local path without file://')
  if scheme.lower() in _WEB:
    raise UserError(f'{start}: a file is wanted, and {scheme}:// is not supported; download the '
                    'file, or record the stream into one, and name that')
  either = 'gs://BUCKET/PATH or a local path' if bucket else 'a local path'
  raise UserError(
    f'{start}: {either} is wanted, and {scheme}:// is not supported. Mount it as a folder (s3:// '
    f'with s3fs or mountpoint-s3, hdfs:// with hdfs-fuse, ...) or copy it, and set {field} to that '
    'path')


def check_text(path: str | os.PathLike, field: str) -> None:
  """Raises UserError if a path holds bytes that are not UTF-8, for libraries that take text."""
  try:
    os.fspath(path).encode()
  except UnicodeEncodeError as error:
    name = os.fsencode(path).decode(errors='backslashreplace')
    raise UserError(f'{field}={name}: the path must be UTF-8 text, for the libraries that write '
                    'there; choose another folder') from error


def is_remote(path: str | os.PathLike) -> bool:
  """Tells whether a path lies in a bucket."""
  return os.fspath(path).startswith('gs://')


def as_path(name: str | os.PathLike, field: str = 'path') -> AnyPath:
  """Converts a name to a pathlib.Path with `~` expanded, or to an epath.Path for gs://.

  Raises:
    UserError: another scheme, see `check_scheme`; or gcsfs is not installed.
  """
  check_scheme(name, field)
  if not is_remote(name):
    return Path(os.path.expanduser(name))
  if importlib.util.find_spec('gcsfs') is None:
    raise UserError(f'{field}={os.fspath(name)!r} needs gcsfs: pip install "xclip-jax[gcs]"')
  _prepare_gcsfs()
  return epath.Path(os.fspath(name))


def join(root: str | os.PathLike, name: str | os.PathLike, field: str) -> AnyPath:
  """Joins a root folder and a name; an absolute name or a name in a bucket ignores the root."""
  check_scheme(name, field)
  return as_path(name, field) if is_remote(name) else as_path(root, field) / name


def shown(path: str | os.PathLike) -> str:
  """Returns a path as messages show it: relative to the current folder, unless in a bucket."""
  return os.fspath(path) if is_remote(path) else os.path.relpath(path)


@functools.cache
def _prepare_gcsfs() -> None:
  """Sets up gcsfs and epath, before either is imported."""
  os.environ.setdefault('EPATH_USE_TF', 'false')      # epath prefers an installed TensorFlow
  if os.environ.get('STORAGE_EMULATOR_HOST'):         # emulators have no gRPC control API
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  from fsspec.config import conf

  # TensorStore and other processes write, too, so a cached listing could be wrong.
  conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
  # gcsfs logs a stack trace of each failed request; the exception has the same information.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)


@contextlib.contextmanager
def explain_errors(path: str | os.PathLike) -> Iterator[None]:
  """Turns errors of a bucket into a UserError that names the bucket.

  FileNotFoundError passes through; so do local errors, which name the file themselves. The block
  must hold calls to the bucket only: a bug in it would be told as the bucket's.
  """
  try:
    yield
  except (FileNotFoundError, UserError):
    raise
  except Exception as error:             # gcsfs, google.auth, aiohttp and requests define their own
    if not is_remote(path):
      raise
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise UserError(
      f'{path}: bucket {_bucket(path)} cannot be used ({reason}). Check its name, the network and '
      'your credentials: `gcloud auth application-default login`, or a service account with the '
      'roles Storage Object User and Storage Legacy Bucket Reader') from error


def exists(path: AnyPath) -> bool:
  """Tells whether a file or folder exists; raises UserError if a bucket cannot be read.

  `path.exists()` of epath is False for an unreadable bucket.
  """
  if not is_remote(path):
    return path.exists()
  with explain_errors(path):
    try:
      path.stat()
    except FileNotFoundError:
      return False
  return True


def check_bucket(path: AnyPath, process: int = 0) -> None:
  """Raises UserError unless objects can be written, read and deleted below a path in a bucket.

  The bucket's properties must be readable, too: Orbax reads them before it deletes an old
  checkpoint. Does nothing for a local path.

  Args:
    path: a path in a bucket, or a local path.
    process: number of this process; every process writes a test object of its own.
  """
  if not is_remote(path):
    return
  from google.cloud import storage

  probe = path / f'.write_check_{process}'
  try:
    with explain_errors(path):
      probe.write_bytes(b'check')
      probe.read_bytes()
      probe.unlink()
      storage.Client().get_bucket(_bucket(path))
  except FileNotFoundError as error:
    raise UserError(
      f'{path}: there is no bucket {_bucket(path)}, or these credentials do not see it; create it '
      f'with `gcloud storage buckets create gs://{_bucket(path)}`') from error


def make_folder(path: AnyPath) -> None:
  """Creates a local folder and its parents; does nothing in a bucket."""
  if not is_remote(path):
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def atomic_file(path: AnyPath, durable: bool = True) -> Iterator[BinaryIO]:
  """Opens a file for writing that replaces `path` once it is complete and on disk.

  It is written beside `path` under a hidden name with the same suffix, so that readers that go by
  the suffix can check the file before it is renamed. It is removed if the block raises. The content
  of an object in a bucket is collected in memory, because objects are uploaded whole.

  Args:
    path: path of the file; its folder must exist.
    durable: False lets the operating system choose when bytes reach the disk, for many small files
      that are checked when they are read.
  """
  if is_remote(path):
    content = io.BytesIO()
    yield content
    with explain_errors(path):
      path.write_bytes(content.getvalue())
    return
  path = Path(os.path.realpath(path))               # a link stays, as with a plain open
  partial = _hidden_name(path)
  try:
    with partial.open('wb') as file:
      yield file
    if path.exists():
      shutil.copymode(path, partial)
    replace_file(partial, path, durable)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
  path: str | os.PathLike, check_replaceable: Callable[[Path], None] = lambda folder: None
) -> Iterator[Path]:
  """Creates a local folder that replaces `path` once it is complete and on disk.

  It is removed if the block raises. An existing folder is removed last: after a crash of the
  machine, the old or the new folder exists, under its name or a hidden name beside it.

  Args:
    path: path of the folder; its parents are created.
    check_replaceable: called with an existing folder, before and after the block; raises if the
      folder must not be replaced.

  Yields:
    The folder to write into, beside `path` under a hidden name.
  """
  path = Path(os.path.realpath(path))               # a link stays
  if path.exists():
    check_replaceable(path)
  temporary, old = _hidden_name(path), _hidden_name(path)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    _sync_tree(temporary)
    if path.exists():
      check_replaceable(path)
      os.replace(path, old)
    try:
      os.replace(temporary, path)
    except OSError:                 # another process has created `path` in between
      if old.exists() and not path.exists():
        os.replace(old, path)
      raise
    _sync_folder(path.parent)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
    if path.exists():
      shutil.rmtree(old, ignore_errors=True)


def _hidden_name(path: Path) -> Path:
  """Returns a new hidden name beside a path that ends in the path's name, or in its last bytes."""
  start = f'.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial.'.encode()
  name = os.fsencode(path.name)[-(_LONGEST_NAME - len(start)):]
  while name and name[0] & 0xC0 == 0x80:            # the cut is inside of a UTF-8 character
    name = name[1:]
  return path.with_name(os.fsdecode(start + name))


def replace_file(partial: Path, path: Path, durable: bool = True) -> None:
  """Renames a complete local file to its final name, after its bytes have reached the disk."""
  if durable:
    _sync(partial)
  os.replace(partial, path)
  if durable:
    _sync_folder(Path(path).parent)


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _sync_folder(folder: Path) -> None:
  """Makes new names in a folder durable, if the file system can synchronise folders."""
  with contextlib.suppress(OSError):
    _sync(folder)


def _sync_tree(folder: Path) -> None:
  """Makes all files and names in a folder durable; links are left alone."""
  for path in folder.rglob('*'):
    if path.is_dir():
      _sync_folder(path)
    elif path.is_file() and not path.is_symlink():
      _sync(path)
  _sync_folder(folder)


def write_bytes(path: AnyPath, content: bytes) -> None:
  """Writes a file atomically: a crash leaves the old file or the new one."""
  with atomic_file(path) as file:
    file.write(content)


def write_text(path: AnyPath, text: str) -> None:
  """Writes UTF-8 text atomically."""
  write_bytes(path, text.encode())


def write_json(path: AnyPath, content: Any) -> None:
  """Writes indented JSON atomically."""
  write_text(path, json.dumps(content, indent=1) + '\n')


def write_npz(path: AnyPath, **arrays: Any) -> None:
  """Writes a compressed .npz atomically."""
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  write_bytes(path, content.getvalue())


def write_figure(path: AnyPath, figure: Any) -> None:
  """Writes a matplotlib figure as PNG, atomically."""
  content = io.BytesIO()
  figure.savefig(content, format='png', bbox_inches='tight', pad_inches=0.2)
  write_bytes(path, content.getvalue())


def remove(path: AnyPath) -> None:
  """Removes a file if it exists."""
  with explain_errors(path):
    path.unlink(missing_ok=True)


def copy_in(folder: Path, target: AnyPath) -> None:
  """Copies all files of a local folder, at any depth, into a local folder or a bucket."""
  for file in sorted(x for x in folder.rglob('*') if x.is_file()):
    copy = target / file.relative_to(folder).as_posix()
    make_folder(copy.parent)
    write_bytes(copy, file.read_bytes())


def move_folder(folder: AnyPath, target: AnyPath) -> None:
  """Moves a folder to an unused name; in a bucket, copies all objects and then deletes the old.

  A crash in a bucket leaves some objects under both names and loses none.
  """
  if not is_remote(folder):
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    return
  import fsspec

  with explain_errors(folder):
    system = fsspec.filesystem('gcs')
    start = os.fspath(folder).removeprefix('gs://')
    names = system.find(start)
    target_start = os.fspath(target).removeprefix('gs://')
    system.copy(names, [target_start + name.removeprefix(start) for name in names])
    system.rm(names)


def _bucket(path: str | os.PathLike) -> str:
  return os.fspath(path).removeprefix('gs://').split('/')[0]


def sha256(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file as 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with as_path(path, 'path').open('rb') as file:
    while part := file.read(1 << 20):
      digest.update(part)
  return digest.hexdigest()
