"""Draws docs/images/rooms.svg: the folders of xclip_jax by who may import whom.

  python docs/draw_rooms.py     reads FLOORS of tests/test_imports.py and the folders' docstrings
"""

import ast
import html
import pathlib
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = ROOT / 'docs/images/rooms.svg'
WIDTH, MARGIN, GAP, HEIGHT = 960, 16, 10, 66      # pixels; HEIGHT of one floor
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


def draw_box(room: str, x: float, y: int, width: float) -> list[str]:
  """Returns the SVG elements of a folder: a box with its name and its summary."""
  name = f'{room}/' if (ROOT / 'xclip_jax' / room).is_dir() else f'{room}.py'
  lines = textwrap.wrap(read_summary(room), int(width / 6.6))[:3]
  left = f'x="{x + 12:.0f}"'
  return [
    f'<rect class="box" x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="6"/>',
    f'<text class="name" {left} y="{y + 24}">{name}</text>',
    *(f'<text class="text" {left} y="{y + 42 + 14 * k}">{html.escape(line)}</text>'
      for k, line in enumerate(lines)),
  ]


def draw() -> str:
  """Returns the drawing as SVG, legible on light and dark pages."""
  rows = read_floors()
  height = len(rows) * (HEIGHT + GAP) + 2 * MARGIN
  out = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
    'font-family="system-ui, sans-serif" role="img">',
    '<title>The folders of xclip_jax; a folder may import those below it and to its right</title>',
    '<style>.box{fill:#f4f7fb;stroke:#7d93ad}.name{fill:#12314f;font-weight:600;font-size:16px}'
    '.text{fill:#3d4f61;font-size:12px}</style>',
  ]
  for i, row in enumerate(rows):
    width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
    for j, room in enumerate(row):
      out += draw_box(room, MARGIN + j * (width + GAP), MARGIN + i * (HEIGHT + GAP), width)
  return '\n'.join([*out, '</svg>', ''])


if __name__ == '__main__':
  TARGET.write_text(draw())
