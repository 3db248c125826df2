import json
import sys

import jax
import numpy as np
import optax

import tiny
from xclip_jax.data.datasets.annotations import ClassList
from xclip_jax.evaluation import scorer
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state as state_lib
from xclip_jax.text import prompts
from xclip_jax.training import job as job_lib
from xclip_jax.training import step as step_lib
from xclip_jax.weights.native import Preprocess

c = tiny.config('.', train__freeze_text=False, augment__mixup=0.0, augment__cutmix=0.0)
model = job_lib.make_model(c)
mesh = mesh_lib.make_mesh({'data': -1})
assert mesh.size == 8
everywhere = mesh_lib.replicated(mesh)
abstract = state_lib.abstract(model, optax.sgd(0.1))
places = mesh_lib.infer(abstract, c.sharding, mesh)
place = lambda tree, where: jax.tree.map(
  lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)
array = lambda shape, dtype, where=everywhere: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
rows = mesh_lib.batch_sharding(mesh)
batch = {'video': array((8, 3, 32, 32, 3), np.uint8, rows), 'label': array((8,), np.int32, rows),
         'mask': array((8,), bool, rows)}
key = array((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
params = place(abstract.params, jax.tree.map(lambda _: everywhere, abstract.params))
flops = lambda lowered: lowered.compile().cost_analysis()['flops']


def step(K, several):
  names = ClassList(tuple(f'class {k}' for k in range(K)), (None,) * K)
  texts = None
  if several:              # two texts a class
    which = np.arange(2 * K, dtype=np.int32).reshape(K, 2)
    texts = prompts.Prompts(('x',) * 2 * K, np.ones((2 * K, 16), np.int32), which,
                            np.full(K, 2, np.int32))
  compiled = step_lib.jit_train_step(
    step_lib.StepParts(model, optax.sgd(0.1), c, names, class_prompts=texts), places, mesh)
  ids = array(((1 + several) * K, 16), np.int32)
  return flops(compiled.lower(place(abstract, places), batch, ids, key))


found = scorer.Scorer(model, Preprocess(), mesh)
with jax.set_mesh(mesh):
  encode = lambda jitted: lambda K: flops(jitted.lower(params, array((K, 16), np.int32)))
  cases = {
    'training': lambda K: step(K, False), 'training, two texts a class': lambda K: step(K, True),
    'evaluation': encode(found._encode_text),
  }
  for name in sys.argv[1:]:
    print(json.dumps([cases[name](400), cases[name](401)]))
