"""A run starts from the values that its config asks for."""

import jax
import numpy as np
import optax
import pytest

import tiny
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state
from xclip_jax.training import job as job_lib


def drawn(*scale):
  model = job_lib.make_model(tiny.config('unused'))
  tx = optax.identity()
  shardings = jax.tree.map(
    lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state.abstract(model, tx)
  )
  params = state.init(model, tx, 0, shardings, scale or (('.*', 1.0),)).params
  return tree_names.flatten(params)


def draw_three(model, key, projectors=False):
  """Stands in for the model's draw, which takes seconds to compile."""
  places = ('mit', 'pos_embed'), ('text', 'token_embed', 'embedding'), ('logit_scale',)
  flat = {'/'.join(x): jax.random.normal(jax.random.fold_in(key, n), (3, 2))
          for n, x in enumerate(places)}
  return tree_names.unflatten(flat)


@pytest.mark.parametrize('draw', [
  draw_three, pytest.param(state.draw_params, marks=pytest.mark.slow)])
def test_initial_values_are_scaled_by_the_first_rule_that_matches(monkeypatch, draw):
  monkeypatch.setattr(state, 'draw_params', draw)
  rules = ('mit/pos_embed', 50.0), ('text/token_embed/.*', 10.0), ('.*', 1.0)
  plain, scaled = drawn(), drawn(*rules)
  for name, x in plain.items():
    factor = {'mit/pos_embed': 50, 'text/token_embed/embedding': 10}.get(name, 1)
    np.testing.assert_allclose(scaled[name], factor * x, rtol=1e-6, err_msg=name)


def test_a_scale_for_no_parameter_is_an_error():
  with pytest.raises(ValueError, match=r"config.train.init_scale: 'mitt/.*' matches no parameter"):
    drawn(('mitt/.*', 50.0), ('.*', 1.0))
