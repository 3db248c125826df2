"""Loads the golden cases: inputs, expected numbers and our parameters for them."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from xclip_jax.models.config import XCLIPConfig
from xclip_jax.weights import apply, architecture

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
CASES = ('A_T4', 'B_T8', 'hf_tiny_a')


def load_npz(name: str) -> dict[str, np.ndarray]:
  with np.load(GOLDENS / name) as f:
    return dict(f)


class Case:
  """Holds one golden case: `config`, `params`, `video` [B,T,H,W,3], `token_ids`, `target`, `io`."""

  def __init__(self, name: str):
    self.name, self.is_hf = name, name.startswith('hf')
    self.dialect = 'huggingface' if self.is_hf else 'official'
    if self.is_hf:
      self.state = safetensors.numpy.load_file(GOLDENS / name / 'model.safetensors')
      hf_config = json.loads((GOLDENS / name / 'config.json').read_text())
      self.io = load_npz(f'{name}/io.npz')
      video, self.token_ids = self.io['pixel_values'], self.io['input_ids']
      K = len(self.token_ids)
      self.target = np.eye(K, dtype=np.float32)[self.io['labels']]
      self.logits, self.loss = self.io['logits_per_video'], self.io['loss_ce']
    else:
      self.state = load_npz(f'reference/ref_tiny_{name}_state.npz')
      hf_config = None
      self.io = load_npz(f'reference/ref_tiny_{name}_io.npz')
      video, self.token_ids = self.io['image'], self.io['text']
      self.target = self.io['target']
      self.logits, self.loss = self.io['out.logits'], self.io['loss']
    self.video = video.transpose(0, 1, 3, 4, 2)
    self.config: XCLIPConfig = architecture.infer_config(self.state, self.dialect, hf_config)
    self.params = apply.to_params(self.state, self.dialect, self.config)

  def grads(self):
    """Expected gradient of the loss for each of our parameters."""
    if self.is_hf:
      raw = {k.removeprefix('grad/'): v for k, v in self.io.items() if k.startswith('grad/')}
    else:
      raw = load_npz(f'reference/ref_tiny_{self.name}_grads.npz')
    return apply.to_params(raw, self.dialect, self.config)
