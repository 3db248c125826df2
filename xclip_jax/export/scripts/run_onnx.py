"""Runs the ONNX graphs of this folder with onnxruntime and numpy: run_onnx.py FRAMES.npy IDS.npy

FRAMES.npy: uint8 [B, T, H, W, 3], RGB. IDS.npy: int32 [K, S], from tokenizer.json.
"""

import pathlib
import sys

import numpy as np
import onnxruntime

folder = pathlib.Path(__file__).parent


def run(name, *inputs):
  graph = onnxruntime.InferenceSession(folder / f'{name}.onnx')
  return graph.run(None, dict(zip((x.name for x in graph.get_inputs()), inputs, strict=True)))


video = run('video', np.load(sys.argv[1]))
probabilities, logits = run('score', *video, *run('text', np.load(sys.argv[2])))
print(np.array2string(probabilities, precision=4, suppress_small=True))
