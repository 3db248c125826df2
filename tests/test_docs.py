"""README and docs name links, commands, options, configs, fields and paths that exist."""

import argparse
import ast
import functools
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import shlex
import unicodedata
from collections.abc import Iterator

import pytest

from xclip_jax import config as config_lib
from xclip_jax.cli import main as cli
from xclip_jax.config import overrides, published
from xclip_jax.config import validation as config_validation
from xclip_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {file.relative_to(ROOT).as_posix(): file for file in sorted(
  [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md'),
   ROOT / 'docs/tutorial.ipynb'])}
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.S | re.M)
# Options of other programs that the text of a page names.
FOREIGN_OPTIONS = {
  '--beam', '--command', '--data-dir', '--gpus-per-task', '--help', '--implicit-dirs', '--minutes',
  '--ntasks-per-node', '--output', '--prepare', '--resume', '--shm-size', '--spot', '--tiny',
  '--tpu-type', '--write', '--xla_cpu_use_fusion_emitters',
  '--xla_force_host_platform_device_count'}
# Fields of a run start with one of these, and so do names of files and modules, which end alike.
SECTIONS = ('model', 'data', 'augment', 'train', 'optim', 'mesh', 'checkpoint', 'eval', 'profile')
FILE_ENDINGS = ('py', 'csv', 'txt', 'json', 'npz', 'md', 'jsonl', 'sh', 'png')
FOLDERS = ('xclip_jax', 'configs', 'benchmarks', 'docs', 'convert', 'tests', 'docker')


def read(page: str) -> str:
  """Returns a page as Markdown; code of the notebook stands in fences."""
  if not page.endswith('.ipynb'):
    return PAGES[page].read_text()
  parts = []
  for cell in json.loads(PAGES[page].read_text())['cells']:
    text = ''.join(cell['source'])
    parts.append(text if cell['cell_type'] == 'markdown' else f'```python\n{text}\n```')
  return '\n\n'.join(parts)


def prose(page: str) -> str:
  """Returns a page without its fenced code."""
  return FENCE.sub('', read(page))


def anchors(text: str) -> set[str]:
  """Returns the anchors of the headings of a page, as mkdocs and GitHub write them."""
  slugs = set()
  for heading in re.findall(r'^#+ (.*)$', FENCE.sub('', text), re.M):
    plain = unicodedata.normalize('NFKD', heading.replace('`', '')).encode('ascii', 'ignore')
    words = re.sub(r'[^\w\s-]', '', plain.decode()).strip().lower()
    slugs.add(re.sub(r'[-\s]+', '-', words))
  return slugs


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
  """Yields the command lines of `xclip` in the fenced code of a page: the line and its words."""
  return find_commands(read(page))


def find_commands(text: str) -> Iterator[tuple[str, list[str]]]:
  """Yields the command lines of `xclip` in the fenced code of a text."""
  for language, code in FENCE.findall(text):
    if language in ('python', 'json'):
      continue
    for line in code.replace('\\\n', ' ').splitlines():
      match = re.search(r'(?:^|[\s/])xclip ((?!jax).*)', line.strip())
      if not match or line.startswith(('xclip:', '#')) or 'xpk ' in line:
        continue
      text = re.split(r'\s(?:&&|\||>|;)\s', match[1])[0]
      words = shlex.split(text.rstrip('"') if text.count('"') % 2 else text, comments=True)
      yield line, words


@functools.cache
def parser() -> argparse.ArgumentParser:
  return cli.build_parser()


def parser_of(words: list[str]) -> argparse.ArgumentParser:
  """Returns the parser of the subcommand that words begin with."""
  command = parser()
  for word in words:
    group = [x for x in command._actions if isinstance(x, argparse._SubParsersAction)]
    if not group or word not in group[0].choices:
      break
    command = group[0].choices[word]
  return command


def all_options(command: argparse.ArgumentParser) -> set[str]:
  """Returns the options of a parser and of all its subcommands."""
  names = set(command._option_string_actions)
  for action in command._actions:
    if isinstance(action, argparse._SubParsersAction):
      names |= set().union(*map(all_options, action.choices.values()))
  return names


@pytest.mark.parametrize('page', PAGES)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
  broken = []
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
    if re.match(r'[a-z]+:', target):
      continue
    name, _, anchor = target.partition('#')
    file = (PAGES[page].parent / name).resolve() if name else PAGES[page]
    if not file.exists():
      broken.append(target)
    elif anchor and anchor not in anchors(read(file.relative_to(ROOT).as_posix())):
      broken.append(target)
  assert not broken


@pytest.mark.parametrize('page', PAGES)
def test_every_command_line_parses_and_its_config_exists(page):
  for line, words in commands(page):
    if words[-1:] == ['...']:
      continue
    try:
      arguments, rest = parser().parse_known_args(words)
      name = getattr(arguments, 'config', None)
      own = name is None or name in ('C', 'NAME') or name.endswith('.py')
      config = config_lib.get_config() if own else published.load(name)
      if hasattr(arguments, 'more'):
        assert overrides.apply_flags(config, rest) == [], line
      else:
        assert not [x for x in rest if x.startswith('-')], line
      for change in getattr(arguments, 'changes', ()):
        assert change.partition('=')[0] in config_validation.field_names(), line
    except (UserError, SystemExit) as error:
      raise AssertionError(f'{page}: {line}: {error}') from error


def test_command_lines_are_found_on_the_pages_that_show_some():
  assert sum(len(list(commands(page))) for page in PAGES) > 60
  line = 'xclip train --config demo \\\n  --config.train.steps=2   # a comment\n'
  assert [words for _, words in find_commands(f'```\n{line}```')] == [
    ['train', '--config', 'demo', '--config.train.steps=2']]


@pytest.mark.parametrize('page', PAGES)
def test_every_option_in_the_text_is_one_of_xclip(page):
  known = all_options(parser()) | FOREIGN_OPTIONS
  unknown = []
  for code in re.findall(r'`([^`]+)`', prose(page)):
    words = code.split()
    for option in re.findall(r'(?<![\w-])--[a-z][\w-]*', code):
      if option == '--config' or option.startswith('--config.'):
        continue
      own = all_options(parser_of(words[1:])) if words[0] == 'xclip' else known
      if option not in own:
        unknown.append(code)
  assert not unknown


@pytest.mark.parametrize('page', PAGES)
def test_every_field_of_a_run_exists(page):
  known = set(config_validation.field_names())
  unknown = []
  for code in re.findall(r'`([^`]+)`|--config\.([\w.]+)', read(page)):
    text = code[0] or f'config.{code[1]}'
    for name in re.findall(rf'(?<![\w./])(?:config\.)?((?:{"|".join(SECTIONS)})\.[\w.]*\w)', text):
      is_open = name.startswith(('model.fields.', 'data.synthetic.'))
      is_code = re.search(rf'{re.escape(name)}[(/]', text) or name.endswith(FILE_ENDINGS)
      if not (name in known or is_open or is_code):
        unknown.append(name)
  assert not unknown


@pytest.mark.parametrize('page', PAGES)
def test_every_file_that_is_named_exists(page):
  missing = []
  for path in re.findall(rf'(?<![\w./~-])(?:{"|".join(FOLDERS)})/[\w./-]*\w/?', read(page)):
    if re.search(r'DATE|\.wheels', path):
      continue
    if not (ROOT / path).exists() and not list(ROOT.glob(f'{path}*')):
      missing.append(path)
  assert not missing


def test_every_folder_and_file_of_the_architecture_exists():
  named = re.findall(r'`([\w/]+/(?:[\w]+\.\w+)?|\w+\.py)`', prose('docs/architecture.md'))
  assert len(named) > 20
  assert [x for x in named if not (
    (ROOT / x).exists() or (ROOT / 'xclip_jax' / x).exists()
    or list((ROOT / 'xclip_jax').rglob(x)))] == []


def package_names(page: str) -> set[str]:
  """Returns the dotted names of the package on a page, in its text and in its Python code."""
  names = set(re.findall(r'(?<![\w/])xclip_jax(?:\.\w+)+', read(page)))
  aliases = {}
  for language, code in FENCE.findall(read(page)):
    if language != 'python':
      continue
    tree = ast.parse(re.sub(r'^!.*$', '', code, flags=re.M))
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('xclip_jax'):
        aliases |= {x.asname or x.name: f'{node.module}.{x.name}' for x in node.names}
    names |= {f'{aliases[node.value.id]}.{node.attr}' for node in ast.walk(tree)
              if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
              and node.value.id in aliases}
  return names | set(aliases.values())


@pytest.mark.parametrize('page', PAGES)
def test_every_name_in_the_package_exists(page):
  missing = []
  for name in sorted(package_names(page)):
    parts = name.split('.')
    thing = importlib.import_module('xclip_jax')
    for i, part in enumerate(parts[1:], 2):
      if not hasattr(thing, part) and inspect.ismodule(thing) and importlib.util.find_spec(
          '.'.join(parts[:i])):
        importlib.import_module('.'.join(parts[:i]))
      if not hasattr(thing, part):
        missing.append(name)
        break
      thing = getattr(thing, part)
  assert not missing


def test_the_drawing_of_the_rooms_is_what_its_script_draws():
  spec = importlib.util.spec_from_file_location('draw_rooms', ROOT / 'docs/draw_rooms.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.TARGET.read_text() == module.draw(), 'run python docs/draw_rooms.py'


def test_every_page_is_in_the_navigation():
  navigation = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:')[2]
  pages = [x.removeprefix('docs/') for x in PAGES if x.startswith('docs/')]
  assert [x for x in pages if x not in navigation] == []
