"""Tests of a run's output while it trains: a bar on a terminal, else a line for each log row."""

import io
import sys

from xclip_jax.training import monitoring


def show(monkeypatch, is_terminal):
  shown = io.StringIO()
  shown.isatty = lambda: is_terminal
  monkeypatch.setattr(sys, 'stderr', shown)
  with monitoring.Progress(total=4, done=1) as progress:
    progress.say('compiling')
    progress.update()
    progress.log(2, loss=1.25, lr=2e-4, speed=31.4)
  return shown.getvalue()


def test_without_a_terminal_there_is_a_line_for_each_log_row_and_no_bar(monkeypatch, capsys):
  assert show(monkeypatch, False) == ''
  assert capsys.readouterr().out == (
    'compiling\nstep 2/4: loss 1.250, lr 2.0e-04, 31.4 videos/s\n')


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
  bar = show(monkeypatch, True)
  assert '\r' in bar and 'training' in bar and 'loss 1.250, lr 2.0e-04' in bar
  assert capsys.readouterr().out == 'compiling\n'


def test_other_processes_show_nothing(monkeypatch, capsys):
  monkeypatch.setattr(monitoring.jax, 'process_index', lambda: 1)
  for is_terminal in (False, True):
    assert show(monkeypatch, is_terminal) == '' and capsys.readouterr().out == ''
