"""An export answers as the model does, in the runtimes of others, or is not written."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import tiny
from xclip_jax.cli import main
from xclip_jax.errors import UserError
from xclip_jax.export import exported, folder, manifest, runtimes
from xclip_jax.export.graphs import pixels
from xclip_jax.export.proof import parity
from xclip_jax.inference import classifier as classifier_lib
from xclip_jax.models.config import make_config
from xclip_jax.text.tokenizer import Tokenizer
from xclip_jax.weights import native

HAS_ONNX = all(importlib.util.find_spec(name) for name in runtimes.NEEDS['onnx'])
TARGETS = ('stablehlo', 'onnx') if HAS_ONNX else ('stablehlo',)
LABELS = ('a ring growing', 'a square moving left', 'a cross circling clockwise')


def draw(**changes):
  """A classifier of a tiny model with drawn weights, two templates and Pillow's filter."""
  config = make_config('B/32', num_frames=4, **tiny.FIELDS | changes)
  return classifier_lib.Classifier(native.Weights(
    config, tiny.draw_params(config), native.HUGGING_FACE, ('a {}', 'a video of {}')))


@pytest.fixture(scope='module')
def classifier():
  return draw(messages=False)


@pytest.fixture(scope='module')
def model(classifier, tmp_path_factory):
  """That model, exported; compared at one size, since each is compiled."""
  path = tmp_path_factory.mktemp('export') / 'model'
  with pytest.MonkeyPatch.context() as patch:
    few(patch)
    patch.setattr(folder.tokenizer_json, 'tokenizer_json', lambda length: {})  # has its own tests
    return folder.export(classifier, path, folder.ExportOptions(TARGETS, labels=LABELS))


def few(patch):
  """Compares one size, and measures nothing: `test_the_whole_proof` does all."""
  patch.setattr(parity, '_made_cases', lambda weights: [parity._case(weights, 2, 3, (75, 133))])
  patch.setattr(parity, '_measure', lambda *_: [parity.Timing('ours', 1, 1, 1)])


def run(capsys, *arguments):
  code = main.main([*map(str, arguments)])
  return code, capsys.readouterr()


# --- equal answers ------------------------------------------------------------------------------


def test_classify_answers_from_an_export_as_from_the_weights(model, classifier, tmp_path, capsys):
  answers = []
  for weights in (classifier.save(tmp_path / 'weights'), model):
    code, said = run(capsys, 'classify', 'sample:ring', 'sample:square', '--weights', weights,
                     '--labels', ', '.join(LABELS), '--quiet', '--json', '-')
    assert code == 0, said.err
    answers.append(json.loads(said.out)['videos'])
  for ours, found in zip(*answers, strict=True):
    assert [x['label'] for x in ours['top']] == [x['label'] for x in found['top']]
    np.testing.assert_allclose([x['probability'] for x in ours['top']],
                               [x['probability'] for x in found['top']], atol=2e-6)


@pytest.mark.parametrize('target', TARGETS)
def test_sizes_that_the_proof_has_not_seen_are_equal_too(model, classifier, target):
  T = classifier.config.num_frames
  call = runtimes.RUNTIMES[target](model)
  clips = np.stack([parity.made_clip(T, 61, 90, seed) for seed in (8, 9)])
  answers = [classifier.classify(clip, LABELS) for clip in clips]
  probabilities, logits = call('classify', clips)
  np.testing.assert_allclose(probabilities, [x.probabilities for x in answers], atol=2e-5)
  text = classifier.embed_text(LABELS)                     # the mean of both templates
  scores = call('score', *call('video', clips), text)
  np.testing.assert_allclose(scores[1], logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('target', TARGETS)
def test_the_script_in_the_folder_needs_no_xclip_jax(model, classifier, target, tmp_path):
  frames = parity.made_clip(classifier.config.num_frames, 50, 90, 3)[None]
  np.save(tmp_path / 'frames.npy', frames)
  np.save(tmp_path / 'ids.npy', Tokenizer(classifier.config.context_length)([*LABELS]))
  moved = shutil.copytree(model, tmp_path / 'moved')       # no path of the export is in it
  hidden = ('xclip_jax', 'flax', 'optax', 'orbax', 'cv2', *['jax'] * (target == 'onnx'))
  (tmp_path / 'site').mkdir()
  shutil.copy(tiny.REPO / 'tests/programs/hide_packages.py', tmp_path / 'site/sitecustomize.py')
  done = subprocess.run(
    [sys.executable, moved / f'run_{target}.py', tmp_path / 'frames.npy', tmp_path / 'ids.npy'],
    capture_output=True, text=True, cwd=tmp_path, env=tiny.environment() | {
      'PYTHONPATH': str(tmp_path / 'site'), 'ABSENT_PACKAGES': ' '.join(hidden)})
  assert done.returncode == 0, done.stderr
  found = np.fromstring(done.stdout.replace('[', ' ').replace(']', ' '), sep=' ')
  plain = dataclasses.replace(classifier.weights, template='{}')
  want = classifier_lib.Classifier(plain).classify(frames[0], LABELS).probabilities
  np.testing.assert_allclose(found, want, atol=1e-4)
  lines = (model / f'run_{target}.py').read_text().split('"""')[2].strip().splitlines()
  assert len([line for line in lines if line.strip()]) <= 20


def test_the_manifest_says_what_is_in_the_folder(model, classifier):
  content = manifest.read(model)
  assert content['labels'] == list(LABELS) and content['template'] == [*classifier.template]
  assert content['graphs']['video']['inputs'][0]['shape'] == ['B', 4, 'H', 'W', 3]
  assert content['stablehlo']['platforms'] == ['cpu', 'cuda', 'tpu']
  assert content['stablehlo']['expires'] > content['created'][:10]
  held = {x.name for x in model.iterdir()}
  assert held == {*content['files'], 'manifest.json', 'parity.md', *['triton'] * HAS_ONNX}
  assert all(graph[target] in held for graph in content['graphs'].values() for target in TARGETS)
  proof = (model / 'parity.md').read_text()
  assert '75 x 133, B = 2, K = 3 | stablehlo | 0 |' in proof
  assert not any(str(path) in content_of for path in (model, pathlib.Path.home())
                 for content_of in ((model / 'manifest.json').read_text(), proof))


def test_the_snippets_of_the_page_run(model, classifier, tmp_path, monkeypatch):
  page = (tiny.REPO / 'docs/export.md').read_text()
  snippets = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
  assert len(snippets) == 2
  (tmp_path / 'model').symlink_to(model)
  monkeypatch.chdir(tmp_path)
  frames = parity.made_clip(classifier.config.num_frames, 61, 90, 3)[None]
  for target, snippet in zip(('stablehlo', 'onnx'), snippets, strict=True):
    if target in TARGETS:
      found = {'frames': frames}
      exec(snippet, found)
      want = classifier.classify(frames[0], LABELS).probabilities
      np.testing.assert_allclose(np.asarray(found['probabilities'])[0], want, atol=2e-5)
  copied = re.findall(r'^cp model/(\S+)', page, re.MULTILINE)
  assert len(copied) == 2 and (not HAS_ONNX or all((model / name).is_file() for name in copied))


def test_triton_takes_its_configuration(model, tmp_path):
  """Parsed by the message that Triton's own client has for it."""
  text_format = pytest.importorskip('google.protobuf.text_format')
  message = pytest.importorskip('tritonclient.grpc.model_config_pb2').ModelConfig
  for name, graph in manifest.read(model)['graphs'].items():
    config = text_format.Parse((model / 'triton' / name / 'config.pbtxt').read_text(), message())
    assert config.name == name and config.platform == 'onnxruntime_onnx'
    assert config.max_batch_size == 0
    for found, wanted in ((config.input, graph['inputs']), (config.output, graph['outputs'])):
      assert [port.name for port in found] == [port['name'] for port in wanted]
      assert [list(port.dims) for port in found] == [
        [-1 if isinstance(size, str) else size for size in port['shape']] for port in wanted]


@pytest.mark.slow
@pytest.mark.parametrize(('dtype', 'frames'), [('float32', 4), ('bfloat16', 8), ('float32', 16)])
def test_the_whole_proof(tmp_path, dtype, frames, capsys):
  code, said = run(
    capsys, 'export', 'toy', '-o', tmp_path / 'model', '--to', ','.join(TARGETS), '--dtype', dtype,
    '--frames', frames, '--on', 'sample:ring', '--quiet')
  assert code == 0, said.err
  proof = (tmp_path / 'model/parity.md').read_text()
  assert '1080 x 1920' in proof and '90 x 2000' in proof and 'ring' in proof
  assert f'T = {frames}, {dtype}' in proof and 'MiB |' in proof
  assert proof.count('| 8 of 8 |') == len(TARGETS) or dtype == 'bfloat16'


@pytest.mark.slow
@pytest.mark.parametrize('changes', [
  {}, dict(prompt=False, context_length=77), dict(messages=False, mit=False, prompt=False),
  dict(logit_bias=True, context_length=20)])
def test_models_without_prompts_or_of_several_templates_are_exported(tmp_path, changes):
  drawn = draw(**changes)
  with pytest.MonkeyPatch.context() as patch:
    few(patch)
    path = folder.export(drawn, tmp_path / 'm', folder.ExportOptions(TARGETS, labels=LABELS))
  clip = parity.made_clip(4, 60, 44, 1)
  want = drawn.classify(clip, LABELS)
  found, = exported.ExportedModel(path).classify_each([clip], LABELS)
  np.testing.assert_allclose(found.probabilities, want.probabilities, atol=1e-5)
  outputs = manifest.read(path)['graphs']['video']['outputs']
  assert len(outputs) == 1 + drawn.config.prompt


# --- what cannot be -----------------------------------------------------------------------------


def test_a_graph_that_is_not_equal_is_not_written(tmp_path, monkeypatch):
  few(monkeypatch)
  resize = pixels.resize_and_crop
  monkeypatch.setattr(pixels, 'resize_and_crop', lambda frames, *rest: resize(
    frames[:, :, ::-1], *rest))                            # upside down
  with pytest.raises(UserError, match=r'not equal to the model: logits of stablehlo differ by'):
    folder.export(draw(**tiny.FEWER), tmp_path / 'model', folder.ExportOptions(('stablehlo',)))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('more', 'message'), [
  (['--to', 'tflite'], 'must name some of stablehlo, onnx, web, found tflite'),
  (['--to', ','], 'found none'),
  (['--labels', 'a, a'], "'a' more than once"),
  (['--frames', '0'], 'must be at least 1'),
  (['--on', 'nowhere/*.mp4'], 'nothing matches'),
])
def test_what_cannot_be_exported_is_said_in_one_line(tmp_path, capsys, more, message):
  code, said = run(capsys, 'export', 'toy', '-o', tmp_path / 'model', *more)
  assert code == 2 and message in said.err and said.err.count('\n') == 1, said.err
  assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_not_installed_is_named_with_the_command(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  for target, name in (('stablehlo', 'flatbuffers'), ('onnx', 'onnx and onnxruntime')):
    code, said = run(capsys, 'export', 'toy', '-o', tmp_path / 'model', '--to', target)
    assert code == 2 and f'package {name}, which is not installed: pip install' in said.err


def test_a_folder_that_is_no_export_is_never_replaced(model, tmp_path, capsys):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/photo').write_text('mine')
  for more, message in (([], '--overwrite'), (['--overwrite'], 'is not an export')):
    code, said = run(capsys, 'export', 'toy', '-o', tmp_path / 'mine', '--to', 'stablehlo', *more)
    assert code == 2 and message in said.err
  assert (tmp_path / 'mine/photo').read_text() == 'mine'
  folder.check_request(model, folder.ExportOptions(('stablehlo',), overwrite=True))


@pytest.fixture
def copy(model, tmp_path):
  return shutil.copytree(model, tmp_path / 'copy')


def damage(copy, kind):
  content = json.loads((copy / 'manifest.json').read_text())
  if kind == 'cut':
    (copy / 'video.stablehlo').write_bytes((copy / 'video.stablehlo').read_bytes()[:1000])
  elif kind == 'expired':
    (copy / 'video.stablehlo').write_bytes(b'of an older jax')
    content['stablehlo']['expires'] = '2020-01-31'
  elif kind == 'lost':
    (copy / 'text.stablehlo').unlink()
  elif kind == 'parameters':
    (copy / 'parameters.npz').write_bytes(b'PK')
  elif kind == 'version':
    content['version'] = 7
  elif kind == 'onnx alone':
    del content['stablehlo']
  elif kind == 'types':
    content['graphs'] = ['video']
  elif kind == 'fields':
    del content['num_frames']
  (copy / 'manifest.json').write_text(json.dumps(content))


@pytest.mark.parametrize(('kind', 'message'), [
  ('cut', 'video.stablehlo cannot be read: it is damaged'),
  ('expired', 'written to be read until 2020-01-31'),
  ('lost', 'text.stablehlo is missing'),
  ('parameters', 'parameters.npz cannot be read'),
  ('version', 'has version 7, and this program reads 1'),
  ('onnx alone', 'holds no StableHLO'),
  ('fields', 'lacks num_frames'),
  ('types', 'graphs in '),
])
def test_a_damaged_or_old_export_is_said_in_one_line(copy, capsys, kind, message):
  damage(copy, kind)
  code, said = run(capsys, 'classify', 'sample:ring', '--weights', copy, '--quiet')
  assert code == 2 and message in said.err and said.err.count('\n') == 1, said.err


def test_weights_beside_a_manifest_of_another_program_are_still_weights(
  classifier, tmp_path, capsys
):
  weights = classifier.save(tmp_path / 'weights')
  (weights / 'manifest.json').write_text('{"name": "a web application"}')
  code, said = run(capsys, 'classify', 'sample:ring', '--weights', weights, '--labels', 'a, b',
                   '--quiet')
  assert code == 0, said.err


def test_other_commands_and_options_say_that_an_export_is_fixed(model, capsys, tmp_path):
  code, said = run(capsys, 'embed', 'sample:ring', '--weights', model, '-o', tmp_path / 'x.npz')
  assert code == 2 and 'is an export, which `xclip classify` runs' in said.err
  code, said = run(capsys, 'classify', 'sample:ring', '--weights', model, '--frames', '8')
  assert code == 2 and 'own num_frames' in said.err


@pytest.mark.parametrize('target', TARGETS)
def test_arrays_that_a_graph_does_not_take_are_said_in_one_line(model, target):
  call = runtimes.RUNTIMES[target](model)
  frames = np.zeros((1, 4, 30, 40, 3), np.uint8)
  for inputs, message in (
    ((frames[:, :3],), r'must be uint8 \[B, 4, H, W, 3\], got uint8 \[1, 3, 30'),
    ((frames.astype(np.float32),), 'got float32'),
    ((frames[0],), r'got uint8 \[4, 30'), ((), 'takes 1 inputs'), ((frames[:0],), r'\[0, 4')):
    with pytest.raises(UserError, match=message):
      call('video', *inputs)
  with pytest.raises(UserError, match='holds no graph'):
    call('nothing')


def test_an_export_without_labels_asks_for_them(copy, capsys):
  content = json.loads((copy / 'manifest.json').read_text())
  (copy / 'manifest.json').write_text(json.dumps(content | {'labels': []}))
  code, said = run(capsys, 'classify', 'sample:ring', '--weights', copy, '--quiet')
  assert code == 2 and 'give either --labels or --labels-file' in said.err
