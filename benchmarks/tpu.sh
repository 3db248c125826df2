#!/bin/sh
# Checks and times this repository on one TPU chip, in 8 minutes: benchmarks/tpu.sh [--help].
# The machine needs jax (with its plugin), flax and numpy. PYTHON=... chooses the interpreter.
exec "${PYTHON:-python3}" "$(dirname "$0")/hardware/run.py" tpu "$@"
