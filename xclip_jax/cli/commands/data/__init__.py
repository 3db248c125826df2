"""What can be done to lists of videos? The `xclip data` commands.

`check` finds faults, `show` draws clips, `prepare` stores videos anew; `lists`, `few-shot` and
`base-novel` make lists.
"""

from typing import Any

from xclip_jax.cli import options
from xclip_jax.cli.commands.data import check, lists, prepare, show


def add_commands(commands: Any) -> None:
  """Adds `data` and its subcommands to the subcommands of `xclip`."""
  _, group = options.add_group(
    commands, 'data', 'check, show, prepare and make lists of videos',
    'Works on lists of videos before a run: finds faults, draws clips, stores videos so that they '
    'are read fast, and makes lists.', """
    xclip data check train.csv --report report.txt --clean train_clean.csv
    xclip data show train.csv -o sheet.png
    xclip data prepare train.csv -o prepared
    xclip data few-shot train.csv --shots 16 --seed 1 -o train_16.csv""")
  for module in (check, show, prepare, lists):
    module.add_commands(group)
