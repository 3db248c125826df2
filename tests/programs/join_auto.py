"""Joins the other tasks of its launcher, and says which of them it is and what JAX was told."""

import sys

import jax

from xclip_jax.parallel import processes

try:
  process, count = processes.join('auto', timeout=60)
except ValueError as error:
  print(f'error: {error}', flush=True)
  sys.exit(1)
# It is an option of the command line, too, and `jax.config` does not read those.
print(f'{process} of {count}, GPUs {jax.config._read("jax_cuda_visible_devices")}', flush=True)
