"""Runs the StableHLO graphs of this folder with jax alone: run_stablehlo.py FRAMES.npy IDS.npy

FRAMES.npy: uint8 [B, T, H, W, 3], RGB. IDS.npy: int32 [K, S], from tokenizer.json.
"""

import pathlib
import sys

import jax
import numpy as np

folder = pathlib.Path(__file__).parent
params = {
  name: x.view(jax.numpy.bfloat16) if x.dtype.kind == 'V' else x
  for name, x in np.load(folder / 'parameters.npz').items()}


def run(name, *inputs):
  graph = jax.export.deserialize(bytearray((folder / f'{name}.stablehlo').read_bytes()))
  return graph.call(params, *inputs)


video = run('video', np.load(sys.argv[1]))
probabilities, logits = run('score', *video, *run('text', np.load(sys.argv[2])))
print(np.array2string(np.asarray(probabilities), precision=4, suppress_small=True))
