"""Prints which libraries of buckets a program with local files has loaded."""

import sys

import xclip_jax.data
import xclip_jax.storage.metrics_log  # noqa: F401
from xclip_jax import files

files.as_path('runs/x')
print([name for name in ('gcsfs', 'tensorflow') if name in sys.modules])
