"""Any file, folder or name becomes weights, or an error that says what to do."""

import dataclasses
import hashlib
import io
import json
import shutil
import urllib.error

import jax
import numpy as np
import pytest

import xclip_jax
from goldens_io import GOLDENS, Case
from xclip_jax.models.config import VARIANTS
from xclip_jax.weights import apply, hub, native, opening
from xclip_jax.weights.files import archive


@pytest.fixture(scope='module')
def case():
  return Case('B_T8')


def logits_of(loaded, case):
  return loaded.model.apply({'params': loaded.params}, case.video, case.token_ids).logits


def write(path, case, dialect, wrap=None, prefix=''):
  state = apply.to_state_dict(case.params, dialect)
  archive.write_torch(path, {prefix + k: x for k, x in state.items()}, wrap)
  return path


def hf_folder(tmp_path, **changes):
  folder = tmp_path / 'hf'
  shutil.copytree(GOLDENS / 'hf_tiny_a', folder)
  content = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(content | changes))
  return folder


@pytest.mark.parametrize('wrap, prefix', [('model', ''), ('model', 'module.'), (None, '')])
def test_official_files_give_the_references_logits(case, tmp_path, wrap, prefix):
  loaded = xclip_jax.load(write(tmp_path / 'k400.pth', case, 'official', wrap, prefix))
  np.testing.assert_allclose(logits_of(loaded, case), case.logits, atol=1e-5)
  assert loaded.weights.preprocess == native.REFERENCE


def test_hugging_face_folders_give_hugging_face_s_logits(tmp_path):
  case = Case('hf_tiny_a')
  loaded = xclip_jax.load(hf_folder(tmp_path))
  np.testing.assert_allclose(logits_of(loaded, case), case.logits, atol=1e-5)
  assert loaded.weights.preprocess == native.HUGGING_FACE
  as_file = xclip_jax.load(tmp_path / 'hf/model.safetensors')     # config.json lies beside it
  assert as_file.config == loaded.config


def test_our_own_format_gives_the_same_as_what_it_was_made_from(case, tmp_path):
  source = write(tmp_path / 'k400.pth', case, 'official', 'model')
  loaded = xclip_jax.load(native.save(tmp_path / 'native', hub.read(source)))
  np.testing.assert_array_equal(
    logits_of(loaded, case), logits_of(xclip_jax.load(source), case))


@pytest.mark.slow
def test_clip_files_keep_their_text_tower_and_say_that_the_rest_is_new(case, tmp_path, capsys):
  path = write(tmp_path / 'clip.pt', case, 'openai')
  loaded = xclip_jax.load(path, num_frames=8)
  assert 'weights of CLIP' in capsys.readouterr().err
  encode = lambda params: loaded.model.apply(
    {'params': params}, case.token_ids, method='encode_text')
  np.testing.assert_allclose(encode(loaded.params), encode(case.params), atol=1e-6)
  assert loaded.config.num_frames == 8
  other = hub.read(path, num_frames=5, seed=3)
  assert other.params['mit']['pos_embed'].shape[0] == 5


def test_a_folder_of_open_clip_s_follows_its_config(case, tmp_path):
  write(tmp_path / 'open_clip_pytorch_model.bin', case, 'openai')
  content = {'model_cfg': {'vision_cfg': {}, 'text_cfg': {'heads': 1}}}
  (tmp_path / 'open_clip_config.json').write_text(json.dumps(content))
  config = hub.read(tmp_path).config
  assert (config.vision_activation, config.text_activation) == ('gelu', 'gelu')


def test_a_bare_clip_file_says_which_activation_is_assumed(case, tmp_path):
  notes = hub.read(write(tmp_path / 'clip.pt', case, 'openai')).notes
  assert any('QuickGELU is assumed' in note for note in notes)


def test_head_counts_that_differ_from_the_reference_are_said_and_can_be_overruled(tmp_path, case):
  """Opens a config like Hugging Face's large checkpoints: 8 heads where the reference has 12."""
  source = Case('B_T8')
  folder = tmp_path / 'large'
  folder.mkdir()
  state = apply.to_state_dict(source.params, 'huggingface')
  archive.write_safetensors(folder / 'model.safetensors', state)
  c = source.config
  content = {
    'prompt_num_attention_heads': 4, 'vision_config': {
      'num_attention_heads': c.vision_heads, 'mit_num_attention_heads': 4},
    'text_config': {'num_attention_heads': c.text_heads},
  }
  (folder / 'config.json').write_text(json.dumps(content))
  followed = hub.read(folder)
  assert (followed.config.mit_heads, followed.config.prompt_heads) == (4, 4)
  [note] = [n for n in followed.notes if 'head counts' in n]
  assert 'mit_heads 4 (reference: 2)' in note and "heads='reference'" in note
  overruled = xclip_jax.load(folder, heads='reference')
  assert overruled.config == source.config
  np.testing.assert_allclose(logits_of(overruled, source), source.logits, atol=1e-5)
  assert np.abs(logits_of(xclip_jax.load(folder), source) - source.logits).max() > 1e-3


def test_what_else_a_file_holds_is_listed(case, tmp_path):
  state = apply.to_state_dict(case.params, 'official')
  state['text_model.embeddings.position_ids'] = np.arange(5)[None]
  archive.write_torch(tmp_path / 'a.pth', state, 'model')
  [note] = hub.read(tmp_path / 'a.pth').notes
  assert note == 'not parameters, not used: text_model.embeddings.position_ids'
  state['visual.extra'] = np.zeros(3)
  archive.write_torch(tmp_path / 'a.pth', state, 'model')
  with pytest.raises(ValueError, match=r"a\.pth: these weights do not fit.*\n.*'visual.extra'"):
    hub.read(tmp_path / 'a.pth')


def test_positions_are_interpolated_only_when_asked_and_it_is_said(case, tmp_path):
  path = write(tmp_path / 'k400.pth', case, 'official', 'model')
  assert hub.read(path).config.num_frames == 8 and not hub.read(path).notes
  loaded = hub.read(path, num_frames=16, image_size=80)
  assert (loaded.config.num_frames, loaded.config.image_size) == (16, 80)
  assert 'frame positions interpolated from 8 to 16' in loaded.notes[0]
  assert 'patch positions interpolated from 48 to 80' in loaded.notes[1]


def test_absurd_options_are_refused_before_anything_is_computed(case, tmp_path):
  path = write(tmp_path / 'k400.pth', case, 'official', 'model')
  for option in (dict(num_frames=2**62), dict(image_size=10**9), dict(num_frames=0)):
    with pytest.raises(ValueError, match='must be a whole number from 1 to'):
      hub.read(path, **option)


def test_a_hugging_face_preprocessor_decides_how_frames_are_cut(tmp_path):
  folder = hf_folder(tmp_path)
  file = folder / 'preprocessor_config.json'
  file.write_text(json.dumps({
    'size': {'shortest_edge': 40}, 'image_mean': [0.5] * 3, 'image_std': [0.25] * 3}))
  found = hub.read(folder).preprocess
  assert found == native.Preprocess((127.5,) * 3, (63.75,) * 3, 40 / 32, 'pillow')
  file.write_text('{"size": 32}')      # as in files of 2022
  assert hub.read(folder).preprocess.resize_ratio == 1
  file.write_text('{"resample": 3}')
  assert hub.read(folder).preprocess.filter == 'pillow-bicubic'
  file.write_text('{"resample": 9}')
  with pytest.raises(ValueError, match=r'preprocessor_config\.json: resample is 9; only'):
    hub.read(folder)


# --- names ----------------------------------------------------------------------------------------


def test_known_names_fit_the_variants():
  microsoft = [name for name in hub.KNOWN if name.startswith('microsoft/')]
  assert len(microsoft) == 18
  assert sum(bool(known.sha256) for known in hub.KNOWN.values()) == 4
  for name, known in hub.KNOWN.items():
    assert known.image_size == VARIANTS[known.variant].image_size, name
    assert ('16-frames' not in name) or known.num_frames == 16, name


def test_openai_s_files_are_verified(case, tmp_path, monkeypatch):
  path = write(tmp_path / 'ViT-B-16.pt', case, 'openai')
  monkeypatch.setenv('CLIP_CACHE', str(tmp_path))
  with pytest.raises(ValueError, match='is damaged or another file: its sha256 is'):
    hub.read('ViT-B/16')
  right = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setitem(hub.KNOWN, 'ViT-B/16', hub.KNOWN['ViT-B/16']._replace(sha256=right))
  found = hub.read('ViT-B/16')
  assert (found.source, found.licence, found.config.num_frames) == ('ViT-B/16', 'MIT', 8)


def test_openai_s_files_are_downloaded_whole_or_not_at_all(case, tmp_path, monkeypatch):
  data = write(tmp_path / 'there.pt', case, 'openai').read_bytes()
  known = hub.KNOWN['ViT-B/32']._replace(sha256=hashlib.sha256(data).hexdigest())
  monkeypatch.setitem(hub.KNOWN, 'ViT-B/32', known)
  monkeypatch.setenv('CLIP_CACHE', str(tmp_path / 'cache'))

  def offline(*_, **__):
    raise urllib.error.URLError('no network')
  monkeypatch.setattr(hub.urllib.request, 'urlopen', offline)
  with pytest.raises(ValueError, match=r'no network.*download https://.*ViT-B-32\.pt elsewhere'):
    hub.read('ViT-B/32')
  assert list((tmp_path / 'cache').iterdir()) == []
  monkeypatch.setattr(hub.urllib.request, 'urlopen', lambda *_, **__: io.BytesIO(data))
  assert hub.read('ViT-B/32').dialect == 'openai'
  assert [p.name for p in (tmp_path / 'cache').iterdir()] == ['ViT-B-32.pt']


def test_a_hub_name_without_network_or_cache_says_what_to_put_where(tmp_path, monkeypatch):
  import huggingface_hub
  def offline(*_, **__):
    raise OSError('no network')
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', offline)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  words = r'not in the cache.*no network.*config\.json.*model\.safetensors or pytorch_model\.bin'
  with pytest.raises(ValueError, match=words):
    hub.read('microsoft/xclip-base-patch32')


def test_a_hub_name_is_read_from_the_cache_when_there_is_no_network(tmp_path, monkeypatch):
  import huggingface_hub
  folder = hf_folder(tmp_path)
  def offline(*_, **__):
    raise OSError('no network')
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', offline)
  cached = lambda name, local_files_only: str(folder)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', cached)
  found = hub.read('microsoft/xclip-base-patch32')
  assert (found.source, found.licence) == ('microsoft/xclip-base-patch32', 'MIT')


@pytest.mark.parametrize('name', ['nothing', './no/such/file.pth', 'a/b.safetensors', 'ViT-B/8'])
def test_a_name_that_is_nothing_says_what_names_there_are(name, monkeypatch):
  import huggingface_hub
  def absent(*_, **__):
    response = __import__('httpx').Response(404, request=__import__('httpx').Request('GET', 'x:'))
    raise huggingface_hub.errors.RepositoryNotFoundError('404', response=response)
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', absent)
  with pytest.raises(ValueError, match=r'neither a file'):
    hub.read(name)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
  (tmp_path / 'readme.txt').touch()
  with pytest.raises(ValueError, match=r'holds no weights: none of model\.safe.*readme\.txt'):
    hub.read(tmp_path)
  with pytest.raises(ValueError, match="heads must be 'file' or 'reference'"):
    hub.read(tmp_path, heads='mine')


def test_open_weights_needs_no_device(case, tmp_path):
  path = write(tmp_path / 'k400.pth', case, 'official', 'model')
  assert {type(x) for x in jax.tree.leaves(opening.open_weights(path).params)} == {np.ndarray}


def test_our_own_format_follows_the_references_heads_when_asked(case, tmp_path):
  weights = hub.read(write(tmp_path / 'k400.pth', case, 'official', 'model'))
  other = dataclasses.replace(weights, config=dataclasses.replace(weights.config, mit_heads=4))
  folder = native.save(tmp_path / 'native', other)
  assert hub.read(folder).config.mit_heads == 4
  found = hub.read(folder, heads='reference')
  assert found.config == weights.config and 'mit_heads 4 (reference: 2)' in found.notes[0]


# --- JSON beside weights of any name --------------------------------------------------------------


@pytest.mark.parametrize('name', ['model.fp16.safetensors', 'best.safetensors'])
def test_config_and_preprocessing_are_found_beside_weights_of_any_name(tmp_path, name):
  folder = hf_folder(tmp_path)
  (folder / 'model.safetensors').rename(folder / name)
  nested = {'image_processor': {'size': {'shortest_edge': 40}, 'image_mean': [0.25] * 3}}
  (folder / 'processor_config.json').write_text(json.dumps(nested))
  wanted = Case('hf_tiny_a').config
  for source in (folder, folder / name):
    found = hub.read(source)
    assert found.config == wanted
    assert (found.preprocess.resize_ratio, found.preprocess.mean) == (40 / 32, (63.75,) * 3)


def test_open_clip_s_config_is_found_beside_a_checkpoint_of_training(case, tmp_path):
  write(tmp_path / 'epoch_32.pt', case, 'openai', 'state_dict', 'module.')
  content = {'model_cfg': {'vision_cfg': {}, 'text_cfg': {'heads': 1}}}
  (tmp_path / 'open_clip_config.json').write_text(json.dumps(content))
  for source in (tmp_path, tmp_path / 'epoch_32.pt'):
    found = hub.read(source)
    assert found.config.vision_activation == 'gelu'
    assert not any('QuickGELU is assumed' in note for note in found.notes)


def test_preprocessing_beside_weights_of_clip_is_not_followed_and_it_is_said(case, tmp_path):
  write(tmp_path / 'clip.pt', case, 'openai')
  (tmp_path / 'preprocessor_config.json').write_text('{"image_mean": [0.1, 0.2, 0.3]}')
  found = hub.read(tmp_path / 'clip.pt')
  assert found.preprocess == native.REFERENCE
  assert any('preprocessor_config.json beside the weights: not followed' in x for x in found.notes)


def test_a_repository_of_one_variant_is_downloaded_with_its_json(tmp_path, monkeypatch):
  import huggingface_hub
  folder = hf_folder(tmp_path)
  (folder / 'model.safetensors').rename(folder / 'model.fp16.safetensors')
  names = ['model.fp16.safetensors', 'config.json', 'processor_config.json', 'README.md']
  siblings = [type('File', (), {'rfilename': name}) for name in names]
  monkeypatch.setattr(
    huggingface_hub.HfApi, 'model_info', lambda *_: type('Info', (), {'siblings': siblings}))
  asked = []
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, allow_patterns: (
    asked.extend(allow_patterns), str(folder))[1])
  assert hub.read('owner/name').dialect == 'huggingface'
  assert {'model.fp16.safetensors', 'config.json', 'processor_config.json',
          'preprocessor_config.json'} <= set(asked) and 'README.md' not in asked
