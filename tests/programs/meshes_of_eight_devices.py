"""Checks meshes, shardings, batches, a forward pass and checkpoints on eight simulated devices."""

import tempfile

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from configs import base
from xclip_jax.models.xclip import XCLIP, XCLIPConfig
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state as state_lib
from xclip_jax.storage.checkpoints import Checkpoints

assert jax.device_count() == 8

def refused(words, f, *arguments):
  try:
    f(*arguments)
  except ValueError as error:
    assert words in str(error), error
  else:
    raise AssertionError(f'not refused: {words}')

# Meshes.
size = lambda **axes: tuple(mesh_lib.make_mesh(axes).shape.values())
assert size(data=-1) == (1, 8, 1, 1) and size(data=-1, fsdp=4) == (1, 2, 4, 1)
assert size(data=2, fsdp=-1) == (1, 2, 4, 1) and size(dcn=2, tensor=2, data=-1) == (2, 2, 1, 2)
refused('does not cover the 8 devices', mesh_lib.make_mesh, dict(data=3, fsdp=2))
refused('does not cover the 8 devices', mesh_lib.make_mesh, dict(data=-1, fsdp=3))
refused('does not cover the 8 devices', mesh_lib.make_mesh, dict(data=-1, fsdp=-1))
refused("unknown axes ['model']", mesh_lib.make_mesh, dict(model=8))

# Placement of a whole state.
config = XCLIPConfig(
  image_size=32, patch_size=16, num_frames=2, embed_dim=32, vision_width=32, vision_layers=1,
  vision_heads=2, vision_mlp=64, text_width=32, text_layers=1, text_heads=2, text_mlp=64,
  vocab_size=64, context_length=8, mit_heads=2, mit_mlp=64, prompt_layers=1, prompt_heads=2,
)
model = XCLIP(config)
abstract = state_lib.abstract(model, optax.adamw(1e-3))
rules = base.get_config().sharding
mesh = mesh_lib.make_mesh(dict(data=2, fsdp=4))

def specs(mesh):
  shardings = tree_names.flatten(mesh_lib.infer(abstract, rules, mesh))
  return {name: sharding.spec for name, sharding in shardings.items()}

place = specs(mesh)
assert place.keys() == tree_names.flatten(abstract).keys()
assert place['params/vision/blocks_0/mlp/c_fc/kernel'] == P(None, 'fsdp')     # [32, 64]
assert place['params/vision/blocks_0/mlp/c_proj/kernel'] == P('fsdp')         # [64, 32]
tensor = mesh_lib.make_mesh(dict(data=1, fsdp=2, tensor=4))
split = specs(tensor)
assert split['params/vision/blocks_0/mlp/c_fc/kernel'] == P('fsdp', 'tensor')
assert split['params/vision/blocks_0/mlp/c_fc/bias'] == P('tensor')
assert split['params/vision/blocks_0/mlp/c_proj/kernel'] == P('tensor', 'fsdp')
assert split['params/vision/blocks_0/mlp/c_proj/bias'] == P()
assert split['params/prompt/blocks_0/cross_attn/value/kernel'] == P('fsdp', 'tensor')
assert split['params/vision/blocks_0/message_fc/kernel'] == P('fsdp')
refused('config.mesh.tensor=4 does not divide vision_heads=2',
        mesh_lib.check_widths, dict(vision_heads=2), tensor)
assert place['params/vision/ln_pre/scale'] == P() and place['step'] == P()
for name, spec in place.items():
  if name.startswith('opt_state/') and ('/mu/' in name or '/nu/' in name):
    parameter = name.split('/mu/' if '/mu/' in name else '/nu/')[1]
    assert spec == place[f'params/{parameter}'], name
assert sum('/mu/' in name for name in place) == sum(name.startswith('params/') for name in place)

# Batches.
batch = {'video': np.arange(16.0).reshape(8, 2), 'label': np.arange(8)}
placed = mesh_lib.put_batch(batch, mesh)
assert len(placed['video'].addressable_shards) == 8
assert mesh_lib.put_batch({'label': np.zeros(8), 'view': np.zeros(24)}, mesh)['view'].shape == (24,)
assert all(s.data.shape == (1, 2) for s in placed['video'].addressable_shards)
np.testing.assert_array_equal(placed['label'], batch['label'])
refused('12 videos does not divide by the 8 shards', mesh_lib.put_batch, np.zeros((12, 2)), mesh)
refused('batch of 12 rows does not divide by the 8 shards', mesh_lib.host_rows, mesh, 12)
assert mesh_lib.host_rows(mesh, 16).tolist() == list(range(16))

# The forward pass.
rng = np.random.default_rng(0)
params = jax.tree.map(
  lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), abstract.params)
video = rng.normal(size=(8, 2, 32, 32, 3)).astype(np.float32)
ids = rng.integers(1, 64, (3, 8), dtype=np.int32)
forward = lambda params, video, ids: model.apply({'params': params}, video, ids).logits
want = jax.jit(forward)(params, video, ids)


def in_order(axes, order):
  """Returns the mesh with its devices in another order, as TPU slices have it."""
  mesh = mesh_lib.make_mesh(axes)
  grid = np.array([mesh.devices.flat[i] for i in order]).reshape(mesh.devices.shape)
  return Mesh(grid, mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(mesh_lib.AXES))


BY_TURNS, IN_RINGS = [0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 3, 1, 5, 7, 6, 4]
permuted = [in_order(dict(data=8), BY_TURNS), in_order(dict(data=2, fsdp=4), IN_RINGS)]
for mesh in (mesh_lib.make_mesh(dict(data=8)), mesh_lib.make_mesh(dict(data=2, fsdp=4)), *permuted):
  where = mesh_lib.infer(abstract, rules, mesh).params
  with jax.set_mesh(mesh):
    got = jax.jit(forward)(
      jax.device_put(params, where), mesh_lib.put_batch(video, mesh),
      jax.device_put(ids, mesh_lib.replicated(mesh)),
    )
  assert len({str(s.index) for s in got.addressable_shards}) == 8, got.sharding
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)

# A checkpoint that devices in one order have saved, read by devices in another.
with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
  mlp = {'mlp': params['vision']['blocks_0']['mlp']}
  state = state_lib.TrainState(np.int32(1), mlp, ())
  one, other = (mesh_lib.infer(state, (('step', 'replicate'), ('.*', 'fsdp')), mesh)
                for mesh in permuted)
  saved = jax.device_put(state, one)
  checkpoints.save(1, saved, {'window': [1]})
  checkpoints.wait()
  step, restored, host = checkpoints.restore_latest(jax.eval_shape(lambda: state), other)
  assert (step, host) == (1, {'window': [1]})
  jax.tree.map(np.testing.assert_array_equal, saved, restored)
  assert restored.params['mlp']['c_fc']['kernel'].sharding.spec == P(None, 'fsdp')
print('all is well')
