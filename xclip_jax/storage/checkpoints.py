"""Checkpoints of a run, written by Orbax in the background and checked when they are read."""

import copy
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from xclip_jax import files
from xclip_jax.errors import UserError, is_out_of_device_memory
from xclip_jax.models.training_options.projectors import PROJECTORS
from xclip_jax.parallel import processes, tree_names
from xclip_jax.storage.failed_writes import FailedWriteMonitor
from xclip_jax.storage.state import TrainState

_managers = ocp.checkpoint_managers


class CheckpointError(UserError, RuntimeError):
  """A checkpoint could not be written or read; the message says what is safe."""


class Checkpoints:
  """The checkpoints of one run, `workdir/checkpoints/<step>/`; a context manager.

  The newest few are kept, and the best few of those saved with a metric. The metric is on disk, so
  the best checkpoint survives restarts. `save` copies the arrays and returns; writing goes on in
  the background. The sum of each array's bits is saved too, because most changed bytes are read by
  the storage layer without complaint.
  """

  def __init__(self, workdir: Path | epath.Path, keep_latest: int = 2, keep_best: int = 1):
    workdir = files.as_path(workdir)
    # Orbax accepts a relative path here and fails much later. Paths in a bucket are absolute.
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
    self._monitor = FailedWriteMonitor(lambda error: self._write_error(_reason(error)))

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint, None when there is none."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step with the best validation top-1 among those kept, else the latest."""
    return self._manager.best_step() or self.latest_step()

  def save(
    self, step: int, state: TrainState, host: dict[str, Any], metric: float | None = None
  ) -> None:
    """Starts writing a checkpoint; does nothing if this step is saved already.

    Args:
      step: number of updates done.
      state: arrays of the run.
      host: numbers of the run outside of `state`, saved as JSON.
      metric: validation top-1 of this step, if it was evaluated.

    Raises:
      CheckpointError: this or the previous checkpoint could not be written.
    """
    if step in self._manager.all_steps():
      return
    self._check_space(state)
    # Orbax writes in a thread of its own, while the run goes on to change what it gave.
    host = copy.deepcopy(host) | {'sums': _sums(state)}
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
    self._monitor.note_save()
    metrics = None if metric is None else {'top1': metric}      # the key on disk for any metric
    self._guard(lambda: self._manager.save(step, args=args, metrics=metrics))

  def restore(self, step: int, abstract: TrainState, shardings: Any) -> tuple[TrainState, dict]:
    """Reads a state onto the mesh of `shardings`, however it was sharded when it was saved.

    Raises:
      CheckpointError: the checkpoint is damaged or holds another model; the message lists up to
        ten differences.
      UserError: the same, seen by another process.
    """
    # Every process must finish each check before any goes on: a process that continued alone would
    # hang in the next collective.
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
    """Reads the newest readable checkpoint and moves newer, damaged ones aside.

    Damaged checkpoints are named on stderr and moved to `workdir/damaged_checkpoints/`.

    Returns:
      step, state and the `host` numbers that `save` was given.

    Raises:
      CheckpointError: no checkpoint can be read; the message is about the newest.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state, host = self.restore(step, abstract, shardings)
      except UserError as error:                # a CheckpointError, or that of another process
        damaged[step] = error
        continue
      self._move_aside(damaged, step)
      return step, state, host
    raise next(iter(damaged.values()))

  def _move_aside(self, damaged: dict[int, UserError], restored_step: int) -> None:
    if not damaged:
      return
    parent = self.folder.parent / 'damaged_checkpoints'
    if jax.process_index() == 0:
      for step, error in damaged.items():
        names = (f'{step}{f"_{n}" if n else ""}' for n in itertools.count())
        target = next(parent / name for name in names if not files.exists(parent / name))
        files.move_folder(self.folder / str(step), target)
        print(f'{str(error).splitlines()[0]}\n  moved to {target}; going on from step '
              f'{restored_step}', file=sys.stderr, flush=True)
    processes.run_on_all_processes(self._manager.reload)

  def restore_params(self, step: int, abstract: Any, sharding: Any = None) -> Any:
    """Reads the parameters of a checkpoint; arguments and errors as in `restore`."""
    return self._restore_part('params', step, abstract, sharding)

  def restore_weights(self, step: int, abstract: Any, sharding: Any = None) -> Any:
    """Reads the parameters to evaluate: their average if the run kept one, else the last ones."""
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
    arrays = restored['state'][part]
    self._check_sums(step, _sums({part: arrays}), restored['host'].get('sums', {}))
    return arrays

  def parameter_names(self, step: int) -> set[str]:
    """Returns the names of the saved parameters."""
    return set(tree_names.flatten(self._metadata(step)['params']))

  def wait(self) -> None:
    """Blocks until everything is on disk."""
    self._guard(self._manager.wait_until_finished)

  def __enter__(self) -> 'Checkpoints':
    self._monitor.open()
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if kind is not None and (jax.process_count() > 1 or issubclass(kind, CheckpointError)):
      # Closing the manager waits for the failed write, or for processes that may be gone.
      self._monitor.close_after_failure()
      return
    try:
      if kind is None:
        self.wait()
      self._manager.close()
    except BaseException:
      self._monitor.close_after_failure()
      raise
    self._monitor.close()

  def _guard(self, write: Callable[[], object]) -> None:
    try:
      write()
    except Exception as error:     # Orbax raises the exceptions of its storage layers
      raise self._write_error(_reason(error)) from error

  def _check_space(self, state: TrainState) -> None:
    """Raises CheckpointError if the disk is too full; a bucket always has room."""
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
    # Not with the manager: if one process fails there, the others wait for it in Orbax.
    try:
      return ocp.CompositeCheckpointHandler().restore(epath.Path(self.folder / str(step)), args)
    except Exception as error:     # Orbax raises the exceptions of its storage layers
      if is_out_of_device_memory(error):           # the checkpoint is whole, and stays in its place
        raise
      raise CheckpointError(
        f'could not read the checkpoint {self.folder / str(step)}: {_reason(error)}\n'
        'Training goes on from the one before, if there is one.'
      ) from error

  def _metadata(self, step: int) -> dict[str, Any]:
    folder = epath.Path(self.folder / str(step) / 'state')
    try:
      return ocp.PyTreeCheckpointHandler().metadata(folder).tree
    except Exception as error:     # Orbax raises the exceptions of its storage layers
      raise CheckpointError(
        f'could not read the checkpoint {folder.parent}: {_reason(error)}') from error

  def _check_sums(self, step: int, read: dict[str, int], saved: dict[str, int]) -> None:
    """Compares the bit sums of the arrays read and saved; older checkpoints have no sums."""
    differ = [name for name, value in read.items() if saved.get(name, value) != value]
    if differ:
      more = f' and {len(differ) - 1} more arrays are' if len(differ) > 1 else ' is'
      raise CheckpointError(
        f'the checkpoint {self.folder / str(step)} is damaged: {differ[0]}{more} not what was '
        'saved\nTraining goes on from the one before, if there is one.')

  def _check_shapes(self, step: int, abstract: Any) -> None:
    """Compares shapes before Orbax does, so that the message has our parameter names."""
    shapes_of = lambda tree: {k: tuple(v.shape) for k, v in tree_names.flatten(tree).items()}
    saved, want = shapes_of(self._metadata(step)['params']), shapes_of(abstract)
    if PROJECTORS not in abstract:                     # projectors exist in training only
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
  """Sums an array's bits as unsigned integers modulo 2 ** 32, which is the same in any order."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
  x = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
  return jnp.sum(x, dtype=jnp.uint32)


def _sums(state: Any) -> dict[str, int]:
  """Returns the bit sum of each array by its name: the same on any mesh, other if a bit changes."""
  bits = {name: _bits(x) for name, x in tree_names.flatten(state).items()}
  return {name: int(n) for name, n in jax.device_get(bits).items()}


def _reason(error: BaseException) -> str:
  """Returns an error as one line; of an error raised from another, the inner one names the file."""
  error = error.__cause__ or error
  return f'{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ""}'
