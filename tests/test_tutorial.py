"""The tutorial of the documentation runs as it is written, and says what it claims."""

import os
import pathlib
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_tutorial_runs_and_its_answers_are_right(tmp_path, monkeypatch):
  command = tmp_path / 'bin/xclip'            # also where the package is not installed
  command.parent.mkdir()
  command.write_text(f'#!/bin/sh\nexec {sys.executable} -m xclip_jax.cli "$@"\n')
  command.chmod(0o755)
  monkeypatch.setenv('PATH', f'{command.parent}:{os.environ["PATH"]}')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  notebook = nbformat.read(ROOT / 'docs/tutorial.ipynb', 4)
  NotebookClient(notebook, timeout=500, resources={'metadata': {'path': str(tmp_path)}}).execute()

  said = [''.join(x.get('text') or x.get('data', {}).get('text/plain', '') for x in cell.outputs)
          for cell in notebook.cells if cell.cell_type == 'code']
  assert said[0].lstrip('[(').startswith("'a ring circling clockwise', 0.9"), said[0]
  forwards, backwards = said[1].splitlines()
  assert re.match(r'forwards a ring circling clockwise (9\d|100)\.', forwards), forwards
  assert backwards.startswith('backwards a ring circling counter-clockwise'), backwards
  assert '(3, 96) (3, 96)' in said[2]
  assert 'sample:square comes closer' in said[5], said[5]      # it grows


def test_the_tutorial_is_stored_without_outputs():
  for cell in nbformat.read(ROOT / 'docs/tutorial.ipynb', 4).cells:
    assert not cell.get('outputs') and not cell.get('execution_count')
