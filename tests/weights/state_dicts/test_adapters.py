"""Adapters in the layout of PEFT are merged as PEFT merges them, or refused with what to do."""

import json

import numpy as np
import pytest

from goldens_io import Case
from xclip_jax.errors import UserError
from xclip_jax.weights import apply, hub
from xclip_jax.weights.files import archive
from xclip_jax.weights.state_dicts import adapters, foreign_folders

Q, FC1 = 'text_model.encoder.layers.0.self_attn.q_proj', 'text_model.encoder.layers.0.mlp.fc1'
RANDOM = np.random.default_rng(0)


def low_rank(layer, array, rank):
  """Returns the two matrices of a linear layer as PEFT names and lays them out."""
  out, into = array.shape
  return {f'base_model.model.{layer}.lora_A.weight': RANDOM.normal(size=(rank, into)),
          f'base_model.model.{layer}.lora_B.weight': RANDOM.normal(size=(out, rank))}


def write_adapter(folder, tensors, name='adapter_model.safetensors', **config):
  folder.mkdir(exist_ok=True)
  write = archive.write_torch if name.endswith('.bin') else archive.write_safetensors
  write(folder / name, {k: np.asarray(x, np.float32) for k, x in tensors.items()})
  content = {'peft_type': 'LORA', 'base_model_name_or_path': '../base', 'r': 4, 'lora_alpha': 8}
  (folder / adapters.CONFIG).write_text(json.dumps(content | config))
  return folder


@pytest.fixture(scope='module')
def state():
  return apply.to_state_dict(Case('A_T4').params, 'huggingface')


@pytest.fixture
def base(tmp_path, state):
  (tmp_path / 'base').mkdir()
  archive.write_safetensors(tmp_path / 'base/model.safetensors', state)
  return tmp_path / 'base'


def merged(tmp_path, state, tensors, **config):
  return adapters.merge(state, adapters.read(write_adapter(tmp_path / 'lora', tensors, **config)))


def product(tensors, layer):
  a, b = (np.float32(tensors[f'base_model.model.{layer}.lora_{x}.weight']) for x in 'AB')
  return b @ a


@pytest.mark.parametrize('name', adapters.FILES)
def test_an_adapter_is_merged_into_the_base_that_it_names(tmp_path, state, base, name):
  tensors = low_rank(Q, state[f'{Q}.weight'], 4)
  folder = write_adapter(tmp_path / 'lora', tensors, name)
  for source in (folder, folder / name):
    weights = hub.read(source)
    back = apply.to_state_dict(weights.params, 'huggingface')
    np.testing.assert_allclose(
      back[f'{Q}.weight'], state[f'{Q}.weight'] + 8 / 4 * product(tensors, Q), rtol=1e-6)
    assert all(np.array_equal(back[k], state[k]) for k in state if k != f'{Q}.weight')
    assert weights.source == str(folder) and 'merged with the adapter' in weights.notes[-1]


@pytest.mark.parametrize('config, q_scale, fc1_scale', [
  ({}, 8 / 2, 8 / 3), ({'use_rslora': True}, 8 / 2**0.5, 8 / 3**0.5),
  ({'alpha_pattern': {'q_proj': 1}, 'rank_pattern': {'fc1': 3}, 'r': 2}, 1 / 2, 8 / 3),
  ({'alpha_pattern': {r'.*layers\.0\.mlp\.fc1': 5}}, 8 / 2, 5 / 3),
  ({'alpha_pattern': {'proj': 1}}, 8 / 2, 8 / 3),          # whole parts of a name alone
  ({'fan_in_fan_out': True}, 8 / 2, 8 / 3),                # PEFT ignores it for linear layers
])
def test_the_scale_is_pefts(tmp_path, state, config, q_scale, fc1_scale):
  tensors = low_rank(Q, state[f'{Q}.weight'], 2) | low_rank(FC1, state[f'{FC1}.weight'], 3)
  got = merged(tmp_path, state, tensors, **config)
  for layer, scale in ((Q, q_scale), (FC1, fc1_scale)):
    np.testing.assert_allclose(
      got[f'{layer}.weight'], state[f'{layer}.weight'] + scale * product(tensors, layer),
      rtol=1e-5, atol=1e-6)


def test_parameters_that_were_trained_whole_replace_those_of_the_base(tmp_path, state):
  projection = RANDOM.normal(size=state['visual_projection.weight'].shape)
  bias = RANDOM.normal(size=state[f'{Q}.bias'].shape)
  got = merged(tmp_path, state, low_rank(Q, state[f'{Q}.weight'], 4) | {
    'base_model.model.visual_projection.weight': projection,
    f'base_model.model.{Q}.base_layer.bias': bias}, bias='lora_only')
  np.testing.assert_array_equal(got['visual_projection.weight'], np.float32(projection))
  np.testing.assert_array_equal(got[f'{Q}.bias'], np.float32(bias))


def test_biases_tables_and_convolutions_have_their_own_layouts(tmp_path, state):
  token, patch = 'text_model.embeddings.token_embedding', 'vision_model.embeddings.patch_embedding'
  vocabulary, width = state[f'{token}.weight'].shape
  out, *kernel = state[f'{patch}.weight'].shape
  normal = lambda *shape: RANDOM.normal(size=shape).astype(np.float32)
  q = low_rank(Q, state[f'{Q}.weight'], 4) | {
    f'base_model.model.{Q}.lora_B.bias': normal(*state[f'{Q}.bias'].shape)}
  table_a, table_b = normal(2, vocabulary), normal(width, 2)
  conv_a, conv_b = normal(2, *kernel), normal(out, 2, 1, 1)
  got = merged(tmp_path, state, q | {
    f'base_model.model.{token}.lora_embedding_A': table_a,
    f'base_model.model.{token}.lora_embedding_B': table_b,
    f'base_model.model.{patch}.lora_A.weight': conv_a,
    f'base_model.model.{patch}.lora_B.weight': conv_b}, lora_bias=True)
  close = lambda name, change: np.testing.assert_allclose(
    got[name], state[name] + change, rtol=1e-5, atol=1e-5)
  close(f'{Q}.bias', 2 * q[f'base_model.model.{Q}.lora_B.bias'])
  close(f'{token}.weight', 4 * np.einsum('rv,dr->vd', table_a, table_b))
  close(f'{patch}.weight', 4 * np.einsum('rcyx,or->ocyx', conv_a, conv_b[:, :, 0, 0]))


def test_packed_projections_of_the_reference_are_merged(tmp_path):
  state = apply.to_state_dict(Case('A_T4').params, 'official')
  layer = 'transformer.resblocks.0.attn'
  tensors = low_rank(layer, state[f'{layer}.in_proj_weight'], 4)
  got = merged(tmp_path, state, tensors)
  np.testing.assert_allclose(
    got[f'{layer}.in_proj_weight'],
    state[f'{layer}.in_proj_weight'] + 2 * product(tensors, layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('config', [
  {'peft_type': 'LOHA'}, {'use_dora': True}, {'init_lora_weights': 'pissa'},
  {'layer_replication': [[0, 2]]}, {'base_model_name_or_path': None}, {'lora_alpha': 'eight'},
  {'base_model_name_or_path': 'somebody/missing.pt'}])
def test_what_is_not_merged_is_refused_with_what_to_do(tmp_path, state, base, config):
  folder = write_adapter(tmp_path / 'lora', low_rank(Q, state[f'{Q}.weight'], 4), **config)
  with pytest.raises(UserError, match='merge_and_unload') as error:
    hub.read(folder)
  assert str(folder) in str(error.value) and 'adapter' in str(error.value)


def test_an_adapter_of_another_model_is_refused(tmp_path, state, base):
  for tensors, words in (
    (low_rank('text_model.encoder.layers.99.self_attn.q_proj', np.zeros((4, 4)), 2), 'layers.99'),
    (low_rank(Q, np.zeros((4, 4)), 2), r'is \[4, 4\]'),
    ({f'base_model.model.{Q}.lora_A.weight': np.zeros((2, 4))}, 'fit together'),
    ({'base_model.model.classifier.weight': np.zeros((2, 4))}, 'classifier'),
  ):
    with pytest.raises(UserError, match=words):
      hub.read(write_adapter(tmp_path / 'lora', tensors))


def test_checkpoints_in_parts_say_how_to_make_one_file(tmp_path):
  (tmp_path / '.metadata').write_bytes(b'')
  (tmp_path / '__0_0.distcp').write_bytes(b'')
  for path in (tmp_path, tmp_path / '__0_0.distcp', tmp_path / '.metadata'):
    with pytest.raises(UserError, match='dcp_to_torch') as error:
      hub.read(path)
    assert str(tmp_path) in str(error.value)
  deepspeed = tmp_path / 'deepspeed'
  deepspeed.mkdir()
  (deepspeed / 'zero_to_fp32.py').write_text('')
  with pytest.raises(UserError, match='DeepSpeed'):
    foreign_folders.check(deepspeed)
