"""The page of an export answers as `xclip classify` does, in Chromium, and sends nothing away."""

import base64
import functools
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest

import videos
from xclip_jax.assets import bundled
from xclip_jax.cli import main
from xclip_jax.data.clips import sampling
from xclip_jax.data.video import decode
from xclip_jax.errors import UserError
from xclip_jax.export import web
from xclip_jax.inference import classifier as classifier_lib

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = ROOT / 'web'
CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium')
SAMPLES = ('ring', 'square', 'triangle')
T = 4                                             # frames of the toy's clips


# --- without a browser --------------------------------------------------------------------------


def test_an_installation_without_the_page_says_how_to_get_it(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(web, 'PAGE', tmp_path / 'none')
  with pytest.raises(UserError, match='make web'):
    web.write_page(tmp_path)
  pytest.importorskip('onnx')
  pytest.importorskip('onnxruntime')
  assert main.main(['export', 'toy', '-o', str(tmp_path / 'page'), '--to', 'web']) == 2
  assert 'make web' in capsys.readouterr().err and not (tmp_path / 'page').exists()


def test_the_page_and_the_sample_clips_are_copied(monkeypatch, tmp_path):
  built = tmp_path / 'built'
  (built / 'assets').mkdir(parents=True)
  (built / 'index.html').write_text('<title>page</title>')
  (built / 'assets/index.js').write_text('start()')
  monkeypatch.setattr(web, 'PAGE', built)
  folder = tmp_path / 'export'
  folder.mkdir()
  web.write_page(folder)
  assert (folder / 'assets/index.js').read_text() == 'start()'
  described = json.loads((folder / 'samples/samples.json').read_text())
  assert [f'sample:{row["name"]}' for row in described] == bundled.list_samples()
  assert [row['label'] for row in described if row['name'] == 'ring'] == [
    'a ring circling clockwise']
  assert all((folder / row['file']).stat().st_size > 1000 for row in described)


def test_the_sources_name_no_other_server():
  lock = (SOURCES / 'package-lock.json').read_text()
  assert '"resolved"' not in lock and '"integrity"' in lock
  policy = re.search(r'Content-Security-Policy" content="([^"]*)"',
                     (SOURCES / 'index.html').read_text())
  assert policy and "default-src 'none'" in policy[1] and "connect-src 'self'" in policy[1]
  assert not re.search(r"https?:|\*|'unsafe-", policy[1])
  for file in (SOURCES / 'index.html', *(SOURCES / 'src').rglob('*.*')):
    addresses = re.findall(r'\bhttps?://[^\s<\'"`]*', file.read_text())
    assert set(addresses) <= {'http://localhost:8000', 'https://'}, file


# --- in Chromium --------------------------------------------------------------------------------


class QuietHandler(http.server.SimpleHTTPRequestHandler):
  """The plainest server: no ranges, no cross-origin isolation."""

  def log_message(self, *arguments):
    pass


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  """The toy, exported, under a path of a server; and with two templates and no labels."""
  pytest.importorskip('onnx')
  pytest.importorskip('onnxruntime')
  if not shutil.which('node') or not (SOURCES / 'node_modules/playwright-core').is_dir():
    pytest.skip('needs Node and the packages of web/ (cd web && npm ci)')
  if not CHROMIUM:
    pytest.skip('needs Chromium, on PATH or named by CHROMIUM')
  if not (web.PAGE / 'index.html').is_file():
    pytest.skip('needs the built page (make web)')
  import test_export

  root = tmp_path_factory.mktemp('server')
  with pytest.MonkeyPatch.context() as patch:
    test_export.few(patch)
    folder = root / 'under/a path'
    folder.parent.mkdir()
    assert main.main(['export', 'toy', '-o', str(folder), '--to', 'web', '--quiet']) == 0
  two = shutil.copytree(folder, root / 'two')
  content = json.loads((two / 'manifest.json').read_text())
  content |= {'template': ['{}', 'look: {}, moving'], 'labels': []}
  (two / 'manifest.json').write_text(json.dumps(content))
  handler = functools.partial(QuietHandler, directory=str(root))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def visit(served):
  """Runs a task of web/tests/visit.mjs on the page; returns what it saw."""

  def run(task, *arguments, path='under/a%20path/', url=None):
    program = subprocess.run(
      ['node', SOURCES / 'tests/visit.mjs', url or served[1] + path, task, *arguments],
      capture_output=True, text=True, timeout=200, env=os.environ | {'CHROMIUM': str(CHROMIUM)})
    assert program.returncode == 0, program.stderr
    seen = json.loads(program.stdout)
    assert url or all(address.startswith((served[1], 'blob:' + served[1]))
                      for address in seen['requests']), 'something left the origin'
    return seen

  return run


@pytest.fixture(scope='module')
def seen(visit):
  return visit('samples')


def frames_of(clip) -> np.ndarray:
  content = base64.b64decode(clip['frames'])
  return np.frombuffer(content, np.uint8).reshape(T, clip['height'], clip['width'], 3)


def shown(bars):
  return {bar['label']: float(bar['value'].rstrip('%')) / 100 for bar in bars}


@functools.cache
def classify(video: str, labels: tuple[str, ...] = (), templates: tuple[str, ...] = ('{}',)):
  """Our own answer: probability of each label, the best first."""
  model = classifier_lib.load('toy', template=templates if len(templates) > 1 else templates[0])
  answer = model.classify(video, labels or model.labels)
  return dict(answer.top(len(answer.labels)))


@pytest.mark.slow
@pytest.mark.parametrize('name', SAMPLES)
def test_a_sample_gets_the_answer_of_xclip_classify(seen, name, capsys):
  assert main.main(['classify', f'sample:{name}', '--weights', 'toy', '--quiet', '--json', '-',
                    '--top', '3']) == 0
  expected = json.loads(capsys.readouterr().out)['videos'][0]['top']
  found = seen['samples'][name]
  assert [bar['label'] for bar in found['bars'][:3]] == [row['label'] for row in expected]
  np.testing.assert_allclose([*shown(found['bars']).values()][:3],
                             [row['probability'] for row in expected], atol=0.005)
  assert found['status'] == (
    f'{name}: {expected[0]["label"]}, {found["bars"][0]["value"]}.')


@pytest.mark.slow
@pytest.mark.parametrize('name', SAMPLES)
def test_the_browser_decodes_our_frames(seen, name):
  """The same moments; of another decoder and conversion to RGB, so with other roundings."""
  ours = decode.read_video(f'sample:{name}', lambda n: sampling.test_indices(n, T))
  found = frames_of(seen['samples'][name])
  assert found.shape == ours.shape
  difference = np.abs(found.astype(int) - ours)
  score = seen['samples'][name]['score']
  expected = classify(f'sample:{name}')
  probabilities = [abs(expected[label] - p) for label, p in
                   zip(score['labels'], score['probabilities'], strict=True)]
  equal = np.mean([not frame.any() for frame in difference])
  print(f'{name}: values differ by {difference.mean():.3f} on average, {difference.max()} at most; '
        f'{np.mean(difference == 0):.1%} of the values and {equal:.0%} of the frames are equal; '
        f'probabilities differ by {max(probabilities):.2g} at most')
  assert difference.mean() < 2 and difference.max() <= 6
  assert max(probabilities) < 0.005


@pytest.mark.slow
def test_nothing_is_logged_and_all_windows_are_answered(seen):
  assert not seen['errors']
  assert all(len(sample['windows']) == 1 and 'not yet' not in sample['windows'][0]
             for sample in seen['samples'].values())
  assert any(address.endswith('video.onnx') for address in seen['requests'])


@pytest.mark.slow
def test_files_of_other_rates_and_codecs_give_the_chosen_frames(visit, tmp_path):
  kinds = {
    'a.mp4': (97, 30, 'libx264', {'bf': '3', 'g': '40'}), 'b.webm': (64, 30, 'libvpx-vp9', {}),
    'c.mp4': (16, 25, 'libx264', {})}
  for name, (number, *how) in kinds.items():
    videos.write_video(tmp_path / name, videos.barcode_frames(number, 120, 176), *how)
  clips = visit('files', *(tmp_path / name for name in kinds))['clips']
  for clip, (number, *_) in zip(clips, kinds.values(), strict=True):
    found = [videos.read_barcode(frame) for frame in frames_of(clip)]
    assert found == sampling.test_indices(number, T).tolist()


@pytest.mark.slow
def test_windows_keep_their_frames_when_their_length_changes_meanwhile(visit, tmp_path):
  number, fps = 64, 16
  video = videos.write_video(tmp_path / 'a.mp4', videos.barcode_frames(number, 120, 176), fps)
  clips = visit('hurry', video)['clips']
  found = [[videos.read_barcode(frame) for frame in frames_of(clip)] for clip in clips]
  assert found == [(fps * i + sampling.test_indices(fps, T)).tolist() for i in range(4)]


@pytest.mark.slow
def test_typed_labels_are_compared(visit):
  found = visit('labels')
  assert not found['errors']
  for kind, labels in (
      ('commas', ('a cat', 'a ring circling clockwise', 'a square')),
      ('lines', ('A RING, circling clockwise', 'a ring — circling counter-clockwise',
                 'naïve 日本')),
      ('restored', ())):
    expected = classify('sample:ring', labels)
    bars = shown(found[kind])
    assert list(bars) == list(expected)[:len(bars)] and len(bars) == (len(labels) or 5)
    np.testing.assert_allclose([*bars.values()], [*expected.values()][:len(bars)], atol=0.005)
  assert '42 tokens' in found['tooLong'] and 'the model reads 16' in found['tooLong']


@pytest.mark.slow
def test_without_labels_those_of_the_samples_are_offered_and_templates_are_averaged(visit):
  found = visit('samples', path='two/')
  labels = ('a ring circling clockwise', 'a square growing', 'a triangle moving up')
  assert tuple(found['labels'].splitlines()) == labels and not found['canReset']
  for name in SAMPLES:
    expected = classify(f'sample:{name}', labels, ('{}', 'look: {}, moving'))
    probabilities = found['samples'][name]['score']['probabilities']
    np.testing.assert_allclose(probabilities, [expected[x] for x in labels], atol=0.005)


@pytest.mark.slow
def test_the_keyboard_reaches_everything(visit):
  found = visit('keyboard')
  assert not found['errors']
  assert all(found[f'reached{name}'] for name in ('Sample', 'Length', 'Timeline', 'Labels'))
  assert found['window'].startswith('0.5 s to 0.75 s: ') and found['time'] == 0.5
  assert found['outline'] == 'solid'
  assert [bar['label'] for bar in found['bars']] == ['a square growing', 'a cat']


@pytest.mark.slow
def test_what_cannot_be_used_is_one_sentence(visit):
  found = visit('mistakes')
  assert found['noVideo'].startswith('notes.mp4 cannot be played: it is no video, or of a kind')
  assert 'no camera' in found['noCamera'] or 'not allowed' in found['noCamera']
  assert found['noGraph'].startswith('score.onnx is missing beside this page')
  assert not found['errorAfterwards']


@pytest.mark.slow
def test_the_camera_is_classified_until_it_is_stopped(visit):
  found = visit('camera')
  assert not found['errors'] and found['live'] > 0 and len(found['bars']) == 5
  assert found['status'].startswith('The camera is off')


@pytest.mark.slow
def test_nothing_is_cut_off_on_a_phone_or_a_desktop(visit, tmp_path):
  found = visit('pictures', tmp_path)
  assert found['phone'] and found['desktop-light'] and found['desktop-dark']


@pytest.mark.slow
def test_a_page_opened_as_a_file_says_what_to_do(served, visit):
  found = visit('file', url=(served[0] / 'index.html').as_uri())
  assert found['notice'] and found['styled'] and found['inert']
