"""Learning rates, groups and whole training trajectories are the reference's."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from goldens_io import GOLDENS, Case, load_npz
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.training import optimizer
from xclip_jax.weights import apply

RUNS = {'ref_train_fixtext_acc1': True, 'ref_train_fulltext_acc1': False}
STEPS, WARMUP = 24, 8      # 3 epochs of 8 steps, the first one warm-up

@pytest.fixture(scope='module')
def case():
  return Case('A_T4')


def recipe(**fields):
  """config.optim of the golden runs, with some fields replaced."""
  config = base.get_config().optim
  config.update(dict(lr=2e-3, weight_decay=0.05) | fields)
  return config


def first_updates(case, freeze_text):
  """The first update for (gradient 0, weight 1) and for (gradient 1, weight 0) everywhere."""
  tx, _ = optimizer.make(recipe(lag_steps=0), case.params, STEPS, 0, freeze_text=freeze_text)

  @jax.jit
  def update(gradient, weight):
    fill = lambda value: jax.tree.map(lambda x: jnp.full(x.shape, value), case.params)
    grads, params = fill(gradient), fill(weight)
    return tx.update(grads, tx.init(params), params)[0]

  return tree_names.flatten(update(0.0, 1.0)), tree_names.flatten(update(1.0, 0.0))


@pytest.fixture(scope='module')
def frozen_text_updates(case):
  return first_updates(case, True)


def reference_groups(case, run):
  """Our parameter name -> index of its group in the reference; -1 where it has none."""
  groups = json.loads((GOLDENS / f'reference/{run}.json').read_text())['groups']
  index = {name: i for i, group in enumerate(groups) for name in group['names']}
  marked = {k: np.full_like(x, index.get(k, -1), dtype=np.float32) for k, x in case.state.items()}
  flat = tree_names.flatten(apply.to_params(marked, 'official', case.config))
  assert index.keys() <= case.state.keys()
  return {k: int(np.unique(x).item()) for k, x in flat.items()}, groups


# --- schedule ----------------------------------------------------------------------------------


def test_learning_rate_is_the_reference_schedule_at_every_step():
  golden = load_npz('reference/ref_lr_schedule.npz')
  lr, total, warmup = float(golden['base']), int(golden['t_total']), int(golden['warmup'])
  with jax.enable_x64(True):
    steps = jnp.arange(len(golden['lr']))
    for column, multiple in enumerate((1, 10)):
      schedule = optimizer.make_schedule(lr * multiple, lr / 100, warmup, total, lag=0)
      np.testing.assert_allclose(schedule(steps), golden['lr'][:, column], rtol=1e-9)


@pytest.mark.parametrize('run', RUNS)
def test_learning_rates_lag_behind_as_in_the_reference(run):
  used = load_npz(f'reference/{run}.npz')['lrs_used']
  with jax.enable_x64(True):
    for group in range(8):
      schedule = optimizer.make_schedule(
        2e-3 * (1 if group < 2 else 10), 2e-5, WARMUP, STEPS, lag=1)
      np.testing.assert_allclose(schedule(jnp.arange(STEPS)), used[:, group], rtol=1e-9)


def test_lag_is_counted_in_micro_batches(case):
  _, schedule = optimizer.make(recipe(), case.params, 100, 10, accumulation=4)
  np.testing.assert_allclose(schedule(3), 2e-3 * (3 - 1 / 4) / 10, rtol=1e-6)


# --- groups ------------------------------------------------------------------------------------


@pytest.mark.parametrize('run', RUNS)
def test_every_parameter_learns_and_decays_as_in_the_reference(case, frozen_text_updates, run):
  index, groups = reference_groups(case, run)
  decays, moves = frozen_text_updates if RUNS[run] else first_updates(case, False)
  assert index.keys() == decays.keys() == moves.keys()
  for name, group in index.items():
    lr = 0 if group < 0 else 2e-3 * (1 if group < 2 else 10)
    decay = 0 if group < 0 else groups[group]['weight_decay']
    np.testing.assert_allclose(decays[name], -lr * decay, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(moves[name], -lr, rtol=1e-5, err_msg=name)


def test_new_parts_learn_ten_times_as_fast(frozen_text_updates):
  moves = frozen_text_updates[1]
  fast = {k.split('/')[0] for k, x in moves.items() if np.allclose(x, -2e-2)}
  assert fast == {'vision', 'mit', 'prompt'}
  in_vision = {k for k, x in moves.items() if k.startswith('vision') and np.allclose(x, -2e-2)}
  assert in_vision == {k for k in moves if k.startswith('vision') and '/message_' in k}


def test_frozen_text_does_not_move_and_has_no_moments(case, frozen_text_updates):
  moves = frozen_text_updates[1]
  frozen = {k for k, x in moves.items() if not np.any(x)}
  assert frozen == {k for k in moves if k.startswith('text/') or k == 'logit_scale'}
  tx, _ = optimizer.make(recipe(), case.params, STEPS, WARMUP, freeze_text=True)
  kept = tree_names.flatten(jax.eval_shape(tx.init, case.params))
  names = [n for n, x in kept.items() if x.shape]
  assert len(names) == 2 * (len(moves) - len(frozen))
  assert not any(n.endswith(k) for n in names for k in frozen)


def test_a_rule_that_matches_nothing_is_an_error(case):
  for field, rules in (
    ('groups', (('mitt/.*', 10.0), ('.*', 1.0))), ('decay', (('.*/biass', 0.0), ('.*', 1.0)))
  ):
    with pytest.raises(ValueError, match=rf"config.optim.{field}: '{re.escape(rules[0][0])}'"):
      optimizer.make(recipe(**{field: rules}), case.params, STEPS, WARMUP)


def test_a_parameter_without_a_rule_is_an_error(case):
  with pytest.raises(ValueError, match='no rule matches'):
    optimizer.make(recipe(groups=(('vision/.*', 1.0),)), case.params, STEPS, WARMUP)


def test_freezing_everything_is_an_error(case):
  with pytest.raises(ValueError, match='freezes every parameter'):
    optimizer.make(recipe(groups=(('.*', 0.0),)), case.params, STEPS, WARMUP)


@pytest.mark.slow
def test_frozen_gradients_do_not_count_in_the_clipped_norm(case):
  tx, _ = optimizer.make(
    recipe(lag_steps=0, clip_norm=1.0), case.params, STEPS, 0, freeze_text=True
  )
  zeros = jax.tree.map(jnp.zeros_like, case.params)
  grads = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), case.params)
  huge = grads | {'text': jax.tree.map(lambda x: x * 1e6, grads['text'])}
  update = jax.jit(lambda grads: tx.update(grads, tx.init(zeros), zeros)[1])
  plain, other = update(grads), update(huge)
  jax.tree.map(np.testing.assert_array_equal, plain, other)
  # The first moment is (1 - b1) of the gradient as clipped: norm 1 over what is trained.
  first = [x for n, x in tree_names.flatten(plain).items() if '/mu/' in n]
  np.testing.assert_allclose(optax.tree.norm(first), 1 - 0.9, rtol=1e-4)


@pytest.mark.parametrize(('width', 'lr', 'steps', 'warning'), [
  (768, 8e-6, 28176, None),                    # as published
  (768, 2e-6, 80, None),                       # ... with two clips a class
  (768, 2.5e-7, 30, 'over 30 updates moves no weight by more than 4e-05'),
  (96, 5e-4, 1200, None),                      # the demo
  (96, 8e-6, 1200, 'this one is 96 wide and hardly learns with it; try 0.0002'),
  (96, 0.0, 1200, None),                       # nothing is to be learnt
])
def test_a_learning_rate_that_cannot_fit_is_warned_of(width, lr, steps, warning):
  c = base.get_config()
  c.optim.lr = lr
  model = XCLIPConfig(vision_width=width)
  found = optimizer.explain_small_rate(c, model, steps)
  assert found is None if warning is None else warning in found


def test_published_sizes_take_the_published_rate_and_small_ones_a_larger():
  assert optimizer.fit_learning_rate(XCLIPConfig(), 64) == 2e-6
  assert optimizer.fit_learning_rate(XCLIPConfig(vision_width=96), 64) == optimizer.SMALL_RATE
