"""Saving and restoring runs with Orbax: asynchronous, whole or not at all."""

import itertools
import logging
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.models.training_options.projectors import PROJECTORS
from xclip_jax.parallel import process_exit, processes, tree_names
from xclip_jax.storage.state import TrainState

_managers = ocp.checkpoint_managers


def _is_said_elsewhere(record: logging.LogRecord) -> bool:
  """Tells whether a log record is a failed write, which `Checkpoints` raises as CheckpointError.

  Each thread and task of Orbax that takes part in a write logs a stack trace of its own.
  """
  by_orbax = 'orbax' in record.pathname
  by_its_tasks = record.name == 'asyncio' and 'orbax' in record.getMessage()
  failed = record.levelno >= logging.ERROR and (by_orbax or by_its_tasks)
  if record.levelno >= logging.ERROR and record.exc_info:
    _end_all_if_it_waits(record.exc_info[1])
  return failed


def _silence_failed_writes() -> None:
  """Leaves it to CheckpointError to say that a write failed: once, and what is safe."""
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(lambda record: not _is_said_elsewhere(record))
  before = sys.unraisablehook

  def hook(unraisable):
    # TensorStore's threads report to an event loop that Orbax has closed after the first failure.
    if 'Event loop is closed' not in str(unraisable.exc_value):
      before(unraisable)

  sys.unraisablehook = hook


_silence_failed_writes()
_writing: list['Checkpoints'] = []     # the one that writes in the background, or wrote last
_WAIT = 5.0                            # seconds that a failed write has to be raised by itself


def _end_all_if_it_waits(error: BaseException) -> None:
  """Ends all processes if a thread of Orbax failed and the main thread does not hear of it.

  With several processes Orbax (0.12.8) waits for the other threads and processes of the write,
  which wait for the one that failed: for ten minutes and more.
  """
  frames = traceback.walk_tb(error.__traceback__)
  in_write = threading.current_thread() is not threading.main_thread() and any(
    frame.f_globals.get('__name__', '').startswith('orbax.') for frame, _ in frames)
  if process_exit.peers() is None or not in_write or not _writing:
    return

  def end():
    found = _writing[-1]._write_error(_reason(error))
    found.__cause__ = error
    process_exit.fail(found, process_exit.say_message)

  timer = threading.Timer(_WAIT, end)
  timer.daemon = True
  timer.start()


class CheckpointError(UserError, RuntimeError):
  """A checkpoint could not be written or read; the message says what is safe."""


class Checkpoints:
  """The checkpoints of one run, `workdir/checkpoints/<step>/`.

  The newest few are kept, and the best few of those saved with a metric; the metric is on disk, so
  that the best one survives restarts. Arrays are copied before `save` returns; writing goes on in
  the background. Sums of all bits are kept with them, since a storage layer reads most changed
  bytes without complaint. Use as a context manager.
  """

  def __init__(self, workdir: Path | epath.Path, keep_latest: int = 2, keep_best: int = 1):
    workdir = files.as_path(workdir)
    # Relative paths fail much later. One in a bucket is absolute.
    self.folder = (workdir if files.is_remote(workdir) else workdir.resolve()) / 'checkpoints'
    best = lambda metrics: metrics['top1']
    options = ocp.CheckpointManagerOptions(
      best_fn=best,
      save_decision_policy=_managers.FixedIntervalPolicy(1),    # the loop decides
      preservation_policy=_managers.AnyPreservationPolicy([
        _managers.LatestN(keep_latest),
        _managers.BestN(get_metric_fn=best, n=keep_best, keep_checkpoints_without_metrics=False),
      ]),
      enable_async_checkpointing=True,
    )
    with files.explain_errors(self.folder):
      self._manager = ocp.CheckpointManager(self.folder, options=options)

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint, None when there is none."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step with the best validation top-1 among those kept, else the latest."""
    return self._manager.best_step() or self.latest_step()

  def save(
    self, step: int, state: TrainState, host: dict[str, Any], metric: float | None = None
  ) -> None:
    """Starts writing the state, and `host` as JSON; a step that is there already is left alone.

    Raises:
      CheckpointError: this or the previous checkpoint could not be written.
    """
    if step in self._manager.all_steps():
      return
    self._check_space(state)
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host | {'sums': _sums(state)})
    )
    _writing[:] = [self]
    metrics = None if metric is None else {'top1': metric}      # its name in files, whatever it is
    self._guard(lambda: self._manager.save(step, args=args, metrics=metrics))

  def restore(self, step: int, abstract: TrainState, shardings: Any) -> tuple[TrainState, dict]:
    """Reads a state onto the mesh of `shardings`, however it was sharded when it was saved.

    Raises:
      CheckpointError: it is damaged, or holds another model; the message lists up to ten
        differences.
      ValueError: another process found that.
    """
    # All take each step before the next: who went on alone would wait for the others.
    processes.run_on_all_processes(lambda: self._check_shapes(step, abstract.params))
    target = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore()
    )
    restored = processes.run_on_all_processes(lambda: self._read(step, args))
    host = dict(restored['host'])
    sums = _sums(restored['state'])
    processes.run_on_all_processes(lambda: self._check_sums(step, sums, host.pop('sums', {})))
    return restored['state'], host

  def restore_latest(
    self, abstract: TrainState, shardings: Any
  ) -> tuple[int, TrainState, dict[str, Any]]:
    """Reads the newest checkpoint that can be read; those that cannot are put aside, and named.

    They are moved to `workdir/damaged_checkpoints/`. Returns (step, state, host); `host` is what
    `save` was given.

    Raises:
      CheckpointError: none can be read; says why not the newest.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state, host = self.restore(step, abstract, shardings)
      except (CheckpointError, ValueError) as error:      # ValueError: on another process
        damaged[step] = error
        continue
      self._put_aside(damaged, step)
      return step, state, host
    raise next(iter(damaged.values()))

  def _put_aside(self, damaged: dict[int, Exception], found: int) -> None:
    if not damaged:
      return
    aside = self.folder.parent / 'damaged_checkpoints'
    if jax.process_index() == 0:
      for step, error in damaged.items():
        place = next(place for n in itertools.count()
                     if not files.exists(place := aside / f'{step}{f"_{n}" if n else ""}'))
        files.move_folder(self.folder / str(step), place)
        print(f'{str(error).splitlines()[0]}\n  moved to {place}; going on from step {found}',
              file=sys.stderr, flush=True)
    processes.run_on_all_processes(self._manager.reload)

  def restore_params(self, step: int, abstract: Any, sharding: Any = None) -> Any:
    """Reads the parameters alone; `abstract` and errors as in `restore`."""
    return self._restore_part('params', step, abstract, sharding)

  def restore_weights(self, step: int, abstract: Any, sharding: Any = None) -> Any:
    """Reads what is to be evaluated and used: the average where the run kept one, else params."""
    saved = self._metadata(step)
    return self._restore_part(
      'average' if saved.get('average') else 'params', step, abstract, sharding)

  def _restore_part(self, part: str, step: int, abstract: Any, sharding: Any) -> Any:
    self._check_shapes(step, abstract)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {part: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )}
    args = ocp.args.Composite(host=ocp.args.JsonRestore(), state=ocp.args.PyTreeRestore(
      target, restore_args=ocp.checkpoint_utils.construct_restore_args(target),
      partial_restore=True,
    ))
    restored = self._read(step, args)
    found = restored['state'][part]
    self._check_sums(step, _sums({part: found}), restored['host'].get('sums', {}))
    return found

  def parameter_names(self, step: int) -> set[str]:
    """Names of the parameters that were saved."""
    return set(tree_names.flatten(self._metadata(step)['params']))

  def wait(self) -> None:
    """Blocks until everything is on disk."""
    self._guard(self._manager.wait_until_finished)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None:
      self.wait()
    elif jax.process_count() > 1 or issubclass(kind, CheckpointError):
      return                  # closing waits for processes that may be gone, or for a failed write
    self._manager.close()

  def _guard(self, write) -> None:
    try:
      write()
    except Exception as error:     # Orbax hands on whatever its storage layer raised
      raise self._write_error(_reason(error)) from error

  def _check_space(self, state: TrainState) -> None:
    """Finds a disk that is too full before the write does; a bucket has room."""
    if files.is_remote(self.folder):
      return
    need = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self.folder).free
    if free < need:
      raise self._write_error(f'it takes {need / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free')

  def _write_error(self, reason: str) -> CheckpointError:
    safe = [step for step in self._manager.all_steps() if (self.folder / str(step)).is_dir()]
    kept = f'step {max(safe)} is complete and safe' if safe else 'there is none yet'
    return CheckpointError(
      f'could not write a checkpoint to {self.folder}: {reason}\n'
      f'Of the earlier ones: {kept}. Make room (or fix the cause) and run the same command '
      'again; it goes on from there.'
    )

  def _read(self, step: int, args: Any) -> Any:
    # Not by the manager: where a process fails in that, the others wait for it in Orbax.
    try:
      return ocp.CompositeCheckpointHandler().restore(epath.Path(self.folder / str(step)), args)
    except Exception as error:     # likewise
      raise CheckpointError(
        f'could not read the checkpoint {self.folder / str(step)}: {_reason(error)}\n'
        'Training goes on from the one before, if there is one.'
      ) from error

  def _metadata(self, step: int) -> dict[str, Any]:
    folder = epath.Path(self.folder / str(step) / 'state')
    try:
      return ocp.PyTreeCheckpointHandler().metadata(folder).tree
    except Exception as error:     # likewise
      raise CheckpointError(
        f'could not read the checkpoint {folder.parent}: {_reason(error)}') from error

  def _check_sums(self, step: int, found: dict[str, int], saved: dict[str, int]) -> None:
    """Compares with what was saved; checkpoints of older versions have no sums."""
    differ = [name for name, value in found.items() if saved.get(name, value) != value]
    if differ:
      more = f' and {len(differ) - 1} more arrays are' if len(differ) > 1 else ' is'
      raise CheckpointError(
        f'the checkpoint {self.folder / str(step)} is damaged: {differ[0]}{more} not what was '
        'saved\nTraining goes on from the one before, if there is one.')

  def _check_shapes(self, step: int, abstract: Any) -> None:
    """Compares shapes before Orbax does, to say what differs in our names."""
    saved = {k: tuple(v.shape) for k, v in tree_names.flatten(self._metadata(step)['params']).items()}
    want = {k: tuple(v.shape) for k, v in tree_names.flatten(abstract).items()}
    if PROJECTORS not in abstract:                     # which are not used but in training
      saved = {k: x for k, x in saved.items() if not k.startswith(f'{PROJECTORS}/')}
    show = lambda shapes, k: list(shapes[k]) if k in shapes else 'nothing'
    differ = [
      f'{k}: saved {show(saved, k)}, wanted {show(want, k)}'
      for k in sorted(saved.keys() | want.keys()) if saved.get(k) != want.get(k)
    ]
    if differ:
      more = f'\n  ... and {len(differ) - 10} more' if len(differ) > 10 else ''
      advice = 'Set config.model to what it was trained with, or choose another workdir.'
      if f'{PROJECTORS}/video/fc/bias' in saved.keys() - want.keys():
        advice = ('Its networks of config.train.distill have biases: an older version trained it, '
                  'with another formula than that of FROSTER. Finish it with that version, or '
                  'start anew in another workdir.')
      raise CheckpointError(
        f'the checkpoint {self.folder / str(step)} is of another model '
        f'({len(differ)} parameters differ):\n  ' + '\n  '.join(differ[:10]) + more
        + f'\n{advice}'
      )


@jax.jit
def _bits(x: jax.Array) -> jax.Array:
  """The sum of an array's bits as unsigned integers, modulo 2 ** 32: any order gives the same."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
  x = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
  return jnp.sum(x, dtype=jnp.uint32)


def _sums(state: Any) -> dict[str, int]:
  """The bits of each array by its name: on any mesh the same, and other if a bit changes."""
  bits = {name: _bits(x) for name, x in tree_names.flatten(state).items()}
  return {name: int(n) for name, n in jax.device_get(bits).items()}


def _reason(error: BaseException) -> str:
  """One line; of an error that Orbax puts around another one, the inner: it names the file."""
  error = error.__cause__ or error
  return f'{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ""}'
