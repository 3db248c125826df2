"""The one model in a file is found under any keys and prefixes; of several one is chosen aloud."""

import dataclasses

import numpy as np
import pytest

import torch_files
from goldens_io import Case
from torch_files import Call, Global
from xclip_jax.errors import UserError
from xclip_jax.models.config import FRAME_MEAN
from xclip_jax.weights import apply, hub
from xclip_jax.weights.files import archive
from xclip_jax.weights.state_dicts import search


@pytest.fixture(scope='module')
def case():
  return Case('A_T4')


@pytest.fixture(scope='module')
def tensors(case):
  return {name: torch_files.tensor(array) for name, array in case.state.items()}


def prefixed(prefix, tensors):
  return {prefix + name: value for name, value in tensors.items()}


def found(write, tree, subtree=None):
  return search.find(archive.read(write(tree)), subtree)


def same(result, state):
  assert result.dialect == 'official' and result.state.keys() == state.keys()
  for name, array in state.items():
    np.testing.assert_array_equal(result.state[name], array, err_msg=name)


@pytest.mark.parametrize('prefix', [
  'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.module.', 'model.',
  'clip.', 'backbone.', 'base_model.model.', 'model.module._orig_mod.clip.', 'any.thing.at.all.'])
def test_names_lose_any_prefix(tmp_path, case, tensors, prefix):
  path = torch_files.write_zip(tmp_path / 'a.pt', prefixed(prefix, tensors))
  result = search.find(archive.read(path))
  same(result, case.state)
  assert result.place == prefix[:-1] and not result.rest and not result.notes


@pytest.mark.parametrize('keys', [
  (), ('model_state',), ('state_dict_ema',), ('ema',), ('net',), ('checkpoint', 'model', 'state')])
def test_any_keys_may_lie_around_the_model(write, case, tensors, keys):
  tree = prefixed('module.', tensors) if keys else tensors
  for key in reversed(keys):
    tree = {key: tree, 'epoch': 3}
  result = found(write, tree)
  same(result, case.state)
  assert [name.rpartition('.')[2] for name in result.rest] == ['epoch'] * len(keys)
  assert any('running average' in note for note in result.notes) == ('ema' in '.'.join(keys))


def test_wrappers_within_names_are_removed(tmp_path, case, tensors):
  """As torch.compile, DDP, FSDP and activation checkpointing of a part of the model leave them."""
  wrapped = {name.replace('visual.', 'visual._orig_mod.module.').replace(
    'resblocks.0.', 'resblocks.0._checkpoint_wrapped_module.'): x for name, x in tensors.items()}
  same(search.find(archive.read(torch_files.write_zip(tmp_path / 'a.pt', wrapped))), case.state)


def test_dicts_in_dicts_lists_and_whole_modules_are_looked_through(tmp_path, case, tensors):
  read = lambda tree: search.find(archive.read(torch_files.write_zip(tmp_path / 'a.pt', tree)))
  nested = {}
  for name, value in tensors.items():
    *parts, last = name.split('.')
    place = nested
    for part in parts:
      place = place.setdefault(part, {})
    place[last] = value
  same(read({'params': nested, 'step': 3}), case.state)
  same(read([7, prefixed('module.', tensors)]), case.state)

  def module(tree):
    parts = {key: module(x) for key, x in tree.items() if isinstance(x, dict)}
    own = {key: x for key, x in tree.items() if not isinstance(x, dict)}
    return Call(Global('my.models', 'Net'), new=True, state={
      'training': False, '_parameters': own | {'bias_that_is_off': None}, '_buffers': {},
      '_modules': parts})
  result = read({'model': module(nested)})
  same(result, case.state)
  assert not result.rest


def test_what_lies_beside_the_model_is_listed(write, tensors):
  head = torch_files.tensor(np.zeros((5, 4), np.float32))
  result = found(write, {'state_dict': {**prefixed('clipmodel.', tensors), 'ff_head.weight': head},
                         'optimizer': {'state': {0: {'exp_avg': head}}}, 'epoch': 2})
  assert set(result.rest) == {'state_dict.ff_head.weight', 'optimizer', 'epoch'}


def test_a_name_too_many_is_not_taken_for_a_neighbour(tmp_path, case, tensors):
  extra = {**prefixed('module.', tensors), 'module.visual.extra': tensors['logit_scale']}
  with pytest.raises(UserError, match=r"unknown key 'visual\.extra'"):
    hub.read(torch_files.write_zip(tmp_path / 'a.pt', extra))


def test_the_number_of_an_average_is_no_parameter_and_tells_what_it_is(write, case, tensors):
  count = torch_files.tensor(np.array(5))
  result = found(write, {'n_averaged': count, **prefixed('module.', tensors)})
  same(result, case.state)
  assert 'running average' in result.notes[0] and set(result.rest) == {'n_averaged'}
  assert hub.read(write({'n_averaged': count, **tensors})).dialect == 'official'


def scaled(state, factor):
  return {name: torch_files.tensor(np.asarray(factor * array)) for name, array in state.items()}


@pytest.mark.parametrize('usual, other', [
  (('model', ''), ('model_ema', '')), (('state_dict', 'module.'), ('ema', 'module.')),
  (('net', 'student.'), ('net', 'teacher.')), (('x', ''), ('average', ''))])
def test_of_two_models_the_trained_one_is_taken_and_the_other_named(
    tmp_path, case, tensors, usual, other):
  tree = {other[0]: prefixed(other[1], scaled(case.state, 2))}
  tree.setdefault(usual[0], {}).update(prefixed(usual[1], tensors))
  contents = archive.read(torch_files.write_zip(tmp_path / 'a.pt', tree))
  result = search.find(contents)
  same(result, case.state)
  place = '.'.join((other[0], other[1])).strip('.')
  assert '--subtree' in result.notes[0] and repr(place) in result.notes[0]
  assert set(result.rest) == {place}
  chosen = search.find(contents, place)
  np.testing.assert_array_equal(chosen.state['visual.proj'], 2 * case.state['visual.proj'])
  assert not any('--subtree' in note for note in chosen.notes)


def test_a_model_without_a_prefix_and_one_inside_its_names_are_two(write, case, tensors):
  tree = {**tensors, **prefixed('teacher.', scaled(case.state, 2))}
  same(found(write, tree), case.state)
  same(found(write, tree, '.'), case.state)
  np.testing.assert_array_equal(
    found(write, tree, 'teacher').state['visual.proj'], 2 * case.state['visual.proj'])


@pytest.mark.parametrize('subtree, words', [('nothing', 'none'), ('all', '2'), (7, 'got 7')])
def test_a_subtree_that_names_no_one_model_is_refused(write, tensors, subtree, words):
  with pytest.raises(UserError, match=words) as error:
    found(write, {'all': {'a': tensors, 'b': dict(tensors)}}, subtree)
  assert subtree == 7 or "'all.a', 'all.b'" in str(error.value)


def test_a_whole_clip_is_preferred_to_a_tower_alone(write, case, tensors):
  tower = {name: x for name, x in tensors.items() if name.startswith('visual.')}
  same(found(write, {'model': tower, 'net': tensors}), case.state)


def test_files_without_a_model_say_what_they_hold(write, tensors):
  matrix = torch_files.TENSORS['weight']
  for tree, words in (
    ({'model': {'encoder.weight': matrix}}, r"1 names, such as \['model\.encoder\.weight'\]"),
    ({'epoch': 3}, r"no tensors; it holds 'epoch' \(int\)"), ([1], 'a list'), ({}, 'nothing'),
    ({'visual.conv1.weight': matrix, 'visual.layer1.0.conv1.weight': matrix}, 'ResNet'),
    ({'q_proj.lora_A.default.weight': matrix}, 'merge_and_unload'),
    ({**tensors, 'mit.resblocks.0.attn.lora_A.weight': matrix}, 'merge_and_unload'),
  ):
    with pytest.raises(UserError, match=words) as error:
      found(write, tree)
    assert 'a.pt' in str(error.value)


def test_a_dict_that_holds_itself_many_times_costs_no_more_than_once(tmp_path):
  # Each dict holds the one before it nine times: 9**12 paths.
  pickled = b'\x80\x02}q\x00' + b''.join(
    b'}q' + bytes([i]) + b'(' + b''.join(
      b'U\x01' + bytes([97 + n]) + b'h' + bytes([i - 1]) for n in range(9)) + b'u'
    for i in range(1, 13)) + b'.'
  path = torch_files.write_zip(tmp_path / 'a.pt', {}, pickled=pickled)
  with pytest.raises(UserError, match='no tensors'):
    search.find(archive.read(path))


def test_load_takes_the_chosen_model(tmp_path, case, tensors):
  path = torch_files.write_zip(tmp_path / 'a.pt', {
    'model': tensors, 'ema': prefixed('module.', scaled(case.state, 2))})
  want = lambda factor: np.float32(factor) * case.params['text']['pos_embed']
  np.testing.assert_array_equal(hub.read(path).params['text']['pos_embed'], want(1))
  np.testing.assert_array_equal(hub.read(path, subtree='ema').params['text']['pos_embed'], want(2))


def test_a_logit_bias_is_kept_where_the_model_has_one_and_else_said_to_be_left(case, tmp_path):
  """As open_clip writes for the sigmoid loss, with a shape of [] or [1]."""
  state = apply.to_state_dict(case.params, 'openai')
  image_model = dataclasses.replace(case.config, logit_bias=True, **FRAME_MEAN)   # draws nothing
  for shape in ((), (1,)):
    extra = {'logit_bias': np.full(shape, -10, np.float32),
             'logit_scale': state['logit_scale'].reshape(shape)}
    archive.write_torch(tmp_path / 'clip.pt', state | extra, 'state_dict')
    weights = hub.read(tmp_path / 'clip.pt', new_modules=image_model)
    assert weights.config.logit_bias and weights.dialect == 'openai'
    assert weights.params['logit_bias'] == -10 and weights.params['logit_bias'].shape == ()
  plain = dataclasses.replace(image_model, logit_bias=False)
  without = hub.read(tmp_path / 'clip.pt', new_modules=plain)
  assert 'logit_bias' not in without.params and not without.config.logit_bias
  assert any('logit_bias' in note for note in without.notes)
