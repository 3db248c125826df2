"""Files in a local folder or in a bucket of Google Cloud Storage: which may be named, whole writes.

A local path is pathlib's, `gs://bucket/...` is etils.epath's; both are used in the same way. In a
bucket a folder is no more than the beginning of names, so there is nothing to create, an object
can neither be appended to nor renamed, and every call is a request over the network.
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
_UNSAFE = re.compile(r'[#?*\[\]\x00-\x1f]')      # parts of a URL, or wildcards of gcsfs


def check_scheme(name: str | os.PathLike, field: str, bucket: bool = True) -> None:
  """Raises ValueError unless `name` is a local path or, if `bucket`, in Google Cloud Storage.

  Args:
    name: a path; may also be any other name without `scheme:/`.
    field: what the message calls the path, as 'config.train.init_from'.
    bucket: whether gs:// is possible here. Videos, for one, are read from mounted folders only.
  """
  text = os.fspath(name)
  found = _SCHEME.match(text)
  if not found:
    return
  scheme, slashes, rest = found.groups()
  start = f'{field}={text!r}'
  if scheme.lower() == 'gs' and not bucket:
    root, _, folder = rest.partition('/')
    mount = os.path.join('/mnt', root or 'BUCKET')
    raise UserError(
      f'{start}: a local or mounted folder is wanted, found a bucket. Mount it on every host, '
      f'`gcsfuse --implicit-dirs {root or "BUCKET"} {mount}`, and set {field} to '
      f'{os.path.join(mount, folder)}')
  if scheme.lower() == 'gs' and (scheme, slashes) != ('gs', '//'):
    raise UserError(f'{start}: a bucket is named gs://BUCKET/PATH, with two slashes; write '
                     f'gs://{rest}')
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
  either = 'gs://BUCKET/PATH or a local path' if bucket else 'a local path'
  raise UserError(
    f'{start}: {either} is wanted, and {scheme}:// is not supported. Mount it as a folder (s3:// '
    f'with s3fs or mountpoint-s3, hdfs:// with hdfs-fuse, ...) or copy it, and set {field} to that '
    'path')


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path lies in a bucket."""
  return os.fspath(path).startswith('gs://')


def as_path(name: str | os.PathLike, field: str = 'path') -> AnyPath:
  """Returns a path to use: pathlib's with `~` expanded, or epath's for gs://.

  Raises:
    ValueError: another scheme, see `check_scheme`; or gcsfs is not installed.
  """
  check_scheme(name, field)
  if not is_remote(name):
    return Path(os.path.expanduser(name))
  if importlib.util.find_spec('gcsfs') is None:
    raise UserError(f'{field}={os.fspath(name)!r} needs gcsfs: pip install "xclip-jax[gcs]"')
  _prepare_gcsfs()
  return epath.Path(os.fspath(name))


def join(root: str | os.PathLike, name: str | os.PathLike, field: str) -> AnyPath:
  """Returns `name` from a root; an absolute name, and one in a bucket, stands alone."""
  check_scheme(name, field)
  return as_path(name, field) if is_remote(name) else as_path(root, field) / name


def shown(path: str | os.PathLike) -> str:
  """Returns a path as messages name it: relative to the current folder, unless in a bucket."""
  return os.fspath(path) if is_remote(path) else os.path.relpath(path)


@functools.cache
def _prepare_gcsfs() -> None:
  os.environ.setdefault('EPATH_USE_TF', 'false')      # epath takes TensorFlow where it finds that
  if os.environ.get('STORAGE_EMULATOR_HOST'):         # emulators have no gRPC control API
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  import fsspec

  # TensorStore and other processes write, too: a remembered listing would be wrong.
  fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
  # gcsfs logs a stack trace of each failed request; the error that is raised says the same.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)


@contextlib.contextmanager
def explain_errors(path: str | os.PathLike) -> Iterator[None]:
  """Turns errors of a bucket into a ValueError that names the bucket; FileNotFoundError passes.

  Local errors pass, too: they name the file by themselves.
  """
  try:
    yield
  except FileNotFoundError:
    raise
  except Exception as error:             # gcsfs, google.auth, aiohttp and requests have their own
    if not is_remote(path):
      raise
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise UserError(
      f'{path}: bucket {_bucket(path)} cannot be used ({reason}). Check its name, the network and '
      'your credentials: `gcloud auth application-default login`, or a service account with the '
      'roles Storage Object User and Storage Legacy Bucket Reader') from error


def exists(path: AnyPath) -> bool:
  """Returns whether there is a file or folder; in a bucket, ValueError if that cannot be told.

  `path.exists()` of epath is False for a bucket that must not be read.
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
  """Raises ValueError unless objects can be written, read and deleted below a path in a bucket.

  Orbax must also be able to ask for the bucket's properties, which it does first when it deletes
  an old checkpoint. Does nothing for a local path. Each process checks by an object of its own.
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
    raise UserError(f'{path}: there is no bucket {_bucket(path)}, or these credentials do not '
                     f'see it; create it with `gcloud storage buckets create gs://{_bucket(path)}`'
                     ) from error


def make_folder(path: AnyPath) -> None:
  """Creates a local folder and its parents; a bucket needs none."""
  if not is_remote(path):
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def atomic_file(path: AnyPath, durable: bool = True) -> Iterator[BinaryIO]:
  """Opens a file that takes the place of `path` once it is complete and on disk.

  It is written beside `path` under a hidden name of this process, and removed if anything fails.
  The suffix stays, so that a reader that goes by it can check the file before it has its name. An
  object in a bucket is collected in memory: it appears whole by itself.

  Args:
    path: of the file; its folder must be there.
    durable: False leaves it to the operating system when bytes reach the disk, for many small
      files that are checked when they are read.
  """
  if is_remote(path):
    content = io.BytesIO()
    yield content
    with explain_errors(path):
      path.write_bytes(content.getvalue())
    return
  path = Path(path)
  partial = path.with_name(f'.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial.{path.name}'[-255:])
  try:
    with partial.open('wb') as file:
      yield file
    replace_file(partial, path, durable)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
  path: str | os.PathLike, check_replaceable: Callable[[Path], None] = lambda folder: None
) -> Iterator[Path]:
  """Gives a new local folder to write into, which takes the place of `path` once all went well.

  Its files are on disk before it has its name; it is removed if anything fails. What stood there
  before is removed last: after a crash of the machine the old folder or the new one is there.

  Args:
    path: of the folder; its parents are made.
    check_replaceable: called with the folder that is there, before and after the work; raises if
      it must not be replaced.

  Yields:
    The folder to write into, beside `path` under a hidden name.
  """
  path = Path(os.path.abspath(path))
  if path.exists():
    check_replaceable(path)
  name = f'.{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}'
  temporary, old = path.with_name(f'{name}.tmp'), path.with_name(f'{name}.old')
  temporary.mkdir(parents=True)
  try:
    yield temporary
    for file in temporary.rglob('*'):
      _sync(file)
    _sync(temporary)
    if path.exists():
      check_replaceable(path)
      os.replace(path, old)
    os.replace(temporary, path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def replace_file(partial: Path, path: Path, durable: bool = True) -> None:
  """Gives a complete local file its final name, after its bytes have reached the disk."""
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
  """Makes a new name durable, where the file system lets a folder be synchronised."""
  with contextlib.suppress(OSError):
    _sync(folder)


def write_bytes(path: AnyPath, content: bytes) -> None:
  """Writes a file whole or not at all, also if the machine stops: a bucket's objects are so."""
  with atomic_file(path) as file:
    file.write(content)


def write_text(path: AnyPath, text: str) -> None:
  """Writes UTF-8 text whole or not at all."""
  write_bytes(path, text.encode())


def write_json(path: AnyPath, content: Any) -> None:
  """Writes indented JSON whole or not at all."""
  write_text(path, json.dumps(content, indent=1) + '\n')


def write_npz(path: AnyPath, **arrays: Any) -> None:
  """Writes a compressed .npz whole or not at all."""
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  write_bytes(path, content.getvalue())


def write_figure(path: AnyPath, figure: Any) -> None:
  """Writes a figure of matplotlib as PNG, whole or not at all."""
  content = io.BytesIO()
  figure.savefig(content, format='png', bbox_inches='tight', pad_inches=0.2)
  write_bytes(path, content.getvalue())


def remove(path: AnyPath) -> None:
  """Removes a file, if it is there."""
  with explain_errors(path):
    path.unlink(missing_ok=True)


def copy_in(folder: Path, target: AnyPath) -> None:
  """Copies all files of a local folder, at any depth, into another place."""
  for file in sorted(x for x in folder.rglob('*') if x.is_file()):
    there = target / file.relative_to(folder).as_posix()
    make_folder(there.parent)
    write_bytes(there, file.read_bytes())


def move_folder(folder: AnyPath, target: AnyPath) -> None:
  """Moves a folder to a name that is free; in a bucket by copies, and then deletes the old ones.

  If that is cut short, some objects are in both places, and none is lost.
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
    there = os.fspath(target).removeprefix('gs://')
    system.copy(names, [there + name.removeprefix(start) for name in names])
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
