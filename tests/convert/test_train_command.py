"""`xclip train` and train.py are one command: published names, overrides, mistakes in one line."""

import os
import subprocess
import sys

import jax
import pytest

import tiny
from xclip_jax import errors
from xclip_jax.cli import main as cli
from xclip_jax.cli.commands import train
from xclip_jax.parallel import process_exit, stop_signals
from xclip_jax.storage.checkpoints import CheckpointError
from xclip_jax.training import run as run_lib


@pytest.fixture
def xclip_train(monkeypatch, tmp_path, capsys):
  """Runs the command up to the run itself: (exit code, stderr, what the run was given)."""
  given = []
  monkeypatch.setattr(run_lib, 'run', lambda *arguments: given.append(arguments) or {})
  monkeypatch.setattr(process_exit, '_exit', lambda message, code: sys.exit(code))
  # In pytest's process neither signals nor the log belong to the command.
  for module, name in (
      (train.faulthandler, 'enable'), (stop_signals, 'serve'), (stop_signals, 'exit_at_once')):
    monkeypatch.setattr(module, name, lambda *_: None)

  def command(*arguments):
    code = cli.main(['train', *arguments, '--workdir', str(tmp_path / 'run')])
    return code, capsys.readouterr().err, given
  return command


def test_a_published_name_and_overrides_become_the_config(xclip_train, tmp_path):
  code, err, given = xclip_train(
    '--config', 'k400_b16_8f', '--config.train.steps=2', '--config.optim.lr', '1e-4',
    "--config.data.synthetic={'seed': 1}", '--config.data.root=gs://bucket/k400')
  assert code == 0, err
  (config, workdir, mode), = given
  assert (config.model.variant, config.train.steps, config.optim.lr) == ('B/16', 2, 1e-4)
  assert (config.data.synthetic.seed, config.data.root) == (1, 'gs://bucket/k400')
  assert config.is_locked and workdir == str(tmp_path / 'run') and mode == 'train'


@pytest.mark.parametrize('flags', [['--num-processes=2', '--process-id=1'],
                                   ['--num_processes=2', '--process_id', '1']])
def test_flags_are_written_with_dashes_and_as_train_py_had_them(xclip_train, monkeypatch, flags):
  joined = []
  monkeypatch.setattr('xclip_jax.parallel.processes.join', lambda *about: joined.append(about))
  code, err, given = xclip_train('--config=demo', '--mode=eval', '--coordinator=h:1', *flags)
  assert code == 0 and given[0][2] == 'eval', err
  assert joined == [(None, 'h:1', 2, 1, None)]


@pytest.mark.parametrize(('arguments', 'message'), [
  (['--config', 'demmo'], 'no published config of that name; did you mean demo?'),
  (['--config', 'mine.py'], 'no such file'),
  (['--config', 'demo', '--config.train.step=2'], 'did you mean config.train.steps?'),
  (['--config', 'demo', '--config.train.steps=two'], "invalid literal for int()"),
  (['--config', 'demo', '--wrkdir=x'], '--wrkdir is no flag'),
  (['--config', 'demo', 'x'], 'unexpected arguments: x'),
  ([], 'required: --config'),
])
def test_a_mistake_is_one_line_and_exit_code_2(xclip_train, arguments, message):
  code, err, given = xclip_train(*arguments)
  assert code == 2 and message in err and err.count('\n') == 1 and not given


@pytest.mark.parametrize(('error', 'code', 'words'), [
  (errors.UserError('no such list'), 2, 'error: no such list\n'),
  (CheckpointError('disk'), 1, 'error: disk\n'),
  (OSError(28, 'No space left', '/x'), 1, "error: OSError: [Errno 28] No space left: '/x'\n"),
  (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'), 1,
   'error: the memory of the device is full: Out of memory allocating 9 bytes. '
   f'{errors._LESS_MEMORY}\n'),
  (KeyboardInterrupt(), 130, '\nerror: stopped by Ctrl-C; the same command goes on from the last '
   'checkpoint\n'),
])
def test_what_a_user_can_mend_has_no_traceback(capsys, error, code, words):
  assert train.say_error(error) == code
  assert capsys.readouterr().err == words


def test_a_bug_keeps_its_traceback_and_says_where_to_report_it(capsys):
  try:
    raise KeyError('x')
  except KeyError as error:
    assert train.say_error(error) == 70
  err = capsys.readouterr().err
  assert 'Traceback' in err and errors.REPORT in err


@pytest.mark.parametrize('program', [['train.py'], ['-m', 'xclip_jax.cli', 'train']])
def test_both_programs_name_published_configs(program):
  done = subprocess.run(
    [sys.executable, *program, '--help'], cwd=tiny.REPO, capture_output=True, text=True,
    env=os.environ | {'PYTHONPATH': str(tiny.REPO)}, check=False)
  assert done.returncode == 0 and done.stdout.startswith('usage: xclip train '), done.stderr
  assert 'xclip train --config demo --workdir runs/demo' in done.stdout
  assert 'k400_l14_336_16f' in done.stdout
