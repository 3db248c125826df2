"""Waits for a process that never comes, by a shorter default timeout: join_in_vain.py PORT."""

import sys

from xclip_jax.parallel import processes

processes.PATIENCE = 3
processes.join('off', f'localhost:{sys.argv[1]}', 2, 0)
