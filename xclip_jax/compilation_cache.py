"""Where JAX keeps compiled programs, so that whoever starts again does not compile again."""

import contextlib
import os
from pathlib import Path


# JAX is imported late: the command line offers this to all of its commands before any needs JAX.
def enable(workdir: str | os.PathLike | None = None) -> None:
  """Chooses the folder of JAX's persistent compilation cache.

  It is, in this order: what JAX_COMPILATION_CACHE_DIR names; of several processes, `compiled` in
  the workdir, that all of them share (JAX lets process 0 write and all read, but on CPUs their
  keys differ, and process 0 alone finds its programs again); `compiled` in XCLIP_CACHE, or in
  ~/.cache/xclip_jax. Where none can be written, nothing is kept. Programs of any size are kept:
  those that compile fast are many, and a start waits for each.

  Args:
    workdir: of the run, if there is one; a path or an address that JAX can write to (gs://).
  """
  import jax

  if jax.config.jax_compilation_cache_dir is not None:      # chosen by the environment
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
  with contextlib.suppress(OSError, RuntimeError):          # RuntimeError: there is no home
    folder = Path(root).expanduser() / 'compiled'
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder) if os.access(folder, os.W_OK) else None
