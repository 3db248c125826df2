"""Whatever one field of a JSON file becomes, the weights load or one UserError says why not."""

import copy
import json

import pytest

from convert.golden_preprocess import CROP
from goldens_io import GOLDENS, Case
from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.weights import apply, native, opening
from xclip_jax.weights.configs import huggingface, open_clip, processor, tokenizer_files

MISSING = object()
VALUES = (
  None, True, False, 0, 1, -1, 10**9, 2**62, 10**400, float('inf'), float('nan'), 0.5, 1e9, 'text',
  '', '\x1b[2J\x7f\n', [], [1], [[]], {}, {'a\x1b': 1}, MISSING)
STATISTICS = [0.5, 0.25, 0.3]
PROCESSOR = {
  'image_processor_type': 'VideoMAEImageProcessor', 'do_resize': True,
  'size': {'shortest_edge': 40}, 'resample': 2, 'do_center_crop': True, 'crop_size': CROP,
  'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': STATISTICS,
  'image_std': STATISTICS}


def paths(tree, path=()):
  """Every field of a JSON value, however deep."""
  items = tree.items() if isinstance(tree, dict) else (
    enumerate(tree) if isinstance(tree, list) else ())
  for key, value in items:
    yield (*path, key)
    yield from paths(value, (*path, key))


def one_field_changes(content):
  """Every value at the place of every field, as a file holds it."""
  for path in paths(content):
    for value in VALUES:
      changed = copy.deepcopy(content)
      *outer, last = path
      place = changed
      for key in outer:
        place = place[key]
      if value is MISSING:
        del place[last]
      else:
        place[last] = value
      yield path, json.loads(json.dumps(changed))


def check(read, content, least=1):
  """Reads the file as it is and after every change; counts what is refused."""
  read(content)
  refused = total = 0
  for path, changed in one_field_changes(content):
    total += 1
    try:
      read(changed)
    except UserError as error:
      assert str(error).isprintable() and str(error), path            # one line, no escape codes
      refused += 1
    except Exception as error:
      raise AssertionError(f'{path}: {type(error).__name__}: {error}') from error
  assert total > refused >= least * total


@pytest.mark.parametrize('is_clip', [False, True])
def test_any_config_of_hugging_face(is_clip):
  content = json.loads((GOLDENS / 'hf_tiny_a/config.json').read_text())
  fields = vars(Case('hf_tiny_a').config)

  def read(changed):
    return XCLIPConfig(**fields | huggingface.read('config.json', changed, fields, is_clip))

  check(read, content, 0.3)


def test_any_config_of_open_clip():
  c = Case('A_T4').config
  content = {
    'model_cfg': {
      'embed_dim': c.embed_dim, 'quick_gelu': True,
      'vision_cfg': {
        'image_size': c.image_size, 'layers': c.vision_layers, 'width': c.vision_width,
        'head_width': 64, 'patch_size': c.patch_size, 'mlp_ratio': 4.0, 'pool_type': 'tok'},
      'text_cfg': {
        'context_length': c.context_length, 'vocab_size': c.vocab_size, 'width': c.text_width,
        'heads': c.text_heads, 'layers': c.text_layers, 'no_causal_mask': False,
        'norm_kwargs': {'eps': 1e-5}}},
    'preprocess_cfg': {'mean': STATISTICS, 'std': STATISTICS}}

  def read(changed):
    return XCLIPConfig(**vars(c) | open_clip.read('open_clip_config.json', changed, vars(c)))

  check(read, content, 0.5)


@pytest.mark.parametrize('name', [processor.FILE, processor.NESTING_FILE])
def test_any_preprocessing_of_hugging_face(name, tmp_path, monkeypatch):
  (tmp_path / name).touch()

  def read(content):
    monkeypatch.setattr(processor, 'read_json', lambda _: content)
    return processor.read(tmp_path, CROP['height'])

  check(read, PROCESSOR if name == processor.FILE else
        {'image_processor': PROCESSOR, 'processor_class': 'XCLIPProcessor'}, 0.5)


def test_any_tokenizer_config(tmp_path):
  def read(content):
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(content))
    tokenizer_files.check(tmp_path)

  check(read, {'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77}, 0.1)


@pytest.mark.parametrize('name', ['config.json', 'preprocess.json'])
def test_any_file_of_our_own_format(name, tmp_path, monkeypatch):
  case = Case('hf_tiny_a')
  folder = native.save(tmp_path / 'native', native.Weights(case.config, case.params))
  files = {path.name: json.loads(path.read_text()) for path in folder.glob('*.json')}
  # The comparison with the parameters traces the model of each config; the next test has it.
  monkeypatch.setattr(native, '_check_params', lambda *_: None)
  monkeypatch.setattr(native.archive, 'state_dict', lambda _: ({}, {}))

  def read(content):
    held = {**files, name: content}
    monkeypatch.setattr(native, 'read_json', lambda path: held[path.name].copy())
    return native.read(folder)

  check(read, files[name], 0.5)


@pytest.mark.parametrize('field', ['vision_layers', 'num_frames', 'vision_width', 'image_size'])
def test_numbers_of_an_absurd_model_are_refused_at_once(field, tmp_path, monkeypatch):
  case = Case('hf_tiny_a')
  folder = native.save(tmp_path / 'native', native.Weights(case.config, case.params))
  file = folder / 'config.json'
  content = json.loads(file.read_text())
  monkeypatch.setattr(apply, 'abstract_params', lambda *_: pytest.fail('the model was built'))
  for number in (10**9, 2**62):
    file.write_text(json.dumps(content | {'model': content['model'] | {field: number}}))
    with pytest.raises(UserError, match=rf'config\.json, model: .*{field}.*at most'):
      native.read(folder)


def test_any_config_of_a_run(tmp_path, monkeypatch):
  file = tmp_path / 'config.json'
  content = {
    'model': {'variant': 'B/32', 'num_frames': 8, 'dtype': 'float32', 'fields': {'text_heads': 8}},
    'data': {'mean': STATISTICS, 'std': STATISTICS, 'eval_resize': 1.1, 'template': '{}'}}

  def read(changed):
    monkeypatch.setattr(native, 'read_json', lambda _: changed)
    return opening._read_run_config(file)

  check(read, content, 0.3)
