#!/bin/sh
# Checks and times this repository on one NVIDIA GPU, in 8 minutes: benchmarks/gpu.sh [--help].
# The machine needs jax (with its plugin), flax and numpy. PYTHON=... chooses the interpreter.
exec "${PYTHON:-python3}" "$(dirname "$0")/hardware/run.py" gpu "$@"
