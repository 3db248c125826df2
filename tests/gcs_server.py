"""A server of Google Cloud Storage's JSON API on the loopback address, for tests.

Holds objects in memory, with what a bucket has and a file system has not: a flat namespace (folders
are prefixes, an object cannot be appended to or renamed), generations, and writes that depend on
them (`ifGenerationMatch`), which TensorStore's commits rest on. Lists come in pages.

  with gcs_server.running('bucket') as server:
    subprocess.run(command)                     # --workdir gs://bucket/runs/1
    server.read('bucket', 'runs/1/config.json')

Source: https://cloud.google.com/storage/docs/json_api/v1
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import http.server
import itertools
import json
import os
import pathlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator

from xclip_jax import files

PAGE = 5           # names in one answer; small, so that each list of a test has several pages


@dataclasses.dataclass(frozen=True)
class Object:
  content: bytes
  generation: int


class Failure(Exception):
  """An answer other than 2xx: its status."""


class Bucket(dict):
  """Objects of one bucket by name.

  Fields:
    forbidden: methods that are answered with `status`; 'bucket' is to ask for its properties.
  """

  def __init__(self):
    super().__init__()
    self.forbidden: set[str] = set()
    self.status = 403


class Server(http.server.ThreadingHTTPServer):
  """The server, and what it holds: `buckets[name][object name]`."""

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.buckets: dict[str, Bucket] = {}
    self.lock, self.generations = threading.Lock(), itertools.count(1)
    self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
    self.log: list[str] = []              # 'PUT bucket/name' and 'DELETE bucket/name'
    self.busy: set[str] = set()           # names whose next write is answered with 503, once
    self.on_change: Callable[[], None] = lambda: None      # called after each write and delete

  def handle_error(self, request, address):
    if not isinstance(sys.exception(), ConnectionError):      # a client is gone, as after SIGKILL
      super().handle_error(request, address)

  @property
  def address(self) -> str:
    return f'http://127.0.0.1:{self.server_port}'

  @property
  def environment(self) -> dict[str, str]:
    """Variables that send clients here."""
    return client_variables(self.address)

  def names(self, bucket: str, prefix: str = '') -> list[str]:
    return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

  def read(self, bucket: str, name: str) -> bytes:
    return self.buckets[bucket][name].content


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'           # connections are kept, as the real service does
  disable_nagle_algorithm = True          # else an answer waits 40 ms for its second packet

  def do_GET(self):
    self._answer('GET')

  def do_POST(self):
    self._answer('POST')

  def do_PUT(self):
    self._answer('PUT')

  def do_DELETE(self):
    self._answer('DELETE')

  def log_message(self, *_):
    pass

  def _answer(self, method: str) -> None:
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    self.body = self._read_body()
    try:
      with self.server.lock:
        status, headers, content = self._route(method, url.path)
    except Failure as failure:
      status, headers = failure.args[0], {}
      content = {'error': {'code': status, 'message': f'{method} {url.path}: status {status}'}}
    if not isinstance(content, bytes):
      headers = headers | {'Content-Type': 'application/json'}
      content = b'' if content is None else json.dumps(content).encode()
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if status not in (204, 304):
      self.wfile.write(content)

  def _read_body(self) -> bytes:
    if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
      return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    parts = []
    while size := int(self.rfile.readline().split(b';')[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  def _route(self, method: str, path: str):
    found = re.fullmatch(
      r'/(?P<kind>upload/|download/|)storage/v1/b/(?P<bucket>[^/]+)(?P<rest>/o(?:/.*)?)?', path)
    if not found:
      raise Failure(501)
    name = found['bucket']
    if name not in self.server.buckets:
      raise Failure(404)
    bucket = self.server.buckets[name]
    rest = found['rest']
    if method in bucket.forbidden or (rest is None and 'bucket' in bucket.forbidden):
      raise Failure(bucket.status)
    if rest is None:
      return 200, {}, {'kind': 'storage#bucket', 'id': name, 'name': name, 'location': 'US',
                       'storageClass': 'STANDARD', 'locationType': 'multi-region'}
    if found['kind'] == 'upload/':
      return self._upload(method, name)
    if rest == '/o':
      return self._list(bucket, name)
    key = rest.removeprefix('/o/')
    if copy := re.fullmatch(r'(.+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)', key):
      return self._copy(bucket, *map(urllib.parse.unquote, copy.groups()))
    key = urllib.parse.unquote(key)
    if method == 'DELETE':
      self._check(bucket, key)
      if key not in bucket:
        raise Failure(404)
      del bucket[key]
      self.server.log.append(f'DELETE {name}/{key}')
      self.server.on_change()
      return 204, {}, b''
    if key not in bucket:
      raise Failure(404)
    self._check(bucket, key)
    if self.query.get('alt') == 'media':
      return self._media(bucket[key])
    return 200, {}, _resource(name, key, bucket[key])

  def _check(self, bucket: Bucket, key: str) -> None:
    """Holds a request to its preconditions; generation 0 is an object that is not there."""
    there = bucket[key].generation if key in bucket else 0
    if int(self.query.get('ifGenerationMatch', there)) != there:
      raise Failure(412)
    if int(self.query.get('ifGenerationNotMatch', -1)) == there:
      raise Failure(304)

  def _put(self, bucket: str, key: str, content: bytes):
    if key in self.server.busy:
      self.server.busy.remove(key)
      raise Failure(503)
    objects = self.server.buckets[bucket]
    self._check(objects, key)
    objects[key] = Object(content, next(self.server.generations))
    self.server.log.append(f'PUT {bucket}/{key}')
    self.server.on_change()
    return 200, {}, _resource(bucket, key, objects[key])

  def _upload(self, method: str, bucket: str):
    kind = self.query.get('uploadType')
    if method == 'PUT' or 'upload_id' in self.query:
      return self._upload_part()
    if kind == 'media':
      return self._put(bucket, self.query['name'], self.body)
    if kind == 'multipart':
      boundary = re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
      about, content = (
        part.split(b'\r\n\r\n' if b'\r\n\r\n' in part else b'\n\n', 1)[1]
        for part in self.body.split(b'--' + boundary)[1:3])
      name = self.query.get('name') or json.loads(about)['name']
      return self._put(bucket, name, content.removesuffix(b'\n').removesuffix(b'\r'))
    if kind == 'resumable':
      name = self.query.get('name') or json.loads(self.body)['name']
      key = f'upload-{next(self.server.generations)}'
      self.server.uploads[key] = (bucket, name, self.query, bytearray())
      place = f'{self.server.address}/upload/storage/v1/b/{bucket}/o?uploadType=resumable'
      return 200, {'Location': f'{place}&upload_id={key}'}, b''
    raise Failure(400)

  def _upload_part(self):
    key = self.query['upload_id']
    bucket, name, query, content = self.server.uploads[key]
    begin, whole = re.fullmatch(
      r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)', self.headers['Content-Range']).groups()
    if begin:
      content[int(begin):] = self.body               # a part may be sent again
    if whole == '*' or int(whole) > len(content):
      return 308, {'Range': f'bytes=0-{len(content) - 1}'} if content else {}, b''
    self.query = query
    answer = self._put(bucket, name, bytes(content))
    del self.server.uploads[key]
    return answer

  def _copy(self, source: Bucket, key: str, bucket: str, name: str):
    if key not in source:
      raise Failure(404)
    _, _, resource = self._put(bucket, name, source[key].content)
    size = str(len(source[key].content))
    return 200, {}, {'kind': 'storage#rewriteResponse', 'done': True, 'resource': resource,
                     'totalBytesRewritten': size, 'objectSize': size}

  def _media(self, found: Object):
    headers = {'x-goog-generation': str(found.generation),
               'x-goog-hash': f'md5={_md5(found.content)}',
               'Content-Type': 'application/octet-stream',
               'x-goog-stored-content-length': str(len(found.content))}
    span = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not span:
      return 200, headers, found.content
    size = len(found.content)
    begin = int(span[1]) if span[1] else max(size - int(span[2]), 0)
    end = min(int(span[2]) + 1, size) if span[1] and span[2] else size
    if begin >= size:
      raise Failure(416)
    headers['Content-Range'] = f'bytes {begin}-{end - 1}/{size}'
    return 206, headers, found.content[begin:end]

  def _list(self, bucket: Bucket, name: str):
    query, delimiter = self.query, self.query.get('delimiter')
    prefix, found = query.get('prefix', ''), {}
    for key in sorted(bucket):
      if not key.startswith(prefix) or key < query.get('startOffset', '') or (
          query.get('endOffset') and key >= query['endOffset']):
        continue
      rest = key[len(prefix):]
      # With a delimiter, objects below a folder are one entry: its prefix.
      folder = delimiter and delimiter in rest
      found[prefix + rest.split(delimiter)[0] + delimiter if folder else key] = folder
    entries = sorted(found.items())
    begin = int(query.get('pageToken') or 0)
    end = begin + min(int(query.get('maxResults') or PAGE), PAGE)
    page = entries[begin:end]
    answer = {'kind': 'storage#objects'}
    if items := [_resource(name, key, bucket[key]) for key, folder in page if not folder]:
      answer['items'] = items
    if prefixes := [key for key, folder in page if folder]:
      answer['prefixes'] = prefixes
    if end < len(entries):
      answer['nextPageToken'] = str(end)
    return 200, {}, answer


def _md5(content: bytes) -> str:
  return base64.b64encode(hashlib.md5(content).digest()).decode()


def _resource(bucket: str, name: str, found: Object) -> dict[str, str]:
  time = '2026-01-01T00:00:00.000Z'
  return {
    'kind': 'storage#object', 'id': f'{bucket}/{name}/{found.generation}', 'name': name,
    'bucket': bucket, 'generation': str(found.generation), 'metageneration': '1',
    'size': str(len(found.content)), 'contentType': 'application/octet-stream',
    'timeCreated': time, 'updated': time, 'storageClass': 'STANDARD', 'etag': 'etag',
    'md5Hash': _md5(found.content),
  }


@functools.cache
def start() -> Server:
  """Starts the one server of this process: clients remember its address as long as they live."""
  server = Server()
  threading.Thread(target=server.serve_forever, daemon=True).start()
  return server


@contextlib.contextmanager
def running(*buckets: str) -> Iterator[Server]:
  """Gives a server with empty buckets, which clients of this process and its children use."""
  server, before = start(), dict(os.environ)
  server.buckets |= {name: Bucket() for name in buckets}
  os.environ |= server.environment
  try:
    yield server
  finally:
    os.environ.clear()
    os.environ.update(before)


def client_variables(address: str) -> dict[str, str]:
  """Returns variables that send gcsfs, Google's client and TensorStore to a server."""
  return {
    'STORAGE_EMULATOR_HOST': address, 'TENSORSTORE_GCS_HTTP_URL': address,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token', 'FSSPEC_GCS_TOKEN': 'anon',
    'GOOGLE_CLOUD_PROJECT': 'test', 'NO_PROXY': '127.0.0.1',
  }


def upload(folder: os.PathLike, target: str) -> None:
  """Copies a local folder to gs://bucket/..."""
  files.copy_in(pathlib.Path(folder), files.as_path(target))
