"""Every mesh trains the same model: 20 updates on 8 simulated devices equal those of one device."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import quick
import tiny

TRAIN = '''
import sys

import jax
import numpy as np
import optax

import tiny
from xclip_jax import config, optim, paths, sharding, train
from xclip_jax import state as state_lib
from xclip_jax.data.source import ClassList

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
model = train.make_model(c)
params = state_lib.abstract(model, optax.identity()).params
tx, _ = optim.make(c.optim, params, STEPS, 4, 1, False)
abstract = state_lib.abstract(model, tx)
names = ClassList(tuple(f'class {k}' for k in range(K)), (None,) * K)
side = model.config.image_size


def run(axes, devices):
  mesh = sharding.make_mesh({k: int(v) for k, v in axes.items()}, devices)
  train.check_sizes(c, model, mesh)
  places = sharding.infer(abstract, c.sharding, mesh)
  state = state_lib.init(model, tx, 0, places)
  for name, x in (('params', state.params), ('opt_state', state.opt_state)):
    split = sum(not y.sharding.is_fully_replicated for y in jax.tree.leaves(x))
    shared = mesh.shape['fsdp'] * mesh.shape['tensor'] > 1
    assert (split > 10) == shared, (axes, name, split)
  step = train.jit_train_step(model, tx, c, names, places, mesh)
  everywhere = sharding.replicated(mesh)
  text = np.tile(np.arange(8, dtype=np.int32), (K, 1)) + np.arange(K, dtype=np.int32)[:, None]
  text = jax.device_put(text, everywhere)
  key = jax.jit(lambda: jax.random.key(1), out_shardings=everywhere)()
  rng, rows = np.random.default_rng(0), []
  with jax.set_mesh(mesh):
    for _ in range(STEPS):
      batch = {'video': rng.integers(0, 255, (B, 4, side, side, 3), np.uint8),
               'label': rng.integers(0, K, B).astype(np.int32), 'mask': np.arange(B) < B - 1}
      state, metrics = step(state, sharding.put_batch(batch, mesh), text, key)
      rows.append([float(metrics['loss']), float(metrics['grad_norm'])])
  return np.array(rows), jax.device_get(state.params)


want, final = run({}, jax.devices()[:1])
assert np.ptp(want[:, 0]) > 0.01, 'nothing changes'
for axes in MESHES:
  got, params = run(axes, jax.devices())
  loss = np.abs(got[:, 0] - want[:, 0]).max()
  # A bias of the keys moves all scores of a query alike, and softmax does not see it: its gradient
  # is rounding alone, which AdamW makes as large as any other's.
  apart = {name: float(np.abs(x - paths.flatten(final)[name]).max())
           for name, x in paths.flatten(params).items() if not name.endswith('key/bias')}
  worst = max(apart, key=apart.get)
  print(axes, 'losses', loss, 'parameters', worst, apart[worst])
'''


def eight_devices(program, *arguments):
  """Runs a program, and sees to it that XLA does not give all of an array to all, to move it."""
  flags = f'--xla_force_host_platform_device_count=8 {quick.FLAGS}'
  done = subprocess.run(
    [sys.executable, '-c', program, *arguments], cwd=tiny.REPO, capture_output=True, text=True,
    env=os.environ | tiny.SIMULATED | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu',
                      'PYTHONPATH': f'{tiny.REPO}:{tiny.REPO / "tests"}'})
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'nvoluntary full rematerialization' not in done.stderr, done.stderr[-3000:]
  return done.stdout.splitlines()


def train(size, meshes):
  lines = eight_devices(TRAIN, size, *meshes)
  assert len(lines) == len(meshes)
  for line in lines:
    words = line.split()
    assert float(words[words.index('losses') + 1]) < 1e-5, line
    assert float(words[-1]) < 1e-5, line


def test_twenty_updates_on_a_mixed_mesh_equal_those_of_one_device():
  train('tiny', ['data=2,fsdp=2,tensor=2'])


@pytest.mark.slow
@pytest.mark.parametrize('size', ['tiny', 'B/16'])
def test_twenty_updates_on_any_mesh_equal_those_of_one_device(size):
  train(size, ['data=8', 'data=1,fsdp=8', 'data=2,tensor=4', 'data=2,fsdp=4',
               'dcn=2,data=2,tensor=2', 'dcn=2,data=1,fsdp=2,tensor=2'])


@pytest.mark.slow
def test_twenty_updates_with_heads_a_few_at_a_time_equal_those_of_one_device():
  train('B/16 chunked', ['data=2,fsdp=4', 'data=2,tensor=4'])


@pytest.mark.slow
def test_a_whole_run_on_a_tensor_mesh_equals_that_of_one_device(tmp_path):
  root, losses = tiny.write_data(tmp_path / 'data'), []
  for name, options in (('one', {}), ('four', dict(devices=4, mesh__tensor=2))):
    done = tiny.finish(tmp_path / name, root, **options)
    assert done.returncode == 0, done.stdout[-3000:]
    rows = [json.loads(x) for x in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    losses.append([x['loss'] for x in rows if 'loss' in x])
  assert len(losses[0]) == 6
  np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)


# What one device exchanges in a training step of two vision layers, at most: how often, and KiB.
# data: the gradients together, and nothing of the batch: clips are blended with those of the same
# device. fsdp: each kernel forwards and backwards. tensor: a sum after each attention and each MLP,
# forwards and backwards. dcn: as data. (XLA:CPU all-reduces the gradients of split kernels, and
# then cuts.)
EXCHANGED = {
  'data=8': {'all-reduce': (2, 780)},
  'data=2,fsdp=4': {'all-gather': (43, 774), 'all-reduce': (5, 970), 'all-to-all': (3, 3)},
  'data=2,tensor=4': {'all-reduce': (21, 684)},
  'dcn=2,data=1,fsdp=2,tensor=2': {
    'all-gather': (60, 672), 'all-reduce': (32, 687), 'all-to-all': (3, 6),
    'collective-permute': (16, 246)},
}

PLAN = """
import json
import sys

from xclip_jax import config, plan

fields = json.loads(sys.argv[1])
for mesh in sys.argv[2:]:
  c = config.get_config()
  c.model.num_frames, c.model.fields = 2, fields
  c.train.batch_size, c.augment.blend_rows = 16, 2        # the rows of a device
  c.mesh.update({k: int(n) for k, n in (x.split('=') for x in mesh.split(','))})
  found = plan.make(c, 'cpu', classes=5)
  print(json.dumps({k: [x.count, x.bytes] for k, x in found.traffic.items()}))
"""


@pytest.mark.parametrize('meshes', [
  ('data=8', 'data=2,fsdp=4'),
  pytest.param(('data=2,tensor=4', 'dcn=2,data=1,fsdp=2,tensor=2'), marks=pytest.mark.slow)])
def test_meshes_exchange_what_they_must_and_nothing_else(meshes):
  fields = dict(tiny.FIELDS, vision_layers=2, vision_heads=4, mit_heads=4, prompt_heads=4,
                vision_width=64, vision_mlp=256, text_heads=4)
  found_lines = eight_devices(PLAN, json.dumps(fields), *meshes)
  for mesh, line in zip(meshes, found_lines, strict=True):
    found, most = json.loads(line), EXCHANGED[mesh]
    assert found.keys() == most.keys(), (mesh, found)
    for kind, (count, size) in found.items():
      assert count <= most[kind][0] and size / 1024 <= most[kind][1], (mesh, kind, count, size)
