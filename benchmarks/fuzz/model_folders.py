"""Damaged JSON beside sound weights, in folders of transformers, open_clip and this package.

Most changes keep the JSON valid and replace, remove or add a value of any type at a random place.
"""

import copy
import functools
import json
import pathlib
import random

import jax
import numpy as np

from benchmarks.fuzz import harness
from xclip_jax.models.config import make_config
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply, native, opening
from xclip_jax.weights.export import huggingface
from xclip_jax.weights.files import archive

TINY = dict(
  image_size=32, patch_size=16, num_frames=2, embed_dim=8, vision_width=64, vision_layers=1,
  vision_heads=1, vision_mlp=128, text_width=64, text_layers=1, text_heads=1, text_mlp=128,
  context_length=77, mit_heads=1, mit_mlp=32, prompt_heads=1)
OPEN_CLIP = {
  'model_cfg': {
    'embed_dim': 8, 'quick_gelu': True,
    'vision_cfg': {'image_size': 32, 'layers': 1, 'width': 64, 'head_width': 64, 'mlp_ratio': 2.0,
                   'patch_size': 16},
    'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 64, 'heads': 1, 'layers': 1,
                 'mlp_ratio': 2.0}},
  'preprocess_cfg': {
    'mean': [0.48145466, 0.4578275, 0.40821073], 'std': [0.26862954, 0.26130258, 0.27577711],
    'interpolation': 'bicubic', 'resize_mode': 'shortest'}}
VALUES = (
  None, True, False, 0, 1, -1, 2, 7, 64, 10**9, 2**63, -2**70, 1e308, float('inf'), float('nan'),
  0.5, -0.0, '', 'x', 'relu', 'bicubic', '0', '\x1b[31m', '\udcff', '../..', [], [1], [0.5] * 3,
  [None] * 3, [['a']], {}, {'height': 32}, {'shortest_edge': 32}, {'a': {'b': 1}})


def _weights(width: int) -> native.Weights:
  config = make_config('B/32', **TINY | {'vision_width': width, 'text_width': width})
  rng = np.random.default_rng(0)
  draw = lambda x: np.asarray(0.1 * rng.standard_normal(x.shape), np.float32)
  params = jax.tree.map(draw, apply.abstract_params(config))
  return native.Weights(
    config, params, native.REFERENCE, '{}', source='here', dialect='native', licence='')


def _write(name: str, folder: pathlib.Path) -> None:
  weights = _weights(64 if name == 'open_clip folder' else 16)   # its heads are 64 wide
  if name == 'native folder':
    native.save(folder / 'model', weights)
  elif name == 'transformers folder':
    (folder / 'model').mkdir()
    huggingface.write_folder(folder / 'model', weights)
    content = json.loads((folder / 'model/preprocessor_config.json').read_text())
    (folder / 'model/processor_config.json').write_text(json.dumps(
      {'processor_class': 'XCLIPProcessor', 'image_processor': content}))
  else:
    (folder / 'model').mkdir()
    archive.write_torch(
      folder / 'model/open_clip_pytorch_model.bin', apply.to_state_dict(weights.params, 'openai'))
    (folder / 'model/open_clip_config.json').write_text(json.dumps(OPEN_CLIP))


def _places(tree, at=()):
  """Lists the paths of all values in a JSON tree."""
  yield at
  parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(
    tree, list) else ()
  for key, value in parts:
    yield from _places(value, (*at, key))


def change(tree, rng: random.Random):
  """Returns a JSON tree with one value replaced, removed or added."""
  tree = copy.deepcopy(tree)
  *parents, last = rng.choice([x for x in _places(tree) if x] or [('new',)])
  parent = tree
  for key in parents:
    parent = parent[key]
  match rng.randrange(6):
    case 0:
      del parent[last]
    case 1 if isinstance(parent, dict):
      parent[rng.choice(('do_resize', 'pool_type', 'rescale_factor', 'hidden_act', 'no_such_field',
                         'longest_edge', 'hf_tokenizer_name'))] = rng.choice(VALUES)
    case _:
      parent[last] = rng.choice(VALUES)
  return tree


def _prepare(name: str, folder: pathlib.Path, canary: pathlib.Path):
  _write(name, folder)
  model = folder / 'model'
  sound = {x: x.read_bytes() for x in sorted(model.glob('*.json')) if x.stat().st_size < 100_000}
  # The modules that CLIP lacks are drawn with a program that takes seconds to compile each time.
  apply._draw = lambda config, chosen, seed: {
    name: np.zeros(x.shape, np.float32)
    for name, x in tree_names.flatten(apply.abstract_params(config)).items() if chosen(name)}
  read(model)

  def write_next(rng: random.Random) -> pathlib.Path:
    for file, content in sound.items():
      file.write_bytes(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
      file = rng.choice(list(sound))
      if rng.random() < 0.85:
        file.write_text(json.dumps(change(json.loads(sound[file]), rng)), errors='surrogatepass')
      else:
        file.write_bytes(harness.damage(sound[file], rng))
    return model

  return write_next


def read(path: pathlib.Path) -> None:
  opening.open_weights(path)


KINDS = [harness.Kind(name, functools.partial(_prepare, name), read)
         for name in ('native folder', 'transformers folder', 'open_clip folder')]
