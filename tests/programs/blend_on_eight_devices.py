import jax
import numpy as np

from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.planning import hlo
from xclip_jax.training.objectives import losses

BOTH = losses.Blending(0.8, 1.0, 0.5)


def update(key, video, targets):
  """Two micro-batches, cut as a training step cuts them."""
  split = lambda x: x.reshape(-1, 2, *x.shape[1:]).swapaxes(0, 1)
  work = lambda _, part: (None, losses.blend(*part, BOTH))
  return jax.lax.scan(work, None, (jax.random.split(key), split(video), split(targets)))[1]


def run(axes, devices, rows):
  mesh = mesh_lib.make_mesh(axes, devices)
  whole, shared = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
  rng = np.random.default_rng(0)
  put = lambda x: jax.device_put(x, shared)
  video = put(rng.integers(0, 256, (rows, 2, 16, 16, 3), np.uint8))
  targets = put(np.eye(rows, dtype=np.float32))
  key = jax.device_put(jax.random.key(1), whole)
  out = jax.sharding.NamedSharding(mesh, jax.P(None, mesh_lib.BATCH_AXES))
  program = jax.jit(update, in_shardings=(whole, shared, shared), out_shardings=(out, out))
  with jax.set_mesh(mesh):
    program = program.lower(key, video, targets).compile()
    return hlo.collectives(program.as_text()), jax.device_get(program(key, video, targets))


for rows, axes in ((128, {'dcn': 2, 'data': 2, 'fsdp': 2}), (32, {'data': 8})):
  _, want = run({}, jax.devices()[:1], rows)
  traffic, got = run(axes, jax.devices(), rows)
  print(rows, sorted(traffic))
  for x, y in zip(got, want, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
