import sys

import jax
import numpy as np
import optax

import tiny
from xclip_jax import config
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state as state_lib
from xclip_jax.training import job as job_lib
from xclip_jax.training import optimizer
from xclip_jax.training import step as step_lib

STEPS, B, K = 20, 8, 6
FIELDS = {
  'tiny': dict(tiny.FIELDS, vision_heads=4, text_heads=4, mit_heads=4, prompt_heads=4),
  # B/16's widths and heads on fewer patches and layers. As in B/16 there are more tokens than the
  # text tower is wide, so that fsdp splits their embeddings by token.
  'B/16': dict(image_size=64, patch_size=16, vision_layers=2, text_layers=1, vocab_size=1024,
               context_length=8),
}[sys.argv[1].split()[0]]
MESHES = [dict(x.split('=') for x in mesh.split(',')) for mesh in sys.argv[2:]]

c = config.get_config()
c.model.num_frames, c.model.fields = 4, FIELDS
c.model.attention = 'chunked' if 'chunked' in sys.argv[1] else 'xla'
c.train.batch_size = c.eval.batch_size = B
c.train.freeze_text = False
c.optim.lr = 1e-4
model = job_lib.make_model(c)
params = state_lib.abstract(model, optax.identity()).params
tx, _ = optimizer.make(c.optim, params, STEPS, 4, 1, False)
abstract = state_lib.abstract(model, tx)
names = ClassList(tuple(f'class {k}' for k in range(K)), (None,) * K)
side = model.config.image_size


def run(axes, devices):
  mesh = mesh_lib.make_mesh({k: int(v) for k, v in axes.items()}, devices)
  job_lib.check_sizes(c, model, mesh)
  places = mesh_lib.infer(abstract, c.sharding, mesh)
  state = state_lib.init(model, tx, 0, places)
  for name, x in (('params', state.params), ('opt_state', state.opt_state)):
    split = sum(not y.sharding.is_fully_replicated for y in jax.tree.leaves(x))
    shared = mesh.shape['fsdp'] * mesh.shape['tensor'] > 1
    assert (split > 10) == shared, (axes, name, split)
  step = step_lib.jit_train_step(step_lib.StepParts(model, tx, c, names), places, mesh)
  everywhere = mesh_lib.replicated(mesh)
  text = np.tile(np.arange(8, dtype=np.int32), (K, 1)) + np.arange(K, dtype=np.int32)[:, None]
  text = jax.device_put(text, everywhere)
  key = jax.jit(lambda: jax.random.key(1), out_shardings=everywhere)()
  rng, rows = np.random.default_rng(0), []
  with jax.set_mesh(mesh):
    for _ in range(STEPS):
      batch = {'video': rng.integers(0, 255, (B, 4, side, side, 3), np.uint8),
               'label': rng.integers(0, K, B).astype(np.int32), 'mask': np.arange(B) < B - 1}
      state, metrics = step(state, mesh_lib.put_batch(batch, mesh), text, key)
      rows.append([float(metrics['loss']), float(metrics['grad_norm'])])
  return np.array(rows), jax.device_get(state.params)


want, final = run({}, jax.devices()[:1])
assert np.ptp(want[:, 0]) > 0.01, 'nothing changes'
for axes in MESHES:
  got, params = run(axes, jax.devices())
  loss = np.abs(got[:, 0] - want[:, 0]).max()
  # A bias of the keys moves all scores of a query alike, and softmax does not see it: its gradient
  # is rounding alone, which AdamW makes as large as any other's.
  apart = {name: float(np.abs(x - tree_names.flatten(final)[name]).max())
           for name, x in tree_names.flatten(params).items() if not name.endswith('key/bias')}
  worst = max(apart, key=apart.get)
  print(axes, 'losses', loss, 'parameters', worst, apart[worst])
