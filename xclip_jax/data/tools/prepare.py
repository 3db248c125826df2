"""Lists of videos prepared once, so that every later run reads them fast.

A prepared folder holds, for a list `train.csv`:

  train-00000-of-00004.array_record   videos, one a record, as data/encode.py stores them
  train-00000-of-00004.json           what is in it: see data/prepare_shards.py
  train_request.json                  what was asked for
  train_failed.csv                    videos that could not be read, if any, and why
  train_report.json                   how much it is, and how good
  classes.csv                         the class list as it was
  train.csv                           the list with paths into the shards: it is written last

So a folder with a list is complete, and a run reads it like any other list of files.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import fcntl
import functools
import glob
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.data import workers
from xclip_jax.data.datasets import annotations
from xclip_jax.data.tools import derive_lists, prepare_shards
from xclip_jax.data.tools.prepare_shards import Shard
from xclip_jax.data.video.encode import Encoding
from xclip_jax.errors import UserError

_PER_SHARD = 256              # a shard is what a kill costs, and what a process is given
_SMALLEST, _WANTED_SHARDS = 16, 64       # so that a short list keeps many processes busy, too


@dataclasses.dataclass(frozen=True)
class Report:
  """What a prepared list amounts to; `failed` are (path, reason)."""

  listed: int                 # videos, each once
  prepared: int
  failed: tuple[tuple[str, str], ...]
  shards: int
  hours: float                # of video
  frames: int                 # stored
  bytes_before: int
  bytes_after: int            # of the shards
  psnr: dict[str, float | None]            # dB: mean, lowest, 5th percentile; None: no loss
  cpu_seconds_per_video: float
  encoding: dict[str, Any]


def prepare(
  path: str | os.PathLike, root: str | os.PathLike, classes_path: str | os.PathLike | None,
  folder: str | os.PathLike, encoding: Encoding, *, per_shard: int = 0, processes: int = 1,
  max_bad_share: float = 0.05, overwrite: bool = False, retry: bool = False,
  progress: Callable[..., Iterable] | None = None,
) -> Report:
  """Store the videos of a list anew, in shards, and write a list of them.

  Calling it again goes on where a kill has ended it: shards that are whole and were asked for in
  the same way are kept. What is written depends on the list, the videos and the options, not on
  `processes`. Call it under a `__main__` guard.

  Args:
    path: a list as `source.read_annotations` or `source.read_captions` takes it.
    root: folder that relative paths start from.
    classes_path: class list; None for a list of captions, which has no classes.
    folder: to write to; made if it is not there.
    encoding: how videos are stored.
    per_shard: videos in a shard; 0: 256, or fewer if the list is short.
    processes: that encode, one thread each.
    max_bad_share: of videos that may fail.
    overwrite: begin again, if the folder holds this list already.
    retry: do those shards again in which videos failed.
    progress: wraps an iterable as tqdm does, given `total` and `desc`.

  Raises:
    ValueError: the list or the class list is wrong, the folder holds what was asked for in another
      way, or too many videos failed.
    OSError, RuntimeError: a shard cannot be written. Those that are complete are kept.
  """
  plan = _plan(path, root, classes_path, folder, encoding, per_shard)
  if processes < 1:
    raise UserError(f'processes must be at least 1, found {processes}')
  progress = progress or (lambda items, **_: items)
  os.makedirs(plan.folder, exist_ok=True)
  with _begun(plan, overwrite):
    wanted, found = [], {}
    faults = _in_threads(prepare_shards.find_fault, plan.shards, processes)
    for shard, fault in progress(faults, total=len(plan.shards), desc='looking'):
      about = None if fault else prepare_shards.read_about(shard)
      if fault or (retry and about['failed']):
        wanted.append(shard)
      else:
        found[shard.file] = about
    if wanted:                # from now on the folder is not complete
      for name in (plan.list_file, plan.report_file, plan.failed_file):
        Path(name).unlink(missing_ok=True)
    _stop_if_bad(plan, found, max_bad_share)
    steps = prepare_shards.write_all(wanted, processes)
    count = sum(len(shard.paths) for shard in wanted)
    with contextlib.closing(steps):
      done = _only_videos(steps, plan, found, max_bad_share)
      for _ in progress(done, total=count, desc='encoding'):
        pass
    return _conclude(plan, found)


def verify(
  path: str | os.PathLike, root: str | os.PathLike, classes_path: str | os.PathLike | None,
  folder: str | os.PathLike, *, processes: int = 1,
  progress: Callable[..., Iterable] | None = None,
) -> tuple[int, list[tuple[str, str]]]:
  """Read a prepared list again: SHA-256 of each shard, a frame of each record, the list itself.

  Arguments as in `prepare`, which repairs what this finds.

  Returns:
    how many shards there should be, and (file name, what is wrong with it).

  Raises:
    ValueError: nothing was prepared there, or not from this list.
  """
  request = _read_request(os.path.join(folder, f'{Path(path).stem}_request.json'))
  try:
    encoding, per_shard = Encoding(**request['encoding']), request['per_shard']
  except (KeyError, TypeError) as error:
    raise UserError(f'{folder} was prepared by another version of this command') from error
  plan = _plan(path, root, classes_path, folder, encoding, per_shard)
  _refuse_another(plan, request)
  progress = progress or (lambda items, **_: items)
  find = functools.partial(prepare_shards.find_fault, decoding=True)
  results = workers.unordered(
    find, plan.shards, processes, 'reading it crashes the decoder', chunk=1)
  results = progress(results, total=len(plan.shards), desc='verifying')
  damaged = sorted((os.path.basename(shard.file), fault) for shard, fault in results if fault)
  if not damaged:
    for name, content in _lists(plan, _read_all(plan)).items():
      try:
        if Path(name).read_bytes() != content:
          damaged.append((os.path.basename(name), 'is not what was prepared'))
      except OSError as error:
        damaged.append((os.path.basename(name), error.strerror))
  return len(plan.shards), damaged


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What a prepared list is made from, and where its parts belong."""

  path: str
  classes_path: str | None
  folder: str
  shards: tuple[Shard, ...]
  request: dict[str, Any]

  @property
  def count(self) -> int:
    return self.request['videos']

  def named(self, ending: str) -> str:
    return os.path.join(self.folder, f'{Path(self.path).stem}{ending}')

  @property
  def list_file(self) -> str:
    return self.named(Path(self.path).suffix)

  @property
  def request_file(self) -> str:
    return self.named('_request.json')

  @property
  def report_file(self) -> str:
    return self.named('_report.json')

  @property
  def failed_file(self) -> str:
    return self.named('_failed.csv')

  @property
  def classes_file(self) -> str | None:
    return self.classes_path and os.path.join(self.folder, os.path.basename(self.classes_path))


def _plan(
  path: Any, root: Any, classes_path: Any, folder: Any, encoding: Encoding, per_shard: int
) -> _Plan:
  columns, rows = annotations.read_rows(path, ('path',))
  if 'label' in columns:
    annotations.read_annotations(path, root, annotations.read_classes(classes_path))
  elif 'caption' in columns:
    annotations.read_captions(path, root)
    classes_path = None
  else:
    raise UserError(f'{path}, line 1: a column label or caption is wanted, found {columns}')
  folder, path = os.path.abspath(folder), os.fspath(path)
  if os.path.realpath(folder) == os.path.realpath(os.path.dirname(os.path.abspath(path))):
    raise UserError(f'{folder} is the folder of {path}, whose name the new list will have; choose '
                     'another folder')
  videos = tuple(dict.fromkeys(row['path'] for _, row in rows))  # a video may have several rows
  if per_shard < 0:
    raise UserError(f'per_shard must be at least 1, found {per_shard}')
  each = per_shard or max(_SMALLEST, min(_PER_SHARD, -(-len(videos) // _WANTED_SHARDS)))
  count = -(-len(videos) // each)
  shards = tuple(
    Shard(os.path.join(folder, f'{Path(path).stem}-{n:05d}-of-{count:05d}.array_record'),
          videos[n * each:(n + 1) * each], os.path.abspath(root), encoding)
    for n in range(count)
  )
  digest = hashlib.sha256(json.dumps(videos).encode()).hexdigest()
  request = {
    'version': prepare_shards.VERSION, 'list': os.path.basename(path), 'videos': len(videos),
    'videos_sha256': digest, 'per_shard': each, 'encoding': encoding.settings,
  }
  return _Plan(path, classes_path and os.fspath(classes_path), folder, shards, request)


@contextlib.contextmanager
def _begun(plan: _Plan, overwrite: bool) -> Iterator[None]:
  """See that the folder holds nothing else by these names, and that nobody else writes there."""
  classes = plan.classes_file
  if not overwrite:
    if os.path.exists(plan.request_file):
      _refuse_another(plan, _read_request(plan.request_file))
    elif os.path.exists(plan.list_file):
      raise UserError(f'{plan.list_file} is there and was not prepared; choose another folder')
    if classes and os.path.exists(classes):
      if Path(classes).read_bytes() != Path(plan.classes_path).read_bytes():
        raise UserError(
          f'{classes} is there and is not {plan.classes_path}; choose another folder')
  with contextlib.ExitStack() as stack:
    if os.path.exists(plan.request_file):
      stack.enter_context(_locked(plan.request_file))
    if overwrite:
      for name in (plan.list_file, plan.report_file, plan.failed_file, *_parts(plan)):
        Path(name).unlink(missing_ok=True)
    if overwrite or not os.path.exists(plan.request_file):
      files.write_bytes(Path(plan.request_file), _json(plan.request))
      stack.enter_context(_locked(plan.request_file))
    for name in _parts(plan, '.*.tmp.'):
      Path(name).unlink(missing_ok=True)
    yield


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
  with open(path, 'rb') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of when this process ends
    except BlockingIOError as error:
      folder = os.path.dirname(path)
      raise UserError(f'{folder}: another process prepares this list there') from error
    except OSError:
      pass                    # a file system without locks: then it is for the user to see to
    yield


def _read_request(path: str) -> dict[str, Any]:
  try:
    with open(path, 'rb') as file:
      return dict(json.load(file))
  except OSError as error:
    raise UserError(f'nothing was prepared: {path} cannot be read ({error.strerror})') from error
  except (ValueError, TypeError) as error:
    raise UserError(f'{path} is damaged ({error}); --overwrite begins again') from error


def _parts(plan: _Plan, begin: str = '') -> list[str]:
  """Files of shards of this list, of any number of them; if begun, other files, too."""
  stem = glob.escape(Path(plan.path).stem)
  number = '[0-9]' * 5
  names = [f'{stem}-{number}-of-{number}{ending}' for ending in ('.array_record', '.json')]
  if begin:
    files = (plan.list_file, plan.request_file, plan.report_file, plan.failed_file,
             plan.classes_file)
    names += [glob.escape(os.path.basename(file)) for file in files if file]
  folder = glob.escape(plan.folder)
  return [x for name in names for x in glob.glob(os.path.join(folder, begin + name))]


def _refuse_another(plan: _Plan, found: dict[str, Any]) -> None:
  if found == plan.request:
    return
  flat = lambda request: {k: v for k, v in request.items() if k != 'encoding'} | dict(
    request.get('encoding', {}))
  there, wanted = flat(found), flat(plan.request)
  differences = [
    f'{name} {there.get(name)}, not {wanted.get(name)}' for name in there | wanted
    if there.get(name) != wanted.get(name) and name != 'videos_sha256'
  ]
  if not differences:
    differences = ['as many videos, but others or in another order']
  raise UserError(
    f'{plan.folder} holds {os.path.basename(plan.path)} prepared in another way: '
    f'{"; ".join(differences)}. Choose another folder, or --overwrite to begin again'
  )


def _in_threads(
  job: Callable[[Shard], Any], shards: Iterable[Shard], threads: int
) -> Iterator[tuple[Shard, Any]]:
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    yield from zip(shards, pool.map(job, shards), strict=True)


def _only_videos(
  steps: Iterator[Shard | None], plan: _Plan, found: dict[str, dict], max_bad_share: float
) -> Iterator[None]:
  """Yield once a video; note each shard that is complete, and stop where too many have failed."""
  for shard in steps:
    if shard is None:
      yield None
    else:
      found[shard.file] = prepare_shards.read_about(shard)
      _stop_if_bad(plan, found, max_bad_share)


def _stop_if_bad(plan: _Plan, found: dict[str, dict], max_bad_share: float) -> None:
  failed = _failed(found.values())
  if len(failed) > max_bad_share * plan.count or len(failed) == plan.count:
    files.write_bytes(Path(plan.failed_file), _failed_csv(failed))
    shown = '; '.join(f'{path}: {reason}' for path, reason in failed[:3])
    raise UserError(
      f'{len(failed)} of {plan.count} videos cannot be read, more than --max-bad-share '
      f'{max_bad_share:g} allows: {shown}. {plan.failed_file} names them; repair them and add '
      '--retry, or delist them'
    )


def _read_all(plan: _Plan) -> dict[str, dict]:
  return {shard.file: prepare_shards.read_about(shard) for shard in plan.shards}


def _conclude(plan: _Plan, found: dict[str, dict]) -> Report:
  report = _report(plan, [found[shard.file] for shard in plan.shards])
  content = dataclasses.asdict(report)
  content['failed'] = len(report.failed)
  files.write_bytes(Path(plan.report_file), _json(content))
  if not report.failed:
    Path(plan.failed_file).unlink(missing_ok=True)
  for name, text in _lists(plan, found).items():
    files.write_bytes(Path(name), text)
  return report


def _lists(plan: _Plan, found: dict[str, dict]) -> dict[str, bytes]:
  """File -> content of what is written when all shards are complete; the list itself is last."""
  places = {
    video['path']: f'{os.path.basename(shard.file)}/{number}' for shard in plan.shards
    for number, video in enumerate(found[shard.file]['videos'])
  }
  files = {}
  failed = _failed(found[shard.file] for shard in plan.shards)
  if failed:
    files[plan.failed_file] = _failed_csv(failed)
  if plan.classes_file:
    files[plan.classes_file] = Path(plan.classes_path).read_bytes()
  note = f'{len(places)} of {plan.count} videos prepared'
  files[plan.list_file] = derive_lists.moved(plan.path, places, note)
  return files


def _failed(abouts: Iterable[dict]) -> list[tuple[str, str]]:
  return [(video['path'], video['reason']) for about in abouts for video in about['failed']]


def _failed_csv(failed: Iterable[tuple[str, str]]) -> bytes:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([('path', 'reason'), *failed])
  return annotations.encode_list(text.getvalue())


def _report(plan: _Plan, abouts: list[dict]) -> Report:
  videos = [video for about in abouts for video in about['videos']]
  losses = [video['psnr'] for video in videos if video['psnr'] is not None]
  psnr = dict.fromkeys(('mean', 'lowest', 'fifth_percentile'))
  if losses:
    values = (np.mean(losses), np.min(losses), np.percentile(losses, 5))
    psnr = {name: round(float(x), 2) for name, x in zip(psnr, values, strict=True)}
  total = lambda name, rows: sum(row[name] for row in rows)
  return Report(
    listed=plan.count, prepared=len(videos), failed=tuple(_failed(abouts)), shards=len(abouts),
    hours=round(total('seconds', videos) / 3600, 4), frames=total('frames', videos),
    bytes_before=total('source_bytes', videos), bytes_after=total('bytes', abouts), psnr=psnr,
    cpu_seconds_per_video=round(total('cpu_seconds', abouts) / max(1, len(videos)), 3),
    encoding=plan.request['encoding'],
  )


def _json(content: Any) -> bytes:
  return (json.dumps(content, indent=1) + '\n').encode()
