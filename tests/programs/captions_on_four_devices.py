import jax
import numpy as np

import tiny
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state as state_lib
from xclip_jax.training import job as job_lib
from xclip_jax.training.objectives import objective

assert jax.device_count() == 4
c = job_lib.resolve_config(tiny.config('.', train__task='captions', data__zero_shot='',
                               train__freeze_text=False))
model = job_lib.make_model(c)
params = state_lib.init_params(model, jax.random.key(0))
rng = np.random.default_rng(0)
ids = rng.integers(1, 400, (8, 6)).astype(np.int32)
ids[:, -1] = 49407
ids[5] = ids[2]
batch = {'video': rng.integers(0, 256, (8, 3, 32, 32, 3), np.uint8), 'token_ids': ids,
         'file': np.array([0, 1, 2, 3, 4, 5, 0, 7], np.int32), 'mask': np.arange(8) != 3}
grad = jax.value_and_grad(objective.make(model, c, ClassList((), ())), has_aux=True)
found = []
for devices in (jax.devices(), jax.devices()[:1]):
  mesh = mesh_lib.make_mesh({'data': -1}, devices)
  with jax.set_mesh(mesh):
    placed = mesh_lib.put_batch(batch, mesh)
    everywhere = jax.device_put(params, mesh_lib.replicated(mesh))
    key = jax.device_put(jax.random.key(1), mesh_lib.replicated(mesh))
    (value, _), grads = jax.jit(grad)(everywhere, placed, None, key)
    found.append((float(value), jax.device_get(grads)))
np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
# Some gradients are exactly zero, but for rounding: keys' biases.
near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 0.1))
jax.tree.map(near, found[0][1], found[1][1])
