"""Draws docs/images/rooms.svg: the folders of xclip_jax by who may import whom.

  python docs/draw_rooms.py     reads FLOORS of tests/test_imports.py and the folders' docstrings
"""

import ast
import html
import pathlib
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = ROOT / 'docs/images/rooms.svg'
WIDTH, MARGIN, GAP, LINE = 960, 16, 10, 14         # pixels; LINE from one line of text to the next
BOTTOM = ('config', 'files', 'errors')            # modules of the lowest floor that get a box


def read_floors() -> list[tuple[str, ...]]:
  """Reads the table that the tests check, the highest floor first."""
  tree = ast.parse((ROOT / 'tests/test_imports.py').read_text())
  for node in tree.body:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'FLOORS':
      rows = ast.literal_eval(node.value)
      return [*rows[:-1], tuple(x for x in rows[-1] if x in BOTTOM)]
  raise RuntimeError('tests/test_imports.py has no FLOORS')


def read_summary(room: str) -> str:
  """Returns the first line of the docstring of a folder or module."""
  folder = ROOT / 'xclip_jax' / room
  file = folder / '__init__.py' if folder.is_dir() else folder.with_suffix('.py')
  return (ast.get_docstring(ast.parse(file.read_text())) or '').splitlines()[0]


def wrap_summary(room: str, width: float) -> list[str]:
  """Returns the lines of the summary of a folder in a box of a width in pixels."""
  return textwrap.wrap(read_summary(room).replace('`', ''), int(width / 6.6))


def draw_box(room: str, x: float, y: float, width: float, height: float) -> list[str]:
  """Returns the SVG elements of a folder: a box with its name and its summary."""
  name = f'{room}/' if (ROOT / 'xclip_jax' / room).is_dir() else f'{room}.py'
  left = f'x="{x + 12:.0f}"'
  return [
    f'<rect class="box" x="{x:.0f}" y="{y}" width="{width:.0f}" height="{height}" rx="6"/>',
    f'<text class="name" {left} y="{y + 24}">{name}</text>',
    *(f'<text class="text" {left} y="{y + 42 + LINE * k}">{html.escape(line)}</text>'
      for k, line in enumerate(wrap_summary(room, width))),
  ]


def draw() -> str:
  """Returns the drawing as SVG, legible on light and dark pages."""
  boxes, y = [], MARGIN
  for row in read_floors():
    width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
    height = 38 + LINE * max(len(wrap_summary(room, width)) for room in row)
    for i, room in enumerate(row):
      boxes += draw_box(room, MARGIN + i * (width + GAP), y, width, height)
    y += height + GAP
  return '\n'.join([
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP + MARGIN}" '
    'font-family="system-ui, sans-serif" role="img">',
    '<title>The folders of xclip_jax; a folder may import those below it and to its right</title>',
    '<style>.box{fill:#f4f7fb;stroke:#7d93ad}.name{fill:#12314f;font-weight:600;font-size:16px}'
    '.text{fill:#3d4f61;font-size:12px}</style>',
    *boxes, '</svg>', ''])


if __name__ == '__main__':
  TARGET.write_text(draw())
