"""The folder of JAX's compiled programs, so that a second start does not compile again."""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

# JAX reports the end of these two phases in the thread that compiles; the second follows the first.
_LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'
_COMPILED = '/jax/core/compile/backend_compile_duration'


# JAX is imported inside, because commands of `xclip` that do not use JAX import this module.
def enable(workdir: str | os.PathLike | None = None) -> None:
  """Chooses the folder of JAX's persistent compilation cache.

  The first of these that applies:
    1. the folder that JAX_COMPILATION_CACHE_DIR names;
    2. in a run of more than one process, `compiled` in the workdir, which all of them share (JAX
       lets process 0 write and all read; on CPUs the keys of processes differ, so that only
       process 0 reuses programs);
    3. `compiled` in the folder that XCLIP_CACHE names, or in ~/.cache/xclip_jax.

  Without a writable folder no program is kept. Programs of any size are kept: many programs compile
  fast, but a start waits for each of them.

  Args:
    workdir: folder of the run, if any; a path or a name in gs://.
  """
  import jax

  folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
  if folder is not None:                           # chosen by the environment
    return
  if workdir is not None and jax.process_count() > 1:
    folder = f'{os.fspath(workdir)}/compiled'
  else:
    folder = _own_folder()
  if folder:
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _own_folder() -> str | None:
  root = os.environ.get('XCLIP_CACHE') or '~/.cache/xclip_jax'
  with contextlib.suppress(OSError, RuntimeError):          # RuntimeError: no home folder
    folder = Path(root).expanduser() / 'compiled'
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder) if os.access(folder, os.W_OK) else None


def announce(say: Callable[[], None], patience: float = 3.0) -> Callable[[], None]:
  """Calls `say` once, as soon as one compilation has taken longer than `patience` seconds.

  A program that the cache holds is read faster than that.

  Args:
    say: called in a thread of its own.
    patience: seconds.

  Returns:
    A function that ends the watch.
  """
  import jax

  timers: dict[int, threading.Timer] = {}      # thread that compiles -> what will call `say`
  said = threading.Event()

  def say_once() -> None:
    if not said.is_set():
      said.set()
      say()

  def listen(event: str, duration_secs: float, **_: object) -> None:
    if event not in (_LOWERED, _COMPILED):
      return
    thread = threading.get_ident()
    if timer := timers.pop(thread, None):
      timer.cancel()
    if event == _LOWERED and not said.is_set():
      timers[thread] = threading.Timer(patience, say_once)
      timers[thread].daemon = True
      timers[thread].start()

  jax.monitoring.register_event_duration_secs_listener(listen)
  return lambda: jax.monitoring.unregister_event_duration_listener(listen)
