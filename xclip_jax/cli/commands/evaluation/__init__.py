"""How good is a model? The `xclip eval` commands.

`protocols` holds those that measure a model; `summaries` holds `compare` and `average`, which read
what they wrote.
"""

from typing import Any

from xclip_jax.cli import options
from xclip_jax.cli.commands.evaluation import protocols, summaries


def add_commands(commands: Any) -> None:
  """Adds `eval` and its subcommands to the subcommands of `xclip`."""
  _, group = options.add_group(
    commands, 'eval', 'measure a model by a protocol',
    'Measures a model on lists of videos, compares two models, and averages results.', """
    xclip eval supervised val.csv --weights runs/k400 --clips 4 --crops 3 -o results/k400
    xclip eval zero-shot new/val.csv --weights runs/k400 -o results/new
    xclip eval compare results/a results/b -o results/difference""")
  for module in (protocols, summaries):
    module.add_commands(group)
