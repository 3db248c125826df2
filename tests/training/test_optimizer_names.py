"""Every optimizer that a config can name computes its paper's update, by the same groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from xclip_jax.parallel import tree_names
from xclip_jax.training import optimizer

RATE, DECAY, STEPS = 1e-2, 0.1, 4
GROUPS = (('fast/.*', 10.0), ('fixed/.*', 0.0), ('.*', 1.0))
NO_DECAY = (('.*/bias', 0.0), ('.*', 1.0))
SHAPES = {
  'fast/kernel': (128, 130), 'slow/kernel': (3, 5), 'slow/bias': (5,), 'fixed/kernel': (2, 2),
}


def config(name, **fields):
  c = base.get_config().optim
  c.update(dict(
    name=name, lr=RATE, floor=1.0, weight_decay=DECAY, groups=GROUPS, decay=NO_DECAY, lag_steps=0,
  ) | fields)
  return c


def arrays(seed):
  rng = np.random.default_rng(seed)
  return {k: rng.normal(size=shape) for k, shape in SHAPES.items()}


def run(name):
  """Parameters after each of a few updates by gradients that are given."""
  params = tree_names.unflatten({k: jnp.asarray(x, jnp.float32) for k, x in arrays(0).items()})
  tx, _ = optimizer.make(config(name), params, 10**6, 0)     # so long that the rates stand still
  state, found = tx.init(params), []
  update = jax.jit(tx.update)
  for step in range(STEPS):
    grads = tree_names.unflatten(
      {k: jnp.asarray(x, jnp.float32) for k, x in arrays(step + 1).items()})
    updates, state = update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    found.append(tree_names.flatten(params))
  return found, state


def adamw(memory, g, t):
  memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * g
  memory['v'] = 0.98 * memory.get('v', 0) + 0.02 * g**2
  return memory['m'] / (1 - 0.9**t) / (np.sqrt(memory['v'] / (1 - 0.98**t)) + 1e-8)


def lion(memory, g, t):
  step = np.sign(0.9 * memory.get('m', 0) + 0.1 * g)
  memory['m'] = 0.98 * memory.get('m', 0) + 0.02 * g
  return step


def adafactor(memory, g, t):
  keep = min(1 - t**-0.8, 0.98)
  mix = lambda name, x: memory.update({name: keep * memory.get(name, 0) + (1 - keep) * x})
  if min(g.shape) >= 128:           # rows and columns instead of every entry
    mix('rows', (g**2).mean(1))
    mix('columns', (g**2).mean(0))
    v = np.outer(memory['rows'], memory['columns']) / memory['rows'].mean()
  else:
    mix('v', g**2)
    v = memory['v']
  step = g / np.sqrt(v)
  step /= max(1, np.sqrt((step**2).mean()))
  memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * step
  return memory['m']


@pytest.mark.parametrize('name, step', [('adamw', adamw), ('lion', lion), ('adafactor', adafactor)])
def test_updates_are_the_paper_s_with_the_rates_and_decays_of_the_groups(name, step):
  found, _ = run(name)
  want, memory = arrays(0), {k: {} for k in SHAPES}
  for t in range(1, STEPS + 1):
    for key, g in arrays(t).items():
      lr = {'fast': 10 * RATE, 'slow': RATE, 'fixed': 0}[key.split('/')[0]]
      decay = 0 if key.endswith('bias') else DECAY
      g = g.astype(np.float32).astype(np.float64)
      want[key] = want[key] - lr * (step(memory[key], g, t) + decay * want[key])
      np.testing.assert_allclose(found[t - 1][key], want[key], atol=2e-5, err_msg=f'{key}, {t}')


@pytest.mark.parametrize('name, size', [('adamw', 2.0), ('lion', 1.0), ('adafactor', 1.02)])
def test_memory_of_the_optimizers(name, size):
  """Numbers kept for each large parameter; nothing for those that do not move."""
  leaves = tree_names.flatten(run(name)[1])
  kept = lambda key: sum(x.size for k, x in leaves.items() if k.endswith(key))
  assert kept('fast/kernel') / (128 * 130) == pytest.approx(size, abs=0.01)
  assert not kept('fixed/kernel')


def test_an_unknown_optimizer_is_an_error():
  with pytest.raises(ValueError, match=r"config.optim.name='adam' must be one of"):
    every = (('.*', 1.0),)
    optimizer.make(config('adam', groups=every, decay=every), {'a': jnp.zeros(3)}, 1, 0)


def test_adamw_is_the_default():
  assert base.get_config().optim.name == 'adamw'
