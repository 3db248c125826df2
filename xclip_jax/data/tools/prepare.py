"""Preparation of lists of videos: stored once in shards, so that every later run reads them fast.

A prepared folder holds, for a list `train.csv`:

  train-00000-of-00004.array_record   videos, one a record, as data/video/encode.py stores them
  train-00000-of-00004.json           facts about this shard: see data/tools/prepare_shards.py
  train_request.json                  what was asked for
  train_failed.csv                    videos that could not be read, if any, and why
  train_report.json                   sizes, quality and time
  classes.csv                         the class list as it was
  train.csv                           the list with paths into the shards: it is written last

So a folder with a list is complete, and a run reads it like any other list of files.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from xclip_jax.data import workers
from xclip_jax.data.tools import prepare_shards, prepared_folder
from xclip_jax.data.tools.prepare_shards import Shard
from xclip_jax.data.tools.prepared_folder import ListFiles, Plan, Report
from xclip_jax.data.video.encode import Encoding
from xclip_jax.errors import UserError

Progress = Callable[..., Iterable]       # wraps an iterable as tqdm does, given `total` and `desc`


@dataclasses.dataclass(frozen=True)
class Options:
  """Says how a list is divided, and when preparing stops or begins again.

  Fields:
    per_shard: videos in a shard; 0: 256, or fewer if the list is short.
    max_bad_share: share of videos that may fail.
    overwrite: begin again, if the folder holds this list already.
    retry: write those shards again in which videos failed.
  """

  per_shard: int = 0
  max_bad_share: float = 0.05
  overwrite: bool = False
  retry: bool = False


def prepare(
  listed: ListFiles, folder: str | os.PathLike, encoding: Encoding, options: Options = Options(),
  processes: int = 1, progress: Progress | None = None,
) -> Report:
  """Stores the videos of a list anew, in shards, and writes a list of them.

  Calling it again goes on where a kill has ended it: complete shards of the same request are kept.
  The files depend on the list, the videos and the options, not on `processes`. Call it under a
  `__main__` guard.

  Args:
    listed: the list, its root and its class list.
    folder: folder to write to; created if it does not exist.
    encoding: how videos are stored.
    options: division, limit of failures, whether to begin again.
    processes: number of encoding processes, one thread each.
    progress: wraps an iterable as tqdm does, given `total` and `desc`.

  Raises:
    UserError: the list or the class list is malformed, the folder was prepared for another request,
      too many videos failed, or a process ends before it reads a video.
    OSError: a shard cannot be written. Complete shards are kept.
  """
  plan = prepared_folder.make_plan(listed, folder, encoding, options.per_shard)
  if processes < 1:
    raise UserError(f'processes must be at least 1, found {processes}')
  progress = progress or (lambda items, **_: items)
  os.makedirs(plan.folder, exist_ok=True)
  with prepared_folder.claim_folder(plan, options.overwrite):
    missing, facts = [], {}
    faults = _in_threads(prepare_shards.find_fault, plan.shards, processes)
    for shard, fault in progress(faults, total=len(plan.shards), desc='looking'):
      shard_facts = None if fault else prepare_shards.read_facts(shard)
      if shard_facts is None or (options.retry and shard_facts['failed']):
        missing.append(shard)
      else:
        facts[shard.file] = shard_facts
    if missing:                # from now on the folder is not complete
      for name in (plan.list_file, plan.report_file, plan.failed_file):
        Path(name).unlink(missing_ok=True)
    _stop_if_bad(plan, facts, options.max_bad_share)
    steps = prepare_shards.write_all(missing, processes)
    count = sum(len(shard.paths) for shard in missing)
    with contextlib.closing(steps):
      done = _note_shards(steps, plan, facts, options.max_bad_share)
      for _ in progress(done, total=count, desc='encoding'):
        pass
    return prepared_folder.conclude(plan, facts)


def verify(
  listed: ListFiles, folder: str | os.PathLike, processes: int = 1,
  progress: Progress | None = None,
) -> tuple[int, list[tuple[str, str]]]:
  """Reads a prepared list again: SHA-256 of each shard, a frame of each record, the list itself.

  Arguments as in `prepare`, which repairs the damage.

  Returns:
    number of shards there should be, and (file name, fault) of each damaged file.

  Raises:
    UserError: nothing was prepared in the folder, or another list was.
  """
  request = prepared_folder.read_request(
    os.path.join(folder, f'{Path(listed.path).stem}_request.json'))
  settings = request.get('encoding')
  fields = {field.name for field in dataclasses.fields(Encoding)}
  if not isinstance(settings, dict) or not settings.keys() <= fields or not isinstance(
    request.get('per_shard'), int):
    raise UserError(f'{folder} was prepared by another version of this command; prepare the list '
                    'again with --overwrite')
  encoding, per_shard = Encoding(**settings), request['per_shard']
  plan = prepared_folder.make_plan(listed, folder, encoding, per_shard)
  prepared_folder.refuse_other_request(plan, request)
  progress = progress or (lambda items, **_: items)
  find = functools.partial(prepare_shards.find_fault, decoding=True)
  results = workers.unordered(
    find, plan.shards, processes, 'reading it crashes the decoder', chunk=1)
  results = progress(results, total=len(plan.shards), desc='verifying')
  damaged = sorted((os.path.basename(shard.file), fault) for shard, fault in results if fault)
  if not damaged:
    facts = {shard.file: prepare_shards.read_facts(shard) for shard in plan.shards}
    for name, content in prepared_folder.make_lists(plan, facts).items():
      try:
        if Path(name).read_bytes() != content:
          damaged.append((os.path.basename(name), 'is not what was prepared'))
      except OSError as error:
        damaged.append((os.path.basename(name), error.strerror or str(error)))
  return len(plan.shards), damaged


def _in_threads(
  job: Callable[[Shard], Any], shards: Iterable[Shard], threads: int
) -> Iterator[tuple[Shard, Any]]:
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    yield from zip(shards, pool.map(job, shards), strict=True)


def _note_shards(
  steps: Generator[Shard | None], plan: Plan, facts: dict[str, dict], max_bad_share: float
) -> Iterator[None]:
  """Yields once a video, adds the facts of complete shards, and stops at too many failures."""
  for shard in steps:
    if shard is None:
      yield None
    else:
      facts[shard.file] = prepare_shards.read_facts(shard)
      _stop_if_bad(plan, facts, max_bad_share)


def _stop_if_bad(plan: Plan, facts: dict[str, dict], max_bad_share: float) -> None:
  failed = prepared_folder.list_failed(facts.values())
  if len(failed) > max_bad_share * plan.count or len(failed) == plan.count:
    prepared_folder.write_failed(plan, failed)
    shown = '; '.join(f'{path}: {reason}' for path, reason in failed[:3])
    raise UserError(
      f'{len(failed)} of {plan.count} videos cannot be read, more than --max-bad-share '
      f'{max_bad_share:g} allows: {shown}. {plan.failed_file} names them; repair them and add '
      '--retry, or delist them'
    )
