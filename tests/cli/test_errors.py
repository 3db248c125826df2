"""The ends of a command: one line for the user's mistakes, a traceback for ours."""

import argparse
import errno
import os
import signal
import types

import jax
import pytest

from xclip_jax import errors
from xclip_jax.cli import main, options, output, output_files

STRANGE = '/no/such/file\n.mp4'


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs `xclip work`, a subcommand that does what a test says: exit code, output, error."""
  def run(work, **defaults):
    def add_commands(commands):
      command = options.add_command(commands, 'work', work, 'do some work', 'xclip work')
      command.set_defaults(**defaults)

    monkeypatch.setattr(main, 'COMMANDS', (types.SimpleNamespace(add_commands=add_commands),))
    return main.main(['work']), *capsys.readouterr()

  return run


def raising(error):
  """Returns a subcommand that fails."""
  def work(arguments: argparse.Namespace) -> int:
    """Fails."""
    raise error

  return work


@pytest.mark.parametrize(('error', 'line'), [
  (errors.UserError('a.csv is empty'), 'a.csv is empty'),
  (errors.ConfigError('config.x is misspelt'), 'config.x is misspelt'),
  (errors.ExistsError('out exists'), 'out exists'),
  (FileNotFoundError(errno.ENOENT, 'No such file or directory', STRANGE),
   r"[Errno 2] No such file or directory: '/no/such/file\n.mp4'"),
  (PermissionError(errno.EACCES, 'Permission denied'), '[Errno 13] Permission denied'),
  (OSError(errno.ENOSPC, 'No space left on device'), '[Errno 28] No space left on device'),
])
def test_what_the_user_can_mend_is_one_line_and_code_2(error, line, run):
  assert run(raising(error)) == (2, '', f'xclip: {line}\n')


def test_control_characters_of_files_reach_no_terminal(run, capsys):
  text = 'a.pt: dtype \x1b[31m\x9b2J\r\x07\u202e is not read:\n  second line'
  shown = 'a.pt: dtype \\x1b[31m\\x9b2J\\r\\x07\\u202e is not read:\n  second line'
  assert run(raising(errors.UserError(text))) == (2, '', f'xclip: {shown}\n')
  _, _, err = run(raising(KeyError('\x1b[31m')))
  assert '\x1b' not in err and err.count('\n') > 3
  output.say(text)
  output.print_past_bar(text)
  assert capsys.readouterr() == (f'{shown}\n', f'xclip: {shown}\n')


@pytest.mark.parametrize('error', [
  KeyError('label'), TypeError('NoneType'), ValueError('a bug in a sum'), RuntimeError('x'),
  AssertionError(), OSError('without a number'), OSError(errno.EBADF, 'Bad file descriptor'),
  BrokenPipeError(errno.EPIPE, 'Broken pipe'), MemoryError(),
], ids=repr)
def test_a_bug_has_a_traceback_code_70_and_says_where_to_report_it(error, run):
  code, out, err = run(raising(error))
  assert (code, out) == (70, '')
  assert err.startswith('Traceback (most recent call last):') and 'in work' in err
  assert type(error).__name__ in err and err.endswith(f'\n{errors.REPORT}\n')


def test_ctrl_c_says_what_became_of_the_work(run):
  assert run(raising(KeyboardInterrupt())) == (130, '', 'xclip: stopped; nothing was written\n')
  assert run(raising(KeyboardInterrupt()), when_stopped='stopped; go on') == (
    130, '', 'xclip: stopped; go on\n')


def test_sigterm_clears_half_written_files_away(run, tmp_path):
  def work(arguments):
    """Writes and is ended."""
    with (output_files.open_file(str(tmp_path / 'a.csv'), False) as write,
          output_files.open_folder(str(tmp_path / 'b'), False, bool) as folder):
      write(b'half')
      (folder / 'x').write_text('half')
      os.kill(os.getpid(), signal.SIGTERM)
      pytest.fail('was not ended')

  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as done:
    run(work)
  assert done.value.code == 143 and list(tmp_path.iterdir()) == []
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'a.csv'
  with output_files.open_file(str(path), overwrite=False) as write:
    write(b'one,')
    assert not path.exists()
    write(b'two')
  assert path.read_bytes() == b'one,two' and list(tmp_path.iterdir()) == [path]
  with pytest.raises(RuntimeError), output_files.open_file(str(path), overwrite=True) as write:
    write(b'half')
    raise RuntimeError
  assert path.read_bytes() == b'one,two' and list(tmp_path.iterdir()) == [path]
  with pytest.raises(errors.UserError, match=r'a\.csv exists'):
    output_files.open_file(str(path), overwrite=False).__enter__()


def test_a_file_that_another_program_wrote_meanwhile_is_kept(tmp_path):
  path = tmp_path / 'a.csv'
  with (pytest.raises(errors.UserError, match='exists'),
        output_files.open_file(str(path), overwrite=False) as write):
    write(b'ours')
    path.write_bytes(b'theirs')
  assert path.read_bytes() == b'theirs' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('place', ['no/such/folder/a', 'file/a'])
def test_a_bad_place_is_refused_at_once_and_named(place, tmp_path):
  (tmp_path / 'file').touch()
  path = str(tmp_path / place)
  with (pytest.raises(errors.UserError, match=f'cannot write {path}: '),
        output_files.open_file(path, overwrite=True)):
    pytest.fail('was opened')
  if place.startswith('file'):
    with (pytest.raises(errors.UserError, match=f'cannot write {path}: '),
          output_files.open_folder(path, overwrite=True, is_ours=bool)):
      pytest.fail('was opened')


def test_only_a_folder_of_ours_is_replaced(tmp_path):
  is_ours = lambda name: name.endswith('.json')
  path = tmp_path / 'out'
  for content in 'ab':
    with output_files.open_folder(str(path), content == 'b', is_ours) as folder:
      (folder / 'x.json').write_text(content)
    assert (path / 'x.json').read_text() == content
  with (pytest.raises(errors.UserError, match='add --overwrite'),
        output_files.open_folder(str(path), False, is_ours)):
    pytest.fail('was opened')
  (path / 'precious.txt').touch()
  with (pytest.raises(errors.UserError, match=r'holds precious\.txt, which this command did not'),
        output_files.open_folder(str(path), True, is_ours)):
    pytest.fail('was opened')
  assert list(tmp_path.iterdir()) == [path]


def test_a_full_device_is_one_line_that_names_the_batch_size(run):
  error = jax.errors.JaxRuntimeError(
    'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.\nBuffers: ...')
  code, out, err = run(raising(error))
  assert (code, out, err.count('\n')) == (2, '', 1)
  assert err.startswith('xclip: the memory of the device is full: Out of memory while trying')
  assert '--batch-size' in err and 'config.train.batch_size' in err and '`xclip plan`' in err


def test_any_other_error_of_the_compiler_is_a_bug(run):
  code, _, err = run(raising(jax.errors.JaxRuntimeError('INTERNAL: RET_CHECK failure')))
  assert code == 70 and err.endswith(f'\n{errors.REPORT}\n')
