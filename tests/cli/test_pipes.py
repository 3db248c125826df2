"""`xclip ... | head`: no subcommand prints an error when its reader has seen enough."""

import os
import subprocess
import sys

import pytest
import test_parsers

import tiny

READER_GONE = 141


def environment():
  """Returns an environment in which standard output is buffered until the interpreter ends."""
  return {k: x for k, x in tiny.environment().items() if k != 'PYTHONUNBUFFERED'}


def start(*words, stderr=subprocess.PIPE):
  """Starts `xclip` with a standard output that nobody reads any more."""
  read, write = os.pipe()
  os.close(read)
  try:
    return subprocess.Popen(
      [sys.executable, '-m', 'xclip_jax.cli', *map(str, words)], env=environment(),
      stdout=write, stderr=write if stderr is None else stderr, text=True)
  finally:
    os.close(write)


def finish(process):
  """Returns the exit code and what was printed on standard error."""
  _, err = process.communicate(timeout=99)
  return process.returncode, err


@pytest.mark.slow
def test_help_of_every_subcommand_ends_silently_without_a_reader():
  names = [[*parser.prog.split()[1:], '--help'] for parser in test_parsers.PARSERS]
  names += [[], ['--version']]
  for first in range(0, len(names), 4):            # four processes at once
    started = [start(*words) for words in names[first:first + 4]]
    for words, process in zip(names[first:first + 4], started, strict=True):
      assert finish(process) == (READER_GONE, ''), words


def test_head_sees_the_first_line():
  done = subprocess.run(
    f'{sys.executable} -m xclip_jax.cli --help | head -1', shell=True, env=environment(),
    capture_output=True, text=True, timeout=99)
  assert done.stdout.startswith('usage: xclip') and done.stderr == ''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A list of videos that are missing."""
  folder = tmp_path_factory.mktemp('lists')
  (folder / 'train.csv').write_text('path,label\na.mp4,0\nb.mp4,1\nc.mp4,1\n')
  (folder / 'classes.csv').write_text('id,name\n0,run\n1,jump\n')
  return folder


@pytest.mark.parametrize('words', [
  ['weights'],
  ['weights', 'inspect', 'toy'],
  ['data', 'check', 'train.csv', '--processes', '1'],
  ['data', 'few-shot', 'train.csv', '--shots', '1', '-o', 'few.csv'],
  ['data', 'base-novel', 'train.csv', '-o', 'halves'],
  ['classify', 'sample:ring', '--weights', 'toy', '--quiet'],
  pytest.param(['classify', 'sample:ring', '--weights', 'toy', '--quiet', '--csv', '-'],
               marks=pytest.mark.slow),
  pytest.param(['windows', 'sample:ring', '--weights', 'toy', '--quiet', '--every', '1'],
               marks=pytest.mark.slow),
], ids=lambda words: ' '.join(words[:2]) + (' csv' if '--csv' in words else ''))
def test_answers_end_silently_without_a_reader(words, folder):
  words = [folder / word if word.endswith('.csv') or word == 'halves' else word for word in words]
  assert finish(start(*words)) == (READER_GONE, '')


def test_a_line_on_a_closed_standard_error_is_no_error_either():
  code, _ = finish(start('classify', '--weights', 'x', '/no/such.mp4', '--labels', '', stderr=None))
  assert code == READER_GONE


def test_a_command_without_standard_output_goes_on():
  for redirection in ('>&-', '2>&-', '>&- 2>&-'):
    done = subprocess.run(
      f'{sys.executable} -m xclip_jax.cli weights {redirection}', shell=True,
      env=environment(), capture_output=True, text=True, timeout=99)
    assert done.returncode == 0 and done.stderr == '', redirection
