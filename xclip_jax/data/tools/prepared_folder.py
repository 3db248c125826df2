"""The folder of a prepared list: its request, shards, lists, report and lock."""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.data.datasets import annotations, text_lists
from xclip_jax.data.tools import derive_lists, prepare_shards
from xclip_jax.data.tools.prepare_shards import Shard
from xclip_jax.data.video.encode import Encoding
from xclip_jax.errors import UserError

_PER_SHARD = 256              # videos: a kill costs one shard, and a process writes one at a time
_SMALLEST, _MIN_SHARDS = 16, 64          # so that a short list keeps many processes busy, too

Facts = Mapping[str, dict[str, Any]]     # shard file -> `prepare_shards.read_facts`


@dataclasses.dataclass(frozen=True)
class ListFiles:
  """Names a list of videos, the folder that its paths start from, and its class list.

  Fields:
    path: a list as `annotations.read_annotations` or `read_captions` takes it.
    root: folder that relative paths start from.
    classes_path: class list; None for a list of captions, which has no classes.
  """

  path: str | os.PathLike
  root: str | os.PathLike
  classes_path: str | os.PathLike | None = None


@dataclasses.dataclass(frozen=True)
class Report:
  """Sums up a prepared list."""

  listed: int                 # videos, each once
  prepared: int               # videos
  failed: tuple[tuple[str, str], ...]      # (path, reason)
  notes: tuple[tuple[str, str], ...]       # (path, what was lost of a video that was stored)
  shards: int
  hours: float                # of video
  frames: int                 # stored
  bytes_before: int           # of the prepared videos
  bytes_after: int            # of the shards
  psnr: dict[str, float | None]            # dB: mean, lowest, 5th percentile; None: no loss
  cpu_seconds_per_video: float
  encoding: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Divides a list into shards and names the files of its prepared folder.

  Fields:
    path, classes_path: the list and its class list.
    folder: folder to write to, absolute.
    shards: shards of the list, in order.
    request: what the folder is made for; kept in it, so that another request is noticed.
  """

  path: str
  classes_path: str | None
  folder: str
  shards: tuple[Shard, ...]
  request: dict[str, Any]

  @property
  def count(self) -> int:
    """Returns the number of distinct videos in the list."""
    return self.request['videos']

  def name_file(self, ending: str) -> str:
    """Returns the path of the file in the folder that has the name of the list and this ending."""
    return os.path.join(self.folder, f'{Path(self.path).stem}{ending}')

  @property
  def list_file(self) -> str:
    """Returns the path of the prepared list."""
    return self.name_file(Path(self.path).suffix)

  @property
  def request_file(self) -> str:
    """Returns the path of the request."""
    return self.name_file('_request.json')

  @property
  def report_file(self) -> str:
    """Returns the path of the report."""
    return self.name_file('_report.json')

  @property
  def failed_file(self) -> str:
    """Returns the path of the list of unreadable videos."""
    return self.name_file('_failed.csv')

  @property
  def classes_file(self) -> str | None:
    """Returns the path of the copy of the class list, None without classes."""
    if self.classes_path is None:
      return None
    return os.path.join(self.folder, os.path.basename(self.classes_path))


def make_plan(
  listed: ListFiles, folder: str | os.PathLike, encoding: Encoding, per_shard: int
) -> Plan:
  """Checks a list and divides it into shards.

  Args:
    listed: the list, its root and its class list.
    folder: folder to write to.
    encoding: how videos are stored.
    per_shard: videos in a shard; 0: 256, or fewer if the list is short.

  Raises:
    UserError: the list or the class list is malformed, or `folder` is the folder of the list.
  """
  columns, rows = annotations.read_rows(listed.path, ('path',))
  classes_path = None
  if 'label' in columns:
    if listed.classes_path is None:
      raise UserError(f'{listed.path} has labels; give its class list')
    classes_path = os.fspath(listed.classes_path)
    annotations.read_annotations(
      listed.path, listed.root, annotations.read_classes(classes_path))
  elif 'caption' in columns:
    annotations.read_captions(listed.path, listed.root)
  else:
    raise UserError(
      f'{listed.path}, line 1: a column label or caption is wanted, found {columns}')
  folder, path = os.path.abspath(folder), os.fspath(listed.path)
  files.check_text(folder, '--output')
  if os.path.realpath(folder) == os.path.realpath(os.path.dirname(os.path.abspath(path))):
    raise UserError(f'{folder} is the folder of {path}, whose name the new list will have; choose '
                    'another folder')
  videos = tuple(dict.fromkeys(row['path'] for _, row in rows))  # a video may have several rows
  if per_shard < 0:
    raise UserError(f'per_shard must be at least 1, found {per_shard}')
  size = per_shard or max(_SMALLEST, min(_PER_SHARD, -(-len(videos) // _MIN_SHARDS)))
  count = -(-len(videos) // size)
  shards = tuple(
    Shard(os.path.join(folder, f'{Path(path).stem}-{n:05d}-of-{count:05d}.array_record'),
          videos[n * size:(n + 1) * size], os.path.abspath(listed.root), encoding)
    for n in range(count)
  )
  digest = hashlib.sha256(json.dumps(videos).encode()).hexdigest()
  request = {
    'version': prepare_shards.VERSION, 'list': os.path.basename(path), 'videos': len(videos),
    'videos_sha256': digest, 'per_shard': size, 'encoding': encoding.settings,
  }
  return Plan(path, classes_path, folder, shards, request)


def read_request(path: str) -> dict[str, Any]:
  """Reads the request that a folder was prepared for; UserError if it is missing or damaged."""
  try:
    with open(path, 'rb') as file:
      return dict(json.load(file))
  except OSError as error:
    raise UserError(f'nothing was prepared: {path} cannot be read ({error.strerror})') from error
  except (ValueError, TypeError) as error:
    raise UserError(f'{path} is damaged ({error}); --overwrite begins again') from error


def refuse_other_request(plan: Plan, request: dict[str, Any]) -> None:
  """Raises UserError, with the differences, unless a folder was prepared for this plan."""
  if request == plan.request:
    return
  flatten = lambda request: {k: v for k, v in request.items() if k != 'encoding'} | dict(
    request.get('encoding', {}))
  old, new = flatten(request), flatten(plan.request)
  differences = [
    f'{name} {old.get(name)}, not {new.get(name)}' for name in old | new
    if old.get(name) != new.get(name) and name != 'videos_sha256'
  ]
  if not differences:
    differences = ['as many videos, but others or in another order']
  raise UserError(
    f'{plan.folder} holds {os.path.basename(plan.path)} prepared in another way: '
    f'{"; ".join(differences)}. Choose another folder, or --overwrite to begin again'
  )


@contextlib.contextmanager
def claim_folder(plan: Plan, overwrite: bool) -> Iterator[None]:
  """Locks the folder for this plan and removes incomplete files; with `overwrite` all its files.

  Raises:
    UserError: the folder holds other files by these names, or another process writes to it.
  """
  if not overwrite:
    _refuse_other_files(plan)
  with contextlib.ExitStack() as stack:
    if os.path.exists(plan.request_file):
      stack.enter_context(_lock(plan.request_file))
    if overwrite:
      for name in (plan.list_file, plan.report_file, plan.failed_file, *_shard_files(plan)):
        Path(name).unlink(missing_ok=True)
    if overwrite or not os.path.exists(plan.request_file):
      files.write_bytes(Path(plan.request_file), _to_json(plan.request))
      stack.enter_context(_lock(plan.request_file))
    for name in _incomplete_files(plan):
      Path(name).unlink(missing_ok=True)
    yield


def _refuse_other_files(plan: Plan) -> None:
  if os.path.exists(plan.request_file):
    refuse_other_request(plan, read_request(plan.request_file))
  elif os.path.exists(plan.list_file):
    raise UserError(f'{plan.list_file} is there and was not prepared; choose another folder')
  classes = plan.classes_file
  if classes and plan.classes_path and os.path.exists(classes):
    if Path(classes).read_bytes() != Path(plan.classes_path).read_bytes():
      raise UserError(f'{classes} is there and is not {plan.classes_path}; choose another folder')


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
  with open(path, 'rb') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when this process ends
    except BlockingIOError as error:
      folder = os.path.dirname(path)
      raise UserError(f'{folder}: another process prepares this list there') from error
    except OSError:
      pass                    # a file system without locks: its users must take care themselves
    yield


def _shard_files(plan: Plan) -> list[str]:
  """Returns the shards of this list that the folder holds, for any number of shards."""
  return [x for name in _shard_patterns(plan)
          for x in glob.glob(os.path.join(glob.escape(plan.folder), name))]


def _incomplete_files(plan: Plan) -> list[str]:
  """Returns the files of this list that a process began and did not complete."""
  complete = (plan.list_file, plan.request_file, plan.report_file, plan.failed_file,
              plan.classes_file)
  names = [*_shard_patterns(plan),
           *(glob.escape(os.path.basename(file)) for file in complete if file)]
  folder = glob.escape(plan.folder)
  return [x for name in names for begin in ('.*.tmp.', '.*.partial.')
          for x in glob.glob(os.path.join(folder, begin + name))]


def _shard_patterns(plan: Plan) -> list[str]:
  stem, number = glob.escape(Path(plan.path).stem), '[0-9]' * 5
  return [f'{stem}-{number}-of-{number}{ending}' for ending in ('.array_record', '.json')]


def list_failed(facts: Iterable[dict]) -> list[tuple[str, str]]:
  """Returns (path, reason) of every video that the shards lack."""
  return [(video['path'], video['reason']) for shard in facts for video in shard['failed']]


def write_failed(plan: Plan, failed: Sequence[tuple[str, str]]) -> None:
  """Writes the list of unreadable videos."""
  files.write_bytes(Path(plan.failed_file), _failed_csv(failed))


def make_lists(plan: Plan, facts: Facts) -> dict[str, bytes]:
  """Returns file -> content of the lists to write after all shards; the list itself is last."""
  places = {
    video['path']: f'{os.path.basename(shard.file)}/{number}' for shard in plan.shards
    for number, video in enumerate(facts[shard.file]['videos'])
  }
  contents = {}
  failed = list_failed(facts[shard.file] for shard in plan.shards)
  if failed:
    contents[plan.failed_file] = _failed_csv(failed)
  if plan.classes_file and plan.classes_path:
    contents[plan.classes_file] = Path(plan.classes_path).read_bytes()
  note = f'{len(places)} of {plan.count} videos prepared'
  contents[plan.list_file] = derive_lists.moved(plan.path, places, note)
  return contents


def conclude(plan: Plan, facts: Facts) -> Report:
  """Writes the report and the lists of a folder whose shards are complete."""
  report = _make_report(plan, [facts[shard.file] for shard in plan.shards])
  content = dataclasses.asdict(report)
  content['failed'] = len(report.failed)
  files.write_bytes(Path(plan.report_file), _to_json(content))
  if not report.failed:
    Path(plan.failed_file).unlink(missing_ok=True)
  for name, text in make_lists(plan, facts).items():
    files.write_bytes(Path(name), text)
  return report


def _make_report(plan: Plan, facts: Sequence[dict]) -> Report:
  videos = [video for shard in facts for video in shard['videos']]
  losses = [video['psnr'] for video in videos if video['psnr'] is not None]
  psnr: dict[str, float | None] = {'mean': None, 'lowest': None, 'fifth_percentile': None}
  if losses:
    values = (np.mean(losses), np.min(losses), np.percentile(losses, 5))
    psnr = {name: round(float(x), 2) for name, x in zip(psnr, values, strict=True)}
  total = lambda name, rows: sum(row[name] for row in rows)
  return Report(
    listed=plan.count, prepared=len(videos), failed=tuple(list_failed(facts)),
    notes=tuple((video['path'], note) for video in videos for note in video.get('notes', ())),
    shards=len(facts),
    hours=round(total('seconds', videos) / 3600, 4), frames=total('frames', videos),
    bytes_before=total('source_bytes', videos), bytes_after=total('bytes', facts), psnr=psnr,
    cpu_seconds_per_video=round(total('cpu_seconds', facts) / max(1, len(videos)), 3),
    encoding=plan.request['encoding'],
  )


def _failed_csv(failed: Iterable[tuple[str, str]]) -> bytes:
  return annotations.encode_list(text_lists.format_csv([('path', 'reason'), *failed]))


def _to_json(content: Any) -> bytes:
  return (json.dumps(content, indent=1) + '\n').encode()
