"""Every leaf has one name, and tables of rules over names mean what they say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xclip_jax.parallel import tree_names
from xclip_jax.storage.state import create

TREE = {
  'vision': {'ln_pre': {'scale': 1, 'bias': 2}, 'blocks_0': {'c_fc': {'kernel': 3}}},
  'logit_scale': 4,
}


def test_names_are_the_keys_joined_by_slashes():
  assert tree_names.flatten(TREE) == {
    'logit_scale': 4, 'vision/blocks_0/c_fc/kernel': 3, 'vision/ln_pre/bias': 2,
    'vision/ln_pre/scale': 1,
  }
  [(path, _), *_] = jax.tree_util.tree_leaves_with_path({'a': [{'b': 0}]})
  assert tree_names.name(path) == 'a/0/b'


def test_flatten_keeps_the_order_of_the_tree():
  assert list(tree_names.flatten(TREE).values()) == jax.tree.leaves(TREE)


def test_unflatten_undoes_flatten():
  assert tree_names.unflatten(tree_names.flatten(TREE)) == TREE


def test_map_with_names_gives_each_leaf_its_name():
  got = tree_names.map_with_names(lambda name, leaf: f'{name}={leaf}', TREE)
  assert got['vision']['ln_pre']['bias'] == 'vision/ln_pre/bias=2'
  assert jax.tree.structure(got) == jax.tree.structure(TREE)


def test_the_first_rule_that_matches_wins():
  rules = ((r'.*/bias', 'first'), (r'vision/.*', 'second'), (r'.*', 'last'))
  assert tree_names.match('vision/ln_pre/bias', rules) == 'first'
  assert tree_names.match('vision/ln_pre/scale', rules) == 'second'
  assert tree_names.match('logit_scale', rules) == 'last'


def test_a_rule_matches_whole_names_only():
  assert not tree_names.matches('vision', 'vision/proj')
  assert not tree_names.matches('mit/.*', 'committed/mit/x')
  assert tree_names.matches('mit/.*', 'mit/pos_embed')


def test_a_name_that_no_rule_matches_is_an_error_that_shows_the_rules():
  with pytest.raises(ValueError, match=r"no rule matches 'text/proj'.*'vision/\.\*'"):
    tree_names.match('text/proj', ((r'vision/.*', 1),))


@pytest.mark.parametrize('pattern', [r'vison/.*', r'text/.*'])     # misspelt, and shadowed
def test_a_rule_that_is_never_used_is_an_error_that_names_its_field(pattern):
  keys = ['vision/proj/kernel', 'text/proj/kernel']
  with pytest.raises(ValueError, match=r'config\.x: ' + re.escape(repr(pattern))):
    tree_names.check_used(((r'.*/kernel', 1), (pattern, 0)), keys, 'config.x')
  tree_names.check_used(((r'.*/kernel', 1), ('.*', 0)), keys, 'config.x')


def test_optimizer_state_names_end_in_parameter_names():
  params = {'mit': {'pos_embed': jnp.zeros((2, 3))}, 'text': {'proj': {'kernel': jnp.zeros(4)}}}
  tx = optax.partition(
    {'a': optax.adamw(1e-3), 'b': optax.set_to_zero()},
    {'mit': {'pos_embed': 'a'}, 'text': {'proj': {'kernel': 'b'}}},
  )
  state = tree_names.flatten(create(params, tx))
  assert state['params/mit/pos_embed'].shape == (2, 3)
  moments = [name for name, x in state.items()
             if name.startswith('opt_state/') and np.shape(x) == (2, 3)]
  assert len(moments) == 2 and all(name.endswith('/mit/pos_embed') for name in moments)
  assert not any(name.startswith('opt_state/') and 'text' in name for name in state)
