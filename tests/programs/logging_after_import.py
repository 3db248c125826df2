"""Prints what importing the checkpoints has changed: logging_after_import.py, as a JSON list."""

import json
import logging
import sys

import absl.logging  # noqa: F401  (loaded first: what these two install does not count)
import orbax.checkpoint  # noqa: F401

LOGGERS = ('absl', 'asyncio')


def state():
  return [sys.unraisablehook, *(list(logging.getLogger(name).filters) for name in LOGGERS)]


before = state()
import xclip_jax.storage.checkpoints  # noqa: E402, F401

print(json.dumps([str(x) for x, y in zip(state(), before, strict=True) if x != y]))
