"""Tests of `xclip weights curve`: its ends are the two models, its points their interpolations."""

import json

import jax
import numpy as np
import pytest

import tiny
import videos
from xclip_jax.cli import main
from xclip_jax.evaluation import scorer, video_lists, weight_curve
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.weights import apply, interpolate, native

ALPHAS = (0.0, 0.4, 1.0)


def random_weights(seed, **fields):
  config = XCLIPConfig(**({'num_frames': 2} | tiny.FIELDS | fields))
  draw = np.random.default_rng(seed).standard_normal
  params = jax.tree.map(lambda x: (0.5 * draw(x.shape)).astype(np.float32),
                        apply.abstract_params(config))
  return native.Weights(config, params, source=f'seed {seed}')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('curve')
  for n in range(6):
    frames = np.random.default_rng(n).integers(0, 256, (4, 40, 48, 3), np.uint8)
    videos.write_video(root / f'{n}.mp4', frames, codec='mpeg4')
  (root / 'classes.csv').write_text('id,name\n0,run\n1,jump\n2,sleep\n')
  (root / 'val.csv').write_text('path,label\n' + ''.join(f'{n}.mp4,{n % 3}\n' for n in range(6)))
  (root / 'several.csv').write_text(
    'path,label\n' + ''.join(f'{n}.mp4,{n % 3};{(n + 1) % 3}\n' for n in range(6)))
  for seed in (0, 1):
    native.save(root / f'w{seed}', random_weights(seed))
  native.save(root / 'other', random_weights(2, embed_dim=32))
  return root


def test_each_point_is_what_the_mixed_weights_say_by_themselves(root):
  first, second = random_weights(0), random_weights(1)
  found = video_lists.labelled('val', root / 'val.csv')
  curve = weight_curve.measure(
    first, second, [found], ALPHAS, weight_curve.CurveOptions(batch_size=4))
  for alpha in ALPHAS:
    mixed = interpolate.interpolate(first, second, alpha)
    alone = scorer.Scorer(
      XCLIP(mixed.config), mixed.preprocess, mesh_lib.make_mesh({'data': -1}), 4)
    params = alone.place(mixed.params)
    scored = alone.score(params, found.videos, alone.encode_texts(params, found.texts))
    np.testing.assert_allclose(curve.at('val', alpha).logits, scored.logits, atol=1e-5)
  assert curve.values('val') == [x.summary()['top1'] for x in curve.scores['val']]


def test_the_best_is_the_smallest_of_equals_over_the_mean_of_lists():
  class Known(weight_curve.Curve):
    def values(self, name):
      return {'new': [0.1, 0.6, 0.8, 0.8], 'old': [0.9, 0.8, 0.6, 0.2]}[name]

  curve = Known((0.0, 0.3, 0.6, 1.0), ('new', 'old'), {})
  assert curve.best() == 0.3                  # 0.70 and 0.70: the nearer to what it was
  assert curve.best(['new']) == 0.6 and curve.best(['old']) == 0.0


def test_the_command_writes_numbers_and_a_picture(root, tmp_path, capsys):
  words = ['weights', 'curve', root / 'w0', root / 'w1', '--on', root / 'several.csv',
           '--multi-label', '--alphas', '1,0', '-o', tmp_path / 'out']
  assert main.main(list(map(str, words))) == 0
  said = capsys.readouterr().out
  content = json.loads((tmp_path / 'out' / 'curve.json').read_text())
  assert content['alphas'] == [0.0, 1.0] and content['lists'][0]['metric'] == 'mAP'
  assert f'{100 * content["lists"][0]["values"][1]:.1f}' in said.replace('%', '')
  assert (tmp_path / 'out' / 'curve.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(('change', 'message'), [
  (['--alphas', '0,2'], 'numbers from 0 to 1 wanted'),
  (['--alphas', 'half'], 'numbers from 0 to 1 wanted'),
  (['--template', 'a video'], 'must hold {} for the label'),
  (['--classes', 'a', '--classes', 'b'], 'give it once, or once for each'),
  (['--on', 'none.csv', '--classes', 'none.csv'], 'none.csv'),
])
def test_what_cannot_be_is_one_line(root, tmp_path, capsys, change, message):
  words = ['weights', 'curve', root / 'w0', root / 'w1', '--on', root / 'val.csv', *change, '-o',
           tmp_path / 'out']
  assert main.main(list(map(str, words))) == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_models_that_differ_have_nothing_between_them(root, tmp_path, capsys):
  words = ['weights', 'curve', root / 'w0', root / 'other', '--on', root / 'val.csv', '-o',
           tmp_path / 'out']
  assert main.main(list(map(str, words))) == 2
  assert 'embed_dim' in capsys.readouterr().err
