"""Help texts: each is understood alone, and every example is a real command."""

import argparse
import re
import shlex

import pytest

import xclip_jax
from xclip_jax.cli import main, options


def parsers(parser=None):
  """Yields the parser of `xclip` and of every subcommand, at any depth."""
  parser = parser or main.build_parser()
  yield parser
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        yield from parsers(command)


def is_leaf(parser):
  return not any(isinstance(x, argparse._SubParsersAction) for x in parser._actions)


def examples(parser):
  """Returns the command lines of a parser's help, without `xclip` and without remarks."""
  lines = (parser.epilog or '').replace('\\\n', ' ').splitlines()
  lines = [re.sub(r' {4,}\(.*\)$', '', line.strip()) for line in lines]
  return [shlex.split(line)[1:] for line in lines if line.split()[:1] == ['xclip']]


PARSERS = list(parsers())
NAMES = [parser.prog for parser in PARSERS]
COMMANDS = [parser for parser in PARSERS if is_leaf(parser)]


@pytest.mark.parametrize('parser', PARSERS, ids=NAMES)
def test_every_subcommand_has_an_example_that_parses(parser):
  lines = examples(parser)
  assert lines, parser.prog
  for line in lines:
    assert main._parse(line).run
  name = parser.prog.split()[1:]
  assert any(line[:len(name)] == name for line in lines)


@pytest.mark.parametrize('parser', PARSERS, ids=NAMES)
def test_help_is_a_phrase_that_is_understood_alone(parser):
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      texts = [choice.help for choice in action._choices_actions]
      assert len(texts) == len(action.choices)
    else:
      texts = [action.help] if action.help is not argparse.SUPPRESS else []
    for text in texts:
      where = f'{parser.prog} {"/".join(action.option_strings) or action.dest}: {text}'
      assert text and len(text.split()) > 1, where
      assert text.split()[0].lower() not in (
        'of', 'that', 'who', 'what', 'which', 'as', 'where', 'how', 'default:', 'it', 'its'), where
      assert not text.endswith('.'), where
    if action.metavar and action.option_strings:
      names = [action.metavar] if isinstance(action.metavar, str) else action.metavar
      assert all(len(name) > 1 for name in names), f'{where}: metavar {action.metavar}'


@pytest.mark.parametrize('parser', PARSERS, ids=NAMES)
def test_help_states_the_default_of_an_option_that_has_one(parser):
  formatter = parser._get_formatter()
  for action in parser._actions:
    if action.option_strings and action.default not in (None, False, '', [], argparse.SUPPRESS):
      text = formatter._expand_help(action)
      assert 'default' in text, f'{parser.prog} {action.option_strings[0]}: {text}'
      if isinstance(action.default, int | float) and 'one a CPU' not in text and action.default:
        assert f'{action.default:g}' in text, f'{parser.prog} {action.option_strings[0]}: {text}'


@pytest.mark.parametrize('parser', PARSERS, ids=NAMES)
def test_a_description_says_what_the_command_does(parser):
  assert re.match(r'[A-Z][\w-]+', parser.description), parser.prog
  assert len(parser.description) > 20


def test_an_option_means_the_same_in_every_command():
  """Each of these options has one help text; --top counts labels of a video or of a window, an
  export has no int8."""
  texts = {}
  for parser in COMMANDS:
    for action in parser._actions:
      for name in action.option_strings:
        texts.setdefault(name, {}).setdefault(action.help, []).append(parser.prog)
  for name in ('--dtype', '--merge-tokens', '--threads', '--root', '--distributed',
               '--coordinator', '--labels', '--labels-file', '--top', '--csv'):
    few = {'--top': 2, '--dtype': 2}.get(name, 1)
    assert len(texts[name]) <= few, (name, texts[name])


@pytest.mark.parametrize('words', [[], ['data'], ['eval']])
def test_a_bare_command_prints_its_help(words, capsys):
  assert main.main(words) == 0
  out, err = capsys.readouterr()
  assert out.startswith(f'usage: {" ".join(["xclip", *words])} ') and err == ''
  assert 'example' in out and 'commands:' in out


@pytest.mark.parametrize('parser', PARSERS, ids=NAMES)
def test_help_is_printed_and_fits_a_terminal(parser, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  with pytest.raises(SystemExit) as done:
    main.main([*parser.prog.split()[1:], '--help'])
  assert done.value.code == 0
  out = capsys.readouterr().out
  before, _, after = out.partition('\nexample')
  assert max(map(len, before.splitlines())) <= 80 and max(map(len, after.splitlines())) <= 100


def test_the_version_is_the_packages(capsys):
  with pytest.raises(SystemExit) as done:
    main.main(['--version'])
  assert done.value.code == 0 and capsys.readouterr().out == f'xclip {xclip_jax.__version__}\n'


@pytest.mark.parametrize(('words', 'message'), [
  (['clasify'], "invalid choice: 'clasify'"),
  (['classify', 'a.mp4', '--weights', 'x', '--wrong'], 'unrecognized arguments: --wrong'),
  (['windows', 'a.mp4', 'b.mp4', '--weights', 'x'], 'unrecognized arguments: b.mp4'),
  (['data', 'check', 'a.csv', '--frames', '0'], '--frames must be at least 1, got 0'),
  (['data', 'check', 'a.csv', '--frames', 'x'], "--frames: invalid int value: 'x'"),
  (['data', 'show', 'a.csv', '-o', 'a.png', '--flip', '2'], '--flip must lie from 0 to 1, got 2'),
  (['finetune', 'a', '--weights', 'x', '-o', 'y', '--lr', '0'], '--lr must be positive, got 0'),
  (['eval', 'supervised', 'a', '--weights', 'x', '-o', 'y', '--template', 'a'], 'must hold {}'),
  (['weights', 'curve', 'a', 'b', '-o', 'y', '--on', 'x', '--alphas', '2'], 'numbers from 0 to 1'),
])
def test_a_mistake_is_one_line_that_names_the_help(words, message, capsys):
  assert main.main(words) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith('xclip: ') and err.count('\n') == 1
  assert message in err and '--help)' in err


def test_videos_may_follow_options():
  arguments = main._parse(['classify', 'a.mp4', '--weights', 'x', '--labels', 'a', 'b.mp4'])
  assert arguments.videos == ['a.mp4', 'b.mp4']


def test_paragraphs_are_filled_and_examples_stay():
  text = options.HelpFormatter('x')._fill_text('a\nb\n\nexample:\n  xclip  a \\\n      b', 20, '')
  assert text == 'a b\n\nexample:\n  xclip  a \\\n      b'
