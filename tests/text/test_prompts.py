"""Classes with several texts: which texts, what their features are, and that runs use them."""

import dataclasses

import jax
import numpy as np
import pytest

import tiny
from xclip_jax.data.datasets import annotations
from xclip_jax.inference import classifier as classifier_lib
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state as state_lib
from xclip_jax.text import prompts
from xclip_jax.text.tokenizer import write_prompts
from xclip_jax.training import evaluate_run
from xclip_jax.training import job as job_lib
from xclip_jax.training import run as run_lib
from xclip_jax.weights import opening

NAMES = ('up', 'down', 'left')
TEMPLATES = ('a video of {}', '{} in a clip')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tiny.write_data(tmp_path_factory.mktemp('data'))
  first, second, *_ = annotations.read_classes(folder / 'classes.csv').names
  (folder / 'texts.csv').write_text(
    f'name,description\n{first},one thing\n{second},"here, there"\n{first},another thing\n')
  return folder


def data(folder, lines='', **fields):
  c = tiny.config(folder, **fields).data
  if lines:
    (folder / 'own.csv').write_text('name,description\n' + lines)
    with c.unlocked():
      c.descriptions = 'own.csv'
  return c


def test_texts_are_templates_around_descriptions_or_names(tmp_path):
  c = data(tmp_path, 'down,falls\ndown,sinks\n', data__templates=TEMPLATES)
  found = prompts.write(NAMES, c, 16)
  assert found.texts == (
    'a video of up', 'up in a clip', 'a video of falls', 'falls in a clip', 'a video of sinks',
    'sinks in a clip', 'a video of left', 'left in a clip')
  assert found.counts.tolist() == [2, 4, 2]
  assert [set(row) for row in found.rows.tolist()] == [{0, 1}, {2, 3, 4, 5}, {6, 7}]
  np.testing.assert_array_equal(found.token_ids, write_prompts(found.texts, '{}', 16))


def test_one_text_a_class_is_nothing_new(tmp_path):
  assert prompts.write(NAMES, data(tmp_path), 16) is None


def mean(features):
  """CLIP's average of [P, E], as long as the features are on average; in float64."""
  features = np.asarray(features, np.float64)
  length = np.linalg.norm(features, axis=1, keepdims=True)
  direction = (features / length).mean(0)
  return direction / np.linalg.norm(direction) * length.mean()


def test_the_average_has_the_mean_direction_and_the_mean_length(tmp_path):
  found = prompts.write(NAMES, data(tmp_path, 'down,a\ndown,b\ndown,c\nleft,d\n'), 16)
  features = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
  features *= np.arange(1, 6, dtype=np.float32)[:, None]
  got = np.asarray(found.average(features))
  want = [features[0], mean(features[1:4]), features[4]]     # alone, it is what it was
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_each_text_of_a_class_is_drawn_as_often_as_the_others(tmp_path):
  found = prompts.write(NAMES, data(tmp_path, 'down,a\ndown,b\ndown,c\nleft,d\n'), 16)
  drawn = np.asarray(jax.vmap(found.draw)(jax.random.split(jax.random.key(0), 3000)))
  assert set(drawn[:, 0]) == {0} and set(drawn[:, 2]) == {4}
  counts = np.bincount(drawn[:, 1], minlength=5)[1:4]
  assert counts.sum() == 3000 and np.all(np.abs(counts - 1000) < 130)       # 5 sigma


@pytest.fixture(scope='module')
def model_and_params(root):
  model = job_lib.make_model(tiny.config(root))
  return model, jax.jit(lambda key: state_lib.init_params(model, key))(jax.random.key(0))


@pytest.mark.slow
def test_evaluations_compare_with_the_averages(root, model_and_params):
  model, params = model_and_params
  c = tiny.config(root, data__templates=TEMPLATES, data__descriptions='texts.csv')
  splits = job_lib.open_splits(c.data)
  evaluation = evaluate_run.Evaluation(c, model, mesh_lib.make_mesh(c.mesh), splits)
  got = evaluation.encode_text(params, 'val')
  encode = jax.jit(lambda ids: model.apply({'params': params}, ids, method='encode_text'))
  described = {splits['val'].classes.names[0]: ('one thing', 'another thing'),
               splits['val'].classes.names[1]: ('here, there',)}
  for row, name in zip(np.asarray(got), splits['val'].classes.names, strict=True):
    texts = [t.replace('{}', x) for x in described.get(name, (name,)) for t in TEMPLATES]
    np.testing.assert_allclose(
      row, mean(encode(write_prompts(texts, '{}', 16))), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_classifier_averages_over_its_templates(model_and_params):
  model, params = model_and_params
  weights = classifier_lib.native.Weights(model.config, params)
  load = lambda template: classifier_lib.Classifier(dataclasses.replace(weights, template=template))
  one, other = load(TEMPLATES[0]), load(TEMPLATES[1])
  both = load(TEMPLATES).embed_text(NAMES)
  pairs = zip(one.embed_text(NAMES), other.embed_text(NAMES), strict=True)
  np.testing.assert_allclose(both, [mean(pair) for pair in pairs], rtol=1e-4, atol=1e-6)
  alone = load(TEMPLATES[:1]).embed_text(NAMES)
  np.testing.assert_array_equal(alone, one.embed_text(NAMES))


@pytest.mark.slow
@pytest.mark.parametrize('frozen', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_trains_on_them_and_remembers_them(root, tmp_path, frozen):
  fields = dict(train__steps=2, report=False, data__zero_shot='', data__templates=TEMPLATES,
                data__descriptions='texts.csv', train__freeze_text=frozen)
  results = run_lib.run(tiny.config(root, **fields), tmp_path / 'run')
  assert results['val/evaluated'] == 41
  classifier = classifier_lib.load(tmp_path / 'run')
  assert classifier.template == TEMPLATES
  weights = opening.open_weights(tmp_path / 'run')
  folder = classifier_lib.native.save(tmp_path / 'weights', weights)
  assert classifier_lib.native.read(folder).template == TEMPLATES
  text = (root / 'texts.csv').read_text()
  try:
    (root / 'texts.csv').write_text(text.replace('another', 'a third'))
    with pytest.raises(ValueError, match=r'data_fingerprint\.descriptions'):
      run_lib.run(tiny.config(root, **fields), tmp_path / 'run')
  finally:
    (root / 'texts.csv').write_text(text)


@pytest.mark.parametrize(('fields', 'message'), [
  (dict(data__templates=('a video',)), r"templates: 'a video' must hold \{\}"),
  (dict(data__descriptions='misspelt.csv'), "'upp' is the name of no class"),
  (dict(data__descriptions='empty.csv'), 'line 2: name or description is empty'),
  (dict(data__descriptions='nothing.csv'), 'nothing.csv: cannot be read'),
])
def test_what_is_wrong_with_texts_is_named(root, tmp_path, fields, message):
  (root / 'misspelt.csv').write_text('name,description\nupp,goes up\n')
  (root / 'empty.csv').write_text('name,description\nup,\n')
  with pytest.raises(ValueError, match=message):
    run_lib.run(tiny.config(root, **fields), tmp_path)
