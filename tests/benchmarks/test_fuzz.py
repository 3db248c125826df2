"""Tests of the fuzzers: they notice what readers must not do, and readers do nothing of it."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from benchmarks.fuzz import harness
from xclip_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def use_memory(path):
  bytearray(3 * harness.MEMORY // 2)[::4096] = b'\1' * (3 * harness.MEMORY // 2 // 4096)


def refuse(path):
  raise UserError(f'{path.name}: wanted something else')


def refuse_with_escape_codes(path):
  raise UserError(f'{path.name}: \x1b[31m is in it')


def refuse_without_name(path):
  raise UserError('wanted something else')


def write_canary(path):
  (path.parent.parent / 'canary').touch()


@pytest.mark.parametrize(('read', 'outcome'), [
  (lambda path: path.read_bytes(), 'read'), (refuse, 'refused'), (lambda path: 1 / 0,
   'ZeroDivisionError'), (refuse_with_escape_codes, 'control characters'),
  (refuse_without_name, 'unnamed'), (lambda path: time.sleep(2), 'hang'), (use_memory, 'memory'),
  (lambda path: os.kill(os.getpid(), signal.SIGSEGV), 'crash, status 11'),
  (lambda path: subprocess.run(['true']), 'ran'), (write_canary, 'ran'),
  (lambda path: socket.create_connection(('127.0.0.1', 1)), 'ran')])
def test_whatever_a_reader_does_is_noticed(read, outcome, monkeypatch):
  monkeypatch.setattr(harness, 'SECONDS', 0.5)
  monkeypatch.setattr(harness, 'MEMORY', 1 << 26)
  if outcome == 'control characters':           # which the package escapes
    monkeypatch.setattr(harness.errors, 'explain', str)

  def prepare(folder, canary):
    def write_next(rng):
      path = folder / 'a.bin'
      path.write_bytes(harness.damage(b'sound' * 100, rng))
      return path
    return write_next

  row = harness.fuzz(harness.Kind('any', prepare, read), 2, 0)
  if outcome in harness.FINE:
    assert row[outcome] == 2 and row['other'] == 0
  else:
    assert row['other'] == 2 and row['details'][0].startswith(outcome), row


@pytest.mark.slow
def test_damaged_files_of_every_kind_are_read_or_refused_in_one_line():
  done = subprocess.run(
    [sys.executable, ROOT / 'benchmarks/fuzz/run.py', '--files', '100', '--seed', '1'],
    capture_output=True, text=True, timeout=900)
  rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
  assert len(rows) == 26, done.stderr[-2000:]
  assert not [row for row in rows if row['other']] and done.returncode == 0
  assert all(row['refused'] for row in rows) and sum(row['read'] > 0 for row in rows) > 20
