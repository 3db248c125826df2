"""Rows of the first hour on hardware in this process: answer_hardware_rows.py ROOT ROWS_JSON.

Prints the rows' states, the optimizer with flax's version, and the absent packages that are loaded.
"""

import json
import os
import sys

sys.path[:0] = [sys.argv[1]]

from benchmarks.hardware import speed, worker  # noqa: E402  (found in ROOT)

print(json.dumps([worker.answer(row)['status'] for row in json.loads(sys.argv[2])]))
print(json.dumps([speed.make_optimizer({})[2], worker.describe('cpu')['flax']]))
print(json.dumps([name for name in os.environ['ABSENT_PACKAGES'].split() if name in sys.modules]))
