"""The model and the clips in the package: offline, small, and as good as about.json says."""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import xclip_jax
from xclip_jax.assets import bundled
from xclip_jax.cli import main
from xclip_jax.data.datasets import synthetic, synthetic_scenes
from xclip_jax.data.video import decode
from xclip_jax.errors import UserError
from xclip_jax.weights import inspection, native

# No address can be looked up and no connection made, in this process and its children.
WITHOUT_NETWORK = pathlib.Path(__file__).parent / 'programs/xclip_without_network.py'


@pytest.fixture(scope='module')
def toy():
  return xclip_jax.load('toy')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """Draws clips of every class, from seeds that the model was not trained on."""
  recipe = synthetic.Recipe(seed=77, train=1, val=48, zero_shot=48)
  return synthetic.write(tmp_path_factory.mktemp('drawn'), recipe, processes=1)


def test_the_command_of_the_first_minute_answers_without_a_network(tmp_path):
  environment = os.environ | {
    'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'hub'), 'HOME': str(tmp_path)}
  done = subprocess.run(
    [sys.executable, WITHOUT_NETWORK, 'classify', '--weights', 'toy', 'sample:ring', '--json', '-'],
    env=environment, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  told = json.loads(done.stdout)
  assert told['videos'][0]['path'] == 'sample:ring'
  assert told['videos'][0]['top'][0]['label'] == 'a ring circling clockwise'
  assert len(told['labels']) == 32


def test_samples_are_answered_rightly_with_the_stored_labels(toy):
  names = bundled.list_samples()
  assert names == ['sample:ring', 'sample:square', 'sample:triangle']
  about = bundled.describe_toy()['samples']
  for name, answer in zip(names, toy.classify(names), strict=True):
    (label, probability), *_ = answer.top(1)
    assert label == about[name]['label'] and name.removeprefix('sample:') in label
    assert probability == pytest.approx(about[name]['answer'][0][1], abs=0.01)


def test_samples_are_what_about_json_says(tmp_path):
  for name, row in bundled.describe_toy()['samples'].items():
    shape, motion = row['label'].removeprefix('a ').split(' ', 1)
    rng = np.random.default_rng(row['seed'])
    scene = synthetic_scenes.draw_scene(rng, shape, motion, 16)
    assert scene.caption == row['caption']
    assert row['composition_in_training'] != synthetic_scenes.is_held_out(shape, motion)
    video = decode.read_video(name, np.arange)
    drawn = synthetic_scenes.render(scene, 64)
    assert video.shape == drawn.shape == (16, 64, 64, 3)
    assert np.abs(video.astype(int) - drawn).mean() < 6       # what H.264 loses


def test_a_sample_s_name_is_taken_wherever_a_video_is(tmp_path, capsys):
  file = str(tmp_path / 'features.npz')
  assert main.main(['embed', '--weights', 'toy', 'sample:square', '-o', file]) == 0
  with np.load(file) as written:
    assert written['video_features'].shape == (1, 96)
    assert list(written['paths']) == ['sample:square'] and 'labels' not in written
  assert main.main(['windows', '--weights', 'toy', 'sample:triangle', '--every', '4']) == 0
  assert 'a triangle moving up' in capsys.readouterr().out
  assert decode.count_frames('sample:ring') == 16


def test_an_unknown_sample_is_answered_with_those_that_exist(toy, capsys):
  message = 'sample:rng: the package has no such clip; it has sample:ring, sample:square'
  with pytest.raises(decode.VideoError, match=message):
    toy.classify('sample:rng')
  assert main.main(['classify', '--weights', 'toy', 'sample:rng']) == 1
  assert message in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_of_about_json_equal_a_fresh_evaluation(toy, drawn):
  """Other clips than those of about.json, so each share may differ by what 48 draws allow."""
  told = bundled.describe_toy()['top1_of_this_file']
  labels = {split: [f'a {x} {y}' for x, y in synthetic_scenes.compositions(split)]
            for split in ('val', 'zero_shot')}
  assert list(toy.labels) == labels['val'] + labels['zero_shot']

  def measure(split, chosen):
    rows = list(csv.DictReader((drawn / f'{split}.csv').open()))
    names = [labels[split][int(row['label'])] for row in rows]
    answers = toy.classify([str(drawn / row['path']) for row in rows], chosen)
    return np.mean([a.top(1)[0][0] == name for a, name in zip(answers, names, strict=True)])

  for key, split, chosen in (
    ('val, 24 classes', 'val', labels['val']), ('val, among all 32', 'val', None),
    ('zero_shot, 8 classes', 'zero_shot', labels['zero_shot']),
    ('zero_shot, among all 32', 'zero_shot', None),
  ):
    p = told[key]
    assert measure(split, chosen) == pytest.approx(p, abs=0.05 + 3 * (p * (1 - p) / 48) ** 0.5), key


def test_numbers_of_about_json_are_those_of_the_run():
  about = bundled.describe_toy()
  ours, run = about['top1_of_this_file'], about['report_of_the_run']
  for key, name in (('val, 24 classes', 'val/top1'), ('zero_shot, 8 classes', 'zero_shot/top1'),
                    ('zero_shot, among all 32', 'zero_shot_all/top1')):
    assert ours[key] == pytest.approx(run[name], abs=0.002), key


def test_the_package_stays_small():
  size = lambda folder: sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())
  assert size(bundled.TOY_FOLDER) <= 8_000_000
  assert size(bundled.SAMPLES_FOLDER) <= 100_000


def test_the_toy_is_what_the_demo_s_config_describes():
  from configs import demo
  weights = native.read(bundled.TOY_FOLDER)
  fields = demo.get_config().model.fields
  assert {k: getattr(weights.config, k) for k in fields} == dict(fields)
  assert weights.licence == 'Apache-2.0' and weights.preprocess.filter == 'opencv'
  assert '/tmp' not in (bundled.TOY_FOLDER / 'config.json').read_text()


def test_the_toy_is_listed(capsys):
  assert main.main(['weights']) == 0
  assert capsys.readouterr().out.splitlines()[1].split()[0] == 'toy'


def test_labels_must_be_given_where_weights_hold_none(tmp_path, capsys):
  weights = native.read(bundled.TOY_FOLDER)
  folder = native.save(tmp_path / 'bare', dataclasses.replace(weights, labels=()))
  assert main.main(['classify', '--weights', str(folder), 'sample:ring']) == 2
  assert 'give either --labels or --labels-file' in capsys.readouterr().err
  with pytest.raises(UserError, match='hold no labels'):
    xclip_jax.load(folder).classify('sample:ring')


def test_the_toy_is_stored_in_half_precision_and_read_as_float32():
  told = inspection.describe('toy')
  assert told.dtypes == {'float16': told.tensors} and told.bytes <= 8_000_000
  assert {x.dtype for x in jax.tree.leaves(native.read(bundled.TOY_FOLDER).params)} == {
    np.dtype('float32')}


def test_parameters_beyond_float16_are_refused_by_name(tmp_path):
  weights = native.read(bundled.TOY_FOLDER)
  large = weights.params | {'logit_scale': np.float32(1e6)}
  with pytest.raises(UserError, match='logit_scale holds values beyond ±65504'):
    native.save(tmp_path / 'large', dataclasses.replace(weights, params=large), half=True)
  assert not (tmp_path / 'large').exists()


def test_labels_travel_with_weights_and_are_checked(tmp_path):
  weights = native.read(bundled.TOY_FOLDER)
  folder = native.save(tmp_path / 'copy', weights)
  assert native.read(folder).labels == weights.labels and len(weights.labels) == 32
  for labels in (('a', 'b', 'a'), ('a\nb',), (' a',), ('',)):
    with pytest.raises(UserError, match='label'):
      native.save(tmp_path / 'bad', dataclasses.replace(weights, labels=labels))
  (folder / 'labels.txt').write_bytes(b'\xff\xfe')
  with pytest.raises(UserError, match=r'labels\.txt cannot be read as UTF-8'):
    native.read(folder)
